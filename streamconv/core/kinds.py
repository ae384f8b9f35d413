"""The kinds of values that options take: how each is read from text, and how a value from Python is checked."""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Any

__all__ = [
    "LARGEST",
    "AnyOf",
    "Choice",
    "Count",
    "Counts",
    "Flag",
    "InvalidValue",
    "PathTo",
    "Text",
    "ValueKind",
    "kind_of",
    "nearest",
    "plain",
]

LARGEST = 2**31 - 1
"""The largest number that an option takes: frameworks count in 32 bits."""

# What Linux takes, in bytes [linux/limits.h: NAME_MAX, and PATH_MAX with the null character].
_LONGEST_NAME, _LONGEST_PATH = 255, 4095


class InvalidValue(ValueError):  # noqa: N818 - it becomes a UsageError where the option's name is known
    """A value that an option cannot have: the fact, and what to say instead."""

    def __init__(self, what: str, remedy: str | None = None) -> None:
        super().__init__(what)
        self.what, self.remedy = what, remedy


def plain(value: Any) -> Any:
    """A value of numpy or torch as Python has it; any other as it is."""
    return value.tolist() if hasattr(type(value), "tolist") else value


def nearest(word: str, words: Iterable[str]) -> str | None:
    """The word that was probably meant, None if none is near."""
    by_folded = {known.lower(): known for known in words}
    found = get_close_matches(word.lower(), by_folded, n=1, cutoff=0.6)
    return by_folded[found[0]] if found else None


class ValueKind:
    """A kind of value. ``metavar`` stands for a value in the help; ``words`` are the values, if they can be listed;
    ``python`` is the type of a value in Python, ``folder`` says that it is the path of a folder or of a file. ``bare``
    is the word that the flag alone stands for, if it may be given so.

    ``read`` takes text from the command line or the environment, ``check`` a value from Python; what ``check``
    returned, it returns again unchanged.
    """

    metavar = "VALUE"
    python = "str"
    folder: bool | None = None
    bare: str | None = None
    many = False

    @property
    def words(self) -> tuple[str, ...]:
        """Every value, in words; empty if there are too many to list."""
        return ()

    def read(self, text: str) -> Any:
        """The value that ``text`` stands for; raises :class:`InvalidValue`."""
        return self.check(text)

    def check(self, value: Any) -> Any:
        """The value, checked; raises :class:`InvalidValue`."""
        raise NotImplementedError

    def is_like(self, other: ValueKind) -> bool:
        """Whether ``other`` takes the same values."""
        return type(self) is type(other) and vars(self) == vars(other)


class AnyOf(ValueKind):
    """A value of any of several kinds of words."""

    def __init__(self, kinds: Sequence[ValueKind]) -> None:
        self.kinds = tuple(kinds)

    @property
    def words(self) -> tuple[str, ...]:
        """The words of all kinds."""
        return tuple(dict.fromkeys(word for kind in self.kinds for word in kind.words))

    @property
    def metavar(self) -> str:  # type: ignore[override]
        """The words."""
        return "|".join(self.words)

    def check(self, value: Any) -> Any:
        """As :meth:`ValueKind.check`."""
        for kind in self.kinds:
            with suppress(InvalidValue):
                return kind.check(value)
        return Choice(self.words).check(value)


class Flag(ValueKind):
    """Given or not: True or False."""

    metavar = ""
    python = "bool"
    yes, no = ("1", "true", "yes", "on"), ("0", "false", "no", "off")

    def read(self, text: str) -> bool:
        """1, true, yes and on, or 0, false, no and off: as the environment has them."""
        if text.lower() not in (*self.yes, *self.no):
            raise InvalidValue("neither on nor off", "say 1 or 0")
        return text.lower() in self.yes

    def check(self, value: Any) -> bool:
        """As :meth:`ValueKind.check`."""
        said = plain(value)
        if not isinstance(said, bool):
            raise InvalidValue(f"{kind_of(value)}, neither True nor False")
        return said


class Count(ValueKind):
    """A whole number from ``least`` to ``most``."""

    metavar = "N"
    python = "int"

    def __init__(self, least: int = 1, most: int = LARGEST) -> None:
        self.least, self.most = least, most

    def read(self, text: str) -> int:
        """As :meth:`ValueKind.read`."""
        return self.check(_read_whole(text, "not a whole number"))

    def check(self, value: Any) -> int:
        """As :meth:`ValueKind.check`."""
        number = _whole(value)
        if number < self.least:
            raise InvalidValue(f"must be at least {self.least}")
        if number > self.most:
            raise InvalidValue(f"must be at most {self.most}")
        return number


