"""The training arguments that Megatron-LM builds a model from, for every family, legacy and core.

Names and meanings: ``megatron/training/arguments.py`` and ``load_args_from_checkpoint`` of
``megatron/training/checkpointing.py`` (core_v0.16).
"""

from __future__ import annotations

from collections.abc import Iterator
from math import isfinite
from typing import Any

from streamconv.containers.pickles.reader import Global
from streamconv.core.errors import DamagedError, UnsupportedError
from streamconv.core.text import shown
from streamconv.formats.megatron.releases import (
    LINEAR_ROPE_SCALING,
    ROPE_SCALING,
    ROPE_SCALING_FACTOR,
    ROTARY_BASE_IN_ARGS,
    SLIDING_WINDOW,
    Need,
)
from streamconv.formats.options import TrainingOptions
from streamconv.formats.target import Slot, TargetModel
from streamconv.models import mechanisms as made_of
from streamconv.models.config.activation_and_window import activation_of
from streamconv.models.config.checks import count, number, positive
from streamconv.models.config.rope import scaling_of
from streamconv.models.config.training_args import LLAMA3_SCALING, neutral_args
from streamconv.models.orders import RowOrders
from streamconv.models.parameter import WORDS

__all__ = ["DEFAULT_SCALING", "TOKENIZERS", "core_model_args", "rotary_needs", "scaling_caution", "unknown_args"]

DEFAULT_SCALING = 8
"""The factor of Llama 3's scaling where the arguments have none."""

TOKENIZERS = frozenset(
    f"{name}Tokenizer"
    for name in (
        *("GPT2BPE", "GPTSentencePiece", "HuggingFace", "Llama2", "Multimodal", "Null", "NullMultimodal"),
        *("SFT", "SentencePiece", "Tik"),
    )
) | {"BertWordPieceLowerCase", "BertWordPieceCase"}
"""The values of ``--tokenizer-type`` in core_v0.8 to core_v0.19."""


def core_model_args(model: TargetModel[TrainingOptions]) -> dict[str, Any]:
    """The arguments of Megatron-Core's GPT model, by Megatron-LM's names; unknown ones are left out.

    Raises:
        UnsupportedError: no argument can express how positions are scaled.
        DamagedError: an argument is not the number that it must be.
    """
    family, sizes, said = model.family, model.sizes, _checked(neutral_args(model.args))
    has = family.mechanisms.__contains__
    positions = sizes.positions or said.get("max_position_embeddings")
    is_rotary = has(made_of.ROTARY)
    args = {
        "num_layers": sizes.num_layers,
        "hidden_size": sizes.hidden,
        "ffn_hidden_size": sizes.ffn,
        "num_attention_heads": sizes.heads,
        "kv_channels": sizes.head_dim,
        "group_query_attention": sizes.groups != sizes.heads,
        "num_query_groups": sizes.groups,
        "max_position_embeddings": positions,
        "seq_length": said.get("seq_length") or positions,
        "position_embedding_type": "rope" if is_rotary else "learned_absolute",
        "add_position_embedding": not is_rotary,
        "use_rotary_position_embeddings": is_rotary,
        "normalization": "RMSNorm" if has(made_of.RMSNORM) else "LayerNorm",
        "norm_epsilon": said.get("layernorm_epsilon"),
        "apply_layernorm_1p": has(made_of.NORMS_LESS_ONE),
        "apply_residual_connection_post_layernorm": False,
        "swiglu": has(made_of.SWIGLU),
        "add_bias_linear": has(made_of.BIASES),
        "add_qkv_bias": has(made_of.QKV_BIASES),
        "qk_layernorm": has(made_of.HEAD_NORMS),
        "untie_embeddings_and_output_weights": model.has_head,
        "num_experts": None,
        "attention_dropout": said.get("attention_dropout"),
        "hidden_dropout": said.get("hidden_dropout"),
        "apply_query_key_layer_scaling": bool(said.get("apply_query_key_layer_scaling")),
        # Compared by check_checkpoint_args in a run with --data-parallel-random-init, which stops where it is missing.
        "data_parallel_random_init": bool(said.get("data_parallel_random_init")),
        "vocab_size": model.vocab_size,
        "padded_vocab_size": sizes.vocab,
        "make_vocab_size_divisible_by": said.get("make_vocab_size_divisible_by", 128),
        **_activation(model, said),
        **(_rotary(said) if is_rotary else {}),
        **_dtype(model),
    }
    may_be_none = {"num_experts"}
    return {name: value for name, value in args.items() if value is not None or name in may_be_none}


