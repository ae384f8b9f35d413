"""Messages and results in their reader's words: the package speaks of flags, and a caller in Python knows keywords.

Only streamconv's own options are translated: messages also name flags of Megatron-LM.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from copy import copy
from functools import cache
from typing import Any

from streamconv.api.options import known_options
from streamconv.core.errors import StreamconvError
from streamconv.core.kinds import Choice, Count, Counts, InvalidValue, PathTo, Text
from streamconv.core.options import Option
from streamconv.memory.options import SizeText

__all__ = ["in_keywords", "result_in_keywords", "reworded"]

_FLAG = re.compile(r"(?<![\w-])(--[a-z][a-z0-9-]*[a-z0-9])(?:([ =])([^\s]+))?((?: or \w[\w-]*)*)")
_AFTER = ",;:.)"
# What of a result is words, or has words in it, by the names of the classes, which are imported with the result.
_SAID = {
    "BudgetedMemory": ("budget",),
    "Comparison": ("a", "b", "notes"),
    "ConversionReport": ("plan", "fit"),
    "DigestComparison": ("side", "incomparable", "notes"),
    "Digests": ("notes",),
    "Evidence": ("what", "evidence"),
    "Fact": ("what", "evidence"),
    "Finding": ("what", "remedy"),
    "Fit": ("budget",),
    "Incomparable": ("why",),
    "InspectionReport": ("evidence", "findings"),
    "MemoryBudget": ("source",),
    "Plan": ("facts", "choices", "notes", "warnings", "memory"),
    "Side": ("notes",),
    "Verification": ("report", "broken", "comparison", "digests"),
}
# Flags for paths, which Python takes as arguments.
_PATHS = ("--against", "--src")


def reworded(error: StreamconvError) -> StreamconvError:
    """The same error with keywords for flags."""
    error.what = in_keywords(error.what)
    error.remedy = None if error.remedy is None else in_keywords(error.remedy)
    error.args = (error.what,)
    return error


def result_in_keywords(value: Any) -> Any:
    """The same result with keywords for flags, wherever it speaks to its reader."""
    if isinstance(value, str):
        return in_keywords(value)
    if isinstance(value, list | tuple):
        return type(value)(map(result_in_keywords, value))
    said = _SAID.get(type(value).__name__, ())
    again = copy(value) if said else value
    for name in said:
        object.__setattr__(again, name, result_in_keywords(getattr(value, name)))
    return again


def in_keywords(text: str) -> str:
    """A text in which ``--pp-layers N,N,..`` is ``pp_layers=(N, N, ..)``, and so on for every option."""
    return _FLAG.sub(_keyword, text)


@cache
def _by_flag() -> Mapping[str, Option]:
    return {each.flag: each for each in known_options().values()}


def _keyword(match: re.Match[str]) -> str:
    each = _by_flag().get(match[1])
    if each is None:
        return match[0].removeprefix("--") if match[1] in _PATHS else match[0]
    gap, word, others = match[2] or "", match[3] or "", match[4]
    if each.is_switch:
        return f"{each.name}={not each.default}{gap}{word}{others}"
    if not each.kind.words and word.startswith(each.kind.metavar):
        return f"{each.name}{_stand_in(each)}{word.removeprefix(each.kind.metavar)}{others}"
    said = word.rstrip(_AFTER)
    value = _value(each, said) if said else None
    if value is None:
        return f"{each.name}{gap}{word}{others}"
    more = "".join(f" or {_value(each, other) or other}" for other in others.split(" or ")[1:])
    return f"{each.name}={value}{word.removeprefix(said)}{more}"


def _stand_in(each: Option) -> str:
    """What stands for a value in ``pp_layers=(N, N, ..)``; the name alone says it where the value is no number."""
    if isinstance(each.kind, Counts):
        return "=(N, N, ..)"
    return "=N" if isinstance(each.kind, Count) else ""


def _value(each: Option, word: str) -> str | None:
    """A value of an option as Python spells it; None if the word after the option is none of its values."""
    kind = each.kind
    if isinstance(kind, PathTo) or (isinstance(kind, Text) and not isinstance(kind, SizeText)):
        return f'"{word}"' if "/" in word else None
    try:
        value = kind.read(word)
    except InvalidValue:
        return None
    if isinstance(kind, Count):
        return str(value)
    if isinstance(kind, Counts):
        return f"({', '.join(map(str, value))}{',' * (len(value) == 1)})"
    return f'"{word}"' if not isinstance(kind, Choice) or word in kind.words else None
