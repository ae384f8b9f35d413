"""What a BLOOM training run leaves in `mp_rank_*_model_states.pt`: arguments, progress, shapes, random states.

The names are those that bigscience-workshop/Megatron-DeepSpeed pickles; the values are a BLOOM run's, or defaults.
Arguments that depend on neither the model nor its layout stand in `bloom_args.json`.
"""

from __future__ import annotations

import argparse
import enum
import json
import random
import sys
import types
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bloom_shapes import BloomShape, stage_parameters

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
SEQUENCE_LENGTH = 2048
GLOBAL_BATCH = 2048
DEFAULT_ARGS = Path(__file__).with_name("bloom_args.json")


@contextmanager
def megatron_enums() -> Iterator[types.ModuleType]:
    """Stand in for `megatron.enums`, so that pickles that name it can be written and read without Megatron."""
    module = types.ModuleType("megatron.enums")
    members = {"rotary": 1, "absolute": 2, "alibi": 3}
    kind = enum.Enum("PositionEmbeddingType", members, module="megatron.enums")  # type: ignore[misc]
    module.PositionEmbeddingType = kind  # type: ignore[attr-defined]
    names = {"megatron": types.ModuleType("megatron"), "megatron.enums": module}
    saved = {name: sys.modules.get(name) for name in names}
    sys.modules.update(names)
    try:
        yield module
    finally:
        for name, previous in saved.items():
            if previous is None:
                del sys.modules[name]
            else:
                sys.modules[name] = previous


def training_args(shape: BloomShape, rank: int, zero: int, iteration: int, alibi: Any) -> argparse.Namespace:
    """The run's arguments as rank `rank` saw them; `alibi` is the member of `megatron_enums`' enum."""
    fields: dict[str, Any] = json.loads(DEFAULT_ARGS.read_text())
    fields |= model_args(shape, alibi) | parallel_args(shape)
    fields |= {"rank": rank, "zero_stage": zero, "train_iters": iteration, "lr_decay_iters": iteration}
    fields |= {"consumed_train_samples": iteration * GLOBAL_BATCH, "global_batch_size": GLOBAL_BATCH}
    return argparse.Namespace(micro_batch_size=1, **fields)


def model_args(shape: BloomShape, alibi: Any) -> dict[str, Any]:
    """The arguments that say which model this is."""
    return {
        "num_layers": shape.layers,
        "hidden_size": shape.hidden,
        "ffn_hidden_size": 4 * shape.hidden,
        "num_attention_heads": shape.heads,
        "kv_channels": shape.hidden // shape.heads,
        "max_position_embeddings": SEQUENCE_LENGTH,
        "seq_length": SEQUENCE_LENGTH,
        "encoder_seq_length": SEQUENCE_LENGTH,
        "position_embedding_type": alibi,
        "padded_vocab_size": shape.vocab,
        "pad_vocab_size_to": shape.vocab if shape.vocab != shape.original_vocab else None,
        "make_vocab_size_divisible_by": vocab_multiple(shape),
        "fp16": shape.dtype == "fp16",
        "bf16": shape.dtype == "bf16",
        "params_dtype": DTYPES[shape.dtype],
    }


def parallel_args(shape: BloomShape) -> dict[str, Any]:
    """The arguments that say how the model is cut."""
    return {
        "tensor_model_parallel_size": shape.tp,
        "pipeline_model_parallel_size": shape.pp,
        "data_parallel_size": shape.dp,
        "world_size": shape.tp * shape.pp * shape.dp,
        "pp_partition_method": shape.partition,
    }


def vocab_multiple(shape: BloomShape) -> int:
    """Largest power of two up to 128 (Megatron's default) that explains the padded vocabulary at this tp."""
    return max(multiple for multiple in (1, 2, 4, 8, 16, 32, 64, 128) if not shape.vocab % (multiple * shape.tp))


def parameter_groups(shape: BloomShape, stage: int) -> list[OrderedDict[str, torch.Size]]:
    """`param_shapes` of one stage: the weights that decay, then biases and norms."""
    parameters = stage_parameters(shape, stage)
    return [
        OrderedDict((name, torch.Size(dims)) for name, dims in parameters if (len(dims) > 1) == decays)
        for decays in (True, False)
    ]


