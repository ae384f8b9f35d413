"""Models of any kind are compared under their own names, however their ranks hold them."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from streamconv import Comparison, Verification, diff, verify
from tests.damage import flip, mend
from tests.kept import Tensors, kept
from tests.making.zero import Run, write_run
from tests.making.zero_values import ODD
from tests.places import FRAMEWORKS, REAL
from tests.stored import counted

MEGATRON = next(source for source in REAL if source.name == "dsp_gpt_nopipe_tp2_fp32_z0")
TRAINER = FRAMEWORKS / "ds_trainer_llama_z2" / "checkpoint-2"


def compared(a: Path, b: Path, **options: Any) -> Comparison:
    return diff(a, b, max_ram="1G", **options)


def checked(dst: Path, against: Path, **options: Any) -> Verification:
    return verify(dst, against=against, max_ram="1G", **options)


def assert_equal(found: Comparison, count: int) -> None:
    assert (found.a.names, found.b.names) == ("own", "own")
    assert (found.compared, found.is_equal, found.exit_code) == (count, True, 0)
    assert (found.only_a, found.only_b, found.shapes, found.dtypes, found.values) == ([], [], [], [], [])


def value_at(file: str, offset: int) -> float:
    """The fp32 number at a place in a file."""
    number: float = struct.unpack("<f", Path(file).read_bytes()[offset : offset + 4])[0]
    return number


# -- equal -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("to", ["safetensors", "pytorch-bin"])
@pytest.mark.parametrize(("stage", "dp"), [(1, 2), (2, 3), (3, 5)])
def test_a_run_is_what_was_made_of_it(stage: int, dp: int, to: str, tmp_path: Path) -> None:
    write_run(tmp_path / "run", Run(stage=stage, dp=dp))
    names = kept(tmp_path / "run", tmp_path / "out", to, weights="master", max_shard_size=300)
    assert_equal(compared(tmp_path / "run", tmp_path / "out", a_weights="master"), len(names))
    assert_equal(compared(tmp_path / "out", tmp_path / "run", b_weights="master"), len(names))
    found = checked(tmp_path / "out", tmp_path / "run", weights="master")
    assert found.exit_code == 0
    assert found.comparison is not None
    assert found.comparison.a.names == "own"


RUNS = [
    (Run(stage=1), Run(stage=2, dp=3)),
    (Run(stage=2), Run(stage=2, dp=5, aligned=True)),
    (Run(stage=3, dp=2), Run(stage=3, dp=3)),
    (Run(stage=2), Run(stage=3, dp=3)),
]


@pytest.mark.parametrize(("a", "b"), RUNS)
def test_one_run_on_other_numbers_of_ranks_and_at_other_stages_has_the_same_masters(
    a: Run, b: Run, tmp_path: Path
) -> None:
    for name, run in (("a", a), ("b", b)):
        write_run(tmp_path / name, run)
    assert_equal(compared(tmp_path / "a", tmp_path / "b", weights="master"), len(ODD.parameters) + len(ODD.buffers))


@pytest.mark.parametrize("prefix", ["module.", "_forward_module.", "base_model.model."])
def test_wrappers_are_no_difference(prefix: str, tmp_path: Path) -> None:
    write_run(tmp_path / "run", Run(stage=3))
    names = kept(tmp_path / "run", tmp_path / "out")
    (tmp_path / "wrapped").mkdir()
    save_file({prefix + name: tensor for name, tensor in names.items()}, tmp_path / "wrapped" / "model.safetensors")
    found = compared(tmp_path / "run", tmp_path / "wrapped")
    assert_equal(found, len(names))
    assert f"all names bear {prefix}: taken off" in found.b.notes
    assert_equal(compared(tmp_path / "out", tmp_path / "wrapped"), len(names))


def test_a_file_and_a_folder_are_compared_by_own_names(tmp_path: Path) -> None:
    write_run(tmp_path / "run", Run(stage=3))
    names = kept(tmp_path / "run", tmp_path / "out")
    assert_equal(compared(tmp_path / "run", tmp_path / "out" / "model.safetensors"), len(names))
    torch.save({"state_dict": names, "epoch": 3}, tmp_path / "lone.pt")
    assert_equal(compared(tmp_path / "lone.pt", tmp_path / "run"), len(names))


def test_what_was_left_out_and_what_was_renamed_is_on_one_side_alone(tmp_path: Path) -> None:
    write_run(tmp_path / "run", Run(stage=3))
    kept(tmp_path / "run", tmp_path / "out", skip="a.*", rename={"scale": "size"})
    found = compared(tmp_path / "run", tmp_path / "out")
    assert (sorted(found.only_a), found.only_b) == (["a.bias", "a.weight", "scale"], ["size"])
    assert (found.exit_code, found.values, found.compared) == (7, [], 12)


def test_a_training_checkpoint_is_compared_with_what_keeps_its_canonical_names(tmp_path: Path) -> None:
    names = kept(MEGATRON.folder, tmp_path / "out")
    assert_equal(compared(MEGATRON.folder, tmp_path / "out"), len(names))


# -- up to a cast ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("turned", [False, True])
def test_values_that_were_rounded_are_told_as_such(turned: bool, dtype: str, tmp_path: Path) -> None:
    write_run(tmp_path / "run", Run(stage=3, dp=3))
    kept(tmp_path / "run", tmp_path / "out", dtype=dtype)
    sides = tmp_path / "run", tmp_path / "out"
    found = compared(*(sides[::-1] if turned else sides))
    rounded = "a" if turned else "b"
    assert (found.rounded, found.is_equal, found.is_faithful, found.exit_code) == (rounded, False, False, 7)
    assert {each.rounded for each in found.values} == {rounded}
    kind = {"bf16": "bfloat16", "fp16": "float16"}[dtype]
    words = f"equal up to a cast: {rounded} has the values of {'b' if turned else 'a'}, rounded to {kind}"
    assert words in str(found)
    assert found.to_dict()["up_to_cast"] == rounded
    assert checked(tmp_path / "out", tmp_path / "run").exit_code == 0


def test_the_module_of_a_run_is_its_masters_up_to_a_cast(tmp_path: Path) -> None:
    write_run(tmp_path / "run", Run(stage=2, dp=3))
    found = compared(tmp_path / "run", tmp_path / "run", b_weights="master")
    assert found.rounded == "a"
    trained = {each.name for each in ODD.own if each.flat} | {"head.weight"}
    assert {each.name for each in found.values} == trained


@pytest.mark.parametrize("up", [1, -1])
def test_one_step_beside_the_rounded_value_is_a_difference(up: int, tmp_path: Path) -> None:
    write_run(tmp_path / "run", Run(stage=3))
    names = kept(tmp_path / "run", tmp_path / "out", dtype="bf16")
    names["deep.weight"].view(torch.int16)[1, 2, 3] += up
    save_file(names, tmp_path / "out" / "model.safetensors")
    found = compared(tmp_path / "run", tmp_path / "out")
    assert found.rounded is None
    assert {each.name for each in found.values if each.rounded is None} == {"deep.weight"}
    assert "equal up to a cast" not in str(found)


def test_a_missing_tensor_is_more_than_a_cast(tmp_path: Path) -> None:
    write_run(tmp_path / "run", Run(stage=3))
    kept(tmp_path / "run", tmp_path / "out", dtype="bf16", skip="scale")
    found = compared(tmp_path / "run", tmp_path / "out")
    assert (found.rounded, found.only_a) == (None, ["scale"])


def test_numbers_of_one_dtype_are_never_equal_up_to_a_cast(tmp_path: Path) -> None:
    a = {"w": (counted(8) + 1) / 3}
    (tmp_path / "a").mkdir()
    save_file(a, tmp_path / "a" / "model.safetensors")
    torch.save({"w": a["w"].bfloat16().float()}, tmp_path / "b.pt")
    found = compared(tmp_path / "a", tmp_path / "b.pt")
    assert (found.rounded, found.dtypes, len(found.values)) == (None, [], 1)


# -- different ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("index", [(0, 0, 0), (0, 2, 6), (1, 0, 3), (1, 2, 6)])
def test_an_element_that_differs_is_found_with_its_place_on_both_sides(
    index: tuple[int, ...], stage: int, tmp_path: Path
) -> None:
    """On the run's side it is where the rank's own file has it."""
    truth = write_run(tmp_path / "run", Run(stage=stage, dp=5))
    names = kept(tmp_path / "run", tmp_path / "out", weights="master")
    names["deep.weight"][index] += 1
    save_file(names, tmp_path / "out" / "model.safetensors")
    (one,) = compared(tmp_path / "run", tmp_path / "out", a_weights="master").values
    right = float(truth.trained["deep.weight"][index])
    assert (one.name, one.elements, one.first) == ("deep.weight", 1, index)
    assert (one.a.value, one.b.value) == (right, float(names["deep.weight"][index]))
    assert value_at(one.a.file, one.a.offset) == right
    assert value_at(one.b.file, one.b.offset) == float(names["deep.weight"][index])
    assert one.b.file == str(tmp_path / "out" / "model.safetensors")
    assert Path(one.a.file).name.startswith("bf16_zero_pp_rank_")


def test_a_changed_bit_of_a_ranks_file_is_found_in_the_whole_tensor(tmp_path: Path) -> None:
    """Whichever rank has the element: it is looked for by its bytes, which stand nowhere else."""
    truth = write_run(tmp_path / "run", Run(stage=3, dp=3))
    kept(tmp_path / "run", tmp_path / "out")
    files = sorted((tmp_path / "run" / "global_step3").glob("*_optim_states.pt"))
    seen = set()
    for name, index in (
        ("embed.weight", (0, 0)),
        ("embed.weight", (6, 4)),
        ("deep.weight", (1, 0, 2)),
        ("b.bias", (2,)),
    ):
        needle = struct.pack("<f", float(truth.trained[name][index]))
        (path,) = (path for path in files if needle in path.read_bytes())
        original = path.read_bytes()
        offset = original.index(needle)
        assert original.count(needle) == 1
        flip(path, offset, 5)
        mend(path)
        same = {"embed.weight": ["embed.weight", "head.weight"]}.get(name, [name])
        found = compared(tmp_path / "run", tmp_path / "out").values
        assert [one.name for one in found] == same
        assert {(one.first, one.a.file, one.a.offset) for one in found} == {(index, str(path), offset)}
        path.write_bytes(original)
        seen.add(path)
    assert len(seen) > 1


def test_shapes_that_differ_are_named(tmp_path: Path) -> None:
    write_run(tmp_path / "run", Run(stage=3))
    names = kept(tmp_path / "run", tmp_path / "out")
    save_file({**names, "a.weight": names["a.weight"].t().contiguous()}, tmp_path / "out" / "model.safetensors")
    found = compared(tmp_path / "run", tmp_path / "out")
    assert [(one.name, one.a, one.b) for one in found.shapes] == [("a.weight", "[3, 5]", "[5, 3]")]
    assert found.exit_code == 7


def test_what_is_no_part_of_the_model_is_told_and_not_compared(tmp_path: Path) -> None:
    write_run(tmp_path / "run", Run(stage=2))
    kept(tmp_path / "run", tmp_path / "out", weights="master")
    found = compared(tmp_path / "run", tmp_path / "out", a_weights="master")
    told = {each.name for each in found.not_compared}
    assert "moments and steps in *_optim_states.pt files" in told
    assert found.is_complete


def test_a_run_without_one_of_its_ranks_is_no_run_to_compare_by_own_names(tmp_path: Path) -> None:
    write_run(tmp_path / "run", Run(stage=3, dp=3))
    kept(tmp_path / "run", tmp_path / "out")
    (tmp_path / "run" / "global_step3" / "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt").unlink()
    found = compared(tmp_path / "run", tmp_path / "out")
    assert not found.is_equal
    assert found.exit_code in (6, 7)
    assert (
        not checked(tmp_path / "out", tmp_path / "run").comparison
        or checked(tmp_path / "out", tmp_path / "run").exit_code
    )


def test_a_trainers_model_is_the_masters_of_its_run_up_to_a_cast() -> None:
    found = compared(TRAINER, TRAINER, b_weights="master")
    assert found.rounded == "a"


def test_a_trainers_model_is_the_module_of_its_run() -> None:
    found = compared(TRAINER, TRAINER / "global_step2")
    assert found.values == []
    saved: Tensors = load_file(TRAINER / "model.safetensors")
    assert (found.compared, found.exit_code) == (len(saved), 0)
