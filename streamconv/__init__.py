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
    from streamconv.core.errors import StreamconvError
    from streamconv.core.lazy import LazyTensor
    from streamconv.execution.run import Report
    from streamconv.execution.stream import StreamedTensor
    from streamconv.inspection.inspect import Inspection, inspect
    from streamconv.inspection.open_checkpoint import Checkpoint, open_checkpoint
    from streamconv.planning.plan import Plan
    from streamconv.verification.compare import Comparison
    from streamconv.verification.verify import Verification, diff, verify

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
    "Checkpoint": "inspection.open_checkpoint",
    "Comparison": "verification.compare",
    "Inspection": "inspection.inspect",
    "LazyTensor": "core.lazy",
    "Plan": "planning.plan",
    "Report": "execution.run",
    "StreamconvError": "core.errors",
    "StreamedTensor": "execution.stream",
    "Verification": "verification.verify",
    "convert": "api",
    "diff": "verification.verify",
    "inspect": "inspection.inspect",
    "open_checkpoint": "inspection.open_checkpoint",
    "plan": "api",
    "stream": "api",
    "verify": "verification.verify",
}


def __getattr__(name: str) -> Any:
    # Names are fetched when first used, so that `streamconv --help` does not wait for numpy.
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
