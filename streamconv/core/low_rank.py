"""An update of a matrix that is the product of two thin ones: what an adapter adds to a weight."""

from __future__ import annotations

from dataclasses import dataclass

from streamconv.core.lazy import LazyTensor

__all__ = ["LowRank"]


@dataclass(frozen=True, slots=True)
class LowRank:
    """``scale * left @ right``, computed in fp32, to be added to a matrix.

    ``left`` has the matrix's rows and ``right`` its columns: shapes (rows, rank) and (rank, columns).
    """

    left: LazyTensor
    right: LazyTensor
    scale: float

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of the matrix."""
        return self.left.shape[0], self.right.shape[1]

    @property
    def rank(self) -> int:
        """The number of columns of ``left`` and of rows of ``right``."""
        return self.left.shape[1]
