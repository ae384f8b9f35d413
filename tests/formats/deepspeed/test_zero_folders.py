"""Plain DeepSpeed runs become whole named tensors: labelled folders at every stage, and what the engine itself wrote.

The labelled ones come from ``tests.making.zero``, which shares nothing with the package: ``test_zero_writer`` holds its
files against the engine's. Each element is another number, a master is never what 16 bits can hold.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from streamconv import StreamconvError, plan
from tests.formats.deepspeed.zero_truth import (
    REAL_RUNS,
    Real,
    Tensors,
    as_named,
    assert_same,
    bits,
    converted,
    written,
)
from tests.making.zero import POISON, Run, Truth, write_run
from tests.making.zero_classes import load, save
from tests.making.zero_values import ODD, Model, Parameter

RANKS = 1, 2, 3, 5
DTYPES = "bf16", "fp16", "fp32"
PLAIN = [Run(stage=stage, dp=dp, dtype=dtype) for stage, dp, dtype in product((1, 2, 3), RANKS, DTYPES)]
ALIGNED = [Run(stage=stage, dp=dp, aligned=True, dtype=dtype) for stage, dp, dtype in product((1, 2), RANKS, DTYPES)]
IN_TURN = [Run(stage=2, dp=dp, round_robin=True, aligned=aligned) for dp, aligned in product(RANKS, (False, True))]
PADDED = [Run(stage=stage, dp=dp, bf16_optimizer=True) for stage, dp in product((0, 1), RANKS)]
SUB_GROUPS = [Run(stage=3, dp=dp, sub_group=size) for dp, size in product(RANKS, (1, 6, 20))]
SIXTEEN = [Run(stage=stage, dp=3, dtype=dtype, masters=dtype) for stage, dtype in product((1, 2, 3), ("bf16", "fp16"))]
TAGS = [Run(stage=stage, dp=2, tag="pytorch_model") for stage in (1, 2, 3)]
ALL = [*PLAIN, *ALIGNED, *IN_TURN, *PADDED, *SUB_GROUPS, *SIXTEEN, *TAGS]
# A model of one group, as accelerate's users mostly have; no buffer, nothing frozen, nothing shared.
BARE = replace(ODD.without("empty", "frozen.weight", "layers.0.frozen", "head.weight"), buffers=())
ONE_GROUP = Model(tuple(Parameter(each.name, each.shape) for each in BARE.own), ())


def told(run: Run) -> str:
    words = [f"z{run.stage}", f"dp{run.dp}", run.dtype]
    words += [
        name for name in ("aligned", "round_robin", "bf16_optimizer", "swapped", "exclude_frozen") if getattr(run, name)
    ]
    words += [f"sub{run.sub_group}"] if run.sub_group < 10**9 else []
    words += [f"masters-{run.masters}"] if run.masters != "fp32" else []
    return "-".join([*words, *([run.tag] if run.tag != "global_step3" else [])])


def assert_masters(found: Tensors, truth: Truth) -> None:
    assert_same(found, truth.master(), exact=set(truth.trained) | set(truth.shared))


@pytest.mark.sweep(4)
@pytest.mark.parametrize("run", ALL, ids=told)
def test_masters_are_whole(run: Run, tmp_path: Path) -> None:
    truth = write_run(tmp_path / "run", run)
    assert_masters(converted(tmp_path / "run", tmp_path / "out", weights="master"), truth)


@pytest.mark.sweep(4)
@pytest.mark.parametrize(
    "run", [run for run in ALL if run.stage < 3] + [Run(stage=0, dtype=d) for d in DTYPES], ids=told
)
def test_the_module_as_it_computes_is_the_default(run: Run, tmp_path: Path) -> None:
    truth = write_run(tmp_path / "run", run)
    found = converted(tmp_path / "run", tmp_path / "out")
    assert_same(found, truth.module, exact=set(truth.module))
    asked = converted(tmp_path / "run", tmp_path / "asked", weights="model")
    assert_same(asked, found, exact=set(found))


@pytest.mark.parametrize("dp", RANKS)
def test_masters_are_the_default_where_the_module_has_placeholders(dp: int, tmp_path: Path) -> None:
    truth = write_run(tmp_path / "run", Run(stage=3, dp=dp))
    assert_masters(converted(tmp_path / "run", tmp_path / "out"), truth)


def test_placeholders_are_not_written_when_the_model_is_asked_for(tmp_path: Path) -> None:
    write_run(tmp_path / "run", Run(stage=3))
    with pytest.raises(StreamconvError):
        converted(tmp_path / "run", tmp_path / "out", weights="model")
    assert not written(tmp_path / "out")


@pytest.mark.parametrize(("stage", "dp"), [*product((1, 2, 3), RANKS)])
def test_a_model_of_one_group_without_anything_else(stage: int, dp: int, tmp_path: Path) -> None:
    truth = write_run(tmp_path / "run", Run(stage=stage, dp=dp), ONE_GROUP)
    assert_masters(converted(tmp_path / "run", tmp_path / "out", weights="master"), truth)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_more_ranks_than_elements(stage: int, tmp_path: Path) -> None:
    """Most ranks have nothing but padding."""
    model = Model((Parameter("a", (3,)), Parameter("b", (1,), 1), Parameter("c", (2, 1))), ())
    truth = write_run(tmp_path / "run", Run(stage=stage, dp=11), model)
    assert_masters(converted(tmp_path / "run", tmp_path / "out", weights="master"), truth)


@pytest.mark.parametrize("stage", [2, 3])
def test_ranks_are_numbers_not_words(stage: int, tmp_path: Path) -> None:
    """Rank 10 comes behind rank 9, not behind rank 1."""
    truth = write_run(tmp_path / "run", Run(stage=stage, dp=12))
    assert_masters(converted(tmp_path / "run", tmp_path / "out", weights="master"), truth)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_what_was_frozen_and_left_out_is_not_made_up(stage: int, tmp_path: Path) -> None:
    model = ODD.without("empty")
    truth = write_run(tmp_path / "run", Run(stage=stage, exclude_frozen=True), model)
    assert "frozen.weight" not in truth.module
    assert_masters(converted(tmp_path / "run", tmp_path / "out", weights="master"), truth)


def test_what_has_no_elements_is_left_out_if_its_shape_went_with_the_frozen(tmp_path: Path) -> None:
    """The engine takes it for frozen: the name stays in the module, the record of shapes is gone."""
    truth = write_run(tmp_path / "run", Run(stage=3, dp=2, exclude_frozen=True))
    found = converted(tmp_path / "run", tmp_path / "out")
    assert_masters(found, replace(truth, module={n: t for n, t in truth.module.items() if n != "empty"}))
    words = "1 parameters have no elements, and their shapes are not recorded: left out, the first is empty"
    assert words in plan(tmp_path / "run", to="safetensors").warnings


def test_what_no_record_speaks_of_is_refused(tmp_path: Path) -> None:
    """Without a record of what is frozen a name may be that of a frozen parameter, whose elements are nowhere."""
    write_run(tmp_path / "run", Run(stage=3, dp=1, exclude_frozen=True))
    (path,) = (tmp_path / "run" / "global_step3").glob("*model_states.pt")
    state = load(path)
    del state["frozen_param_shapes"]
    save(state, path)
    with pytest.raises(StreamconvError, match="no file has the elements of empty, which the model file names"):
        converted(tmp_path / "run", tmp_path / "out")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(("stage", "weights"), [(2, "model"), (2, "master"), (3, "master")])
def test_a_dtype_is_reached_by_one_rounding(dtype: str, stage: int, weights: str, tmp_path: Path) -> None:
    truth = write_run(tmp_path / "run", Run(stage=stage, dp=3))
    found = converted(tmp_path / "run", tmp_path / "out", weights=weights, dtype=dtype)
    wanted = truth.master() if weights == "master" else truth.module
    parameters = {name: tensor.to(getattr(torch, dtype)) for name, tensor in wanted.items() if name not in ODD.buffers}
    assert_same({name: found[name] for name in parameters}, parameters, exact=set(parameters))
    assert set(found) == set(wanted)


def test_padding_is_never_a_weight(tmp_path: Path) -> None:
    """Behind parameters, and between them where they are aligned, stands what the memory had."""
    for number, run in enumerate((Run(stage=1, dp=5, aligned=True), Run(stage=3, dp=5), PADDED[-1])):
        write_run(tmp_path / f"{number}", run)
        for name, tensor in converted(tmp_path / f"{number}", tmp_path / f"out{number}", weights="master").items():
            assert not (tensor.double().abs() > POISON / 2).any(), name


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_masters_without_names_are_right_or_refused(dtype: str, tmp_path: Path) -> None:
    """At ZeRO-0 the model file has the masters as lists by group, and nothing says whose they are."""
    truth = write_run(tmp_path / "run", Run(stage=0, dtype=dtype))
    try:
        found = converted(tmp_path / "run", tmp_path / "out", weights="master")
    except StreamconvError:
        return
    trained = {each.name for each in ODD.own if each.group is not None}
    assert_same(found, truth.master(), exact=trained | set(truth.shared))


def test_masters_on_another_disk_are_refused(tmp_path: Path) -> None:
    """ZeRO-Infinity leaves the masters in files of its own; the flat groups are empty."""
    write_run(tmp_path / "run", Run(stage=3, swapped=True))
    with pytest.raises(StreamconvError):
        converted(tmp_path / "run", tmp_path / "out", weights="master")
    assert not written(tmp_path / "out")


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_missing_rank_is_refused(stage: int, tmp_path: Path) -> None:
    write_run(tmp_path / "run", Run(stage=stage, dp=3))
    (tmp_path / "run" / "global_step3" / "bf16_zero_pp_rank_2_mp_rank_00_optim_states.pt").unlink()
    with pytest.raises(StreamconvError):
        converted(tmp_path / "run", tmp_path / "out", weights="master")


@pytest.mark.parametrize("stage", [2, 3])
def test_the_folder_of_the_tag_can_be_given(stage: int, tmp_path: Path) -> None:
    truth = write_run(tmp_path / "run", Run(stage=stage))
    assert_masters(converted(tmp_path / "run" / "global_step3", tmp_path / "out", weights="master"), truth)


@pytest.mark.parametrize("weights", ["model", "master"])
def test_several_files_have_what_one_has(weights: str, tmp_path: Path) -> None:
    truth = write_run(tmp_path / "run", Run(dp=3))
    found = converted(tmp_path / "run", tmp_path / "out", weights=weights, max_shard_size=100)
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    wanted = truth.master() if weights == "master" else truth.module
    assert_same(found, wanted, exact=set(truth.trained))


@pytest.mark.parametrize("weights", ["model", "master"])
def test_a_pickle_has_what_safetensors_have(weights: str, tmp_path: Path) -> None:
    truth = write_run(tmp_path / "run", Run(dp=3))
    how: dict[str, Any] = {"to": "pytorch-bin", "weights": weights}
    converted(tmp_path / "run", tmp_path / "out", **how)
    found = torch.load(tmp_path / "out" / "pytorch_model.bin", weights_only=True)
    assert_same(found, truth.master() if weights == "master" else truth.module, exact=set(truth.trained))


def test_the_file_says_what_transformers_ask_for(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    converted(tmp_path / "run", tmp_path / "out")
    with safe_open(str(tmp_path / "out" / "model.safetensors"), "pt") as file:
        assert file.metadata()["format"] == "pt"


# -- what the real engine wrote --------------------------------------------------------------------------------------


@pytest.mark.parametrize("real", REAL_RUNS, ids=lambda real: real.name)
def test_masters_are_the_live_engines(real: Real, tmp_path: Path) -> None:
    truth = real.truth()
    found = as_named(real.converted(tmp_path / "out", "master"), truth)
    assert set(truth) <= set(found)
    for name in set(found) - set(truth):
        assert "buf" in name or torch.equal(found[name], found[real.shared()[name]]), name
    for name, pair in truth.items():
        wanted = pair["lp"] if pair["fp32"] is None else pair["fp32"]
        assert torch.equal(found[name].float(), wanted.float()), name
        assert pair["fp32"] is None or found[name].dtype == torch.float32


@pytest.mark.parametrize("real", [real for real in REAL_RUNS if real.stage < 3], ids=lambda real: real.name)
def test_the_module_is_the_live_one(real: Real, tmp_path: Path) -> None:
    found = real.converted(tmp_path / "out", "model")
    for name, pair in real.truth().items():
        assert torch.equal(found[name].float(), pair["lp"].float()), name
        assert found[name].dtype == (torch.bfloat16 if pair["fp32"] is not None else found[name].dtype)


@pytest.mark.parametrize("real", [real for real in REAL_RUNS if real.stage < 3], ids=lambda real: real.name)
def test_masters_round_to_the_module(real: Real, tmp_path: Path) -> None:
    masters = real.converted(tmp_path / "masters", "master")
    for name, tensor in real.converted(tmp_path / "module", "model").items():
        assert torch.equal(bits(masters[name].to(tensor.dtype)), bits(tensor)), name
