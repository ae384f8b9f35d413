"""Refusals by name: families and Megatron-Core checkpoints that are not translated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from streamconv.core.errors import UnsupportedError
from streamconv.core.text import shown
from streamconv.formats.common.refusals import Run, Runs, refusal_of, titles
from streamconv.formats.megatron.releases import FIRST
from streamconv.models import mechanisms as made_of
from streamconv.models.family import ModelFamily

__all__ = ["RUNS", "check_version", "refusal", "refuse_args", "refuse_names"]

_CORE = "megatron/core/transformer"


def _run(where: str) -> Run:
    return Run(f"core_v0.{FIRST}", where)


# Not GeGLU: the layers can run it (fusions/fused_bias_geglu.py), but no argument of Megatron-LM selects it.
RUNS: Runs = {
    made_of.LEARNED: _run("megatron/core/models/common/embeddings/language_model_embedding.py"),
    made_of.ROTARY: _run("megatron/core/models/common/embeddings/rotary_pos_embedding.py"),
    made_of.PARTIAL_ROTARY: _run("megatron/core/models/common/embeddings/rotary_pos_embedding.py: rotary_percent"),
    made_of.LAYERNORM: _run("megatron/core/models/gpt/gpt_layer_specs.py"),
    made_of.RMSNORM: _run("megatron/core/models/gpt/gpt_layer_specs.py"),
    made_of.NORMS_LESS_ONE: _run(f"{_CORE}/custom_layers/transformer_engine.py:TENorm, for either norm"),
    made_of.PLAIN_MLP: _run(f"{_CORE}/mlp.py"),
    made_of.SWIGLU: _run(f"{_CORE}/mlp.py, megatron/training/arguments.py: --swiglu"),
    made_of.HEAD_NORMS: _run(f"{_CORE}/attention.py: qk_layernorm"),
    made_of.BIASES: _run(f"{_CORE}/transformer_config.py: add_bias_linear"),
    made_of.QKV_BIASES: _run(f"{_CORE}/transformer_config.py: add_qkv_bias"),
    made_of.NO_BIASES: _run(f"{_CORE}/transformer_config.py: add_bias_linear"),
    made_of.GROUPED_HEADS: _run(f"{_CORE}/attention.py: num_query_groups"),
    made_of.HEAD_SIZE: _run(f"{_CORE}/attention.py: kv_channels"),
}
"""The mechanisms of Megatron-Core's GPT model, as ``pretrain_gpt.py`` builds it from arguments."""

_POSITIONS = (None, "learned_absolute", "rope")
# (argument, mechanism, values without the mechanism), for releases up to core_v0.19.
_MECHANISMS: tuple[tuple[str, str, tuple[Any, ...]], ...] = (
    ("multi_latent_attention", "multi-latent attention", (None, False)),
    ("is_hybrid_model", "layers of Mamba", (None, False)),
    ("hybrid_override_pattern", "layers of Mamba", (None, "")),
    ("hybrid_layer_pattern", "layers of Mamba", (None, "")),
    ("heterogeneous_layers_config_path", "layers of different shapes", (None, "")),
    ("mtp_num_layers", "layers that predict several tokens (MTP)", (None, 0)),
    ("experimental_attention_variant", "another kind of attention", (None,)),
    ("linear_attention_freq", "linear attention", (None,)),
    ("attention_output_gate", "an output gate of the attention", (None, False)),
    ("softmax_type", "another softmax", (None, "vanilla")),
    ("softmax_scale", "another scale of the attention's scores", (None,)),
    ("qk_l2_norm", "queries and keys of length 1", (None, False)),
    ("apply_residual_connection_post_layernorm", "residuals behind the norms", (None, False)),
    ("quick_geglu", "another activation (quick GEGLU)", (None, False)),
    ("glu_linear_offset", "another gated unit", (None, 0)),
    ("activation_func_clamp_value", "a clamped activation", (None,)),
    ("use_mup", "other scales of embedding and attention (muP)", (None, False)),
    ("no_rope_freq", "layers without rotary positions", (None,)),
    ("window_attn_skip_freq", "a window in some of the layers", (None,)),
)
# With RMSNorm either name is allowed here, and is checked once the family is known.
_LESS_ONE = ("apply_layernorm_1p", "layernorm_zero_centered_gamma")


def refusal(family: ModelFamily) -> str | None:
    """Why Megatron-Core's GPT model cannot run a family, None if it can."""
    return refusal_of("Megatron-Core", family, RUNS)


def refuse_args(args: Mapping[str, Any], where: Path) -> None:
    """Refuse arguments that name a mechanism which no family has; the others are checked once the family is known.

    Names: ``megatron/training/arguments.py``, ``megatron/core/transformer/transformer_config.py`` of Megatron-LM.

    Raises:
        UnsupportedError: the arguments name one.
    """
    experts, positions = args.get("num_experts"), args.get("position_embedding_type")
    is_rotary = positions == "rope"
    kinds = (
        ("a mixture of experts (MoE)", isinstance(experts, int) and experts > 1),
        (f"positions of the kind {str(positions)[:40]}", positions not in _POSITIONS and isinstance(positions, str)),
        (
            "norms stored less 1",
            any(args.get(name) for name in _LESS_ONE) and args.get("normalization", "LayerNorm") == "LayerNorm",
        ),
        ("rotary positions by pairs", is_rotary and bool(args.get("rotary_interleaved"))),
        (
            "LayerNorm and linear layers without bias",
            args.get("add_bias_linear") is False and args.get("normalization", "LayerNorm") == "LayerNorm",
        ),
    )
    said = [
        f"{what} ({name} {shown(args.get(name))})" for name, what, none in _MECHANISMS if args.get(name) not in none
    ]
    for name in (*said, *(what for what, matches in kinds if matches)):
        raise UnsupportedError(
            f"{name}, as args say: not translated", where=where, remedy=f"families: {titles(refusal)}"
        )


def check_version(state: Mapping[str, Any], where: Path) -> None:
    """Refuse a version with another order of fused rows [``checkpointing.py:fix_query_key_value_ordering``].

    Raises:
        UnsupportedError: ``checkpoint_version`` is not from 2 to 3.
    """
    version = state.get("checkpoint_version", 3.0)
    if not isinstance(version, int | float) or isinstance(version, bool) or not 2 <= version <= 3:
        raise UnsupportedError(
            f"checkpoint_version {shown(version)}: Megatron-Core's models are of version 3.0", where=where
        )


def refuse_names(names: Sequence[str], where: Path) -> None:
    """Refuse tensors that are no parameters of a GPT model.

    Raises:
        UnsupportedError: ``names`` is not empty.
    """
    if not names:
        return
    kinds = (
        ("a mixture of experts (MoE)", (".experts.", "mlp.router.")),
        ("layers of Mamba", (".mixer.",)),
        ("multi-latent attention", (".linear_q_down_proj.", ".linear_kv_down_proj.")),
        ("layers that predict several tokens (MTP)", ("mtp.",)),
        ("an encoder and a decoder (T5, BERT)", ("encoder.", ".cross_attention.")),
    )
    for what, parts in kinds:
        if any(part in name for name in names for part in parts):
            raise UnsupportedError(f"{what}: not translated", where=where, remedy=f"families: {titles(refusal)}")
    raise UnsupportedError(
        f"{len(names)} tensors of unknown role, the first is {sorted(names)[0][:80]}",
        where=where,
        remedy="only GPT models are translated: embedding, decoder.layers, decoder.final_layernorm, output_layer",
    )
