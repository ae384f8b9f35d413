"""Which options each verb has: the dataclasses that declare them, imported for the verb that is meant."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from streamconv.core.options import Option, all_options
from streamconv.formats.frameworks import source_options, target_options
from streamconv.values.options import ReadingOptions

__all__ = ["SIDES", "VERBS", "known_options", "options_of_verb", "plan_owners", "source_names"]

SIDES = {"verify": ("dst",), "diff": ("a", "b")}
"""The checkpoints of a verb for which the options of sources can be given apart, by a prefix: ``--a-config``."""

Owners = tuple[type, ...]


@cache
def plan_owners() -> Owners:
    """The dataclasses of what decides what a conversion writes."""
    from streamconv.planning.options import ConversionOptions

    return (ConversionOptions, *target_options().values(), *source_options())


def _plan() -> Owners:
    from streamconv.execution.options import RunOptions

    return (*plan_owners(), RunOptions)


def _convert() -> Owners:
    from streamconv.execution.options import PublishOptions

    return (*_plan(), PublishOptions)


def _stream() -> Owners:
    from streamconv.execution.options import StreamOptions

    return (*_plan(), StreamOptions)


def _bench() -> Owners:
    from streamconv.execution.options import BenchOptions

    return (BenchOptions, *_plan())


def _inspect() -> Owners:
    from streamconv.inspection.options import InspectOptions

    return (InspectOptions, *source_options(), ReadingOptions)


def _verify() -> Owners:
    from streamconv.planning.options import ReplicaOptions
    from streamconv.verification.options import ReferenceOptions

    return (ReferenceOptions, ReplicaOptions, *source_options(), ReadingOptions)


def _digest() -> Owners:
    from streamconv.planning.options import ReplicaOptions
    from streamconv.verification.options import DigestOptions

    return (DigestOptions, ReplicaOptions, *source_options(), ReadingOptions)


def _extract() -> Owners:
    from streamconv.execution.options import ExtractOptions

    return (ExtractOptions, *source_options(), ReadingOptions)


def _diff() -> Owners:
    from streamconv.verification.options import DiffOptions

    return (DiffOptions, *source_options(), ReadingOptions)


_OWNERS: dict[str, Callable[[], Owners]] = {
    "plan": _plan,
    "convert": _convert,
    "stream": _stream,
    "inspect": _inspect,
    "verify": _verify,
    "diff": _diff,
    "digest": _digest,
    "extract": _extract,
    "bench": _bench,
    "families": tuple,
}
VERBS = tuple(_OWNERS)
"""The verbs of the command line and of Python."""


@cache
def source_names() -> tuple[str, ...]:
    """The names of the options of sources."""
    return tuple(all_options(source_options()))


@cache
def options_of_verb(verb: str) -> dict[str, Option]:
    """The options of a verb by their names, those for single checkpoints last."""
    known = all_options(_OWNERS[verb]())
    apart = (known[name].prefixed(side) for side in SIDES.get(verb, ()) for name in source_names())
    return {**known, **{each.name: each for each in apart}}


@cache
def known_options() -> dict[str, Option]:
    """The options of all verbs."""
    return {name: each for verb in reversed(VERBS) for name, each in options_of_verb(verb).items()}
