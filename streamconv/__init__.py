"""streamconv: move model checkpoints between training frameworks, streamed, inside a memory budget.

>>> import streamconv
>>> tensors = streamconv.open_checkpoint("checkpoints/bloom")          # names -> lazy tensors, nothing is read
>>> streamconv.plan("checkpoints/bloom", tp=2, pp=3)                   # what would be done, proved complete
>>> streamconv.convert("checkpoints/bloom", "out", tp=2, max_ram="1G")
>>> streamconv.verify("out", against="checkpoints/bloom")              # both opened anew, every element compared
>>> streamconv.digest("out").save("digests.json")                      # what to hold a copy against, when all is gone
>>> streamconv.inspect("out").model                                   # what is inside any file or folder
>>> for layer, rank, name, tensor in streamconv.stream("checkpoints/bloom", tp=2): ...   # without writing files

Paths come first, every option is a keyword: ``help(streamconv.convert)`` lists them. A result shows itself: ``repr`` in
one line, ``str`` as the command line prints it, ``to_dict()`` as its ``--json``, and as a table in a notebook. What
happens meanwhile goes to the logger ``streamconv``.
"""

from __future__ import annotations

from streamconv.core.version import __version__

# typing's own: typing takes longer to import than all that must be there before a signal ends in words.
TYPE_CHECKING = False

if TYPE_CHECKING:
    from typing import Any

    from streamconv.api.keywords import bench, convert, families, plan, stream
    from streamconv.api.looking import diff, digest, extract, inspect, open_checkpoint, verify
    from streamconv.core.errors import (
        AmbiguousError,
        CapacityError,
        DamagedError,
        DestinationError,
        DifferenceError,
        DiskSpaceError,
        MemoryBudgetError,
        SourceError,
        StorageError,
        StreamconvError,
        UnsafeError,
        UnsupportedError,
        UsageError,
    )
    from streamconv.core.lazy import LazyTensor
    from streamconv.execution.disk_speed import DiskReport
    from streamconv.execution.extraction import Extracted
    from streamconv.execution.run import ConversionReport
    from streamconv.execution.stream import StreamedTensor
    from streamconv.inspection.open_checkpoint import Checkpoint, ReferenceCheckpoint
    from streamconv.inspection.report import InspectionReport
    from streamconv.planning.capabilities import FamilyTable
    from streamconv.planning.plan import Plan
    from streamconv.verification.comparison import Comparison
    from streamconv.verification.digests import Digests
    from streamconv.verification.verify import Verification

_HOMES = {
    "api.keywords": ("bench", "convert", "families", "plan", "stream"),
    "api.looking": ("diff", "digest", "extract", "inspect", "open_checkpoint", "verify"),
    "core.errors": (
        *("AmbiguousError", "CapacityError", "DamagedError", "DestinationError", "DifferenceError", "DiskSpaceError"),
        *("MemoryBudgetError", "SourceError", "StorageError", "StreamconvError", "UnsafeError", "UnsupportedError"),
        "UsageError",
    ),
    "core.lazy": ("LazyTensor",),
    "execution.disk_speed": ("DiskReport",),
    "execution.extraction": ("Extracted",),
    "execution.run": ("ConversionReport",),
    "execution.stream": ("StreamedTensor",),
    "inspection.open_checkpoint": ("Checkpoint", "ReferenceCheckpoint"),
    "inspection.report": ("InspectionReport",),
    "planning.capabilities": ("FamilyTable",),
    "planning.plan": ("Plan",),
    "verification.comparison": ("Comparison",),
    "verification.digests": ("Digests",),
    "verification.verify": ("Verification",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "AmbiguousError",
    "CapacityError",
    "Checkpoint",
    "Comparison",
    "ConversionReport",
    "DamagedError",
    "DestinationError",
    "DifferenceError",
    "Digests",
    "DiskReport",
    "DiskSpaceError",
    "Extracted",
    "FamilyTable",
    "InspectionReport",
    "LazyTensor",
    "MemoryBudgetError",
    "Plan",
    "ReferenceCheckpoint",
    "SourceError",
    "StorageError",
    "StreamconvError",
    "StreamedTensor",
    "UnsafeError",
    "UnsupportedError",
    "UsageError",
    "Verification",
    "__version__",
    "bench",
    "convert",
    "diff",
    "digest",
    "extract",
    "families",
    "inspect",
    "open_checkpoint",
    "plan",
    "stream",
    "verify",
]


def __getattr__(name: str) -> Any:
    # Names are fetched when first used, so that `streamconv --help` does not wait for numpy.
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
