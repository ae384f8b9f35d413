"""What an engine is: a way to do the tiles of a run. Each is one module of ``execution/engines``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from streamconv.execution.assignment import Assignment

__all__ = ["Engine"]


class Engine(Protocol):
    """A way to do the tiles of a run: in which order, and on which threads.

    Its module holds it as ``ENGINE``; :mod:`streamconv.execution.registry` finds it there. What a tile is and how it is
    done is not its business, nor is what is left of a run that ended early: the assignment knows both.

    Attributes:
        name: what the user calls it: ``--engine``, and ``engine`` in Python.
        most_threads: how many workers it has a use for at most; None if that is for the user to say.
    """

    name: str
    most_threads: int | None

    def run(self, assignment: Assignment) -> None:
        """Give every range of ``assignment.ranges()`` to ``assignment.do``, once, with a worker that is free.

        While that goes on, ``assignment.commit_if_due`` is called from one thread, several times a second or after each
        tile. The engine takes no buffers beside those of the workers.

        Raises:
            StreamconvError: what ``do`` or ``commit_if_due`` raised first. No range was begun after it, and none that
                was begun is still being done. The same holds for an interrupt.
        """
