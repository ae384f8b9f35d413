"""The arguments of a GPT-NeoX run, by the names of Megatron-DeepSpeed.

The rank files record eight arguments [gpt-neox ``megatron/checkpointing.py:save_ds_checkpoint``]; all others are
in the run's configuration files, where a missing key has the default of ``megatron/neox_arguments/neox_args.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streamconv.core.errors import DamagedError, UnsupportedError
from streamconv.formats.deepspeed.rank_files import RankFiles
from streamconv.formats.gpt_neox.yaml_config import read_configs
from streamconv.models.config.checks import Check, count, flag, number, text

__all__ = ["CONFIGURED", "RECORDED", "NeoxRun", "read_run"]

RECORDED = {
    "num_layers": "num_layers",
    "hidden_size": "hidden_size",
    "num_attention_heads": "num_attention_heads",
    "max_position_embeddings": "max_position_embeddings",
    "make_vocab_size_divisible_by": "make_vocab_size_divisible_by",
    "padded_vocab_size": "padded_vocab_size",
    "tokenizer_type": "tokenizer_type",
    "model_parallel_size": "tensor_model_parallel_size",
}
"""GPT-NeoX's name -> Megatron-DeepSpeed's."""

CONFIGURED: Mapping[str, tuple[str, Any]] = {
    "rotary_pct": ("rotary_percent", 1.0),
    "rotary_emb_base": ("rope_theta", 10000),
    "gpt_j_residual": ("use_parallel_residual", False),
    "layernorm_epsilon": ("layernorm_epsilon", 1e-5),
    "bias_gelu_fusion": ("bias_gelu_fusion", False),
    "onnx_safe": ("onnx_safe", False),
    "init_method_std": ("init_method_std", 0.02),
    "hidden_dropout": ("hidden_dropout", 0.0),
    "attention_dropout": ("attention_dropout", 0.0),
}
"""GPT-NeoX's name -> (Megatron-DeepSpeed's, GPT-NeoX's default), of arguments that only configuration files have."""

# Translated only if present: there is no default, or one that depends on other arguments.
_IF_SAID = {"seq_length": "seq_length", "intermediate_size": "ffn_hidden_size", "vocab_size": "vocab_size"}
_FIXED = {
    "use_rotary_position_embeddings": True,
    "add_position_embedding": False,
    "normalization": "layernorm",
    "swiglu": False,
}

# (GPT-NeoX's name, its default, the values that are translated, words for any other value).
_ONLY: tuple[tuple[str, Any, tuple[Any, ...], str], ...] = (
    ("norm", "layernorm", ("layernorm",), "the norm {}"),
    ("pos_emb", "learned", ("rotary",), "{} positions (pos_emb)"),
    ("activation", "gelu", ("gelu",), "the activation {}"),
    ("gpt_j_tied", False, (False,), "one norm for both halves of a block (gpt_j_tied)"),
    ("moe_num_experts", 1, (0, 1, None), "a mixture of experts (MoE: moe_num_experts {})"),
    ("use_qk_layernorm", False, (False,), "norms of queries and keys (use_qk_layernorm)"),
    ("use_mup", False, (False,), "maximal update parametrisation (use_mup)"),
    ("train_impl", "normal", ("normal", "dpo", "kto", "reinforce"), "a reward model (train_impl {})"),
    ("use_bias_in_norms", True, (True,), "norms without biases (use_bias_in_norms)"),
    ("use_bias_in_attn_linear", True, (True,), "attention without biases (use_bias_in_attn_linear)"),
    ("use_bias_in_mlp", True, (True,), "an MLP without biases (use_bias_in_mlp)"),
)


def _part(name: str, value: Any) -> float | int:
    """The value, which must be above 0 and at most 1."""
    if not 0 < number(name, value) <= 1:
        raise ValueError(f"{name} is {value!r}, not a part of 1")
    return number(name, value)


