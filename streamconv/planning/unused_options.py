"""Refuse options that have no effect with the source or the target: a user who gives one expects an effect."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from streamconv.core.errors import AmbiguousError, UsageError
from streamconv.core.options import Given, Option, all_options
from streamconv.formats.frameworks import source_options, target_options
from streamconv.formats.registry import find_source
from streamconv.formats.source import SourceFormat
from streamconv.formats.target import TargetFormat
from streamconv.planning.options import NOWHERE

__all__ = ["refuse_all", "refuse_unread", "refuse_unused_for", "refuse_unused_options"]

_WHICH_FILES = ("tag", "ignore", "weights")


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
    for each in given.without_effect([source.options, target.options], all_options(source_options())):
        raise _refusal(each, _for_sources([source]))


def refuse_unused_for(
    paths: Mapping[str, Path], given: Given, shared: Mapping[str, Collection[str]] | None = None
) -> None:
    """Refuse the options of sources that have no effect on any of several checkpoints, or on the one they are for.

    Args:
        paths: the checkpoints, by the prefixes of options for one of them.
        given: the user's options.
        shared: for a checkpoint that has only some options in common with the others, which; the rest is for it with
            its prefix alone.

    Raises:
        UsageError: such an option is given; the message says what it is for.
    """
    known = all_options(source_options())
    if not any(name in known or _is_for(name, paths) for name in given.values):
        return
    tags = {side: given.get(f"{side}_tag", given.get("tag")) for side in paths}
    weights = {side: given.get(f"{side}_weights", given.get("weights")) for side in paths}
    sides = {side: _Side(path, _format_of(path, tags[side], weights[side])) for side, path in paths.items()}
    for each in given.without_effect([], known):
        apart = {side for side, names in (shared or {}).items() if each.name not in names}
        meant = [sides[side] for side in sides if side not in apart]
        if not any(side.may_take(each) for side in meant):
            others = [each.prefixed(side).flag for side in sorted(apart) if sides[side].takes(each)]
            remedy = "".join(f", or say {flag} for {flag[2:].partition('-')[0].upper()}" for flag in others)
            raise _refusal(each, _for_sources(side.source for side in meant), f"leave it out{remedy}")
    for name, side in sides.items():
        apart_from_others = {each.prefixed(name).name: each for each in known.values()}
        for each in given.without_effect([], apart_from_others):
            if not side.may_take(each):
                raise _refusal(each.prefixed(name), _for_sources([side.source]))


def refuse_all(where: str, known: Mapping[str, Option], given: Given) -> None:
    """Refuse options that are for what is not there, such as ``--replicated`` without ``--against``.

    Args:
        where: what is not there, in words.
        known: the options.
        given: the user's options.

    Raises:
        UsageError: such an option is given.
    """
    for each in given.without_effect([], known):
        raise _refusal(each, where)


def refuse_unread(given: Given, why: str) -> None:
    """Refuse the options of sources, other than those that say which files are meant, where nothing reads them.

    Args:
        given: the user's options.
        why: why nothing does, in words.

    Raises:
        UsageError: such an option is given.
    """
    for each in given.without_effect([], all_options(source_options())):
        if each.name not in _WHICH_FILES:
            raise UsageError(f"{given.word_for(each)} ({each.purpose}) has no effect: {why}", remedy="leave it out")


@dataclass(frozen=True, slots=True)
class _Side:
    """A checkpoint and its format; None of a file, of nothing, and of a folder that two formats claim."""

    path: Path
    source: SourceFormat | None

    def takes(self, each: Option) -> bool:
        return self.source is not None and each.name in all_options([self.source.options])

    def may_take(self, each: Option) -> bool:
        """Whether it takes an option, or nobody knows; a file takes none."""
        return self.takes(each) or (self.source is None and not self.path.is_file())


def _is_for(name: str, paths: Mapping[str, Path]) -> bool:
    return any(name.startswith(f"{side}_") for side in paths)


def _format_of(path: Path, tag: str | None, weights: str | None) -> SourceFormat | None:
    """The format of a folder; None of a file, of nothing, and of a folder that two formats claim."""
    if not path.is_dir():
        return None
    try:
        return find_source(path, tag, weights)
    except AmbiguousError:
        return None


def _for_sources(sources: Iterable[SourceFormat | None]) -> str:
    titles = " or ".join(dict.fromkeys(source.title for source in sources if source is not None))
    return f"for a {titles} source" if titles else "for a lone file"


def _refusal(each: Option, where: str, remedy: str = "leave it out") -> UsageError:
    return UsageError(f"{each.flag} ({each.purpose}) has no meaning {where}", remedy=remedy)
