"""What is broken, missing or foreign in a folder is a finding that names the file; nothing of it runs or stops."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from streamconv import inspect
from streamconv.cli.main import main
from streamconv.core.errors import DamagedError, SourceError
from tests import oracle
from tests.inspection.samples import BLOOM, GPT, LLAMA, Attack, copied, cut_off, look, pickled, step_of, words_of
from tests.places import FRAMEWORKS, MADE, REAL

LAYER, RANK = "layer_04-model_01-model_states.pt", "mp_rank_01_model_states.pt"
OPTIMIZER = "zero_pp_rank_0_mp_rank_00_optim_states.pt"
HEAD = REAL[4].folder
NO_PIPELINE = REAL[5].folder
Break = Callable[[Path], Any]


def without(name: str) -> Break:
    def change(folder: Path) -> None:
        for path in folder.glob(name):
            path.unlink()

    return change


def shortened(name: str) -> Break:
    return lambda folder: cut_off(folder / name)


def emptied(name: str) -> Break:
    return lambda folder: (folder / name).write_bytes(b"")


def foreign(name: str) -> Break:
    return lambda folder: pickled(folder / name, {"a": 1})


def other(name: str, state: Any) -> Break:
    return lambda folder: torch.save(state, folder / name)


def doubled(name: str, new: str) -> Break:
    return lambda folder: shutil.copy(folder / name, folder / new)


def a_folder(name: str) -> Break:
    def change(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return change


MP_04 = "mp_rank_04_model_states.pt"
MOE, EXPERT = FRAMEWORKS / "ds_moe_z1_ep2", "layer_0_expert_1_mp_rank_00_model_states.pt"
FAULTS: dict[str, tuple[Path, Break, str]] = {
    "layer file lost": (BLOOM, without(LAYER), LAYER),
    "layer lost": (BLOOM, without("layer_04-*"), "layer_04"),
    "first layer lost, bigscience": (BLOOM, without("layer_03-*"), "layer_03"),
    "first layer lost, deepspeedai": (HEAD, without("layer_02-*"), "layer_02"),
    "last layer lost, deepspeedai": (HEAD, without("layer_05-*"), "layer_05"),
    "embedding lost": (BLOOM, without("layer_01-*"), "layer_01"),
    "final norm lost": (BLOOM, without("layer_08-*"), "final norm"),
    "a whole rank lost": (BLOOM, without("layer_*-model_01-*"), "layer_01-model_01-model_states.pt"),
    "layer beyond TP": (BLOOM, doubled(LAYER, "layer_04-model_02-model_states.pt"), "layer_04-model_02-"),
    "layer file of an untranslated family lost": (LLAMA, without(LAYER), LAYER),
    "rank lost": (BLOOM, without("mp_rank_02*"), "mp_rank_02_model_states.pt"),
    "first rank lost": (BLOOM, without("mp_rank_00*"), "mp_rank_00_model_states.pt"),
    "last rank lost": (BLOOM, without("mp_rank_03*"), "mp_rank_03_model_states.pt"),
    "extra rank": (BLOOM, doubled(RANK, MP_04), MP_04),
    "rank lost, no pipeline": (NO_PIPELINE, without(RANK), RANK),
    "extra rank, no pipeline": (NO_PIPELINE, doubled(RANK, MP_04), MP_04),
    "optimizer file lost": (FRAMEWORKS / "z1_bf16", without("bf16_zero_pp_rank_1*"), "bf16_zero_pp_rank_1_mp_rank_00_"),
    "ranks lost, optimizer left": (FRAMEWORKS / "z1_bf16", without("mp_rank_00*"), "mp_rank_00_model_states.pt"),
    "ZeRO-3 model file lost": (FRAMEWORKS / "z3_bf16_frozen", without("zero_pp_rank_0*"), "zero_pp_rank_0_mp_rank_00_"),
    "expert lost": (
        MOE,
        without("layer_1_expert_2*"),
        "1 of 6 files of experts are missing: layer_1_expert_2_",
    ),
    "expert cut off": (MOE, shortened(EXPERT), EXPERT),
    "layer cut off": (BLOOM, shortened(LAYER), LAYER),
    "rank cut off": (BLOOM, shortened(RANK), RANK),
    "rank cut off, no pipeline": (NO_PIPELINE, shortened(RANK), RANK),
    "optimizer cut off": (GPT, shortened(OPTIMIZER), OPTIMIZER),
    "layer empty": (BLOOM, emptied(LAYER), LAYER),
    "optimizer empty": (GPT, emptied(OPTIMIZER), OPTIMIZER),
    "layer a folder": (BLOOM, a_folder(LAYER), LAYER),
    "layer a foreign pickle": (BLOOM, foreign(LAYER), LAYER),
    "rank a foreign pickle": (BLOOM, foreign(RANK), RANK),
    "optimizer a foreign pickle": (GPT, foreign(OPTIMIZER), OPTIMIZER),
    "layer without tensors": (BLOOM, other(LAYER, {"a": 1}), LAYER),
    "layer of other tensors": (LLAMA, other(LAYER, {"a": torch.ones(2)}), LAYER),
    "rank a list": (BLOOM, other(RANK, [1, 2]), RANK),
    "universal parameter cut off": (
        FRAMEWORKS / "z1_bf16.universal",
        shortened("zero/lm_head.weight/fp32.pt"),
        "zero/lm_head.weight/fp32.pt",
    ),
    "zero_to_fp32 cut off": (FRAMEWORKS / "z1_bf16.fp32", shortened("pytorch_model.bin"), "pytorch_model.bin"),
    "distcp files lost": (FRAMEWORKS / "mcore_llama_dist_tp2pp2", without("__0_0.distcp"), "distcp"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_named(name: str, tmp_path: Path) -> None:
    source, change, expected = FAULTS[name]
    root = copied(source, tmp_path)
    folder = step_of(root) if (root / "latest").exists() else root
    change(folder)
    if "distcp" in expected:
        (folder / "__1_0.distcp").write_bytes(b"")
    report = look(root, check=True, stats=True)
    assert expected in "\n".join(f"{f.what} {f.where}" for f in report.findings if f.exit_code == 6), words_of(report)
    assert report.exit_code == 6
    assert report.files or report.tensors
    mapped = look(root, target_tp=1, target_pp=1)
    assert mapped.target is not None or "no map of a target" in words_of(mapped)


def test_a_whole_checkpoint_has_no_findings() -> None:
    for source in (BLOOM, HEAD, NO_PIPELINE, MADE / "bloom_L7_tp2pp3_embpart_z0"):
        report = look(source, check=True)
        assert not report.findings
        assert report.exit_code == 0
        assert report.checked is not None
        assert report.checked["without_crc"] == 0


def test_two_iterations_mixed(tmp_path: Path) -> None:
    root = copied(MADE / "bloom_L7_tp2pp3_embpart_z0", tmp_path)
    path = step_of(root) / "mp_rank_03_model_states.pt"
    state = oracle.load_plain(path)
    torch.save(state | {"iteration": 9}, path)
    report = look(root)
    assert f"iteration is 9 in mp_rank_03_model_states.pt, where the other ranks have 7 {path}" in words_of(report)
    assert report.exit_code == 6


def test_optimizer_files_beyond_the_grid_are_named(tmp_path: Path) -> None:
    root = copied(GPT, tmp_path)
    folder = step_of(root)
    for rank in range(1, 5):
        shutil.copy(folder / OPTIMIZER, folder / OPTIMIZER.replace("rank_00", f"rank_{rank:02d}"))
    report = look(root)
    assert "TP 2 x PP 2: zero_pp_rank_0_mp_rank_04_optim_states.pt" in words_of(report)
    assert "missing" not in words_of(report)
    (folder / OPTIMIZER.replace("rank_00", "rank_04")).unlink()
    report = look(root)
    assert not report.findings
    assert report.optimizer is not None
    assert report.optimizer.files == 4
    cut_off(folder / OPTIMIZER.replace("rank_00", "rank_03"))
    assert str(folder / "zero_pp_rank_0_mp_rank_03_optim_states.pt") in words_of(look(root))


@pytest.mark.parametrize("name", [LAYER, RANK, OPTIMIZER])
@pytest.mark.parametrize("source", [GPT, LLAMA])
def test_an_attack_in_any_file_is_named_and_never_run(name: str, source: Path, tmp_path: Path) -> None:
    root, trace = copied(source, tmp_path), tmp_path / "trace"
    torch.save({"w": torch.ones(3), "x": Attack(trace)}, step_of(root) / name)
    report = look(root, check=True, stats=True)
    found = [f for f in report.findings if "posix.system" in f.what]
    assert found, words_of(report)
    assert name in str(found[0].where)
    assert name in next(row for row in report.globals if row.verdict == "executes").files
    assert report.exit_code == 6
    assert not trace.exists()


def test_an_attack_in_a_second_optimizer_file_is_found_with_check(tmp_path: Path) -> None:
    root, trace = copied(GPT, tmp_path), tmp_path / "trace"
    name = OPTIMIZER.replace("rank_00", "rank_01")
    torch.save({"x": Attack(trace)}, step_of(root) / name)
    report = look(root, check=True)
    assert [f.where for f in report.findings if "posix.system" in f.what] == [name]
    assert len(report.globals) == len({row.name for row in report.globals})
    assert not trace.exists()


def test_a_changed_record_is_named_by_check(tmp_path: Path) -> None:
    root = copied(BLOOM, tmp_path)
    row = next(row for row in look(root).tensors if row.file == LAYER and row.nbytes > 1000)
    path = step_of(root) / LAYER
    data = bytearray(path.read_bytes())
    assert row.offset is not None
    data[row.offset] ^= 128
    path.write_bytes(data)
    assert not look(root).findings
    (finding,) = look(root, check=True).findings
    assert str(path) in str(finding.where)
    assert "CRC-32" in finding.what


def test_what_cannot_be_described_at_all_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="no checkpoint file"):
        look(tmp_path / "empty")
    root = copied(BLOOM, tmp_path)
    (root / "latest").write_text("global_step9")
    with pytest.raises(SourceError, match="global_step9"):
        look(root)
    (root / "latest").write_text("../../etc")
    with pytest.raises(DamagedError, match="not the name of a folder"):
        look(root)


def test_torch_dist_without_its_common_state(tmp_path: Path) -> None:
    """Tensors and ``metadata.json`` are whole, and Megatron-Core loads none of it."""
    shutil.copytree(FRAMEWORKS / "mcore_llama_dist_tp2pp2", tmp_path / "d")
    assert not inspect(tmp_path / "d").findings
    (common,) = tmp_path.rglob("common.pt")
    common.unlink()
    (found,) = inspect(tmp_path / "d").findings
    assert found.exit_code == 6
    assert "neither common.pt nor the object common_state/shard_0_1" in found.what
    assert main(["verify", str(tmp_path / "d")]) == 6


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "zero_pp_rank_999999_mp_rank_00_optim_states.pt",
            "3999999 of 4000000 optimizer files are missing: zero_pp_rank_0_",
        ),
        ("mp_rank_999999_model_states.pt", "999999 of 1000000 mp_rank files are missing: mp_rank_00_model_states.pt, "),
        ("layer_04-model_999999-model_states.pt", "5999987 of 6000000 layer files are missing: layer_01-model_02-"),
    ],
)
def test_a_name_of_an_absurd_rank_makes_a_grid_with_gaps(name: str, words: str, tmp_path: Path) -> None:
    """The gaps are counted, and the first of them named; they are more than could be listed."""
    folder = step_of(copied(BLOOM, tmp_path))
    if not name.startswith("zero"):
        # What says how many ranks there are.
        for path in folder.glob("mp_rank_*"):
            path.unlink()
    (folder / name).touch()
    found = words_of(look(folder))
    assert words in found
    assert f" more {folder}" in found


def test_a_scalar_under_the_name_of_a_matrix_is_shown_as_it_is(tmp_path: Path) -> None:
    folder = copied(GPT, tmp_path)
    for path in step_of(folder).glob("layer_03-*"):
        state = torch.load(path, weights_only=True)
        state["mlp.dense_h_to_4h.weight"] = torch.tensor(7.0, dtype=torch.float16)
        torch.save(state, path)
    report = look(folder)
    assert report.findings
    assert any(row.shape == () and row.name.endswith("mlp.dense_h_to_4h.weight") for row in report.tensors)