_CHECKS: Mapping[str, Check] = {
    **dict.fromkeys((*RECORDED, *_IF_SAID, "num_kv_heads"), count),
    **dict.fromkeys(("rotary_emb_base", "layernorm_epsilon", "init_method_std"), number),
    **dict.fromkeys(("hidden_dropout", "attention_dropout"), number),
    **dict.fromkeys(("gpt_j_residual", "bias_gelu_fusion", "onnx_safe", "no_weight_tying"), flag),
    **dict.fromkeys(("tokenizer_type", "pipe_partition_method"), text),
    "rotary_pct": _part,
}
"""The check of each entry, applied where it is not None."""


@dataclass(frozen=True, slots=True)
class NeoxRun:
    """A run: its arguments by Megatron-DeepSpeed's names (None if there are none), and the files that have them.

    ``partition_method`` is DeepSpeed's method of giving layers to stages, None without configuration files.
    """

    args: dict[str, Any] | None
    evidence: str
    partition_method: str | None


def read_run(folder: Path, ranks: RankFiles) -> NeoxRun:
    """The run by its rank files and the configuration files beside them.

    Raises:
        UnsupportedError: the run had a mechanism that is refused by name.
        DamagedError: files contradict each other, or are of different runs.
    """
    recorded = _recorded(ranks)
    config, names = read_configs(folder, {*_CHECKS, *(name for name, *_ in _ONLY)})
    for values, source in ((recorded, "the rank files"), (config, ", ".join(names))):
        _check(values, folder, source)
    config = {name: value for name, value in config.items() if value is not None}
    args = {ours: recorded[name] for name, ours in RECORDED.items() if recorded.get(name) is not None}
    if not names:
        return NeoxRun(args or None, "the rank files", None)
    for name, ours in RECORDED.items():
        if config.get(name) not in (None, args.get(ours, config.get(name))):
            raise DamagedError(
                f"{name} is {config[name]!r} in {', '.join(names)}, and recorded as {args[ours]!r}",
                where=folder,
                remedy="keep the configuration files of this run alone",
            )
    reason = next(_mechanisms(config, args), None)
    if reason is not None:
        raise UnsupportedError(f"GPT-NeoX with {reason}: not translated", where=folder)
    args |= {ours: config.get(name, default) for name, (ours, default) in CONFIGURED.items()}
    args |= {ours: config[name] for name, ours in {**RECORDED, **_IF_SAID}.items() if config.get(name) is not None}
    args |= {**_FIXED, "untie_embeddings_and_output_weights": config.get("no_weight_tying", False)}
    method = config.get("pipe_partition_method", "type:transformer|mlp")
    return NeoxRun(args, ", ".join(names), str(method))


def _check(values: Mapping[str, Any], folder: Path, source: str) -> None:
    try:
        for name, check in _CHECKS.items():
            if values.get(name) is not None:
                check(name, values[name])
    except ValueError as error:
        raise DamagedError(f"{error}, in {source}", where=folder) from error


def _recorded(ranks: RankFiles) -> Mapping[str, Any]:
    """The arguments in the rank files, which must be the same in all."""
    args = [file.state.get("args") for file in ranks.files]
    for file, mine in zip(ranks.files, args, strict=True):
        if mine != args[0]:
            raise DamagedError(
                f"args are not the same in {file.path.name} and {ranks.files[0].path.name}",
                where=file.path.parent,
                remedy="the files are of different runs: keep those of one",
            )
    return args[0] if args and isinstance(args[0], dict) else {}


def _mechanisms(config: Mapping[str, Any], args: Mapping[str, Any]) -> Iterator[str]:
    for name, default, translated, words in _ONLY:
        value = config.get(name, default)
        if value not in translated:
            yield words.format(value)
    groups, heads = config.get("num_kv_heads"), args.get("num_attention_heads", config.get("num_attention_heads"))
    if groups not in (None, heads):
        yield f"grouped-query attention ({heads} heads, num_kv_heads {groups})"