def random_states(seed: int) -> dict[str, Any]:
    """The random states a run saves with its model."""
    numpy_state = ("MT19937", np.random.RandomState(seed).randint(2**32, size=624, dtype=np.uint32), 624, 0, 0.0)
    torch_state = torch.Generator().manual_seed(seed).get_state()
    return {
        "random_rng_state": random.Random(seed).getstate(),
        "np_rng_state": numpy_state,
        "torch_rng_state": torch_state,
        "cuda_rng_state": torch_state.clone(),
        "rng_tracker_states": {"model-parallel-rng": torch_state.clone()},
    }


def deepspeed_config(shape: BloomShape, zero: int) -> dict[str, Any]:
    """The run's DeepSpeed configuration."""
    return {
        "train_micro_batch_size_per_gpu": 1,
        "train_batch_size": GLOBAL_BATCH,
        "gradient_clipping": 1.0,
        "zero_optimization": {"stage": zero},
        "fp16": {"enabled": shape.dtype == "fp16"},
        "bf16": {"enabled": shape.dtype == "bf16"},
    }


def engine_state(shape: BloomShape, stage: int, zero: int, iteration: int) -> dict[str, Any]:
    """What DeepSpeed's engine saves of its own. At ZeRO stage 0 it records no parameter shapes."""
    return {
        "module": None,
        "buffer_names": [],
        "optimizer": None,
        "param_shapes": parameter_groups(shape, stage) if zero else None,
        "frozen_param_shapes": None,
        "shared_params": {} if zero else None,
        "frozen_param_fragments": None,
        "lr_scheduler": None,
        "data_sampler": None,
        "random_ltd": None,
        "skipped_steps": 0,
        "global_steps": iteration,
        "global_samples": iteration * GLOBAL_BATCH,
        "dp_world_size": shape.dp,
        "mp_world_size": shape.tp * shape.pp,
        "checkpoint_parallel_dimensions": {"pp_degree": shape.pp, "tp_degree": shape.tp},
        "ds_config": deepspeed_config(shape, zero),
        "ds_version": "0.19.8",
    }


def rank_state(shape: BloomShape, tp: int, stage: int, zero: int, iteration: int, alibi: Any) -> dict[str, Any]:
    """The whole content of one `mp_rank_*` file."""
    rank = (stage * shape.dp) * shape.tp + tp
    vocabulary = {"padded_vocab_size": shape.vocab, "original_vocab_size": shape.original_vocab}
    client = {
        "args": training_args(shape, rank, zero, iteration, alibi),
        "checkpoint_version": 3.0,
        "iteration": iteration,
        "tokens": iteration * GLOBAL_BATCH * SEQUENCE_LENGTH,
        "checkpoint_info": vocabulary,
    }
    return engine_state(shape, stage, zero, iteration) | client | random_states(1234 + rank)


def optimizer_state(shape: BloomShape, stage: int) -> dict[str, Any]:
    """One data rank's part of a model rank's optimizer: fp32 masters and Adam moments, one flat tensor a group.

    As `deepspeed/runtime/bf16_optimizer.py:BF16_Optimizer.state_dict` writes it. The tensors have no values: call it
    in a `FakeTensorMode`.
    """
    groups = parameter_groups(shape, stage)
    lengths = [-(-sum(size.numel() for size in group.values()) // shape.dp) for group in groups]
    moments = {
        number: {"step": 1, "exp_avg": torch.empty(length), "exp_avg_sq": torch.empty(length)}
        for number, length in enumerate(lengths)
    }
    slices = [
        OrderedDict((name, {"numel": size.numel() // shape.dp, "start": 0}) for name, size in group.items())
        for group in groups
    ]
    return {
        "optimizer_state_dict": {
            "clip_grad": 1.0,
            "base_optimizer_state": {"state": moments, "param_groups": [{"lr": 6e-5} for _ in groups]},
            "single_partition_of_fp32_groups": [torch.empty(length) for length in lengths],
            "group_paddings": [0 for _ in groups],
            "partition_count": [shape.dp for _ in groups],
            "param_slice_mappings": slices,
            "ds_version": "0.6.6",
        },
        "ds_config": deepspeed_config(shape, zero=0),
        "ds_version": "0.6.6",
    }
