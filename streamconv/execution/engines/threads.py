"""The usual engine: a few threads take tiles from one iterator, while the calling thread writes the journal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from streamconv.core.pool import run_pool

if TYPE_CHECKING:
    from streamconv.execution.assignment import Assignment

__all__ = ["ENGINE"]


class _Threads:
    name = "threads"
    most_threads: int | None = None

    def run(self, assignment: Assignment) -> None:
        run_pool(assignment.workers, assignment.ranges(), assignment.do, meanwhile=assignment.commit_if_due)


ENGINE = _Threads()
