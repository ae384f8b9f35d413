"""What an inspection has opened: a report for the user, and tensors for those who look further."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from streamconv.core.lazy import LazyTensor
from streamconv.inspection.report import InspectionReport

__all__ = ["Inspected", "Places"]

Places = Mapping[tuple[int | str, int], tuple[str, ...]]
"""The files of (layer, tensor-parallel rank); what is before the layers is ``first``, what is behind them ``last``."""


@dataclass(slots=True)
class Inspected:
    """A report, and what is needed to look further.

    Attributes:
        report: for the user.
        tensors: by the names of ``report.tensors``, whole: the shards of all ranks side by side.
        copies: of replicated ones, over ranks.
        places: the files of each layer and rank.
        by_file: tensors by file and name, where ``tensors`` are put together without a family that knows how.
    """

    report: InspectionReport
    tensors: dict[str, LazyTensor]
    copies: dict[str, tuple[LazyTensor, ...]] = field(default_factory=dict)
    places: Places = field(default_factory=dict)
    by_file: dict[str, LazyTensor] | None = None

    def stored(self) -> dict[str, LazyTensor]:
        """The tensors as files hold them, as far as they are not whole there."""
        return self.tensors if self.by_file is None else self.by_file
