"""What the formats' own readers are asked, what they refuse, and what that makes of the verdict."""

from __future__ import annotations

import re
import shutil
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp

from streamconv import UsageError, convert, inspect, open_checkpoint, verify
from streamconv.containers.open_any import open_any
from streamconv.containers.reference.open import open_reference
from streamconv.core.errors import MemoryBudgetError
from streamconv.values.options import ReadingOptions
from streamconv.values.reader import TensorReader
from streamconv.verification.reference import (
    FileCheck,
    NotAgreed,
    ReferenceCheck,
    TensorVerdict,
    check_reference,
    fit_reference,
)
from streamconv.verification.verify import Verification
from tests.damage import flip, records
from tests.places import FRAMEWORKS, REAL

BLOOM = REAL[1].folder
RAM: dict[str, Any] = {"max_ram": "4G"}
pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")


def asked(path: Path, mode: str = "all", code: int = 0, **options: Any) -> ReferenceCheck:
    found = verify(path, reference=mode, **{**RAM, **options})
    assert found.exit_code == code
    assert found.reference is not None
    return found.reference


def check(folder: Path, *names: str, mode: str = "all", ram: str = "4G") -> ReferenceCheck:
    return check_reference(folder, names, mode, fit_reference(folder, ReadingOptions(max_ram=ram)))


# -- agreed --------------------------------------------------------------------------------------------------------


def test_every_file_of_a_run_is_opened_and_every_tensor_compared() -> None:
    found = asked(BLOOM)
    assert (found.files, found.different, found.refused) == ({"torch.load": 16}, [], [])
    assert found.compared == found.tensors == 442
    assert found.nbytes == sum(tensor.nbytes for tensor in open_checkpoint(BLOOM).values())


@pytest.mark.parametrize(
    ("options", "files"),
    [
        ({"to": "huggingface", "max_shard_size": "60KB"}, {"safetensors.safe_open": 5}),
        ({"to": "megatron-legacy", "tp": 2, "pp": 3}, {"torch.load": 6}),
        ({"to": "deepspeed", "tp": 1, "pp": 2}, {"torch.load": 8}),
    ],
    ids=["huggingface", "megatron-legacy", "deepspeed"],
)
def test_what_we_write_is_read_alike(options: dict[str, Any], files: dict[str, int], tmp_path: Path) -> None:
    convert(BLOOM, tmp_path / "out", **options, **RAM)
    found = asked(tmp_path / "out", against=BLOOM)
    assert (found.files, found.different, found.refused) == (files, [], [])
    assert found.compared == found.tensors > 50


def test_torch_dist_is_read_alike_by_torch_s_own_reader(tmp_path: Path) -> None:
    convert(FRAMEWORKS / "dsp_llama_gqa_tp2pp2_fp32_z0", tmp_path / "out", to="megatron-core", tp=2, pp=2, **RAM)
    found = asked(tmp_path / "out")
    assert found.files == {"torch.distributed.checkpoint": 4, "torch.load": 1}
    assert found.compared == found.tensors > 40


def test_strides_that_mean_nothing_and_numbers_of_every_kind_are_compared(tmp_path: Path) -> None:
    one = torch.as_strided(torch.arange(4.0), (1, 2), (0, 2))
    torch.save(
        {"one": one, "c": torch.tensor([1 + 2j]), "b": torch.tensor(True), "e": torch.ones(0)}, tmp_path / "x.pt"
    )
    found = asked(tmp_path / "x.pt")
    assert (found.compared, found.nbytes, found.different, found.refused) == (4, 17, [], [])


def test_a_sample_is_the_beginning_and_the_end_of_a_few_tensors_of_each_file(tmp_path: Path) -> None:
    torch.save({f"w{number}": torch.arange(1000.0 + number) for number in range(9)}, tmp_path / "x.pt")
    found = asked(tmp_path / "x.pt", "sample")
    assert (found.mode, found.tensors, found.compared) == ("sample", 9, 3)
    assert found.nbytes == 4 * (1000 + 1004 + 1008)
    torch.save({"w": torch.zeros(5 << 20)}, tmp_path / "large.pt")
    found = asked(tmp_path / "large.pt", "sample")
    assert (found.compared, found.nbytes < 20 << 20) == (1, True)
    assert asked(tmp_path / "large.pt").nbytes == 20 << 20


# -- different -----------------------------------------------------------------------------------------------------


def test_a_difference_is_a_difference_and_named(tmp_path: Path) -> None:
    """Ours reads one file, torch maps another, as if one of them had misread it."""
    torch.save({"a": torch.zeros(8), "w": torch.arange(6.0).reshape(2, 3), "n": torch.ones(2)}, tmp_path / "x.pt")
    torch.save({"a": torch.zeros(8), "w": torch.arange(6.0).reshape(2, 3), "n": torch.ones(3)}, tmp_path / "other.pt")
    start, _ = records(tmp_path / "x.pt")["data/1"]
    flip(tmp_path / "x.pt", start + 4 * 4, 6)
    ours, theirs = (open_any(tmp_path / name) for name in ("x.pt", "other.pt"))
    result = ReferenceCheck("x", "all")
    room = fit_reference(tmp_path, ReadingOptions(max_ram="4G"))
    with closing(TensorReader("pread", room.settings.block)) as reader:
        check = FileCheck(result, reader, room, lambda _: None)
        verdicts = [check.tensor(tensor, open_reference(theirs), name) for name, tensor in ours.tensors().items()]
    assert verdicts == [
        TensorVerdict(),
        TensorVerdict(different="it differs from what torch.load reads, first at [1, 1]"),
        TensorVerdict(different="float32 [2], the reference reads float32 [3]"),
    ]
    result.different.append(NotAgreed("x.pt", "w", "it differs"))
    verification = Verification(inspect(tmp_path / "x.pt"), reference=result)
    assert verification.exit_code == 7
    assert re.search(
        r"the reference reads otherwise: 1\n  file  tensor  why\n  x\.pt  w +it differs", str(verification)
    )
    assert repr(verification).startswith("<Verification: values differ")


