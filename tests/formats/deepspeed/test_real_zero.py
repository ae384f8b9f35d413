"""The real engine, Hugging Face's Trainer and accelerate train and save; what is converted is what the live model had.

Each run is in processes of its own, on a CPU, and nothing of the package runs in them. Needs deepspeed; the Trainer
needs accelerate, adapters need peft.
"""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from streamconv import StreamconvError
from tests.formats.deepspeed.zero_truth import Tensors, as_named, converted
from tests.making.real_zero import start
from tests.making.zero import write_run
from tests.making.zero_outline import described, outline_of_folder

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("deepspeed") is None, reason="deepspeed is not installed"),
]
needs_accelerate = pytest.mark.skipif(find_spec("accelerate") is None, reason="accelerate is not installed")
needs_peft = pytest.mark.skipif(
    find_spec("accelerate") is None or find_spec("peft") is None, reason="accelerate and peft are not installed"
)

Params = dict[str, dict[str, Any]]
FP32_GRADIENTS = {"data_types": {"grad_accum_dtype": "fp32"}}
GATHER = {"stage3_gather_16bit_weights_on_model_save": True}
ENGINES: dict[str, tuple[int, dict[str, Any]]] = {
    "z1-dp2": (2, {"stage": 1}),
    "z1-dp3-fp16": (3, {"stage": 1, "dtype": "fp16"}),
    "z1-dp3-fp32-gradients": (3, {"stage": 1, "extra": FP32_GRADIENTS}),
    "z2-dp1": (1, {"stage": 2}),
    "z2-dp3": (3, {"stage": 2}),
    "z2-dp2-fp32": (2, {"stage": 2, "dtype": "fp32"}),
    "z2-dp3-aligned": (3, {"stage": 2, "zero": {"parameter_alignment": True}}),
    "z2-dp2-round-robin": (2, {"stage": 2, "zero": {"round_robin_gradients": True}}),
    "z2-dp2-offload": (2, {"stage": 2, "zero": {"offload_optimizer": {"device": "cpu"}}}),
    "z2-dp2-left-out": (2, {"stage": 2, "exclude_frozen": True}),
    "z3-dp1": (1, {"stage": 3}),
    "z3-dp2-fp16": (2, {"stage": 3, "dtype": "fp16"}),
    "z3-dp3": (3, {"stage": 3}),
    "z3-dp3-sub-groups": (3, {"stage": 3, "zero": {"sub_group_size": 6}}),
    "z3-dp2-offload": (
        2,
        {"stage": 3, "zero": {"offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}}},
    ),
    "z3-dp2-left-out": (2, {"stage": 3, "exclude_frozen": True}),
}


def saved(params: Params, options: dict[str, Any]) -> Params:
    """Less what the run was told to leave out; at ZeRO-3 the shape of what has no elements is lost with it."""
    left_out = {"frozen.weight", *(["unused.empty"] if options["stage"] == 3 else [])}
    return {name: pair for name, pair in params.items() if not (options.get("exclude_frozen") and name in left_out)}


def assert_values(found: Tensors, params: Params, weights: str) -> None:
    """Bit for bit; what has no master is as the module has it, or widened."""
    found = as_named({name: tensor for name, tensor in found.items() if name in params or tensor.numel()}, params)
    assert set(found) == set(params)
    for name, pair in params.items():
        master = pair["fp32"] if weights == "master" else None
        wanted = pair["lp"] if master is None else master
        assert found[name].shape == wanted.shape
        assert found[name].dtype in ({wanted.dtype} if master is not None else {wanted.dtype, torch.float32}), name
        assert torch.equal(found[name], wanted.to(found[name].dtype)), name
        assert torch.equal(found[name].to(pair["lp"].dtype), pair["lp"]), name


def by_deepspeeds_reader(root: Path, params: Params) -> Params:
    """With round robin the live engine gives the masters of other parameters out: its slices are in another order."""
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    masters = get_fp32_state_dict_from_zero_checkpoint(root)
    assert any(pair["fp32"] is not None and not torch.equal(pair["fp32"], masters[n]) for n, pair in params.items())
    return {name: {**pair, "fp32": None if pair["fp32"] is None else masters[name]} for name, pair in params.items()}


@pytest.mark.sweep(3)
@pytest.mark.parametrize("name", ENGINES)
def test_the_engine(name: str, tmp_path: Path) -> None:
    """Its files are what the writer of labelled folders writes, and become the live engine's parameters."""
    world, options = ENGINES[name]
    params = saved(start("engine", tmp_path / "real", world, **options)["params"], options)
    root = tmp_path / "real" / "run"
    run, model = described(root)
    write_run(tmp_path / "made", run, model)
    assert outline_of_folder(tmp_path / "made") == outline_of_folder(root)
    if run.round_robin:
        params = by_deepspeeds_reader(root, params)
    assert_values(converted(root, tmp_path / "masters", weights="master"), params, "master")
    if options["stage"] < 3:
        assert_values(converted(root, tmp_path / "module", weights="model"), params, "model")


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
def test_the_engine_at_stage_0(dtype: str, tmp_path: Path) -> None:
    """The masters are there in 16 bits too, but in lists without names: right, or refused."""
    params = start("engine", tmp_path / "real", 2, stage=0, dtype=dtype)["params"]
    root = tmp_path / "real" / "run"
    assert_values(converted(root, tmp_path / "module"), params, "model")
    try:
        found = converted(root, tmp_path / "masters", weights="master")
    except StreamconvError:
        return
    assert_values(found, params, "master")


TRAINERS: dict[str, tuple[int, dict[str, Any]]] = {
    "z0": (1, {"stage": 0}),
    "z0-fp32": (1, {"stage": 0, "dtype": "fp32"}),
    "z1-dp2-fp16-tied": (2, {"stage": 1, "dtype": "fp16", "tied": True}),
    "z2-dp2": (2, {"stage": 2}),
    "z3-dp2": (2, {"stage": 3}),
    "z3-dp2-gathered": (2, {"stage": 3, "zero": GATHER}),
    "z3-dp3-tied": (3, {"stage": 3, "tied": True}),
}


def answer(folder: Path, source: Path, tokens: torch.Tensor, dtype: str) -> torch.Tensor:
    """Logits of transformers' own model from what was written; a config that is not there is the run's."""
    from transformers import AutoModelForCausalLM

    if not (folder / "config.json").exists():
        shutil.copy(source / "config.json", folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype), local_files_only=True)
    with torch.no_grad():
        logits: torch.Tensor = model.eval()(tokens).logits
    return logits


@needs_accelerate
@pytest.mark.sweep(2)
@pytest.mark.parametrize("name", TRAINERS)
def test_the_trainer(name: str, tmp_path: Path) -> None:
    """Loaded by transformers, the 16-bit model answers as the live one, the masters as a model of the live masters."""
    world, options = TRAINERS[name]
    truth = start("trainer", tmp_path / "real", world, **options)
    source = tmp_path / "real" / "run" / "checkpoint-2"
    dtype = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}[options.get("dtype", "bf16")]
    tags = {"tag": "global_step2"}
    if options["stage"]:
        found = converted(source, tmp_path / "masters", weights="master", **tags)
        assert_values(found, truth["params"], "master")
        assert torch.equal(answer(tmp_path / "masters", source, truth["tokens"], "float32"), truth["logits_fp32"])
        assert torch.equal(answer(tmp_path / "masters", source, truth["tokens"], dtype), truth["logits"])
    if options["stage"] < 3:
        assert_values(converted(source, tmp_path / "module", weights="model", **tags), truth["params"], "model")
        assert torch.equal(answer(tmp_path / "module", source, truth["tokens"], dtype), truth["logits"])


