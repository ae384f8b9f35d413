"""Refusals by name: families and GPT-NeoX checkpoints that are not translated."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from streamconv.core.errors import UnsupportedError
from streamconv.formats.common.refusals import Run, Runs, refusal_of
from streamconv.models import mechanisms as made_of
from streamconv.models.family import ModelFamily

__all__ = ["RUNS", "refusal", "refuse_neox_keys"]

_TRANSFORMER = "megatron/model/transformer.py"

RUNS: Runs = {
    made_of.ROTARY: Run("ea7aefd", f"{_TRANSFORMER}:ParallelSelfAttention"),
    made_of.PARTIAL_ROTARY: Run("ea7aefd", f"{_TRANSFORMER}:ParallelSelfAttention, rotary_pct"),
    made_of.PARALLEL_RESIDUAL: Run("ea7aefd", f"{_TRANSFORMER}:ParallelTransformerLayer, gpt_j_residual"),
    made_of.LAYERNORM: Run("ea7aefd", "megatron/model/norms.py"),
    made_of.PLAIN_MLP: Run("ea7aefd", f"{_TRANSFORMER}:ParallelMLP"),
    made_of.BIASES: Run("ea7aefd", "megatron/mpu/layers.py"),
}
"""The mechanisms of GPT-NeoX-20B and Pythia. gpt-neox's code has more, which are not translated."""


def refusal(family: ModelFamily) -> str | None:
    """Why a family is neither read from gpt-neox's folders nor written to them."""
    return refusal_of("only GPT-NeoX's own architecture is translated in gpt-neox's folders: it", family, RUNS)


_REFUSED = (
    (r".*norm\.scale", "RMSNorm"),
    (r".*norm\.g", "ScaleNorm"),
    (r"position_embeddings\..*", "learned positions"),
    (r"mlp\.w[123]\..*", "a gated linear unit (GLU: mlp.w1, mlp.w3)"),
    (r"mlp\.(router|experts)\..*|.*\.experts\..*|.*deepspeed_moe.*", "a mixture of experts (MoE)"),
    (r"attention\.(qkv|proj)\..*|mlp\.(fc[12]|layer_norm)_.*", "Transformer Engine's modules"),
    (r"attention\.qk_layernorm\..*", "norms of queries and keys"),
    (r".*\brpe\b.*", "relative positions"),
    (r"rm_linear\..*", "a reward model's head"),
    (r"mixer\..*|.*mamba.*|(att|ffn)\..*", "blocks that are no transformer layers (Mamba, RWKV)"),
)


def refuse_neox_keys(keys: Collection[str], path: Path) -> None:
    """Refuse a mechanism that the keys of a layer file show, by name.

    Raises:
        UnsupportedError: the keys show one.
    """
    for pattern, words in _REFUSED:
        if any(re.fullmatch(pattern, key) for key in keys):
            raise UnsupportedError(f"GPT-NeoX with {words}: not translated", where=path)
