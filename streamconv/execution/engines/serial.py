"""The reference engine: one tile after another on the calling thread, to compare the others with."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from streamconv.execution.assignment import Assignment

__all__ = ["ENGINE"]


class _Serial:
    name = "serial"
    most_threads: int | None = 1

    def run(self, assignment: Assignment) -> None:
        worker = assignment.workers[0]
        for part in assignment.ranges():
            assignment.do(worker, part)
            assignment.commit_if_due()


ENGINE = _Serial()
