"""The writer of labelled ZeRO folders is held against the engine's own files, and against DeepSpeed's own reader."""

from __future__ import annotations

import pickletools
import zipfile
from importlib.util import find_spec
from itertools import pairwise, product
from pathlib import Path

import pytest
import torch

from tests.making.zero import Run, write_run
from tests.making.zero_classes import load
from tests.making.zero_outline import described, outline_of_folder
from tests.making.zero_values import ODD, Model, masters_of
from tests.places import FRAMEWORKS

FOLDERS = (
    "z1_bf16",
    "z2_bf16_2g_shared",
    "z3_bf16_frozen",
    "ds_z2_aligned",
    "ds_trainer_llama_z2/checkpoint-2",
    "ds_trainer_llama_z3/checkpoint-2",
    "ds_trainer_lora_z3/checkpoint-2",
    "ds_z3_subgroups_dp3",
    "ds_z1_bf16opt_dp3",
    "ds_z2_roundrobin_dp2",
)


def named_classes(path: Path) -> set[str]:
    """What a file's pickle names."""
    with zipfile.ZipFile(path) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
        operations = pickletools.genops(archive.read(name))
        return {str(argument) for operation, argument, _ in operations if operation.name == "GLOBAL"}


@pytest.mark.parametrize("name", FOLDERS)
def test_files_are_made_of_what_the_engine_writes(name: str, tmp_path: Path) -> None:
    """Names of files, keys and their order, types, shapes, places in storages, counts, slices and paddings."""
    real = FRAMEWORKS / name
    run, model = described(real)
    write_run(tmp_path / "run", run, model)
    ours, theirs = outline_of_folder(tmp_path / "run"), outline_of_folder(real)
    assert list(ours) == list(theirs)
    for file, outline in theirs.items():
        assert ours[file] == outline, file
        path = f"{run.tag}/{file}"
        beyond = named_classes(tmp_path / "run" / path) ^ named_classes(real / path)
        # The dtypes of buffers are the model's.
        assert beyond <= {"torch FloatStorage", "torch LongStorage", "torch BFloat16Storage"}, beyond


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
def test_no_two_elements_are_equal(dtype: str) -> None:
    values = torch.cat([tensor.flatten() for tensor in masters_of(ODD, dtype).values()])
    assert len(values.unique()) == len(values)
    if dtype != "fp32":
        rounded = values.to(torch.bfloat16 if dtype == "bf16" else torch.float16)
        assert len(rounded.unique()) == len(values)
        assert not (rounded.float() == values).any()
        up = rounded.float().abs() > values.abs()
        assert 0.3 < up.float().mean() < 0.7


def test_boundaries_are_inside_rows() -> None:
    """Partitions of the labelled model begin inside a row of a matrix at some number of ranks."""
    starts = [0, 35, 50, 65, 107]
    ends = {dp: [(107 + -107 % (2 * dp)) // dp * rank for rank in range(1, dp)] for dp in (2, 3, 5)}
    assert [sum(each.numel for each in ODD.groups()[0][:count]) for count in range(5)] == starts
    inside = [end for dp in ends for end in ends[dp] for low, high in pairwise(starts) if low < end < high]
    assert len(inside) >= 5


READ = [Run(stage=stage, dp=dp, dtype=dtype) for stage, dp, dtype in product((1, 2, 3), (1, 2, 3, 5), ("bf16", "fp32"))]
READ += [Run(stage=2, dp=dp, aligned=True, round_robin=turns) for dp, turns in product((1, 2, 3, 5), (False, True))]
READ += [Run(stage=2, dp=3, round_robin=True), *(Run(stage=3, dp=dp, sub_group=6) for dp in (1, 2, 3, 5))]


@pytest.mark.slow
@pytest.mark.skipif(find_spec("deepspeed") is None, reason="deepspeed is not installed")
def test_deepspeeds_own_reader_rebuilds_the_masters(tmp_path: Path) -> None:
    """All but what it loses: at ZeRO-1 it has no record of what is frozen or empty."""
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    for number, run in enumerate(READ):
        truth = write_run(tmp_path / f"{number}", run)
        found = get_fp32_state_dict_from_zero_checkpoint(tmp_path / f"{number}")
        wanted = truth.master()
        lost = {"empty", "frozen.weight", "layers.0.frozen"} if run.stage == 1 else set()
        assert set(found) == set(wanted) - lost
        for name, tensor in found.items():
            assert torch.equal(tensor.float(), wanted[name].float()), (run, name)
            assert tensor.shape == wanted[name].shape


UNREAD = {
    "ZeRO-0": (Run(stage=0), TypeError),
    "BF16_Optimizer": (Run(stage=1, bf16_optimizer=True), ValueError),
    "masters on NVMe": (Run(stage=3, swapped=True), ValueError),
}


@pytest.mark.slow
@pytest.mark.skipif(find_spec("deepspeed") is None, reason="deepspeed is not installed")
@pytest.mark.parametrize("name", UNREAD)
def test_deepspeeds_own_reader_cannot_read(name: str, tmp_path: Path) -> None:
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    run, error = UNREAD[name]
    write_run(tmp_path / "run", run)
    with pytest.raises(error):
        get_fp32_state_dict_from_zero_checkpoint(tmp_path / "run")


def test_round_robin_slices_are_as_wrong_as_the_engines(tmp_path: Path) -> None:
    """They name the parameters in the order before the turns; ``param_shapes`` has the order of the flat vector."""
    write_run(tmp_path / "run", Run(dp=2, round_robin=True), Model(ODD.own, ()))
    folder = tmp_path / "run" / "global_step3"
    shapes = load(folder / "mp_rank_00_model_states.pt")["param_shapes"]
    state = load(folder / "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt")["optimizer_state_dict"]
    assert list(shapes[0]) == ["embed.weight", "b.weight", "a.weight", "deep.weight"]
    slices = {name: (part.start, part.numel) for name, part in state["param_slice_mappings"][0].items()}
    assert slices == {"embed.weight": (0, 35), "a.weight": (35, 15), "b.weight": (50, 4)}