def _checked(said: dict[str, Any]) -> dict[str, Any]:
    """The arguments with their numbers checked, and with the scaling as ``rope_scaling``, whatever its name was."""
    try:
        for name in ("layernorm_epsilon", "rotary_percent", "attention_dropout", "hidden_dropout"):
            if said.get(name) is not None:
                number(f"args.{name}", said[name])
        if said.get("rope_theta") is not None:
            positive("args.rope_theta", said["rope_theta"])
        for name in ("seq_length", "max_position_embeddings", "make_vocab_size_divisible_by", "sliding_window"):
            if said.get(name) is not None:
                count(f"args.{name}", said[name])
        return {**said, "rope_scaling": scaling_of(said)}
    except ValueError as error:
        raise DamagedError(str(error)) from error


def _activation(model: TargetModel[TrainingOptions], said: dict[str, Any]) -> dict[str, Any]:
    """The activation's arguments: only the fused kernel has GELU's tanh approximation, ``F.gelu`` is erf.

    [``megatron/core/fusions/fused_bias_gelu.py``, ``megatron/training/arguments.py:core_transformer_config_from_args``]
    """
    function = None if model.family.gated else activation_of(said)
    if function is None:
        return {}
    return {"bias_gelu_fusion": function == "gelu_new", "squared_relu": function == "relu2", "openai_gelu": False}


def _rotary(said: dict[str, Any]) -> dict[str, Any]:
    """The base, the rotated part of a head, the scaling and the window.

    [``megatron/core/models/common/embeddings/rotary_pos_embedding.py``; the window counts the positions before a
    token, ``megatron/core/transformer/utils.py:get_sliding_window_causal_mask``]
    """
    args: dict[str, Any] = {
        "rotary_base": said.get("rope_theta"),
        "rotary_percent": said.get("rotary_percent", 1.0),
        "rotary_interleaved": False,
    }
    scaling, window = said.get("rope_scaling"), said.get("sliding_window")
    if scaling:
        args |= _scaling(scaling)
    positions = said.get("max_position_embeddings")
    if window is not None and not (isinstance(positions, int) and window >= positions):
        args["window_size"] = (window - 1, 0)
    return args


def _scaling(scaling: dict[str, Any]) -> dict[str, Any]:
    values = {name: value for name, value in scaling.items() if name not in ("rope_type", "factor")}
    kind, factor = scaling.get("rope_type"), scaling.get("factor")
    if not isinstance(factor, int | float) or not isfinite(factor):
        kind = None
    if kind == "llama3" and values == LLAMA3_SCALING:
        return {"use_rope_scaling": True, "rope_scaling_factor": factor}
    if kind == "linear" and not values and factor == int(factor or 0):
        return {"rotary_seq_len_interpolation_factor": int(factor)}
    words = ", ".join(f"{name} {shown(value)}" for name, value in scaling.items())
    raise UnsupportedError(
        f"Megatron-LM has no argument for this scaling of rotary positions: {words}",
        remedy="convert --to huggingface; or, to go without, say it otherwise with --config FILE",
    )


def _dtype(model: TargetModel[TrainingOptions]) -> dict[str, Any]:
    words = model.tensor_of(Slot(WORDS), RowOrders())
    name = words.dtype.name
    return {"fp16": name == "float16", "bf16": name == "bfloat16", "params_dtype": Global("torch", name)}


def rotary_needs(args: dict[str, Any]) -> Iterator[Need]:
    """The releases that rotary positions and windows need."""
    base = args.get("rotary_base")
    if base is not None and base != int(base):
        # The flag takes whole numbers only [arguments.py]; args may have any [load_args_from_checkpoint].
        yield Need(f"a rotary base of {base}", ROTARY_BASE_IN_ARGS)
    if args.get("use_rope_scaling"):
        factor = args.get("rope_scaling_factor")
        since = ROPE_SCALING if factor == DEFAULT_SCALING else ROPE_SCALING_FACTOR
        yield Need(f"Llama 3's scaling by {factor}", since)
    if factor := args.get("rotary_seq_len_interpolation_factor"):
        yield Need(f"linear scaling by {factor}", LINEAR_ROPE_SCALING)
    if args.get("window_size"):
        yield Need(f"a sliding window {args['window_size']}", SLIDING_WINDOW)


def scaling_caution(args: dict[str, Any]) -> str | None:
    """A warning that ``pretrain_gpt.py`` of core_v0.11 to core_v0.19 ignores the factor of Llama 3's scaling."""
    factor = args.get("rope_scaling_factor")
    if not args.get("use_rope_scaling") or factor == DEFAULT_SCALING:
        return None
    return (
        f"Llama 3's scaling by {factor}: pretrain_gpt.py of Megatron-LM does not hand it to the model, "
        f"which then scales by {DEFAULT_SCALING}: give GPTModel rope_scaling_factor={factor}"
    )


def unknown_args(args: dict[str, Any]) -> list[str]:
    """The names of unknown arguments that logits depend on."""
    wanted = ["num_attention_heads", "norm_epsilon"]
    wanted += ["rotary_base"] if args["position_embedding_type"] == "rope" else []
    wanted += [] if args["swiglu"] else ["bias_gelu_fusion"]
    return [name for name in wanted if args.get(name) is None]
