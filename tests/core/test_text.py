"""Texts made of what files say."""

from __future__ import annotations

from typing import Any

import pytest

from streamconv.core.errors import DamagedError
from streamconv.core.text import printable, shown


@pytest.mark.parametrize(
    "value",
    [None, True, 7, -2.5, "text", "it's", b"raw", [1, "a", [2]], (1,), (1, 2), (), {}, {"a": [1], 2: None}, "\x1b\n"],
    ids=repr,
)
def test_a_short_value_is_shown_as_repr_writes_it(value: object) -> None:
    assert shown(value) == repr(value)


@pytest.mark.parametrize("value", ["x" * 100, list(range(100)), {str(n): n for n in range(100)}, ["y" * 100] * 9])
def test_a_long_value_is_cut_where_repr_would_be(value: object) -> None:
    assert shown(value) == repr(value)[:40]
    assert shown(value, 60) == repr(value)[:60]


def test_only_what_is_shown_is_looked_at() -> None:
    laughs: Any = "ha"
    for _ in range(100):
        laughs = [laughs] * 16
    endless: list[Any] = []
    endless.append(endless)
    assert shown(laughs) == "[" * 40
    assert shown(endless) == "[" * 40
    assert shown(1 << 20_000) == "a number of 20001 bits"


def test_an_error_shows_no_character_that_a_terminal_obeys() -> None:
    error = DamagedError("record a\x1b[31m\nfile: fine", where="folder/\x07b\udc80", remedy="copy \x9b")
    assert str(error).isascii() is False
    assert str(error).count("\n") == 2
    assert all(printable(line) == line for line in str(error).split("\n"))
    assert "\udc80" not in str(error)