# -- refused -------------------------------------------------------------------------------------------------------


def test_what_the_reader_refuses_is_listed_and_not_agreed(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(3)}, tmp_path / "new.pt")
    torch.save({"w": torch.ones(3)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    found = asked(tmp_path, code=3)
    assert (found.files, found.compared, found.different) == ({"torch.load": 1}, 1, [])
    ((file, name, why),) = [(each.file, each.name, each.why) for each in found.refused]
    assert (file, name) == ("old.pt", None)
    assert why.startswith("torch.load refuses it: mmap can only be used with files saved with")
    # Whoever did not ask is not told.
    assert verify(tmp_path, **RAM).exit_code == 0


def test_damage_and_differences_come_before_what_was_refused(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(3)}, tmp_path / "new.pt")
    torch.save({"w": torch.ones(3)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    shutil.copytree(tmp_path, tmp_path.with_name("copy"))
    assert verify(tmp_path, tmp_path.with_name("copy"), reference="sample", **RAM).exit_code == 3
    torch.save({"w": torch.zeros(3)}, tmp_path.with_name("copy") / "new.pt")
    assert verify(tmp_path, tmp_path.with_name("copy"), reference="sample", **RAM).exit_code == 7
    start, _ = records(tmp_path / "new.pt")["data/0"]
    flip(tmp_path / "new.pt", start, 0)
    found = verify(tmp_path, reference="sample", **RAM)
    assert (found.exit_code, found.reference) == (6, None)


def test_a_file_that_could_run_code_is_damage_and_is_not_handed_on(tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> Any:
            return eval, (f"open({str(tmp_path / 'ran')!r}, 'w')",)

    torch.save({"w": torch.ones(3), "x": Attack()}, tmp_path / "x.pt")
    found = verify(tmp_path / "x.pt", reference="all", **RAM)
    assert (found.exit_code, found.reference) == (6, None)
    (refusal,) = check(tmp_path, "x.pt").refused
    assert "Unsupported global: GLOBAL eval" in refusal.why
    assert not (tmp_path / "ran").exists()


def test_a_file_that_we_cannot_open_is_listed(tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_text("no checkpoint")
    (refusal,) = check(tmp_path, "x.pt", "config.json").refused
    assert (refusal.file, refusal.name) == ("x.pt", None)
    assert "it looks like text" in refusal.why


# -- memory --------------------------------------------------------------------------------------------------------


def test_a_chunk_that_does_not_fit_the_budget_is_not_compared(tmp_path: Path) -> None:
    dcp.save({"large": torch.zeros(64 << 20), "small": torch.ones(4)}, checkpoint_id=tmp_path, no_dist=True)
    room = fit_reference(tmp_path, ReadingOptions(max_ram="4G"))
    found = check_reference(tmp_path, ["__0_0.distcp"], "all", room._replace(nbytes=16 << 20))
    assert (found.compared, found.nbytes) == (1, 16)
    (refusal,) = found.refused
    assert (refusal.file, refusal.name) == ("__0_0.distcp", "large")
    assert "twice 256.00 MiB do not fit 16.00 MiB of the budget" in refusal.why


def test_the_budget_holds_torch_too() -> None:
    with pytest.raises(MemoryBudgetError, match="below the workable floor"):
        verify(BLOOM, reference="sample", max_ram="100M")


def test_progress_ends_at_all_bytes(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(3 << 20)}, tmp_path / "x.pt")
    room = fit_reference(tmp_path, ReadingOptions(max_ram="4G"))
    said: list[tuple[int, int]] = []
    check_reference(tmp_path, ["x.pt"], "all", room, lambda done, total: said.append((done, total)))
    nbytes = (tmp_path / "x.pt").stat().st_size
    assert (said == sorted(said), said[-1], len(said) > 1) == (True, (nbytes, nbytes), True)


# -- in Python -----------------------------------------------------------------------------------------------------


def test_a_checkpoint_has_the_same_names_by_either_reader(tmp_path: Path) -> None:
    ours, theirs = open_checkpoint(BLOOM), open_checkpoint(BLOOM, reader="reference")
    assert (list(theirs), theirs.files, theirs.refused) == (list(ours), ours.files, {})
    name = "layer_03-model_01-model_states.pt:self_attention.query_key_value.weight"
    assert torch.equal(theirs[name], ours[name].torch())
    assert repr(theirs) == repr(ours).replace("Checkpoint(", "ReferenceCheckpoint(")
    torch.save({"w": torch.ones(3)}, tmp_path / "new.pt")
    torch.save({"w": torch.ones(3)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    some = open_checkpoint(tmp_path, reader="reference")
    assert list(some) == ["new.pt:w"]
    assert list(some.refused) == ["old.pt"]
    one = open_checkpoint(tmp_path / "new.pt", reader="reference")
    assert torch.equal(one["w"], torch.ones(3))
    with pytest.raises(UsageError, match="reader='pickle': no such choice"):
        open_checkpoint(BLOOM, reader="pickle")  # type: ignore[call-overload]
    # A value of which Python makes no text is named in the message all the same.
    with pytest.raises(UsageError, match="reader=<a number of 20000 bits>: "):
        open_checkpoint(BLOOM, reader=(1 << 20000) - 1)  # type: ignore[call-overload]
