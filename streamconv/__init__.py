"""streamconv: move model checkpoints between training frameworks, streamed, inside a memory budget.

>>> import streamconv
>>> tensors = streamconv.open_checkpoint("checkpoints/bloom")          # names -> lazy tensors, nothing is read
>>> streamconv.plan("checkpoints/bloom", tp=2, pp=3)                   # what would be done, proved complete
>>> streamconv.convert("checkpoints/bloom", "out", tp=2, max_ram="1G")
>>> streamconv.verify("out", against="checkpoints/bloom")              # both opened anew, every element compared
>>> streamconv.inspect("out").model                                   # what is inside any file or folder
>>> for layer, rank, name, tensor in streamconv.stream("checkpoints/bloom", tp=2): ...   # without writing files
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from streamconv.api import convert, plan, stream
    from streamconv.checkpoint import Checkpoint, open_checkpoint
    from streamconv.comparison import Comparison
    from streamconv.conversion import Report
    from streamconv.errors import StreamconvError
    from streamconv.inspection import Inspection, inspect
    from streamconv.lazy import LazyTensor
    from streamconv.plans import Plan
    from streamconv.streaming import StreamedTensor
    from streamconv.verification import Verification, diff, verify

__all__ = [
    "Checkpoint",
    "Comparison",
    "Inspection",
    "LazyTensor",
    "Plan",
    "Report",
    "StreamconvError",
    "StreamedTensor",
    "Verification",
    "__version__",
    "convert",
    "diff",
    "inspect",
    "open_checkpoint",
    "plan",
    "stream",
    "verify",
]

__version__ = "0.1.0"

_HOME = {
    "Checkpoint": "checkpoint",
    "Comparison": "comparison",
    "Inspection": "inspection",
    "LazyTensor": "lazy",
    "Plan": "plans",
    "Report": "conversion",
    "StreamconvError": "errors",
    "StreamedTensor": "streaming",
    "Verification": "verification",
    "convert": "api",
    "diff": "verification",
    "inspect": "inspection",
    "open_checkpoint": "checkpoint",
    "plan": "api",
    "stream": "api",
    "verify": "verification",
}


def __getattr__(name: str) -> Any:
    # Names are fetched when first used, so that `streamconv --help` does not wait for numpy.
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
