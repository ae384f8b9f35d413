"""The options of targets that keep names: which tensors are taken, and how they are called."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from streamconv.core.kinds import PathTo
from streamconv.core.options import option
from streamconv.core.several import Renames, Texts
from streamconv.formats.options import ShardedOptions

__all__ = ["NamesKeptOptions"]


@dataclass(frozen=True, slots=True, kw_only=True)
class NamesKeptOptions(ShardedOptions):
    """What is wanted of a result whose names are kept."""

    tensors: tuple[str, ...] = option(
        Texts("GLOB"),
        "take only the tensors whose names match (several times: any of them)",
        default=(),
        purpose="which tensors of a model are taken, with their names kept",
        main=True,
    )
    skip: tuple[str, ...] = option(
        Texts("GLOB"),
        "leave out the tensors whose names match (several times: any of them)",
        default=(),
        purpose="which tensors of a model are left out, with their names kept",
        main=True,
    )
    base: Any = option(
        PathTo("DIR", folder=True),
        "the model that an adapter was trained on: the result is that model with the adapter added to its weights",
        purpose="the model that an adapter is merged into",
    )
    rename: tuple[tuple[str, str], ...] = option(
        Renames(),
        "call the tensors that match otherwise; what a * stands for is put in place of the name's * (several times: "
        "the first that matches counts)",
        default=(),
        purpose="how the tensors of a model are called, whose names are kept otherwise",
    )
