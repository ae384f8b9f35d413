"""How results show themselves: a line in a console, text, plain data, and a table in a notebook.

A room that makes results knows nothing of how they are shown. A module of :mod:`streamconv.report` gives a class its
face when it is imported. Another process, to which a result is sent, imports that module with it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, SupportsIndex, cast

__all__ = ["LONGEST_LINE", "Face", "Result"]

LONGEST_LINE = 200
"""The most characters of a result's ``repr``."""


@dataclass(frozen=True, slots=True)
class Face:
    """How the results of one class are shown.

    ``line`` returns a few words, ``text`` what the command line prints, ``data`` what it prints with ``--json`` (sizes
    in bytes, times in seconds), ``html`` a table for a notebook. ``line`` is a function of the module that gives the
    face, not of another one.
    """

    line: Callable[[Any], str]
    text: Callable[[Any], str]
    data: Callable[[Any], dict[str, Any]]
    html: Callable[[Any], str]


class Result:
    """A result that people look at. ``str`` is the text that the command line prints, ``repr`` one line of it."""

    __slots__ = ()
    face: ClassVar[Face]

    def __repr__(self) -> str:
        line = f"<{type(self).__name__}: {self.face.line(self)}>"
        line = "".join(sign if sign.isprintable() else "?" for sign in line)
        return line if len(line) <= LONGEST_LINE else f"{line[: LONGEST_LINE - 4]}...>"

    def __str__(self) -> str:
        return self.face.text(self)

    def to_dict(self) -> dict[str, Any]:
        """The result as plain data: what the command line prints with ``--json``."""
        return self.face.data(self)

    def _repr_html_(self) -> str:
        return self.face.html(self)

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[Any, ...]:
        make, arguments, *rest = cast("tuple[Any, ...]", super().__reduce_ex__(protocol))
        return (_made_with_face, (self.face.line, make, arguments), *rest)


def _made_with_face(_: Callable[[Any], str], make: Callable[..., Result], arguments: tuple[Any, ...]) -> Result:
    """A result that is unpickled; finding the first argument has imported the module that gives the face."""
    return make(*arguments)
