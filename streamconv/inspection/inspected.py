"""The result of opening something for inspection: the report, and its tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from streamconv.core.lazy import LazyTensor
from streamconv.inspection.report import InspectionReport
from streamconv.inspection.zero3 import FlatParameters

__all__ = ["Inspected", "Places"]

Places = Mapping[tuple[int | str, int], tuple[str, ...]]
"""The files of (layer, tensor-parallel rank); ``first`` is the part before the layers, ``last`` the part after them."""


@dataclass(slots=True)
class Inspected:
    """A report, and the tensors for statistics and maps.

    Attributes:
        report: for the user.
        tensors: whole tensors by the names of ``report.tensors``, joined from the shards of all ranks.
        copies: the copies of replicated tensors, by rank.
        places: the files of each layer and rank.
        by_file: tensors by file and name, if no known family determined how ``tensors`` are joined.
        sources: what ``tensors`` are cut from, if they are parts of larger stored ones.
        flat: opens further files for the parameters in them, which are parts of flat tensors; None if all parameters
            are in ``tensors``.
        beside: further checkpoint files below the root that was given, outside the checkpoint's own folder.
        elsewhere: the names of other checkpoints in that root.
    """

    report: InspectionReport
    tensors: dict[str, LazyTensor]
    copies: dict[str, tuple[LazyTensor, ...]] = field(default_factory=dict)
    places: Places = field(default_factory=dict)
    by_file: dict[str, LazyTensor] | None = None
    sources: Sequence[LazyTensor] = ()
    flat: Callable[[], FlatParameters] | None = None
    beside: list[Path] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)

    def stored(self) -> dict[str, LazyTensor]:
        """The stored tensors: ``by_file`` if there is one, else ``tensors``."""
        return self.tensors if self.by_file is None else self.by_file
