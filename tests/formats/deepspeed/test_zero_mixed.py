"""Folders whose files contradict each other: of two steps, of two runs, of other shapes, and tensors of other kinds."""

from __future__ import annotations

import shutil
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from streamconv import StreamconvError, inspect, verify
from tests.formats.deepspeed.zero_truth import converted
from tests.making.zero import Run, write_run
from tests.making.zero_classes import load, save
from tests.places import FRAMEWORKS

TAG = "global_step3"
SECOND = "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt"
RANK_FILE = "mp_rank_00_model_states.pt"


def changed(path: Path, change: Callable[[Any], None]) -> None:
    state = load(path)
    change(state)
    save(state, path)


def refused(source: Path, out: Path, **options: Any) -> StreamconvError:
    with pytest.raises(StreamconvError) as caught:
        converted(source, out, **options)
    assert not out.exists() or not any(out.iterdir())
    return caught.value


def _set_step(state: Any) -> None:
    optimizer = state["optimizer_state_dict"]
    inner = optimizer.get("base_optimizer_state") or optimizer["optimizer_state_dict"]
    for each in inner["state"].values():
        each["step"] = torch.tensor(9.0)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_optimizer_files_of_two_steps_are_refused(stage: int, tmp_path: Path) -> None:
    write_run(tmp_path / "run", Run(stage=stage, dp=3))
    changed(tmp_path / "run" / TAG / SECOND, _set_step)
    error = refused(tmp_path / "run", tmp_path / "out", weights="master")
    assert error.what == "the optimizer's step is 9 here, and 3 in 2 of 3 files"
    assert error.where is not None
    assert error.where.endswith(SECOND)
    found = [each for each in verify(tmp_path / "run").broken if each.where == error.where]
    assert [each.what for each in found] == [error.what]


def test_a_group_may_be_younger_than_another_and_be_nowhere_in_a_rank(tmp_path: Path) -> None:
    """It was added to the optimizer later, and the first rank holds none of it."""
    truth = write_run(tmp_path / "run", Run(stage=2, dp=3))

    def younger(state: Any) -> None:
        held = state["optimizer_state_dict"]["base_optimizer_state"]["state"]
        held[1]["step"] = torch.tensor(2.0)

    def without(state: Any) -> None:
        state["optimizer_state_dict"]["base_optimizer_state"]["state"].pop(0)

    for rank in range(3):
        name = f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
        changed(tmp_path / "run" / TAG / name, younger)
    changed(tmp_path / "run" / TAG / SECOND, without)
    found = converted(tmp_path / "run", tmp_path / "out", weights="master")
    assert all(torch.equal(found[name], tensor) for name, tensor in truth.trained.items())


def test_model_files_of_two_steps_are_refused(tmp_path: Path) -> None:
    write_run(tmp_path / "run", Run(stage=3, dp=3))
    changed(
        tmp_path / "run" / TAG / "zero_pp_rank_2_mp_rank_00_model_states.pt", lambda state: state.update(global_steps=9)
    )
    error = refused(tmp_path / "run", tmp_path / "out")
    assert error.what == "global_steps is 9 here, and 3 in 2 of 3 files"


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_files_of_a_larger_run_that_stayed_are_named(stage: int, tmp_path: Path) -> None:
    write_run(tmp_path / "run", Run(stage=stage, dp=2))
    write_run(tmp_path / "larger", Run(stage=stage, dp=3))
    for path in (tmp_path / "larger" / TAG).iterdir():
        if not (tmp_path / "run" / TAG / path.name).exists():
            shutil.copy(path, tmp_path / "run" / TAG)
    error = refused(tmp_path / "run", tmp_path / "out", weights="master")
    beyond = "bf16_zero_pp_rank_2_mp_rank_00_optim_states.pt"
    assert error.what == f"partition_count is 2, and 3 optimizer files are there; beyond it: {beyond}"
    assert error.remedy == "move those that are not of this run out of the folder"


