"""The forks of Megatron-DeepSpeed as targets: how each numbers layers and orders rows, what it runs, what it records.

Sources, by path: bigscience-workshop/Megatron-DeepSpeed at 8387ae1, deepspeedai/Megatron-DeepSpeed at 4efb479 and,
before 676a482c, at 6acc370.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from streamconv.containers.pickles.reader import Global
from streamconv.containers.pickles.writer import Call
from streamconv.formats.common.refusals import Runs
from streamconv.formats.deepspeed.options import BIGSCIENCE, DEEPSPEEDAI, DEEPSPEEDAI_2024_11
from streamconv.formats.deepspeed.runs import BIGSCIENCE_RUNS, DEEPSPEEDAI_BEFORE_RUNS, DEEPSPEEDAI_RUNS
from streamconv.formats.options import TrainingOptions
from streamconv.formats.recorded import whole
from streamconv.formats.target import TargetModel
from streamconv.models import mechanisms as made_of
from streamconv.models.orders import GluOrder, QkvLayout, RowOrders
from streamconv.models.parameter import Section

__all__ = ["FORKS", "Fork", "counted"]

_FPDT = "ds_sequence_parallel_fpdt"
_FPDT_ARGS = (_FPDT, f"{_FPDT}_chunk_size", f"{_FPDT}_offloading")
_POSITION_TYPE = Global("megatron.enums", "PositionEmbeddingType")
_POSITION_TYPES = {made_of.ROTARY: 1, made_of.LEARNED: 2, made_of.ALIBI: 3}
_Model = TargetModel[TrainingOptions]


@dataclass(frozen=True, slots=True)
class Fork:
    """A fork that loads the result.

    ``embedding`` and ``first_block`` are the numbers of the layer files of the embedding and of the first transformer
    layer. ``norm_after`` is the distance from the last transformer layer to the final norm; the head follows the norm.
    ``first_only`` lists embedding parameters that the tied copy on the last stage does not have. ``runs`` are the
    mechanisms that the fork has; ``lacks_for`` returns what a model needs beyond them and the fork lacks, None if the
    model runs. ``arguments`` are training arguments that only this fork has, ``without`` those that it must not have.
    ``entries`` are the fork's own entries in rank files, ``scheduler`` the state of the learning rate scheduler.
    ``start`` says how to start a run from the result.
    """

    name: str
    title: str
    embedding: int
    first_block: int
    norm_after: int
    orders: RowOrders
    runs: Runs
    lacks_for: Callable[[_Model], str | None]
    arguments: Callable[[_Model], Mapping[str, Any]]
    entries: Callable[[_Model], Mapping[str, Any]]
    scheduler: Callable[[_Model], Mapping[str, Any] | None]
    start: str
    first_only: tuple[str, ...] = ()
    without: tuple[str, ...] = ()


def counted(model: _Model, name: str) -> int:
    """The training progress of the source by an argument that counts it, such as samples; 0 for a fresh start."""
    return 0 if model.options.for_release else whole((model.args or {}).get(name)) or 0


def _lacks_nothing(model: _Model) -> str | None:
    return None


def _bigscience_lacks_for(model: _Model) -> str | None:
    """[``megatron/model/gpt_model.py:GPTModelPipe``: the embedding is a ``TiedLayerSpec``; ``megatron/arguments.py``;
    ``megatron/model/positional_embeddings.py:RotaryEmbedding``, whose base is its default]
    """
    args = model.args or {}
    if model.has_head:
        return "no head apart from the word embedding"
    if args.get("apply_layernorm_1p"):
        return "no norms stored less 1"
    if args.get("squared_relu"):
        return "no squared ReLU"
    if made_of.ROTARY in model.family.mechanisms and args.get("rope_theta") not in (None, 10000):
        return f"no rotary base but 10000, and the model's is {args['rope_theta']}"
    return None


def _deepspeedai_arguments(model: _Model) -> dict[str, Any]:
    """The arguments of the fork's model [``megatron/arguments.py:_add_network_size_args``, ``checkpointing.py``:
    ``check_checkpoint_args`` compares ``num_key_value_heads`` and ``add_position_embedding``].
    """
    has, sizes = model.family.mechanisms.__contains__, model.sizes
    known = {"num_key_value_heads": sizes.groups, "kv_channels": sizes.head_dim}
    return {
        "use_rotary_position_embeddings": has(made_of.ROTARY),
        "add_position_embedding": has(made_of.LEARNED),
        "normalization": "rmsnorm" if has(made_of.RMSNORM) else "layernorm",
        "swiglu": has(made_of.SWIGLU),
        "add_bias_linear": has(made_of.BIASES),
        "untie_embeddings_and_output_weights": model.has_head,
        **({"rotary_percent": (model.args or {}).get("rotary_percent", 1.0)} if has(made_of.PARTIAL_ROTARY) else {}),
        **{name: value for name, value in known.items() if value is not None},
    }


def _deepspeedai_arguments_now(model: _Model) -> dict[str, Any]:
    """The same and an argument that tells readers of rows in blocks [``megatron/arguments.py``, since 676a482c]."""
    return {**_deepspeedai_arguments(model), _FPDT: bool((model.args or {}).get(_FPDT))}


def _position_type(model: _Model) -> int:
    return next(number for kind, number in _POSITION_TYPES.items() if kind in model.family.mechanisms)


def _bigscience_arguments(model: _Model) -> dict[str, Any]:
    """[``megatron/arguments.py``; ``checkpointing.py:check_checkpoint_args`` compares the enum]"""
    return {
        "position_embedding_type": Call(_POSITION_TYPE, (_position_type(model),)),
        "embed_layernorm": made_of.EMBEDDING_NORM in model.family.mechanisms,
        "glu_activation": "swiglu" if made_of.SWIGLU in model.family.mechanisms else None,
    }


def _vocabulary(model: _Model) -> dict[str, int]:
    true = {} if model.vocab_size is None else {"original_vocab_size": model.vocab_size}
    return {**true, "padded_vocab_size": model.sizes.vocab}


def _bigscience_entries(model: _Model) -> dict[str, Any]:
    """[``megatron/checkpointing.py:_checkpoint_info``]"""
    return {"checkpoint_info": dict(reversed(_vocabulary(model).items()))}


def _deepspeedai_entries(model: _Model) -> dict[str, Any]:
    """[``megatron/checkpointing.py:_universal_checkpoint_info``, ``model/gpt_model.py:UniversalCheckpointInfo``, the
    pipeline's patterns, with its name of untied positions; ``deepspeed/checkpoint/constants.py``]
    """
    has, keys = model.family.mechanisms.__contains__, model.family.keys(Section.LAYER)
    positions = ["tied_modules.embed.position_embeddings.weight"] if has(made_of.LEARNED) else []
    words = ["tied_modules.embed.word_embeddings.weight"]
    norms = ["input_layernorm", "post_attention_layernorm"]
    final = ["weight", "bias"] if has(made_of.LAYERNORM) else ["weight"]
    info: dict[str, Any] = {"universal_checkpoint_version": 0.4, **_vocabulary(model)}
    info["vocabulary_parameter_patterns"] = (
        [r"\d+.word_embeddings.weight", r"\d+.lm_head.weight"] if model.has_head else words
    )
    info["pipeline_replicated_parameter_patterns"] = [] if model.has_head else words + positions
    if model.layout.tp > 1:
        biases = ["self_attention.dense.bias", "mlp.dense_4h_to_h.bias"] if has(made_of.BIASES) else []
        norm_biases = [f"{norm}.bias" for norm in norms] if has(made_of.LAYERNORM) else []
        info["tp_replicated_parameter_patterns"] = [
            *(rf"\d+.{norm}.weight" for norm in norms),
            *(rf"\d+.{leaf}" for leaf in final),
            *positions,
            *(rf"\d+.{key}" for key in biases + norm_biases),
        ]
        info["parameter_with_row_parallelism_patterns"] = [
            r"\d+.mlp.dense_4h_to_h.weight",
            r"\d+.self_attention.dense.weight",
        ]
    halves = [f"mlp.dense_h_to_4h.{leaf}" for leaf in ("weight", "bias")] if has(made_of.SWIGLU) else []
    info["parameter_with_2_sub_params_cat_dim_0"] = [rf"\d+.{key}" for key in halves if key in keys]
    return {"universal_checkpoint_info": info}


def _no_scheduler(model: _Model) -> None:
    return None


def _bigscience_scheduler(model: _Model) -> dict[str, Any]:
    """The progress of the schedule, with None for its shape. The loader always reads this entry, and stops if the shape
    is not that of its own run, unless the run overrides it
    [``megatron/learning_rates.py:AnnealingLR.load_state_dict``; its steps are samples].
    """
    shape = dict.fromkeys(("max_lr", "min_lr", "warmup_steps", "decay_steps", "decay_style"))
    tokens = counted(model, "consumed_train_tokens")
    return {**shape, "num_steps": counted(model, "consumed_train_samples"), "warmup_tokens": 0, "num_tokens": tokens}


_DEEPSPEEDAI_NOW = Fork(
    DEEPSPEEDAI,
    "deepspeedai/Megatron-DeepSpeed since 676a482c (2024-12)",
    embedding=1,
    first_block=2,
    norm_after=1,
    orders=RowOrders(QkvLayout.BLOCKS, GluOrder.GATE_UP),
    runs=DEEPSPEEDAI_RUNS,
    lacks_for=_lacks_nothing,
    arguments=_deepspeedai_arguments_now,
    entries=_deepspeedai_entries,
    scheduler=_no_scheduler,
    start="start with --finetune: DeepSpeed then loads the module alone (load_module_only)",
)

_DEEPSPEEDAI_BEFORE = replace(
    _DEEPSPEEDAI_NOW,
    name=DEEPSPEEDAI_2024_11,
    title="deepspeedai/Megatron-DeepSpeed before 676a482c (2024-12)",
    orders=RowOrders(QkvLayout.INTERLEAVED, GluOrder.GATE_UP),
    runs=DEEPSPEEDAI_BEFORE_RUNS,
    arguments=_deepspeedai_arguments,
    without=_FPDT_ARGS,
)

_BIGSCIENCE = Fork(
    BIGSCIENCE,
    "bigscience-workshop/Megatron-DeepSpeed",
    embedding=1,
    first_block=3,
    norm_after=2,
    orders=RowOrders(QkvLayout.INTERLEAVED, GluOrder.UP_GATE),
    runs=BIGSCIENCE_RUNS,
    lacks_for=_bigscience_lacks_for,
    arguments=_bigscience_arguments,
    entries=_bigscience_entries,
    scheduler=_bigscience_scheduler,
    start="start with --no-load-optim --no-load-rng --override-lr-scheduler, in 16 bits under ZeRO stage 1 or above: "
    "without it DeepSpeed keeps fp32 copies of the random weights that it began with",
    # megatron/mpu/layers.py:VocabParallelEmbedding, since dd06ea32
    first_only=("word_embeddings.norm.weight", "word_embeddings.norm.bias"),
    without=_FPDT_ARGS,
)

FORKS = {fork.name: fork for fork in (_DEEPSPEEDAI_NOW, _DEEPSPEEDAI_BEFORE, _BIGSCIENCE)}
"""The forks by their names; the first that runs a model is the default for it."""
