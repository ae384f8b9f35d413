"""A run of DeepSpeed with names of its own is shown by these, each tensor with the places of its parts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from streamconv import InspectionReport, UsageError, inspect
from streamconv.inspection.report import TensorRow
from tests.kept import bits
from tests.making.zero import Run, write_run
from tests.making.zero_values import ODD
from tests.places import FRAMEWORKS
from tests.stored import counted

TRAINER = FRAMEWORKS / "ds_trainer_llama_z2" / "checkpoint-2"
RUNS = [Run(stage=1, dp=3), Run(stage=2, dp=5), Run(stage=2, dp=3, aligned=True), Run(stage=3, dp=3),
        Run(stage=3, dp=5, sub_group=6), Run(stage=2, dp=2, round_robin=True)]  # fmt: skip


def shown(path: Path, **options: Any) -> InspectionReport:
    return inspect(path, tensors="*", **options)


def places_of(row: TensorRow) -> list[tuple[str, int, int]]:
    """(file, offset, bytes) of each part."""
    if row.parts:
        assert (row.file, row.offset, row.rank, row.stage) == ("", None, None, None)
        return [(part.file, part.offset, part.nbytes) for part in row.parts]
    return [] if row.offset is None else [(row.file, row.offset, row.nbytes)]


def bytes_of(row: TensorRow, folder: Path) -> bytes:
    """What stands at the places that a row names."""
    return b"".join((folder / file).read_bytes()[at : at + nbytes] for file, at, nbytes in places_of(row))


def raw(tensor: torch.Tensor) -> bytes:
    found: bytes = bits(tensor).view(torch.uint8).numpy().tobytes()
    return found


@pytest.mark.parametrize("run", RUNS, ids=lambda run: f"z{run.stage}-dp{run.dp}")
def test_the_places_of_a_tensors_parts_have_its_bytes(run: Run, tmp_path: Path) -> None:
    truth = write_run(tmp_path / "run", run)
    rows = {row.name: row for row in shown(tmp_path / "run", weights="master").tensors}
    wanted = truth.master()
    assert rows.keys() == wanted.keys()
    for name, tensor in wanted.items():
        row = rows[name]
        assert (row.shape, row.dtype, row.nbytes) == (
            tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), tensor.nbytes
        )  # fmt: skip
        assert bytes_of(row, tmp_path / "run" / run.tag) == raw(tensor), name
        assert sum(nbytes for *_, nbytes in places_of(row)) == tensor.nbytes


@pytest.mark.parametrize("run", [Run(stage=0), Run(stage=1, dp=3), Run(stage=2, dp=3)], ids=lambda run: f"z{run.stage}")
def test_the_module_is_shown_unless_masters_are_asked_for(run: Run, tmp_path: Path) -> None:
    truth = write_run(tmp_path / "run", run)
    for row in shown(tmp_path / "run").tensors:
        assert (
            bytes_of(row, tmp_path / "run" / run.tag)
            == bits(truth.module[row.name]).view(torch.uint8).numpy().tobytes()
        )
        assert row.parts == ()
        assert row.file in ("mp_rank_00_model_states.pt", "" if not row.nbytes else None)


@pytest.mark.parametrize("dp", [2, 3, 5])
def test_parts_say_the_rank_and_the_stage_of_their_files(dp: int, tmp_path: Path) -> None:
    write_run(tmp_path / "run", Run(stage=3, dp=dp))
    rows = {row.name: row for row in shown(tmp_path / "run").tensors}
    parts = rows["deep.weight"].parts
    assert [(part.rank, part.stage) for part in parts] == [(f"data {rank}", 0) for rank in range(dp)]
    assert [part.file for part in parts] == [
        f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in range(dp)
    ]
    frozen = rows["frozen.weight"].parts
    assert [part.file for part in frozen] == [f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt" for rank in range(dp)]


def test_a_tensor_that_one_rank_has_whole_says_that_rank(tmp_path: Path) -> None:
    write_run(tmp_path / "run", Run(stage=2, dp=2))
    rows = {row.name: row for row in shown(tmp_path / "run", weights="master").tensors}
    assert rows["deep.weight"].file == "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt"
    assert rows["deep.weight"].rank == "data 1"


def test_parts_that_follow_one_another_in_a_file_are_one(tmp_path: Path) -> None:
    write_run(tmp_path / "run", Run(stage=3, dp=1))
    assert not [row for row in shown(tmp_path / "run").tensors if row.parts]


def test_a_second_name_says_whose_bytes_it_shares_and_counts_once(tmp_path: Path) -> None:
    write_run(tmp_path / "run", Run(stage=3, dp=3))
    report = shown(tmp_path / "run")
    rows = {row.name: row for row in report.tensors}
    assert {row.name: row.shares for row in report.tensors if row.shares} == {"head.weight": "embed.weight"}
    assert rows["head.weight"].parts == rows["embed.weight"].parts
    assert report.model is not None
    assert report.model.parameters == sum(each.numel for each in ODD.own)


def test_the_files_the_ranks_and_the_optimizer_are_described(tmp_path: Path) -> None:
    write_run(tmp_path / "run", Run(stage=3, dp=3))
    report = shown(tmp_path / "run")
    assert report.what == "DeepSpeed, ZeRO stage 3"
    folder = tmp_path / "run" / "global_step3"
    assert {row.path: row.nbytes for row in report.files} == {p.name: p.stat().st_size for p in folder.iterdir()}
    assert report.nbytes == sum(path.stat().st_size for path in folder.iterdir())
    assert {row.kind for row in report.files if "optim" in row.path} == {"optimizer"}
    assert report.parallel is not None
    assert (report.parallel.tp, report.parallel.pp, report.parallel.dp) == (1, 1, 3)
    assert report.optimizer is not None
    assert (report.optimizer.files, report.optimizer.what) == (3, "ZeRO stage 3, fp32 master weights, Adam moments")
    assert report.model is not None
    assert report.model.iteration == 3
    for row in report.files:
        uses = sum(row.path in {file for file, *_ in places_of(each)} for each in report.tensors)
        assert row.tensors == uses


def test_parts_are_in_the_json_and_in_the_text(tmp_path: Path) -> None:
    write_run(tmp_path / "run", Run(stage=3, dp=2))
    report = inspect(tmp_path / "run", tensors="deep.weight")
    (row,) = json.loads(json.dumps(report.to_dict()))["tensors"]
    assert [part["nbytes"] for part in row["parts"]] == [84, 84]
    assert [part["rank"] for part in row["parts"]] == ["data 0", "data 1"]
    assert "deep.weight" in str(report)


def test_a_missing_rank_is_found_and_the_rest_is_shown(tmp_path: Path) -> None:
    write_run(tmp_path / "run", Run(stage=3, dp=3))
    (tmp_path / "run" / "global_step3" / "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt").unlink()
    report = shown(tmp_path / "run")
    assert report.exit_code == 6
    assert len(report.files) == 5
    assert report.tensors


def test_the_same_values_give_the_same_statistics_however_many_ranks_hold_them(tmp_path: Path) -> None:
    reports = []
    for dp in (1, 3, 5):
        write_run(tmp_path / f"{dp}", Run(stage=3, dp=dp))
        reports.append(inspect(tmp_path / f"{dp}", stats=True, max_ram="1G").statistics or [])
    first, *others = ([(row.name, row.shape, row.values) for row in rows] for rows in reports)
    assert len(first) == len(ODD.parameters) + len(ODD.buffers)
    assert all(other == first for other in others)


# -- folders around runs -----------------------------------------------------------------------------------------------


def test_a_folder_of_runs_is_listed_and_nothing_is_added_up(tmp_path: Path) -> None:
    for name in ("checkpoint-20", "checkpoint-100", "checkpoint-3"):
        write_run(tmp_path / "runs" / name)
    (tmp_path / "runs" / "model").mkdir()
    save_file({"w": counted(3)}, tmp_path / "runs" / "model" / "model.safetensors")
    report = inspect(tmp_path / "runs")
    assert report.what == "a folder of 4 checkpoints"
    names = ["checkpoint-100", "checkpoint-20", "checkpoint-3", "model"]
    assert [each.what for each in report.evidence] == names
    assert [each.evidence.partition(":")[0] for each in report.evidence] == ["plain DeepSpeed"] * 3 + ["Hugging Face"]
    assert (report.tensors, report.files, report.nbytes, report.model) == ([], [], 0, None)
    assert [(each.severity, each.what) for each in report.findings] == [("note", "give one of them")]


def test_one_checkpoint_below_is_named(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "only")
    report = inspect(tmp_path / "runs")
    assert (report.what, [each.what for each in report.evidence]) == ("a folder of 1 checkpoint", ["only"])


def test_options_about_a_source_have_no_effect_on_a_list(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "only")
    with pytest.raises(UsageError):
        inspect(tmp_path / "runs", num_heads=4)


def test_of_a_trainers_folder_the_model_is_shown_and_the_run_beside_it_is_told_of() -> None:
    report = shown(TRAINER)
    assert report.what == "Hugging Face"
    assert {row.file for row in report.tensors if row.name.startswith("model.")} == {"model.safetensors"}
    assert any("DeepSpeed state lies beside the model" in finding.what for finding in report.findings)
    # The run's own tensors are not counted with the model's.
    assert not [row for row in report.files if "global_step2" in row.path]
    inner = shown(TRAINER / "global_step2")
    assert inner.what.startswith("DeepSpeed, ZeRO")
    assert {row.name for row in inner.tensors} == {
        row.name for row in report.tensors if row.file == "model.safetensors"
    }


def test_of_a_trainers_folder_the_run_is_shown_on_demand() -> None:
    assert shown(TRAINER, weights="master").what.startswith("DeepSpeed, ZeRO")


def test_of_a_trainers_folder_without_a_model_the_run_is_shown(tmp_path: Path) -> None:
    shutil.copytree(FRAMEWORKS / "ds_trainer_llama_z3" / "checkpoint-2", tmp_path / "in")
    report = shown(tmp_path / "in")
    assert report.what == "DeepSpeed, ZeRO stage 3"
    assert report.model is not None
    assert (report.model.family, report.model.num_layers, report.model.hidden) == ("Llama", 3, 32)
    assert (report.model.vocabulary.true, report.model.iteration) == (101, 2)


def test_a_universal_folder_is_shown_by_the_files_of_its_parameters(tmp_path: Path) -> None:
    root = tmp_path / "universal"
    tensors = {"a.weight": counted(3, 5), "b.bias": counted(4, start=15)}
    for name, tensor in tensors.items():
        (root / "zero" / name).mkdir(parents=True)
        torch.save({"param": tensor}, root / "zero" / name / "fp32.pt")
        torch.save(tensor * 3, root / "zero" / name / "exp_avg.pt")
    report = shown(root)
    assert {row.name: row.file for row in report.tensors} == {name: f"zero/{name}/fp32.pt" for name in tensors}
    for row in report.tensors:
        assert bytes_of(row, root) == raw(tensors[row.name])
    assert report.optimizer is not None
    assert (report.optimizer.files, report.optimizer.what) == (2, "exp_avg of each parameter")
