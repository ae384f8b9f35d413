"""The types that source formats take and return.

A framework's module ``source`` defines a ``SOURCE``; the registry finds it by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from streamconv.containers.pickles.machine import Global
from streamconv.core.errors import DamagedError
from streamconv.core.layout import ParallelLayout
from streamconv.core.lazy import LazyTensor
from streamconv.core.text import shown
from streamconv.formats.named import NamedModel
from streamconv.formats.options import SourceOptions
from streamconv.formats.recorded import RELEASE
from streamconv.formats.remarks import Dropped, Fact, Remarked
from streamconv.models.family import ModelFamily
from streamconv.models.orders import GluOrder, QkvLayout, RowOrders
from streamconv.models.parameter import ParameterId, Section

__all__ = [
    "Dropped",
    "Fact",
    "SourceFormat",
    "StoredModel",
    "positive_int",
]

_MOST = 1 << 31


def positive_int(args: Mapping[str, Any] | None, name: str, where: Path) -> int | None:
    """A training argument that is a count, None if it is missing.

    Raises:
        DamagedError: the value is no whole number above 0.
    """
    value = (args or {}).get(name)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or not 0 < value < _MOST):
        raise DamagedError(f"args.{name} is {shown(value)}, not a number above 0 and below 2^31", where=where)
    return value


@dataclass(frozen=True, slots=True)
class StoredModel(Remarked):
    """A model as it is stored: ``tensors[parameter][rank]`` is the shard of tensor-parallel rank ``rank``.

    It is immutable: a function that changes something returns another one.

    ``stages`` is the number of layers on each pipeline stage, None if unknown, ``vpp`` the number of virtual stages on
    each, and ``owned`` the layers of each stage, None if they are consecutive. ``args`` are the training arguments as
    plain attributes, by the names of Megatron-DeepSpeed, None if the folder has none. ``config`` is the ``config.json``
    of a Hugging Face folder. ``family`` is the family that the folder names, ``fork`` the code that wrote it
    (:mod:`streamconv.formats.deepspeed.evidence`), None if unknown. ``qkv`` and ``glu`` are orders of fused rows, None
    if no parameter is fused so; ``shares`` says that ranks hold shares of the parameters that can be summed,
    ``cuts_groups`` that they may cut a group's rows. ``spec`` is the Megatron-Core spec whose names the norms have.
    ``copies`` are tensors that are stored a second time (a tied head on the last stage): name, copy, original;
    ``copies_must_equal`` says that a copy that differs is refused. ``called`` returns the stored name of a parameter,
    None if that is the canonical one. ``named`` maps each opened file to the classes and functions that its pickle
    names, with the number of calls. ``home`` is the folder that has the configuration and the tokenizer, if the model
    has names of transformers; ``masters`` says where the run's masters are, if they are not what is taken.
    """

    path: Path
    format: str
    tp: int
    num_layers: int
    tensors: Mapping[ParameterId, tuple[LazyTensor, ...]]
    stages: tuple[int, ...] | None
    pp: int | None
    args: Mapping[str, Any] | None
    iteration: int | None
    vocab_size: int | None
    qkv: QkvLayout | None
    glu: GluOrder | None = None
    shares: bool = False
    cuts_groups: bool = False
    vpp: int = 1
    owned: tuple[tuple[int, ...], ...] | None = None
    config: Mapping[str, Any] | None = None
    family: str | None = None
    fork: str | None = None
    spec: str | None = None
    copies: tuple[tuple[str, LazyTensor, LazyTensor], ...] = ()
    copies_must_equal: bool = False
    called: Callable[[ParameterId], str] | None = None
    named: Mapping[Path, Mapping[Global, int]] = field(default_factory=dict)
    home: Path | None = None
    masters: str | None = None

    def keys(self, section: Section, layer: int = -1) -> set[str]:
        """The keys stored in a section."""
        return {parameter.key for parameter in self.tensors if (parameter.section, parameter.layer) == (section, layer)}

    def keys_by_layer(self) -> dict[int, set[str]]:
        """The keys stored in each transformer layer."""
        keys: dict[int, set[str]] = {}
        for parameter in self.tensors:
            if parameter.section is Section.LAYER:
                keys.setdefault(parameter.layer, set()).add(parameter.key)
        return keys

    @property
    def is_release(self) -> bool:
        """Whether it is a released model, which needs no iteration."""
        return self.config is not None or self.path.name == RELEASE

    @property
    def layout(self) -> ParallelLayout | None:
        """The parallel layout, None if it is unknown or virtual stages are not of equal length."""
        if self.stages is None or (self.vpp > 1 and any(layers % self.vpp for layers in self.stages)):
            return None
        layout = ParallelLayout(self.tp, self.stages, self.vpp)
        chunks = [[*chain.from_iterable(layout.chunks_of(stage))] for stage in range(layout.pp)]
        return layout if self.owned is None or chunks == [[*layers] for layers in self.owned] else None

    @property
    def orders(self) -> RowOrders:
        """The orders of fused rows."""
        return RowOrders(self.qkv or QkvLayout.INTERLEAVED, self.glu or GluOrder.GATE_UP, self.shares)


@dataclass(frozen=True, slots=True)
class SourceFormat:
    """A framework's checkpoints as a source.

    ``open`` returns the whole model, by parameters or (a :class:`streamconv.formats.named.NamedModel`) by names, or
    raises an error of :mod:`streamconv.core.errors`. ``claims`` returns what makes a folder this framework's, in words;
    None if nothing does. ``refusal`` returns why there are no checkpoints of a family in this format, None if there
    are. ``options`` is the dataclass of the options that ``open`` takes, ``title`` the name in messages.
    ``holds_models`` says whether what it opens is a model by itself.
    """

    name: str
    open: Callable[[Path, Any], StoredModel | NamedModel]
    claims: Callable[[Path], str | None]
    refusal: Callable[[ModelFamily], str | None]
    options: type[SourceOptions]
    title: str
    holds_models: bool = True