ADAPTERS: dict[str, dict[str, Any]] = {
    "z2": {"stage": 2},
    "z3": {"stage": 3},
    "z3-whole-head": {"stage": 3, "peft": {"modules_to_save": ["lm_head"]}},
}


@needs_peft
@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter(name: str, tmp_path: Path) -> None:
    """The Trainer leaves the base out; the adapter is as the live engine had it, and rounded as PEFT saved it."""
    truth = start("trainer", tmp_path / "real", 2, lora=True, **ADAPTERS[name])
    source = tmp_path / "real" / "run" / "checkpoint-2"
    trained = {name: pair for name, pair in truth["params"].items() if pair["fp32"] is not None}
    found = as_named(converted(source, tmp_path / "out", weights="master", tag="global_step2"), trained)
    assert_values(found, trained, "master")
    adapter = load_file(source / "adapter_model.safetensors")
    short = {name.replace(".modules_to_save.default", "").replace(".default", ""): name for name in found}
    assert set(short) == set(adapter)
    for name, tensor in adapter.items():
        assert torch.equal(found[short[name]].to(tensor.dtype), tensor), name


ACCELERATED: dict[str, dict[str, Any]] = {
    "z2": {"stage": 2},
    "z3": {"stage": 3},
    "z3-adapter-and-base": {"stage": 3, "lora": True},
    "z2-adapter-alone": {"stage": 2, "lora": True, "save": {"exclude_frozen_parameters": True}},
}


@needs_peft
@pytest.mark.parametrize("name", ACCELERATED)
def test_accelerate(name: str, tmp_path: Path) -> None:
    """``save_state``: the tag is ``pytorch_model``."""
    options = ACCELERATED[name]
    params = start("accelerate", tmp_path / "real", 2, **options)["params"]
    if "save" in options:
        params = {name: pair for name, pair in params.items() if pair["fp32"] is not None}
    root = tmp_path / "real" / "run"
    assert (root / "latest").read_text() == "pytorch_model"
    assert_values(converted(root, tmp_path / "masters", weights="master"), params, "master")
    if options["stage"] < 3:
        assert_values(converted(root, tmp_path / "module", weights="model"), params, "model")