@pytest.mark.parametrize("weights", ["model", "master"])
def test_model_files_of_two_stages_are_refused(weights: str, tmp_path: Path) -> None:
    write_run(tmp_path / "run", Run(stage=2, dp=2))
    write_run(tmp_path / "other", Run(stage=3, dp=2))
    for path in (tmp_path / "other" / TAG).glob("*model_states.pt"):
        shutil.copy(path, tmp_path / "run" / TAG)
    error = refused(tmp_path / "run", tmp_path / "out", weights=weights)
    assert error.what.startswith("model files of two runs are there: zero_pp_rank_0_mp_rank_00_model_states.pt is of")


@pytest.mark.parametrize("weights", [None, "model", "master"])
def test_stage_3_without_its_optimizer_files_is_damaged_whichever_weights_are_asked_for(
    weights: str | None, tmp_path: Path
) -> None:
    write_run(tmp_path / "run", Run(stage=3, dp=2))
    for path in (tmp_path / "run" / TAG).glob("*optim_states.pt"):
        path.unlink()
    error = refused(tmp_path / "run", tmp_path / "out", **({"weights": weights} if weights else {}))
    assert error.what == "there is no optimizer file, and with ZeRO stage 3 these hold the parameters"
    assert error.remedy is not None
    assert error.remedy.startswith("copy the missing files")


def _turned(state: Any) -> None:
    for group in state["param_shapes"]:
        for name, shape in group.items():
            if len(shape) == 2 and shape[0] != shape[1]:
                group[name] = torch.Size(reversed(shape))
                return


def test_a_recorded_shape_that_is_not_the_tensors_is_refused(tmp_path: Path) -> None:
    write_run(tmp_path / "run", Run(stage=2, dp=2))
    changed(tmp_path / "run" / TAG / RANK_FILE, _turned)
    error = refused(tmp_path / "run", tmp_path / "out")
    assert "in the module, and recorded as" in error.what


def test_a_shared_name_of_another_shape_is_refused(tmp_path: Path) -> None:
    write_run(tmp_path / "run", Run(stage=2, dp=2))
    changed(
        tmp_path / "run" / TAG / RANK_FILE,
        lambda state: state.update(shared_params={"head.weight": "frozen.weight"}),
    )
    error = refused(tmp_path / "run", tmp_path / "out")
    assert error.what.startswith("head.weight (")
    assert "is said to share frozen.weight (" in error.what


@pytest.mark.parametrize("said", [[([1], "a")], [(1, "a")], {"a": 1}], ids=["unhashable", "number", "mapping"])
def test_shared_names_that_are_none_are_damage(said: object, tmp_path: Path) -> None:
    write_run(tmp_path / "run", Run(stage=2, dp=2))
    changed(tmp_path / "run" / TAG / RANK_FILE, lambda state: state.update(shared_params=said))
    assert refused(tmp_path / "run", tmp_path / "out").what.startswith("shared_params is no ")


