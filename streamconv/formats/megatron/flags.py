"""The flags that Megatron-LM needs to run a checkpoint of Megatron-Core: those that its ``args`` do not set.

``--use-checkpoint-args`` takes some arguments from the checkpoint, more in each release
[``megatron/training/checkpointing.py:load_args_from_checkpoint``, ``arguments.py`` of core_v0.8 to core_v0.19].
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from shlex import quote
from typing import Any

from streamconv.core.layout import ParallelLayout
from streamconv.formats.megatron.args import DEFAULT_SCALING
from streamconv.formats.megatron.releases import CKPT_FORMAT
from streamconv.formats.options import TrainingOptions
from streamconv.formats.target import TargetModel
from streamconv.models.mechanisms import RMSNORM

__all__ = ["flags_of", "layers_per_chunk", "stage_args"]

_DEFAULT_NORM_EPSILON = 1e-5
_DEFAULT_BASE = 10000
_DEFAULT_DIVISOR = 128
# Flags with a value, given if args has one; and flags without, given if args has True.
_SIZES = (
    *("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "kv_channels", "max_position_embeddings"),
    *("seq_length", "position_embedding_type", "normalization"),
)
_SWITCHES = ("swiglu", "apply_layernorm_1p", "add_qkv_bias", "untie_embeddings_and_output_weights")


def flags_of(
    model: TargetModel[TrainingOptions], container: str, spec: str | None, args: Mapping[str, Any], release: int | None
) -> Iterator[str]:
    """The command line for a checkpoint.

    Args:
        model: the model that is written.
        container: ``torch_dist`` or ``torch``.
        spec: ``local``, ``te`` or None, which is the same.
        args: the arguments of the model, whether they are written or not.
        release: the release (the 16 of core_v0.16) whose flags they are, None for the newest.
    """
    has_args = model.options.keep_args and model.sizes.heads is not None
    yield from ("--use-checkpoint-args",) if has_args else _shape_flags(args)
    yield "--no-load-optim --no-load-rng"
    if release is None or release >= CKPT_FORMAT:
        yield f"--ckpt-format {container}"
    elif container == "torch_dist":
        yield "--use-dist-ckpt"
    if container == "torch":
        yield f"--tensor-model-parallel-size {model.layout.tp} --pipeline-model-parallel-size {model.layout.pp}"
        yield from _stage_flags(model.layout)
    if spec == "local":
        yield "--transformer-impl local"
        if RMSNORM in model.family.mechanisms:
            yield "--no-persist-layer-norm"
    yield from _model_flags(args)


def stage_args(layout: ParallelLayout) -> dict[str, Any]:
    """The arguments for stages of unequal length: lengths of the first and last stage, or a layout of all of them."""
    stages = layout.stages
    args: dict[str, Any] = dict.fromkeys(
        ("decoder_first_pipeline_num_layers", "decoder_last_pipeline_num_layers", "pipeline_model_parallel_layout")
    )
    if len(set(stages)) == 1:
        return args
    middle = stages[1:-1]
    if min(stages) > 0 and len(set(middle)) <= 1:
        first, last = stages[0], stages[-1]
        rest = set(middle)
        # An end that is as long as the middle needs no flag of its own, nor does the second of two stages.
        args["decoder_first_pipeline_num_layers"] = None if rest == {first} else first
        args["decoder_last_pipeline_num_layers"] = None if rest <= {last} else last
        return args
    chunks = [len(layout.layers_of(stage, chunk)) for chunk in range(layout.vpp) for stage in range(layout.pp)]
    words = ["t" * size for size in chunks]
    words[0], words[-1] = f"E{words[0]}", f"{words[-1]}L"
    args["pipeline_model_parallel_layout"] = "|".join(words)
    return args


def layers_per_chunk(layout: ParallelLayout) -> int | None:
    """Layers of each virtual stage, None without virtual stages or where they differ."""
    return layout.stages[0] // layout.vpp if layout.vpp > 1 and len(set(layout.stages)) == 1 else None


def _stage_flags(layout: ParallelLayout) -> Iterator[str]:
    said = stage_args(layout)
    for name, value in said.items():
        if value is not None:
            yield f"{_flag(name)} {quote(str(value))}"
    if (layers := layers_per_chunk(layout)) is not None:
        yield f"--num-layers-per-virtual-pipeline-stage {layers}"
    elif layout.vpp > 1 and said["pipeline_model_parallel_layout"] is None:
        yield f"--num-virtual-stages-per-pipeline-rank {layout.vpp}"


def _shape_flags(args: Mapping[str, Any]) -> Iterator[str]:
    """Flags for the arguments that ``--use-checkpoint-args`` takes in every release."""
    for name in _SIZES:
        if args.get(name) is not None:
            yield f"{_flag(name)} {args[name]}"
    if args.get("rotary_percent", 1) != 1:
        yield f"--rotary-percent {args['rotary_percent']}"
    if args.get("group_query_attention"):
        yield f"--group-query-attention --num-query-groups {args['num_query_groups']}"
    yield from (_flag(name) for name in _SWITCHES if args.get(name))
    if args.get("add_bias_linear") is False:
        yield "--disable-bias-linear"
    if (divisor := args.get("make_vocab_size_divisible_by")) not in (None, _DEFAULT_DIVISOR):
        yield f"--make-vocab-size-divisible-by {divisor}"


def _model_flags(args: Mapping[str, Any]) -> Iterator[str]:
    """Flags for the arguments that ``--use-checkpoint-args`` does not take in every release."""
    epsilon, base = args.get("norm_epsilon"), args.get("rotary_base")
    if epsilon not in (None, _DEFAULT_NORM_EPSILON):
        yield f"--norm-epsilon {epsilon}"
    if base not in (None, _DEFAULT_BASE) and base == int(base):
        yield f"--rotary-base {int(base)}"
    if args.get("qk_layernorm"):
        yield "--qk-layernorm"
    if args.get("use_rope_scaling"):
        yield "--use-rope-scaling"
        if (factor := args.get("rope_scaling_factor")) != DEFAULT_SCALING:
            yield f"--rope-scaling-factor {factor}"
    if factor := args.get("rotary_seq_len_interpolation_factor"):
        yield f"--rotary-seq-len-interpolation-factor {factor}"
    if window := args.get("window_size"):
        yield f"--window-size {window[0]},{window[1]}"
    if args.get("squared_relu"):
        yield "--squared-relu"
    if args.get("bias_gelu_fusion") is False and not args["swiglu"]:
        yield "--no-bias-gelu-fusion"
    yield from (_flag(name) for name in ("bf16", "fp16") if args.get(name))


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
