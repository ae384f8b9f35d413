"""From Megatron-LM's training arguments, as a checkpoint's ``args`` keep them, to the model that they describe.

After ``core_transformer_config_from_args`` and ``validate_args`` [``megatron/training/arguments.py``] and
``gpt_builder`` [``gpt_builders.py``], core_v0.16.1. Arguments that are absent have the parser's defaults.
"""

# mypy: disable-error-code="no-any-return,unused-ignore"

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from typing import Any

import torch
from torch.nn import functional

Args = dict[str, Any]

REQUIRED = ("num_layers", "hidden_size", "num_attention_heads", "max_position_embeddings", "padded_vocab_size")
DEFAULTS: Args = {
    "ffn_hidden_size": None,
    "kv_channels": None,
    "group_query_attention": False,
    "num_query_groups": 1,
    "normalization": "LayerNorm",
    "layernorm_epsilon": None,
    "norm_epsilon": 1e-5,
    "apply_layernorm_1p": False,
    "apply_query_key_layer_scaling": False,
    "swiglu": False,
    "squared_relu": False,
    "quick_geglu": False,
    "bias_gelu_fusion": True,
    "add_bias_linear": True,
    "add_qkv_bias": False,
    "qk_layernorm": False,
    "window_size": None,
    "position_embedding_type": "learned_absolute",
    "use_rotary_position_embeddings": False,
    "rotary_base": 10000,
    "rotary_percent": 1.0,
    "rotary_interleaved": False,
    "use_rope_scaling": False,
    "untie_embeddings_and_output_weights": False,
    "decoder_first_pipeline_num_layers": None,
    "decoder_last_pipeline_num_layers": None,
    "bf16": False,
    "fp16": False,
}
# Arguments that are fields of ``TransformerConfig`` and go there as they are.
SAME_NAMES = (
    "num_layers",
    "hidden_size",
    "ffn_hidden_size",
    "num_attention_heads",
    "kv_channels",
    "normalization",
    "add_bias_linear",
    "add_qkv_bias",
    "qk_layernorm",
    "rotary_interleaved",
    "apply_query_key_layer_scaling",
)
# Arguments that name another model than this one, and two that the parser knows and no builder of a GPT passes on:
# ``gpt_builder`` has neither up to core_v0.18; core_v0.19 passes the second.
NOT_BUILT: Args = {
    "num_experts": None,
    "multi_latent_attention": False,
    "mtp_num_layers": None,
    "heterogeneous_layers_config_path": None,
    "spec": None,
    "pipeline_model_parallel_layout": None,
    "rope_scaling_factor": 8.0,
    "rotary_seq_len_interpolation_factor": None,
}


def complete(args: Mapping[str, Any] | Namespace) -> Args:
    """All arguments of a run: those given, and defaults for the rest, after ``validate_args``."""
    known = dict(vars(args) if isinstance(args, Namespace) else args)
    for name in REQUIRED:
        if known.get(name) is None:
            raise ValueError(f"the arguments say nothing of {name}, and Megatron has no default")
    for name, neutral in NOT_BUILT.items():
        if known.get(name) not in (None, neutral):
            raise ValueError(f"the arguments say {name} = {known[name]!r}, which the model that is built has not")
    whole: Args = {name: known.get(name, default) for name, default in DEFAULTS.items()}
    whole |= {name: known[name] for name in REQUIRED}
    if whole["ffn_hidden_size"] is None:
        hidden = whole["hidden_size"]
        whole["ffn_hidden_size"] = int(4 * hidden * 2 / 3 / 64) * 64 if whole["swiglu"] else 4 * hidden
    if whole["kv_channels"] is None:
        whole["kv_channels"] = whole["hidden_size"] // whole["num_attention_heads"]
    if not whole["add_bias_linear"]:
        whole["bias_gelu_fusion"] = False
    if whole["add_bias_linear"]:
        whole["add_qkv_bias"] = True
    if whole["use_rotary_position_embeddings"]:
        whole["position_embedding_type"] = "rope"
    return whole


def config_of(args: Args, *, tp: int, pp: int, vpp: int) -> Any:
    """A ``TransformerConfig`` for these sizes, whatever sizes the arguments were saved with."""
    from megatron.core.transformer import TransformerConfig

    chosen: Args = {name: args[name] for name in SAME_NAMES}
    if args["window_size"] is not None:
        chosen["window_size"] = tuple(args["window_size"])
    # Before core_v0.16 the argument was ``norm_epsilon``; since, it has the name of the field.
    epsilon = args["layernorm_epsilon"]
    chosen["layernorm_epsilon"] = args["norm_epsilon"] if epsilon is None else epsilon
    chosen["num_query_groups"] = args["num_query_groups"] if args["group_query_attention"] else None
    chosen["layernorm_zero_centered_gamma"] = args["apply_layernorm_1p"]
    chosen["num_layers_in_first_pipeline_stage"] = args["decoder_first_pipeline_num_layers"]
    chosen["num_layers_in_last_pipeline_stage"] = args["decoder_last_pipeline_num_layers"]
    if args["swiglu"]:
        chosen |= {"activation_func": functional.silu, "gated_linear_unit": True, "bias_activation_fusion": False}
    else:
        # Not neutral: the fused function is GELU by tanh, the other one by erf.
        chosen["bias_activation_fusion"] = args["bias_gelu_fusion"]
    if args["squared_relu"] or args["quick_geglu"]:
        raise ValueError("squared ReLU and quick GEGLU are not built here")
    return TransformerConfig(
        **chosen,
        tensor_model_parallel_size=tp,
        pipeline_model_parallel_size=pp,
        virtual_pipeline_model_parallel_size=vpp if vpp > 1 else None,
        # What a CPU needs, and dropout off: none of it changes what the model answers.
        params_dtype=torch.float32,
        pipeline_dtype=torch.float32,
        use_cpu_initialization=True,
        gradient_accumulation_fusion=False,
        masked_softmax_fusion=False,
        bias_dropout_fusion=False,
        apply_rope_fusion=False,
        persist_layer_norm=False,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        transformer_impl="local",
    )


def dtype_of(args: Args) -> torch.dtype:
    """What the run's parameters are stored as."""
    return torch.bfloat16 if args["bf16"] else torch.float16 if args["fp16"] else torch.float32
