"""The first release of Megatron-LM that has what a checkpoint needs.

Read from ``megatron/training/arguments.py``, ``megatron/core/transformer/attention.py`` and
``megatron/core/dist_checkpointing/`` at the tags core_v0.8.0 to core_v0.19.0 of Megatron-LM.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from streamconv.core.errors import UnsupportedError
from streamconv.core.kinds import InvalidValue, ValueKind

__all__ = [
    "ARGS_NOT_NEEDED",
    "CKPT_FORMAT",
    "COMMON_STATE",
    "FIRST",
    "GROUPS_BELOW_TP",
    "LINEAR_ROPE_SCALING",
    "LOCAL_RMSNORM",
    "NEWEST",
    "ROPE_SCALING",
    "ROPE_SCALING_FACTOR",
    "ROTARY_BASE_IN_ARGS",
    "SLIDING_WINDOW",
    "STAGE_LAYOUT",
    "UNEVEN_ENDS",
    "VIRTUAL_UNEVEN_ENDS",
    "Need",
    "Release",
    "refuse_older",
]

FIRST, NEWEST = 8, 19
"""The known releases: from core_v0.8 (2024-08), the first that builds Megatron-Core's model by default, to core_v0.19
(2026-08).
"""

_RELEASE = re.compile(r"(?:core_)?(?:v|r)?0\.([0-9]{1,3})(?:\.[0-9]+)?")

# The first release that has each thing that a checkpoint may need.
CKPT_FORMAT = 9
ROTARY_BASE_IN_ARGS = 10
ARGS_NOT_NEEDED = 16
GROUPS_BELOW_TP = 16
SLIDING_WINDOW = 15
ROPE_SCALING = 10
ROPE_SCALING_FACTOR = 11
UNEVEN_ENDS = 9
VIRTUAL_UNEVEN_ENDS = 11
STAGE_LAYOUT = 13
LOCAL_RMSNORM = 12
LINEAR_ROPE_SCALING = 19
COMMON_STATE = 19


@dataclass(frozen=True, slots=True)
class Need:
    """Something that a checkpoint needs, and the first release (the 16 of core_v0.16) that has it."""

    what: str
    since: int


class Release(ValueKind):
    """A release of Megatron-LM: 16 of ``0.16``, ``core_v0.16.1`` or ``core_r0.16.0``."""

    metavar = "0.N"

    def check(self, value: Any) -> int:
        """As :meth:`ValueKind.check`."""
        if isinstance(value, int) and not isinstance(value, bool) and FIRST <= value <= NEWEST:
            return value
        match = _RELEASE.fullmatch(value) if isinstance(value, str) else None
        if match is None or not FIRST <= int(match[1]) <= NEWEST:
            raise InvalidValue("no release that is known", f"say one of 0.{FIRST} to 0.{NEWEST}")
        return int(match[1])


def refuse_older(release: int | None, needs: Sequence[Need]) -> None:
    """Refuse a release that lacks one of ``needs``.

    Raises:
        UnsupportedError: the release is older than a need.
    """
    for need in needs:
        if release is not None and release < need.since:
            raise UnsupportedError(
                f"{need.what}: Megatron-LM has it since core_v0.{need.since}, not in core_v0.{release}",
                remedy=f"say --megatron-version 0.{need.since} or newer",
            )
