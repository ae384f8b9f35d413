"""From Megatron-LM's training arguments, as a checkpoint's ``args`` keep them, to the model that they describe.

After ``core_transformer_config_from_args`` and ``validate_args`` [``megatron/training/arguments.py``] and
``gpt_builder`` [``gpt_builders.py``], core_v0.16.1. Arguments that are absent have the parser's defaults.
"""

# mypy: disable-error-code="no-any-return,unused-ignore"

from __future__ import annotations

import dataclasses
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
    "swiglu": False,
    "squared_relu": False,
    "quick_geglu": False,
    "bias_gelu_fusion": True,
    "add_bias_linear": True,
    "add_qkv_bias": False,
    "qk_layernorm": False,
    "position_embedding_type": "learned_absolute",
    "use_rotary_position_embeddings": False,
    "rotary_base": 10000,
    "rotary_percent": 1.0,
    "rotary_interleaved": False,
    "rotary_seq_len_interpolation_factor": None,
    "use_rope_scaling": False,
    "rope_scaling_factor": 8.0,
    "untie_embeddings_and_output_weights": False,
    "apply_layernorm_1p": False,
    "decoder_first_pipeline_num_layers": None,
    "decoder_last_pipeline_num_layers": None,
    "bf16": False,
    "fp16": False,
}
NOT_SUPPORTED = ("num_experts", "multi_latent_attention", "mtp_num_layers", "heterogeneous_layers_config_path", "spec")
# What a CPU needs, and dropout off. None of it changes what the model answers in evaluation.
FORCED: Args = {
    "use_cpu_initialization": True,
    "perform_initialization": True,
    "gradient_accumulation_fusion": False,
    "masked_softmax_fusion": False,
    "bias_dropout_fusion": False,
    "apply_rope_fusion": False,
    "persist_layer_norm": False,
    "memory_efficient_layer_norm": False,
    "sequence_parallel": False,
    "context_parallel_size": 1,
    "expert_model_parallel_size": 1,
    "tp_comm_overlap": False,
    "deterministic_mode": False,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "recompute_granularity": None,
    "params_dtype": torch.float32,
    "pipeline_dtype": torch.float32,
    "bf16": False,
    "fp16": False,
    "fp8": None,
    "fp4": None,
    "cuda_graph_impl": "none",
    "enable_cuda_graph": False,
    "transformer_impl": "local",
    "cp_comm_type": None,
}


def complete(args: Mapping[str, Any] | Namespace) -> Args:
    """All arguments of a run: those given, and defaults for the rest, after ``validate_args``."""
    known = dict(vars(args) if isinstance(args, Namespace) else args)
    for name in REQUIRED:
        if known.get(name) is None:
            raise ValueError(f"the arguments say nothing of {name}, and Megatron has no default")
    for name in NOT_SUPPORTED:
        if known.get(name) is not None and known[name] is not False:
            raise ValueError(f"the arguments say {name} = {known[name]!r}, and this model does not know it")
    whole = {**DEFAULTS, **known}
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

    fields = {field.name for field in dataclasses.fields(TransformerConfig)}
    chosen = {name: value for name, value in args.items() if name in fields}
    # Before core_v0.16 the argument was ``norm_epsilon``; since, it has the name of the field.
    chosen["layernorm_epsilon"] = args.get("layernorm_epsilon", args.get("norm_epsilon", 1e-5))
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
    chosen |= {name: value for name, value in FORCED.items() if name in fields}
    chosen["tensor_model_parallel_size"] = tp
    chosen["pipeline_model_parallel_size"] = pp
    chosen["virtual_pipeline_model_parallel_size"] = vpp if vpp > 1 else None
    chosen.pop("pipeline_model_parallel_layout", None)
    return TransformerConfig(**chosen)


def dtype_of(args: Args) -> torch.dtype:
    """What the run's parameters are stored as."""
    return torch.bfloat16 if args["bf16"] else torch.float16 if args["fp16"] else torch.float32
