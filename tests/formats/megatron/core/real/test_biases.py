"""Biases of linear layers in the real ``GPTModel``: with the zeros beside them it answers as transformers does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from streamconv import convert
from tests import hf_models as models
from tests.fixtures.megatron_core.make_megatron_core import LLAMA, TOKENS, save_rank
from tests.formats.megatron.core.real.gpt_model import Sizes, logits_from_torch, logits_from_torch_dist, saved_args
from tests.formats.megatron.core.real.needed import MEGATRON_CORE
from tests.formats.megatron.core.real.ranks import in_ranks
from tests.formats.megatron.rank_files import started

pytestmark = MEGATRON_CORE

CUTS: list[dict[str, Any]] = [{"tp": 1, "pp": 1}, {"tp": 2, "pp": 2}]
MODELS: list[tuple[str, dict[str, Any]]] = [
    *(("llama", {"attention_bias": one, "mlp_bias": two}) for one in (False, True) for two in (False, True)),
    *(("qwen3", {"attention_bias": one}) for one in (False, True)),
]


def answer_alike(found: torch.Tensor, model: Any) -> None:
    expected = models.logits(model)
    assert expected.std() > 0.1
    torch.testing.assert_close(found[..., :101], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("cut", CUTS, ids=str)
@pytest.mark.parametrize(("family", "entries"), MODELS, ids=str)
def test_it_answers_as_transformers(family: str, entries: dict[str, Any], cut: dict[str, Any], tmp_path: Path) -> None:
    model = models.make(family, tmp_path / "hf", **entries)
    how: dict[str, Any] = {"to": "megatron-core", "max_ram": "1G", **cut}
    convert(tmp_path / "hf", tmp_path / "torch", container="torch", spec="local", **how)
    assert saved_args(tmp_path / "torch").add_bias_linear is any(entries.values())
    answer_alike(logits_from_torch(tmp_path / "torch", models.TOKENS, **cut), model)
    convert(tmp_path / "hf", tmp_path / "dist", container="torch_dist", **how)
    answer_alike(logits_from_torch_dist(tmp_path / "dist", models.TOKENS, **cut), model)
    answer_alike(logits_from_torch_dist(tmp_path / "dist", models.TOKENS, tp=2, pp=1), model)


def test_more_ranks_than_groups_of_heads(tmp_path: Path) -> None:
    model = models.make("llama", tmp_path / "hf", attention_bias=True)
    convert(tmp_path / "hf", tmp_path / "dist", to="megatron-core", tp=4, max_ram="1G")
    answer_alike(logits_from_torch_dist(tmp_path / "dist", models.TOKENS, tp=4), model)


@pytest.mark.parametrize("container", ["torch", "torch_dist"])
def test_what_megatron_core_saved_answers_in_transformers(container: str, tmp_path: Path) -> None:
    """Random biases on every linear layer, saved by two tensor-parallel ranks on each of two stages."""
    started(tmp_path / "core")
    model = {**LLAMA, "add_bias_linear": True}
    answers = in_ranks(4, save_rank, str(tmp_path / "core"), container, model, Sizes(2, 2))
    convert(tmp_path / "core", tmp_path / "hf", to="huggingface", vocab_size=101, max_ram="1G")
    found = models.load(tmp_path / "hf")
    assert (found.config.attention_bias, found.config.mlp_bias) == (True, True)
    with torch.no_grad():
        logits = found(TOKENS).logits
    # Both round in float32: each is up to 4e-5 from what transformers answers in float64.
    torch.testing.assert_close(logits, answers[-1][..., :101], rtol=1e-5, atol=5e-5)
