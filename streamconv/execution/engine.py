"""What an engine is: a way to do the tiles of a run. Each is one module of ``execution/engines``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from streamconv.execution.assignment import Assignment

__all__ = ["Engine"]


class Engine(Protocol):
    """A way to do the tiles of a run: in which order, and on which threads.

    Its module holds it as ``ENGINE``; :mod:`streamconv.execution.registry` finds it there. An engine does not know what
    a tile does, nor which tiles an earlier run has done: the assignment knows both.

    Attributes:
        name: its name for the user: ``--engine``, and ``engine`` in Python.
        most_threads: the most workers that it can use; None for any number.
    """

    name: str
    most_threads: int | None

    def run(self, assignment: Assignment) -> None:
        """Give every range of ``assignment.ranges()`` to ``assignment.do``, once, with a worker that is free.

        Meanwhile it calls ``assignment.commit_if_due`` from one thread, several times a second or after each tile. It
        allocates no buffers besides those of the workers.

        Raises:
            StreamconvError: the first error of ``do`` or ``commit_if_due``. No range is begun after it, and all ranges
                that were begun have ended. The same holds for an interrupt.
        """
