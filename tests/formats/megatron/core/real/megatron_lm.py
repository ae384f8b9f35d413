"""Megatron-LM itself loads a folder and answers: its parser, its builder of a GPT, its own ``load_checkpoint``.

The package megatron-core has no ``megatron.training``, so this wants a checkout of Megatron-LM in ``PYTHONPATH``, which
is then also the Megatron-Core that runs; of core_v0.13 or newer. What is replaced is what a CPU lacks, and the
compilation of kernels for GPUs; no parameter, key or argument passes through anything of ours.
"""

# mypy: disable-error-code="import-not-found,no-untyped-call,no-any-return"

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch

from tests.formats.megatron.core.real.gpt_model import Sizes, answer_of, forward
from tests.formats.megatron.core.real.ranks import in_ranks

# What a run has to say whatever it loads, and what keeps it off kernels for GPUs. None of it changes the model but the
# last, which says how its softmax, its dropout and its rotations are computed.
RUN = (
    *("--micro-batch-size", "1", "--train-iters", "1", "--lr", "1e-4", "--distributed-backend", "gloo"),
    *("--tokenizer-type", "NullTokenizer", "--vocab-size", "100", "--exit-on-missing-checkpoint"),
    *("--use-cpu-initialization", "--transformer-impl", "local", "--no-persist-layer-norm"),
    *(
        "--no-masked-softmax-fusion",
        "--no-gradient-accumulation-fusion",
        "--no-bias-dropout-fusion",
        "--no-rope-fusion",
    ),
)


def logits_of_run(folder: Path, tokens: torch.Tensor, flags: Sequence[str], sizes: Sizes) -> torch.Tensor:
    """What Megatron-LM's model answers with a folder's weights, over the padded vocabulary.

    Args:
        folder: the folder with ``latest_checkpointed_iteration.txt``.
        tokens: ``[batch, length]``.
        flags: the command line, beside :data:`RUN` and ``--load``.
        sizes: what the flags come to; they, not this, cut the model.
    """
    return answer_of(in_ranks(sizes.ranks, _rank_logits, str(folder), tokens, tuple(flags), sizes), sizes)


# What follows runs in the ranks.


def _rank_logits(folder: str, tokens: torch.Tensor, flags: tuple[str, ...], sizes: Sizes) -> torch.Tensor | None:
    command = ["pretrain_gpt.py", *RUN, "--load", folder, *flags]
    capabilities = SimpleNamespace(major=8, minor=0)
    tensor = torch.tensor
    with (
        mock.patch.object(sys, "argv", command),
        mock.patch.dict(os.environ, {"CUDA_DEVICE_MAX_CONNECTIONS": "1"}),
        # The tracker's iteration is agreed on over GPUs.
        mock.patch.object(torch, "tensor", lambda data, *, device=None, **how: tensor(data, **how)),
        mock.patch.object(torch.cuda, "device_count", return_value=sizes.ranks),
        mock.patch.object(torch.cuda, "get_device_properties", return_value=capabilities),
        mock.patch.object(torch.cuda, "get_device_capability", return_value=(8, 0)),
    ):
        args = _initialize()
        chunks = list(_chunks(args))
        from megatron.training import checkpointing

        with torch.no_grad():
            for chunk in chunks:
                for parameter in chunk.parameters():
                    parameter.fill_(torch.nan)
        # Megatron-LM falls back to a loose load when the strict one fails, and says nothing.
        for chunk in chunks:
            chunk.load_state_dict = _strictly(chunk.load_state_dict)
        checkpointing.load_checkpoint(chunks, None, None)
    assert Sizes(args.tensor_model_parallel_size, args.pipeline_model_parallel_size, len(chunks)) == sizes
    return forward(chunks, tokens, sizes, args.hidden_size)


def _strictly(load: Any) -> Any:
    def loaded(state: Any, strict: bool = True) -> Any:
        assert strict, "the strict load had failed"
        return load(state, strict=True)

    return loaded


def _initialize() -> Any:
    """The run's arguments, as ``pretrain_gpt.py`` makes them, with the ranks' groups made."""
    from megatron.training import get_args, initialize

    # Kernels for GPUs and the data sets' helpers are compiled, GPUs are seeded.
    with mock.patch.multiple(initialize, _compile_dependencies=mock.DEFAULT, _set_random_seed=mock.DEFAULT):
        if "args_defaults" not in inspect.signature(initialize.initialize_megatron).parameters:
            from megatron.training.arguments import parse_and_validate_args  # since core_v0.18

            parse_and_validate_args()
        initialize.initialize_megatron(allow_no_cuda=True)
    return get_args()


def _chunks(args: Any) -> Iterator[Any]:
    """This rank's chunks of the model, as ``get_model`` asks for them."""
    from megatron.core import parallel_state

    count = args.virtual_pipeline_model_parallel_size or 1
    for number in range(count):
        stage = number if count > 1 else None
        first = parallel_state.is_pipeline_first_stage(ignore_virtual=False, vp_stage=stage)
        last = parallel_state.is_pipeline_last_stage(ignore_virtual=False, vp_stage=stage)
        yield _build(args, first, last, stage).eval()


def _build(args: Any, first: bool, last: bool, stage: int | None) -> Any:
    """A chunk, as the release's ``pretrain_gpt.py`` has it built."""
    import pretrain_gpt

    if hasattr(pretrain_gpt, "gpt_config_from_args"):  # since core_v0.19
        from megatron.core.process_groups_config import ProcessGroupCollection

        config = pretrain_gpt.gpt_config_from_args(args)
        groups = ProcessGroupCollection.use_mpu_process_groups()
        return config.get_builder_cls()(config).build_model(groups, first, last, stage)
    if hasattr(pretrain_gpt, "gpt_builder"):  # since core_v0.15
        return pretrain_gpt.gpt_builder(args, first, last, vp_stage=stage)
    return pretrain_gpt.model_provider(first, last, vp_stage=stage)