OTHERS = {
    "meta": lambda: torch.empty(3, device="meta"),
    "sparse": lambda: torch.eye(3).to_sparse(),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_tensors_of_other_kinds_are_refused_by_name_in_a_run_and_in_a_file(kind: str, tmp_path: Path) -> None:
    """They were left out without a word, or torn into their indices and values."""
    write_run(tmp_path / "run", Run(stage=2, dp=2))
    changed(tmp_path / "run" / TAG / RANK_FILE, lambda state: state["module"].update(odd=OTHERS[kind]()))
    torch.save({"w": torch.ones(2), "deep": {"odd": OTHERS[kind]()}}, tmp_path / "file.pt")
    shutil.copytree(FRAMEWORKS / "ds_moe_z1_ep2", tmp_path / "experts")
    expert = tmp_path / "experts" / "global_step2" / "layer_0_expert_1_mp_rank_00_model_states.pt"
    torch.save({**torch.load(expert), "odd": OTHERS[kind]()}, expert)
    sources = {"run": "odd", "file.pt": "deep.odd", "experts": "odd"}
    for source, name in ((tmp_path / each, name) for each, name in sources.items()):
        assert refused(source, tmp_path / "out").what.startswith(f"{name} is a tensor that torch builds with _rebuild_")


def test_experts_of_a_layer_may_be_in_several_groups(tmp_path: Path) -> None:
    """DeepSpeed splits a group of experts that is large [``deepspeed/moe/utils.py``]: two local experts of a rank, the
    first in a group of its own.
    """
    folder = tmp_path / "run" / TAG
    folder.mkdir(parents=True)
    (tmp_path / "run" / "latest").write_text(TAG)
    head = "layers.0.moe.deepspeed_moe.experts.deepspeed_experts."
    groups = [
        OrderedDict({"gate": torch.Size([4])}),
        OrderedDict({f"{head}0.w": torch.Size([3])}),
        OrderedDict({f"{head}1.w": torch.Size([3])}),
    ]
    values = {f"{head}{expert}.w": torch.arange(3.0) + 10 * expert for expert in range(4)}
    state = {
        "module": {"gate": torch.arange(4.0).bfloat16()}, "buffer_names": [], "param_shapes": groups,
        "shared_params": {}, "num_experts": [4], "global_steps": 3, "dp_world_size": 2, "ds_config": {},
    }  # fmt: skip
    save(state, folder / RANK_FILE)
    for expert in range(4):
        name = f"{head}{expert}.w"
        save({name: values[name].bfloat16()}, folder / f"layer_0_expert_{expert}_mp_rank_00_model_states.pt")
    for rank in (0, 1):
        parts = [torch.arange(4.0)[2 * rank : 2 * rank + 2], *(values[f"{head}{2 * rank + n}.w"] for n in (0, 1))]
        optimizer = {"base_optimizer_state": {"state": {}}, "single_partition_of_fp32_groups": parts,
                     "zero_stage": 2, "partition_count": [2, 1, 1]}  # fmt: skip
        save({"optimizer_state_dict": optimizer}, folder / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
    found = converted(tmp_path / "run", tmp_path / "out", weights="master")
    for name, tensor in {**values, "gate": torch.arange(4.0)}.items():
        assert torch.equal(found[name], tensor), name


def test_a_universal_folder_of_stage_3_is_whole_and_needs_the_shapes_in_its_model_files(tmp_path: Path) -> None:
    source = tmp_path / "run" / TAG
    truth = write_run(tmp_path / "run", Run(stage=3, dp=2))
    for path in source.glob("*optim_states.pt"):
        path.unlink()
    for name in truth.trained:
        (source / "zero" / name).mkdir(parents=True)
        save({"param": truth.master()[name].flatten()}, source / "zero" / name / "fp32.pt")
        (source / "zero" / name / "exp_avg.pt").symlink_to("nowhere")  # and no moment is needed
    assert verify(source).exit_code == 0
    found = converted(source, tmp_path / "out")
    assert all(torch.equal(found[name], tensor) for name, tensor in truth.master().items() if name in truth.trained)
    for path in source.glob("*model_states.pt"):
        path.unlink()
    assert "stored flat, and no model file beside `zero`" in refused(source, tmp_path / "other").what


@pytest.mark.parametrize(("text", "is_taken"), [("global_step3/\n", True), ("x" * 5000, False), ("../run", False)])
def test_the_record_of_the_newest_checkpoint(text: str, is_taken: bool, tmp_path: Path) -> None:
    write_run(tmp_path / "run", Run(stage=2, dp=2))
    (tmp_path / "run" / "latest").write_text(text)
    if is_taken:
        assert converted(tmp_path / "run", tmp_path / "out")
    else:
        error = refused(tmp_path / "run", tmp_path / "out")
        assert error.remedy is not None
        assert error.remedy.startswith("say which folder is meant with")


def test_a_link_to_no_optimizer_file_is_damage_and_no_obstacle_for_the_model(tmp_path: Path) -> None:
    truth = write_run(tmp_path / "run", Run(stage=2, dp=2))
    (tmp_path / "run" / TAG / SECOND).unlink()
    (tmp_path / "run" / TAG / SECOND).symlink_to("nowhere")
    found = converted(tmp_path / "run", tmp_path / "out")
    assert all(torch.equal(found[name], tensor) for name, tensor in truth.module.items())
    assert verify(tmp_path / "run").exit_code == 6
    assert [each.what for each in inspect(tmp_path / "run").findings] == ["no such file"]
