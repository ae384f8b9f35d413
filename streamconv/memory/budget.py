"""The memory budget: what ``--max-ram`` means, and how much memory this host has.

The budget bounds the resident memory of the whole process: interpreter, plan and buffers. It also sets how much written
data may wait in the page cache, so that a run finishes inside a memory cgroup of the same size.
"""

from __future__ import annotations

import os
import re
import resource
from dataclasses import dataclass
from pathlib import Path

from streamconv.core.kinds import InvalidValue

__all__ = [
    "MIB",
    "BudgetedMemory",
    "MemoryBudget",
    "format_bytes",
    "parse_budget",
    "parse_size",
    "peak_rss_nbytes",
    "read_budget",
    "refuse_beyond",
]

MIB = 1 << 20
_UNITS = {"": 1, "B": 1} | {
    f"{letter}{suffix}": base**power
    for power, letter in enumerate("KMGT", start=1)
    for suffix, base in (("", 1024), ("IB", 1024), ("B", 1000))
}
_BEYOND = 1 << 63
_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class MemoryBudget:
    """A bound on resident memory in bytes, and the words of the option that set it."""

    nbytes: int
    source: str

    def __str__(self) -> str:
        return f"{format_bytes(self.nbytes)} ({self.source})"


@dataclass(frozen=True, slots=True)
class BudgetedMemory:
    """The budget of a run, and the smallest that would do for it, in bytes."""

    budget: MemoryBudget
    floor_nbytes: int


def format_bytes(nbytes: float) -> str:
    """``1610612736`` as ``1.50 GiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(nbytes) < 1024:
            return f"{nbytes:.0f} B" if unit == "B" else f"{nbytes:.2f} {unit}"
        nbytes /= 1024
    return f"{nbytes:.2f} TiB"


def parse_budget(text: str) -> MemoryBudget:
    """Read ``32G`` or ``32GiB`` (2^30 units), ``32GB`` (10^9), ``50%`` of this host's memory limit, or ``auto``.

    ``auto`` is half of what is available now, capped by the container's memory cgroup.

    Raises:
        InvalidValue: the text is none of these, or not more than 0.
    """
    number, unit = read_budget(text)
    if unit == "auto":
        return MemoryBudget(_available_nbytes() // 2, "auto: half of what is available")
    nbytes = int(_total_nbytes() * number / 100) if unit == "%" else int(number * _UNITS[unit])
    return MemoryBudget(nbytes, f"--max-ram {text}")


def read_budget(text: str) -> tuple[float, str]:
    """The number and the unit (in capitals, ``%`` or ``auto``) of a budget; raises as :func:`parse_budget`."""
    word = text.strip()
    if word.lower() == "auto":
        return 0.0, "auto"
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*|%)", word)
    if match is None or (match[2] != "%" and match[2].upper() not in _UNITS):
        raise InvalidValue("not a size", "write 32G, 32GiB, 32GB, 50% or auto")
    number, unit = float(match[1]), match[2].upper()
    if unit == "%" and number > 100:
        raise InvalidValue("more than all of it", "write at most 100%")
    if number * _UNITS.get(unit, 1) < (0 if unit == "%" else 1) or number == 0:
        raise InvalidValue("must be more than 0")
    refuse_beyond(number * _UNITS.get(unit, 1))
    return number, unit


def parse_size(text: str) -> int:
    """The bytes of a size such as ``8M`` or ``512K``.

    Raises:
        InvalidValue: the text is not a size.
    """
    match = re.fullmatch(r"([0-9]+)\s*([A-Za-z]*)", text.strip())
    if match is None or match[2].upper() not in _UNITS or not match[1].strip("0"):
        raise InvalidValue("not a size", "write 8M or 512K")
    unit = int(_UNITS[match[2].upper()])
    refuse_beyond(float(match[1]) * unit)
    return int(match[1].lstrip("0")) * unit


def refuse_beyond(nbytes: float) -> None:
    """Refuse a size that no file can have; raises :class:`InvalidValue`."""
    if nbytes >= _BEYOND:
        raise InvalidValue("more than a file can have", "write less than 8 EiB")


def _total_nbytes() -> int:
    import psutil  # imported here and below: code that only formats sizes does not need it

    limits = [limit for limit, _ in _cgroup_levels()]
    return min([psutil.virtual_memory().total, *limits])


def _available_nbytes() -> int:
    import psutil

    free = [limit - usage for limit, usage in _cgroup_levels()]
    return max(0, min([psutil.virtual_memory().available, *free]))


def _cgroup_levels() -> list[tuple[int, int]]:
    """(limit, bytes in use that cannot be reclaimed) of this process's memory cgroup and each of its parents."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    levels: list[tuple[int, int]] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            levels += _walk(_CGROUP, path, "memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            v1 = (_CGROUP / "memory", path, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            levels += _walk(*v1)
    return levels


def _walk(root: Path, path: str, limit: str, usage: str, reclaimable: str) -> list[tuple[int, int]]:
    import psutil

    levels = []
    folder = root / path.lstrip("/")
    # Inside a container the path may be the host's and not exist here; then the container's own root is used.
    folders = [folder, *folder.parents] if folder.exists() else [root]
    for level in folders:
        if not level.is_relative_to(root):
            break
        top, used = _read_int(level / limit), _read_int(level / usage)
        if top is not None and used is not None and top < psutil.virtual_memory().total:
            levels.append((top, max(0, used - _stat(level / "memory.stat", reclaimable))))
    return levels


def _read_int(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _stat(path: Path, key: str) -> int:
    try:
        pairs = dict(line.split(" ", 1) for line in path.read_text().splitlines())
    except OSError:
        return 0
    return int(pairs.get(key, "0"))


def peak_rss_nbytes() -> int:
    """The largest resident set this process has had, in bytes."""
    try:
        for line in Path(f"/proc/{os.getpid()}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