class Counts(ValueKind):
    """Whole numbers above 0, as ``10,11,11`` or a list of them."""

    metavar = "N,N,.."
    python = "Sequence[int]"

    def read(self, text: str) -> tuple[int, ...]:
        """As :meth:`ValueKind.read`."""
        return self.check([_read_whole(word, "not a list of numbers like 10,11,11") for word in text.split(",")])

    def check(self, value: Any) -> tuple[int, ...]:
        """As :meth:`ValueKind.check`."""
        if isinstance(value, str):
            return self.read(value)
        numbers = plain(value)
        if not isinstance(numbers, Sequence) or isinstance(numbers, bytes):
            raise InvalidValue(f"{kind_of(value)}, not a list of numbers like (10, 11, 11)")
        if not numbers:
            raise InvalidValue("no numbers")
        return tuple(Count().check(number) for number in numbers)


class Choice(ValueKind):
    """One of some words, in any case of letters; ``also`` are other words for them, which the help does not list.

    Args:
        words: the words, or a mapping of the words to the values that they stand for, or a function that returns one.
        also: words that stand for one of ``words``.
        python: the type of a value in Python.
        bare: the word that the flag alone stands for.
    """

    def __init__(
        self,
        words: Sequence[str] | Mapping[str, Any] | Callable[[], Sequence[str]],
        also: Mapping[str, str] | None = None,
        python: str = "str",
        bare: str | None = None,
    ) -> None:
        self._words, self._also, self.python, self.bare = words, also or {}, python, bare

    @property
    def values(self) -> dict[str, Any]:
        """The values by their words."""
        words = self._words() if callable(self._words) else self._words
        return dict(words) if isinstance(words, Mapping) else {word: word for word in words}

    @property
    def words(self) -> tuple[str, ...]:
        """The words, without the other ones."""
        return tuple(self.values)

    @property
    def metavar(self) -> str:  # type: ignore[override]
        """The words."""
        return "|".join(self.words)

    def check(self, value: Any) -> Any:
        """As :meth:`ValueKind.check`."""
        values = self.values
        if any(value is known or (type(value) is type(known) and value == known) for known in values.values()):
            return value
        if not isinstance(value, str):
            raise InvalidValue(f"{kind_of(value)}, not one of the words {', '.join(values)}")
        known = {word.lower(): word for word in values} | dict(self._also)
        if value.lower() in known:
            return values[known[value.lower()]]
        meant = nearest(value, known)
        choose = f"choose one of {', '.join(values)}"
        raise InvalidValue("no such choice", f"did you mean {known[meant.lower()]}? {choose}" if meant else choose)


class Text(ValueKind):
    """Some text that is not empty."""

    def __init__(self, metavar: str) -> None:
        self.metavar = metavar

    def check(self, value: Any) -> str:
        """As :meth:`ValueKind.check`."""
        if not isinstance(value, str):
            raise InvalidValue(f"{kind_of(value)}, not text")
        if not value:
            raise InvalidValue("empty")
        return value


class PathTo(ValueKind):
    """The path of a file or of a folder."""

    python = "str | PathLike[str]"

    def __init__(self, metavar: str, *, folder: bool) -> None:
        self.metavar, self.folder = metavar, folder

    def check(self, value: Any) -> Any:
        """As :meth:`ValueKind.check`."""
        if not isinstance(value, str | os.PathLike) or isinstance(os.fspath(value), bytes):
            raise InvalidValue(f"{kind_of(value)}, not a path", "give a str or a pathlib.Path")
        text = os.fspath(value)
        if not text:
            raise InvalidValue("an empty path")
        if "\0" in text:
            raise InvalidValue("a path with a null character in it")
        try:
            stored = os.fsencode(text)
        except UnicodeEncodeError:
            raise InvalidValue("a path with a character that no file system has") from None
        if len(stored) > _LONGEST_PATH:
            raise InvalidValue(f"a path of {len(stored)} bytes, and the system takes {_LONGEST_PATH}")
        longest = max(map(len, stored.split(b"/")))
        if longest > _LONGEST_NAME:
            raise InvalidValue(f"a name of {longest} bytes in it, and the system takes {_LONGEST_NAME}")
        return Path(value)


def _read_whole(text: str, otherwise: str) -> int:
    """The whole number that a text is; raises :class:`InvalidValue` with ``otherwise`` if it is none."""
    try:
        return int(text)
    except ValueError:
        # Python reads no number of more than 4300 digits.
        digits = text.strip().lstrip("+-")
        raise InvalidValue(f"a number of {len(digits)} digits" if digits.isdecimal() else otherwise) from None


def _whole(value: Any) -> int:
    """The whole number that a value is: an int or numpy's, but no bool and no float."""
    said = plain(value)
    if isinstance(said, bool) or not hasattr(type(said), "__index__"):
        raise InvalidValue(f"{kind_of(said)}, not a whole number")
    return operator.index(said)


def kind_of(value: Any) -> str:
    """The type of a value, for a message: ``an int``."""
    if value is None:
        return "None"
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"
