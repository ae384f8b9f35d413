"""Refusals by name: families that Megatron-LM's legacy model cannot run, and checkpoints that are not translated."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from streamconv.core.errors import UnsupportedError
from streamconv.formats.common.refusals import Run, Runs, refusal_of, titles
from streamconv.models import mechanisms as made_of
from streamconv.models.family import ModelFamily

__all__ = ["AGES", "BIGSCIENCE", "MEGATRON_LM", "families", "refusal", "refuse_args"]

AGES = ("v2.3 (2021)", "core_v0.4 (2023-12)", "core_v0.6 (2024-03)")
"""The releases of Megatron-LM that added mechanisms to its legacy model, the oldest first."""

_V2_3, _V0_4, _V0_6 = AGES
_TRANSFORMER, _LANGUAGE_MODEL = "megatron/model/transformer.py", "megatron/model/language_model.py"

# Not norms stored less 1: LayerNorm can be, but RMSNorm, which the families with such norms have, is refused there
# [megatron/legacy/model/utils.py:get_norm].
MEGATRON_LM: Runs = {
    made_of.LEARNED: Run(_V2_3, f"{_LANGUAGE_MODEL}:Embedding"),
    made_of.ROTARY: Run(_V0_4, f"{_LANGUAGE_MODEL}:TransformerLanguageModel"),
    made_of.PARTIAL_ROTARY: Run(_V0_4, f"{_LANGUAGE_MODEL}:TransformerLanguageModel, rotary_percent"),
    made_of.LAYERNORM: Run(_V2_3, "megatron/model/fused_layer_norm.py"),
    made_of.RMSNORM: Run(_V0_4, "megatron/model/rms_norm.py"),
    made_of.PLAIN_MLP: Run(_V2_3, f"{_TRANSFORMER}:ParallelMLP"),
    made_of.SWIGLU: Run(_V0_4, f"{_TRANSFORMER}:ParallelMLP"),
    made_of.BIASES: Run(_V2_3, _TRANSFORMER),
    made_of.QKV_BIASES: Run(_V0_6, f"{_TRANSFORMER}:ParallelAttention, add_qkv_bias"),
    made_of.NO_BIASES: Run(_V0_4, f"{_TRANSFORMER}, add_bias_linear"),
    made_of.GROUPED_HEADS: Run(_V0_4, f"{_TRANSFORMER}:ParallelAttention, num_query_groups"),
    made_of.HEAD_SIZE: Run(_V2_3, f"{_TRANSFORMER}:ParallelAttention, kv_channels"),
}
"""The mechanisms of Megatron-LM's legacy model (since core_v0.7 in ``megatron/legacy/model``)."""

BIGSCIENCE: Runs = {
    made_of.ALIBI: Run("8387ae1", f"{_TRANSFORMER}:ParallelTransformer"),
    made_of.EMBEDDING_NORM: Run("8387ae1", "megatron/mpu/layers.py:VocabParallelEmbedding"),
    made_of.LAYERNORM: Run("8387ae1", "megatron/model/fused_layer_norm.py"),
    made_of.PLAIN_MLP: Run("8387ae1", f"{_TRANSFORMER}:ParallelMLP"),
    made_of.BIASES: Run("8387ae1", _TRANSFORMER),
}
"""The mechanisms of bigscience's fork in this layout, which it was started from: those of BLOOM. Its other positions
are named by an enum of its code, which is not written here.
"""


def refusal(family: ModelFamily) -> str | None:
    """Why neither Megatron-LM's legacy model nor BLOOM's fork of it runs a family, None if one does."""
    return refusal_of("Megatron-LM's legacy model", family, MEGATRON_LM, BIGSCIENCE)


def families() -> str:
    """The families that are translated from and to such folders, for a message."""
    return titles(refusal)


def refuse_args(args: Mapping[str, Any], folder: Path) -> None:
    """Refuse arguments that name a mechanism which no family has; the others are checked once the family is known.

    Raises:
        UnsupportedError: the arguments name one.
    """
    experts, expert_parallel = args.get("num_experts"), args.get("expert_model_parallel_size")
    is_rotary = args.get("position_embedding_type") == "rope" or bool(args.get("use_rotary_position_embeddings"))
    kinds = (
        ("a mixture of experts (MoE)", any(isinstance(n, int) and n > 1 for n in (experts, expert_parallel))),
        (
            "LayerNorm and linear layers without bias",
            args.get("add_bias_linear") is False and args.get("normalization", "LayerNorm") == "LayerNorm",
        ),
        ("interpolated rotary positions", is_rotary and bool(args.get("rotary_seq_len_interpolation_factor"))),
    )
    for name, matches in kinds:
        if matches:
            raise UnsupportedError(
                f"{name}, as args say: not translated yet",
                where=folder,
                remedy=f"families so far in such folders: {families()}",
            )
