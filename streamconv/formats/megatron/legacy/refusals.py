"""What Megatron-LM's legacy model cannot hold."""

from __future__ import annotations

from streamconv.formats.common.refusals import Run, Runs, refusal_of, titles
from streamconv.models import mechanisms as made_of
from streamconv.models.family import ModelFamily

__all__ = ["AGES", "BIGSCIENCE", "MEGATRON_LM", "families", "refusal"]

AGES = ("v2.3 (2021)", "core_v0.4 (2023-12)", "core_v0.6 (2024-03)")
"""The releases of Megatron-LM that brought what its legacy model runs, the oldest first."""

_V2_3, _V0_4, _V0_6 = AGES
_TRANSFORMER, _LANGUAGE_MODEL = "megatron/model/transformer.py", "megatron/model/language_model.py"

# Not norms stored less 1: LayerNorm can be, and RMSNorm, of which families are, stops there
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
"""What Megatron-LM's legacy model runs (since core_v0.7 below ``megatron/legacy/model``)."""

BIGSCIENCE: Runs = {
    made_of.ALIBI: Run("8387ae1", f"{_TRANSFORMER}:ParallelTransformer"),
    made_of.EMBEDDING_NORM: Run("8387ae1", "megatron/mpu/layers.py:VocabParallelEmbedding"),
    made_of.LAYERNORM: Run("8387ae1", "megatron/model/fused_layer_norm.py"),
    made_of.PLAIN_MLP: Run("8387ae1", f"{_TRANSFORMER}:ParallelMLP"),
    made_of.BIASES: Run("8387ae1", _TRANSFORMER),
}
"""What bigscience's fork runs of this layout, which it was started from: BLOOM. Its other kinds of positions are named
by an enum of its code, which is not written here.
"""


def refusal(family: ModelFamily) -> str | None:
    """Why Megatron-LM's legacy model, or the fork of it that BLOOM was trained with, cannot run a family."""
    return refusal_of("Megatron-LM's legacy model", family, MEGATRON_LM, BIGSCIENCE)


def families() -> str:
    """The families that such folders can be of, for a message."""
    return titles(refusal)
