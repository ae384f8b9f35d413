"""What a Megatron-Core checkpoint may be that is not translated, by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from streamconv.errors import UnsupportedError
from streamconv.formats import titles_from

__all__ = ["refuse_args", "refuse_names"]

_POSITIONS = (None, "learned_absolute", "rope")


def refuse_args(args: Mapping[str, Any], where: Path) -> None:
    """Refuse a model whose arguments name a mechanism that no family has.

    Names: ``megatron/training/arguments.py``, ``megatron/core/transformer/transformer_config.py`` of Megatron-LM.

    Raises:
        UnsupportedError: the mechanism is named.
    """
    experts, positions = args.get("num_experts"), args.get("position_embedding_type")
    is_rotary = positions == "rope"
    kinds = (
        ("a mixture of experts (MoE)", isinstance(experts, int) and experts > 1),
        ("layers of Mamba", bool(args.get("is_hybrid_model") or args.get("hybrid_override_pattern"))),
        ("multi-latent attention", bool(args.get("multi_latent_attention"))),
        ("layers of different shapes", bool(args.get("heterogeneous_layers_config_path"))),
        ("layers that predict several tokens (MTP)", bool(args.get("mtp_num_layers"))),
        ("an output gate of the attention", bool(args.get("attention_output_gate"))),
        ("norms stored less 1 (apply_layernorm_1p)", bool(args.get("apply_layernorm_1p"))),
        ("residuals behind the norms", bool(args.get("apply_residual_connection_post_layernorm"))),
        (f"positions of the kind {str(positions)[:40]}", positions not in _POSITIONS and isinstance(positions, str)),
        ("rotary positions in a part of each head", is_rotary and args.get("rotary_percent") not in (None, 1)),
        ("rotary positions by pairs", is_rotary and bool(args.get("rotary_interleaved"))),
        ("layers without rotary positions", args.get("no_rope_freq") is not None),
        ("a window in some of the layers", args.get("window_attn_skip_freq") is not None),
        (
            "LayerNorm and linear layers without bias",
            args.get("add_bias_linear") is False and args.get("normalization", "LayerNorm") == "LayerNorm",
        ),
    )
    for name, matches in kinds:
        if matches:
            raise UnsupportedError(
                f"{name}, as args say: not translated", where=where, remedy=f"families: {titles_from('megatron-core')}"
            )


def refuse_names(names: Sequence[str], where: Path) -> None:
    """Refuse tensors that are no parameters of a GPT model.

    Raises:
        UnsupportedError: there are any.
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
            raise UnsupportedError(
                f"{what}: not translated", where=where, remedy=f"families: {titles_from('megatron-core')}"
            )
    raise UnsupportedError(
        f"{len(names)} tensors of unknown role, the first is {sorted(names)[0][:80]}",
        where=where,
        remedy="only GPT models are translated: embedding, decoder.layers, decoder.final_layernorm, output_layer",
    )
