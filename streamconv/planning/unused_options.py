"""Refuse options that have no effect with the source or the target: a user who gives one expects an effect."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from streamconv.core.errors import AmbiguousError, UsageError
from streamconv.core.options import Given, Option, all_options
from streamconv.formats.frameworks import source_options, target_options
from streamconv.formats.registry import find_source
from streamconv.formats.source import SourceFormat
from streamconv.formats.target import TargetFormat
from streamconv.planning.options import NOWHERE

__all__ = ["refuse_all", "refuse_unused_for", "refuse_unused_options"]


def refuse_unused_options(given: Given, source: SourceFormat, target: TargetFormat, to: str) -> None:
    """Refuse the options that have no effect on a conversion.

    An option that targets have is for the target, any other one of a source is for the source.

    Args:
        given: the user's options.
        source: what is converted.
        target: what it is converted to.
        to: the user's words for the target.

    Raises:
        UsageError: such an option is given; the message says what it is for.
    """
    where = f"--to {target.name}"
    if to not in (target.name, NOWHERE):
        where += f", which --to {to} is for this model"
    for each in given.without_effect([target.options], all_options(target_options().values())):
        raise _refusal(each, f"with {where}")
    _refuse_unused(given, [source, target])


def _refuse_unused(given: Given, takers: Collection[SourceFormat | TargetFormat]) -> None:
    """Refuse the options of sources that none of ``takers`` has.

    Raises:
        UsageError: such an option is given; the message says what it is for.
    """
    for each in given.without_effect([taker.options for taker in takers], all_options(source_options())):
        sources = " or ".join(dict.fromkeys(taker.title for taker in takers if isinstance(taker, SourceFormat)))
        raise _refusal(each, f"for a {sources} source" if sources else "for a lone file")


def refuse_unused_for(paths: Mapping[str, Path], given: Given) -> None:
    """Refuse the options of sources that have no effect on any of several checkpoints, or on the one they are for.

    Args:
        paths: the checkpoints, by the prefixes of options for one of them.
        given: the user's options.

    Raises:
        UsageError: such an option is given; the message says what it is for.
    """
    known = all_options(source_options())
    if not any(name in known or _is_for(name, paths) for name in given.values):
        return
    formats = {side: _format_of(path, given.get(f"{side}_tag", given.get("tag"))) for side, path in paths.items()}
    takers = [source for source in formats.values() if source is not None]
    if takers or all(path.is_file() for path in paths.values()):
        _refuse_unused(given, takers)
    for side, path in paths.items():
        source, prefixed = formats[side], {each.prefixed(side).name: each for each in known.values()}
        for name in given.values.keys() & prefixed.keys():
            if (source is not None or path.is_file()) and not _takes(source, prefixed[name]):
                what = f"for a {source.title} source" if source else "for a lone file"
                raise _refusal(prefixed[name].prefixed(side), what)


def refuse_all(where: str, owners: Iterable[type], given: Given) -> None:
    """Refuse options that are for what is not there, such as ``--replicated`` without ``--against``.

    Args:
        where: what is not there, in words.
        owners: the dataclasses of the options.
        given: the user's options.

    Raises:
        UsageError: such an option is given.
    """
    for each in given.without_effect([], all_options(owners)):
        raise _refusal(each, where)


def _is_for(name: str, paths: Mapping[str, Path]) -> bool:
    return any(name.startswith(f"{side}_") for side in paths)


def _takes(source: SourceFormat | None, each: Option) -> bool:
    return source is not None and each.name in all_options([source.options])


def _format_of(path: Path, tag: str | None) -> SourceFormat | None:
    """The format of a folder; None of a file, of nothing, and of a folder that two formats claim."""
    if not path.is_dir():
        return None
    try:
        return find_source(path, tag)
    except AmbiguousError:
        return None


def _refusal(each: Option, where: str) -> UsageError:
    return UsageError(f"{each.flag} ({each.purpose}) has no meaning {where}", remedy="leave it out")
