"""The state beside the tensors of a ``torch_dist`` checkpoint: arguments, iteration, scheduler.

It is ``common.pt``, or since 40b1fd37c1 (2026-07) the object ``common_state``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streamconv.containers.dcp.reader import DistributedCheckpoint
from streamconv.containers.pickles.machine import Global
from streamconv.containers.torch_save.open import open_torch
from streamconv.core.errors import DamagedError
from streamconv.formats.megatron.core.names import COMMON_FILE, COMMON_STATE_OBJECT

__all__ = ["CommonState", "read_common_state"]


@dataclass(frozen=True, slots=True)
class CommonState:
    """The state, whether there is one, and names in the pickle of ``common.pt`` (an object's are the checkpoint's)."""

    state: Mapping[str, Any]
    is_there: bool
    named: Mapping[Global, int]


def read_common_state(folder: Path, stored: DistributedCheckpoint) -> CommonState:
    """The common state of a checkpoint; empty if there is none.

    Raises:
        DamagedError: the state is broken, or no dictionary.
        StorageError: the system refused to read.
    """
    state: Any = {}
    named: Mapping[Global, int] = {}
    is_file, is_object = (folder / COMMON_FILE).is_file(), COMMON_STATE_OBJECT in stored.objects
    if is_file:
        file = open_torch(folder / COMMON_FILE)
        state, named = file.state, file.globals
    elif is_object:
        state = stored.value(COMMON_STATE_OBJECT)
        # Objects are saved as lists of one [dist_checkpointing/serialization.py:load_common_state_dict].
        state = state[0] if isinstance(state, list) and len(state) == 1 else state
    if not isinstance(state, dict):
        raise DamagedError("its common state is no dictionary", where=folder)
    return CommonState(state, is_file or is_object, named)
