"""The options that only the command line has: what is printed, and how."""

from __future__ import annotations

from dataclasses import dataclass

from streamconv.core.errors import UsageError
from streamconv.core.kinds import Count, Flag, PathTo
from streamconv.core.options import option

__all__ = [
    "OWN_OPTIONS",
    "ConvertViewOptions",
    "DigestViewOptions",
    "FamiliesViewOptions",
    "InspectViewOptions",
    "OutputOptions",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputOptions:
    """Output of every command."""

    json: bool = option(Flag(), "print the result as JSON", default=False, main=True)
    quiet: bool = option(Flag(), "print nothing but errors: the exit code says how it ended", default=False, short="-q")
    verbose: int = option(
        Count(least=0),
        "say more, and what happens meanwhile; twice: tracebacks too",
        default=0,
        short="-v",
        repeats=True,
    )

    def __post_init__(self) -> None:
        if self.quiet and self.verbose:
            raise UsageError("-q says nothing and -v says more", remedy="say one of them")


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertViewOptions:
    """Dry run of `convert`."""

    dry_run: bool = option(Flag(), "print the plan and write nothing, as `streamconv plan`", default=False, main=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectViewOptions:
    """Output of `inspect`."""

    tree: bool = option(Flag(), "list everything: tensors, files, arguments, other values", default=False, main=True)
    globals: bool = option(Flag(), "list every class and function that pickles name", default=False, main=True)
    plot: str | None = option(PathTo("PNG", folder=False), "with --stats: a picture of each layer's norms", main=True)
    html: str | None = option(PathTo("HTML", folder=False), "a report on one self-contained page", main=True)
    strict: bool = option(
        Flag(),
        "exit with 6 if something is broken, missing or unsafe, 7 if values stand out",
        default=False,
        main=True,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class DigestViewOptions:
    """Output of `digest`."""

    output: str | None = option(
        PathTo("FILE", folder=False), "write the digests there, for verify --against", short="-o", main=True
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class FamiliesViewOptions:
    """Output of `families`."""

    markdown: bool = option(Flag(), "print the table as the documentation shows it", default=False, main=True)


OWN_OPTIONS = (ConvertViewOptions, InspectViewOptions, DigestViewOptions, FamiliesViewOptions, OutputOptions)
"""All of them."""
