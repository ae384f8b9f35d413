"""What the live training run answered comes out of ``from_pretrained`` on the converted folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from streamconv import convert
from tests import hf_models as models
from tests import oracle
from tests.places import LLAMA, REAL, Source

pytestmark = pytest.mark.slow

MEGATRON = (*REAL, LLAMA)
FP32 = [source for source in MEGATRON if "fp32" in source.name]
HALF = [source for source in REAL if "fp32" not in source.name]
RAM: dict[str, Any] = {"max_ram": "1G"}


def distance_from_run(source: Source, folder: Path) -> float:
    """The largest difference from the live model's logits, over the true vocabulary."""
    live = torch.load(source.folder / "oracle_logits.pt", weights_only=True)
    network = models.load(folder)
    with torch.no_grad():
        found = network(live["tokens"]).logits
    true = source.true_vocab
    return float((found[..., :true] - live["logits"][..., :true]).abs().max())


@pytest.mark.parametrize("source", FP32, ids=lambda source: source.name)
def test_logits_are_those_of_the_live_run(source: Source, tmp_path: Path) -> None:
    convert(source.folder, tmp_path / "hf", to="huggingface", **RAM)
    assert distance_from_run(source, tmp_path / "hf") < 1e-5


@pytest.mark.parametrize("source", HALF, ids=lambda source: source.name)
def test_in_16_bits_every_weight_is_that_of_a_longhand_merge(source: Source, tmp_path: Path) -> None:
    convert(source.folder, tmp_path / "hf", to="huggingface", **RAM)
    network = models.load(tmp_path / "hf", torch.float16 if "fp16" in source.name else torch.bfloat16)
    found = network.state_dict()
    for key, tensor in oracle.as_gpt2(oracle.model_of(source)).items():
        if key == "transformer.wte.weight":
            tensor = tensor[: source.true_vocab]
        assert torch.equal(found[key].view(torch.int16), tensor.contiguous().view(torch.int16)), key


def test_another_gelu_than_the_runs_is_said(tmp_path: Path) -> None:
    bloom = next(source for source in FP32 if "bloom" in source.name)
    report = convert(bloom.folder, tmp_path / "hf", to="huggingface", **RAM)
    assert any("gelu" in warning.lower() for warning in report.plan.warnings)


def cut_after_fusing(folder: Path) -> None:
    """Let two ranks hold the halves of the fused gate and up, as public converters cut them."""
    for first in sorted(folder.glob("global_step*/layer_*-model_00-model_states.pt")):
        ranks = [first, first.with_name(first.name.replace("model_00-", "model_01-"))]
        states = [torch.load(path, weights_only=True) for path in ranks]
        key = "mlp.dense_h_to_4h.weight"
        if key in states[0]:
            gates, ups = zip(*(state[key].chunk(2) for state in states), strict=True)
            for path, state, part in zip(ranks, states, torch.cat([*gates, *ups]).chunk(2), strict=True):
                torch.save({**state, key: part.clone()}, path)


@pytest.mark.parametrize(
    ("mistake", "choices"),
    [
        ("gate and up swapped", {"glu_order": "up-gate"}),
        ("rows in blocks", {"qkv_layout": "blocks"}),
        ("cut after fusing", {}),
        ("none", {}),
    ],
)
def test_wrong_rows_cannot_pass(mistake: str, choices: dict[str, Any], tmp_path: Path) -> None:
    # With two groups of heads on one rank, or none of the orders could be told from another.
    tp = 1 if mistake == "rows in blocks" else 2
    convert(LLAMA.folder, tmp_path / "ds", to="deepspeed", tp=tp, **RAM)
    if mistake == "cut after fusing":
        cut_after_fusing(tmp_path / "ds")
    convert(tmp_path / "ds", tmp_path / "hf", to="huggingface", **choices, **RAM)
    distance = distance_from_run(LLAMA, tmp_path / "hf")
    assert distance < 1e-5 if mistake == "none" else distance > 1e-4
