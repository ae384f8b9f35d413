"""How a verb is called in Python: its signature, its checked paths and options, its progress, and its errors."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from streamconv.api import typed
from streamconv.api.options import options_of_verb
from streamconv.core.errors import StreamconvError, UsageError
from streamconv.core.kinds import Choice, InvalidValue, PathTo, Text
from streamconv.core.log import WORDS
from streamconv.core.options import Given
from streamconv.core.shown import as_written
from streamconv.report.progress import progress_bar

__all__ = ["AnyPath", "Progress", "given_by", "in_words_of_python", "path_of", "shown", "text_of", "verb", "word_of"]

AnyPath = str | os.PathLike[str]
Progress = Callable[[int, int], None] | bool | None
F = TypeVar("F", bound=Callable[..., Any])


def verb(function: F) -> F:
    """Give a function the keywords of its verb, as ``help`` and notebooks show them, and errors in these words.

    The type of its result stays a name, which is imported when somebody asks for it.
    """
    result = function.__annotations__.pop("return")
    function.__annotations__.pop("options", None)
    own = [p for p in signature(function, eval_str=True).parameters.values() if p.kind is not Parameter.VAR_KEYWORD]
    known = options_of_verb(function.__name__).values()
    types = get_type_hints(getattr(typed, f"{function.__name__.title()}Keywords", object))
    keywords = [  # a field is an option before docs/options.py has written its type
        Parameter(each.name, Parameter.KEYWORD_ONLY, default=each.default, annotation=types.get(each.name, Any))
        for each in known
    ]

    @wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        from streamconv.api.words import in_keywords, result_in_keywords

        before = WORDS.set(in_keywords)
        try:
            with in_words_of_python():
                return result_in_keywords(function(*args, **options))
        finally:
            WORDS.reset(before)

    call.__signature__ = Signature([*own, *keywords], return_annotation=result)  # type: ignore[attr-defined]
    call.__annotations__ = {**{each.name: each.annotation for each in (*own, *keywords)}, "return": result}
    lines = "\n".join(f"        {each.name}: {each.keyword_help}." for each in known)
    call.__doc__ = (function.__doc__ or "").replace("        options: see below.", lines)
    return call  # type: ignore[return-value]


@contextmanager
def in_words_of_python() -> Iterator[None]:
    """Errors of what runs inside speak of keywords."""
    try:
        yield
    except StreamconvError as error:
        from streamconv.api.words import reworded

        reworded(error)
        raise


def given_by(verb: str, options: object) -> Given:
    """The options that the keywords of a verb give; raises :class:`UsageError` for wrong ones."""
    assert isinstance(options, dict)  # noqa: S101 - a TypedDict is one
    return Given.keywords(options_of_verb(verb), options)


def path_of(name: str, value: object) -> Path:
    """An argument that is a path; raises :class:`UsageError` if it is none."""
    try:
        path = PathTo("PATH", folder=True).check(value)
    except InvalidValue as error:
        raise UsageError(f"{name}={as_written(value)}: {error.what}", remedy=error.remedy) from None
    return Path(path)


def text_of(name: str, value: object) -> str:
    """An argument that is some text; raises :class:`UsageError` if it is none."""
    try:
        text: str = Text(name).check(value)
    except InvalidValue as error:
        raise UsageError(f"{name}={as_written(value)}: {error.what}", remedy=error.remedy) from None
    return text


def word_of(name: str, value: object, words: Sequence[str]) -> str:
    """An argument that is one of some words; raises :class:`UsageError` if it is none."""
    try:
        word: str = Choice(words).check(value)
    except InvalidValue as error:
        raise UsageError(f"{name}={as_written(value)}: {error.what}", remedy=error.remedy) from None
    return word


def shown(progress: object, what: str) -> AbstractContextManager[Callable[[int, int], None] | None]:
    """The function to call with the progress: the caller's, or that of a bar on stderr."""
    if progress is None or progress is False:
        return nullcontext(None)
    if progress is True:
        return progress_bar(sys.stderr, quiet=False, verb=what)
    if not callable(progress):
        raise UsageError(
            f"progress={as_written(progress)}: not a function",
            remedy="give one that takes (bytes done, bytes in all), or True for a bar on stderr",
        )
    return nullcontext(progress)
