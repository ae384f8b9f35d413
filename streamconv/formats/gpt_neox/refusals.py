"""What GPT-NeoX cannot hold."""

from __future__ import annotations

from streamconv.formats.common.refusals import Run, Runs, refusal_of
from streamconv.models import mechanisms as made_of
from streamconv.models.family import ModelFamily

__all__ = ["RUNS", "refusal"]

_TRANSFORMER = "megatron/model/transformer.py"

RUNS: Runs = {
    made_of.ROTARY: Run("ea7aefd", f"{_TRANSFORMER}:ParallelSelfAttention"),
    made_of.PARTIAL_ROTARY: Run("ea7aefd", f"{_TRANSFORMER}:ParallelSelfAttention, rotary_pct"),
    made_of.PARALLEL_RESIDUAL: Run("ea7aefd", f"{_TRANSFORMER}:ParallelTransformerLayer, gpt_j_residual"),
    made_of.LAYERNORM: Run("ea7aefd", "megatron/model/norms.py"),
    made_of.PLAIN_MLP: Run("ea7aefd", f"{_TRANSFORMER}:ParallelMLP"),
    made_of.BIASES: Run("ea7aefd", "megatron/mpu/layers.py"),
}
"""What gpt-neox's model of GPT-NeoX-20B and Pythia runs. Its code has more; none of it is translated."""


def refusal(family: ModelFamily) -> str | None:
    """Why a family is neither read from gpt-neox's folders nor written to them."""
    return refusal_of("only GPT-NeoX's own architecture is translated in gpt-neox's folders: it", family, RUNS)
