"""The mechanisms that each fork of Megatron-DeepSpeed runs, with the file that shows each.

Read at: bigscience-workshop/Megatron-DeepSpeed 8387ae1, deepspeedai/Megatron-DeepSpeed 4efb479 and, before 676a482c,
6acc370.
"""

from __future__ import annotations

from streamconv.formats.common.refusals import Run, Runs
from streamconv.formats.options import TrainingOptions
from streamconv.formats.target import TargetModel
from streamconv.models import mechanisms as made_of
from streamconv.models.mechanisms import Mechanism

__all__ = ["BIGSCIENCE_RUNS", "DEEPSPEEDAI_BEFORE_RUNS", "DEEPSPEEDAI_RUNS", "mechanisms_of"]

_TRANSFORMER, _LANGUAGE_MODEL = "megatron/model/transformer.py", "megatron/model/language_model.py"


def _deepspeedai(commit: str) -> dict[Mechanism, Run]:
    # Not norms stored less 1: only its LayerNorm has them, not its RMSNorm.
    return {
        made_of.LEARNED: Run(commit, f"{_LANGUAGE_MODEL}:Embedding"),
        made_of.ROTARY: Run(commit, f"{_LANGUAGE_MODEL}:TransformerLanguageModel"),
        made_of.PARTIAL_ROTARY: Run(commit, "megatron/utils.py:update_rotary_pos_emb, rotary_percent"),
        made_of.LAYERNORM: Run(commit, "megatron/model/fused_layer_norm.py"),
        made_of.RMSNORM: Run(commit, "megatron/model/rmsnorm.py"),
        made_of.PLAIN_MLP: Run(commit, f"{_TRANSFORMER}:ParallelMLP"),
        made_of.SWIGLU: Run(commit, f"{_TRANSFORMER}:ParallelMLP, swiglu"),
        made_of.BIASES: Run(commit, f"{_TRANSFORMER}, add_bias_linear"),
        made_of.NO_BIASES: Run(commit, f"{_TRANSFORMER}, add_bias_linear"),
        made_of.HEAD_SIZE: Run(commit, f"{_TRANSFORMER}:ParallelAttention, kv_channels"),
    }


DEEPSPEEDAI_RUNS: Runs = _deepspeedai("4efb479")
"""deepspeedai's since 676a482c (2024-12). Heads cannot share keys and values: its attention takes a third of the
rows for each of queries, keys and values [``transformer.py:ParallelAttention.forward``: ``each_hidden_size``].
"""

DEEPSPEEDAI_BEFORE_RUNS: Runs = {
    **_deepspeedai("6acc370"),
    made_of.GROUPED_HEADS: Run("6acc370", f"{_TRANSFORMER}:ParallelAttention, num_key_value_heads"),
}
"""deepspeedai's before that."""

# Not GeGLU: the one of megatron/model/glu_activations.py has GELU by erf.
BIGSCIENCE_RUNS: Runs = {
    made_of.ALIBI: Run("8387ae1", f"{_TRANSFORMER}:ParallelTransformer"),
    made_of.LEARNED: Run("8387ae1", f"{_LANGUAGE_MODEL}:Embedding"),
    made_of.ROTARY: Run("8387ae1", f"{_TRANSFORMER}:ParallelAttention"),
    made_of.EMBEDDING_NORM: Run("8387ae1", "megatron/mpu/layers.py:VocabParallelEmbedding"),
    made_of.LAYERNORM: Run("8387ae1", "megatron/model/__init__.py, the one norm"),
    made_of.PLAIN_MLP: Run("8387ae1", f"{_TRANSFORMER}:ParallelMLP"),
    made_of.SWIGLU: Run("8387ae1", "megatron/model/glu_activations.py"),
    made_of.BIASES: Run("8387ae1", f"{_TRANSFORMER}, always"),
    made_of.HEAD_SIZE: Run("8387ae1", f"{_TRANSFORMER}:ParallelAttention, kv_channels"),
}
"""bigscience's."""


def mechanisms_of(model: TargetModel[TrainingOptions]) -> frozenset[Mechanism]:
    """The mechanisms of one model: those of its family, without any that its sizes and arguments do not use."""
    sizes, percent = model.sizes, (model.args or {}).get("rotary_percent", 1)
    unused = {
        made_of.GROUPED_HEADS: sizes.groups == sizes.heads,
        made_of.HEAD_SIZE: sizes.attention == sizes.hidden,
        made_of.PARTIAL_ROTARY: percent in (None, 1),
    }
    return frozenset(mechanism for mechanism in model.family.mechanisms if not unused.get(mechanism))
