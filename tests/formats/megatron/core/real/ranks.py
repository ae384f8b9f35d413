"""Processes that are one another's ranks, with Megatron-Core in them and not in the process that asks.

Importing Megatron-Core registers classes as safe for every later ``torch.load``, and warns; so nothing here imports it
outside the ranks. They are forked from a server that has imported it once.
"""

# mypy: disable-error-code="no-untyped-call,no-any-return,unused-ignore"

from __future__ import annotations

import datetime
import multiprocessing
import os
import tempfile
import warnings
from collections.abc import Callable
from multiprocessing import forkserver
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import distributed
from torch.multiprocessing.spawn import start_processes

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "TORCHDYNAMO_DISABLE": "1",  # the "fused" functions are compiled otherwise, which wants a C++ compiler
    "GLOO_SOCKET_IFNAME": "lo",
    "PYTHONWARNINGS": "ignore",
    "CUDA_VISIBLE_DEVICES": "",
}
PRELOAD = ["torch", "megatron.core.models.gpt.gpt_model", "megatron.core.dist_checkpointing"]
PATIENCE = datetime.timedelta(minutes=3)


def in_ranks(count: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What ``function(*arguments)`` returns in each of ``count`` ranks; the first failure is raised with its traceback.

    The function has to be importable by name, and what it returns must survive ``torch.save``.
    """
    with mock.patch.dict(os.environ, ENVIRONMENT), tempfile.TemporaryDirectory() as place:
        multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOAD)
        forkserver.ensure_running()
        start_processes(_rank, (count, place, function, arguments), count, start_method="forkserver")
        return [torch.load(Path(place) / f"{rank}.pt", weights_only=False) for rank in range(count)]


def _rank(rank: int, count: int, place: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
    os.environ.update(zip(names, map(str, (rank, rank, count, count)), strict=True))
    distributed.init_process_group(
        "gloo", init_method=f"file://{place}/rendezvous", rank=rank, world_size=count, timeout=PATIENCE
    )
    # Megatron-Core moves the tied embedding and the rotary frequencies to the GPU, whatever was asked for, and waits
    # for the GPU before it saves.
    with (
        mock.patch.object(torch.Tensor, "cuda", lambda tensor, *_args, **_kwargs: tensor),
        mock.patch.object(torch.cuda, "current_device", return_value="cpu"),
        mock.patch.object(torch.cuda, "synchronize"),
    ):
        answer = function(*arguments)
    torch.save(answer, Path(place) / f"{rank}.pt")
    distributed.barrier()
    distributed.destroy_process_group()
