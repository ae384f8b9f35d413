"""Texts for people, made of what files say: cut before it is written out, and without what a terminal obeys."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

__all__ = ["printable", "printable_lines", "shown"]

# repr refuses numbers of more than 4300 digits.
_MOST_BITS = 10000


def printable(text: str) -> str:
    """The text with control characters replaced: names come from files, and a terminal obeys some characters.

    A byte of a path that is no text stays legible: Python has it as a surrogate, whose number is written.
    """
    return text if text.isprintable() else "".join(map(_printable, text))


def _printable(character: str) -> str:
    if character.isprintable():
        return character
    return f"\\u{ord(character):x}" if "\ud800" <= character <= "\udfff" else "\N{REPLACEMENT CHARACTER}"


def printable_lines(text: str) -> str:
    """Some lines, each of them printable."""
    return "\n".join(map(printable, text.split("\n")))


def shown(value: Any, most: int = 40) -> str:
    """A value as ``repr`` writes it, at most ``most`` characters: a string in quotes, a number without.

    No more of it is looked at than is shown: a value may hold itself, or another a million times.
    """
    words, length = [], 0
    for word in _words(value, most):
        words.append(word)
        length += len(word)
        if length >= most:
            break
    return "".join(words)[:most]


def _words(value: Any, most: int) -> Iterator[str]:
    if isinstance(value, str | bytes | bytearray):
        yield repr(value[:most])
    elif isinstance(value, int) and value.bit_length() > _MOST_BITS:
        yield f"a number of {value.bit_length()} bits"
    elif isinstance(value, dict):
        yield "{"
        for number, (key, item) in enumerate(value.items()):
            yield ", " if number else ""
            yield from _words(key, most)
            yield ": "
            yield from _words(item, most)
        yield "}"
    elif type(value) in (list, tuple):
        yield "[" if type(value) is list else "("
        for number, item in enumerate(value):
            yield ", " if number else ""
            yield from _words(item, most)
        yield "]" if type(value) is list else ",)" if len(value) == 1 else ")"
    else:
        yield repr(value)
