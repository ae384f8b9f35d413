"""The setting for rotary positions."""

# ruff: noqa: D102 - Setting documents the methods.
from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from streamconv.core.text import shown
from streamconv.models.config.checks import number, positive
from streamconv.models.config.settings import Args, Config, Setting
from streamconv.models.config.training_args import LLAMA3_SCALING
from streamconv.models.parameter import ModelSizes

__all__ = ["Rope", "scaling_of"]

_PARTIAL = "partial_rotary_factor"
_FIRST = "rope_scaling, which is there too,"
_NOT_SCALING = ("rope_theta", "partial_rotary_factor", "type", "rope_type")


@dataclass(frozen=True, kw_only=True)
class Rope(Setting):
    """Rotary positions: the base, the scaling, and which part of a head is rotated.

    transformers 5 has all three in ``rope_parameters`` [``modeling_rope_utils.py:RotaryEmbeddingConfigMixin``]. Earlier
    releases have ``rope_theta`` (in some families ``base``) and ``rope_scaling``, the names used here. ``part`` is the
    earlier name of the rotated part, ``default_part`` its default; where ``part`` is None the whole head is rotated.

    Where they differ, transformers 5.23 takes ``rope_scaling`` if it is not empty, else ``rope_parameters``, and what
    that table leaves out from the entries beside it [``convert_rope_params_to_dict``]. So does :meth:`read`.
    """

    base: str = "rope_theta"
    part: str | None = None
    default_theta: float = 10000.0
    default_part: float = 1.0

    spelled_twice = True

    @property
    def entries(self) -> tuple[str, ...]:
        return ("rope_theta", "rope_scaling", *((self.part,) if self.part else ()))

    @property
    def spellings(self) -> tuple[str, ...]:
        parts = (self.part, _PARTIAL) if self.part else ()
        return tuple(dict.fromkeys((self.base, "rope_theta", "rope_scaling", "rope_parameters", *parts)))

    @property
    def asks(self) -> tuple[str, ...]:
        return tuple(name for name in self.entries if name != "rope_scaling")

    def read(self, config: Config) -> dict[str, Any]:
        table = _table(config, "rope_scaling") or _table(config, "rope_parameters")
        theta = _first(("rope_theta", table), (self.base, config), ("rope_theta", config))
        values: dict[str, Any] = {} if theta is None else {"rope_theta": float(positive("rope_theta", theta))}
        if self.part:
            part = _first((_PARTIAL, table), (self.part, config), (_PARTIAL, config))
            if part is not None and part > 1:
                raise ValueError(f"{self.part} is {part}, above 1: it is the part of each head that is turned")
            values |= {} if part is None else {self.part: float(part)}
        if table or any(name in config for name in ("rope_scaling", "rope_parameters")):
            values["rope_scaling"] = _scaling(table)
        return values

    def doubts(self, config: Config) -> Iterator[str]:
        tables = {name: table for name in ("rope_scaling", "rope_parameters") if (table := _table(config, name))}
        known = {**self.defaults(config, {}), **self.read(config)}
        for name, table in tables.items():
            if _scaling(table) != known["rope_scaling"]:
                yield f"{name} is {shown(table)}, and {_FIRST} counts, as in transformers"
        names = {"rope_theta": ("rope_theta", self.base)} | ({self.part: (_PARTIAL, self.part)} if self.part else {})
        for entry, (inside, *others) in names.items():
            places = [(name, table, inside) for name, table in tables.items()]
            places += [("", config, name) for name in dict.fromkeys((*others, inside))]
            for place, table, name in places:
                if table.get(name) not in (None, known[entry]):
                    words = f"{name} is {shown(table[name])}{f' in {place}' if place else ''}"
                    yield f"{words}: passed over for {known[entry]}, as by transformers"

    def overrule(self, config: Config, said: Config) -> dict[str, Any]:
        """One table may hold all three: what ``said`` contains is replaced, and the rest of the table stays."""
        known = self.read(config)
        for entry, names in (
            ("rope_theta", (self.base, "rope_theta")),
            ("rope_scaling", ("rope_scaling", "rope_parameters")),
            (self.part or "", (self.part, _PARTIAL)),
        ):
            if any(name in said for name in names):
                known.pop(entry, None)
        return {**known, **self.read(said)}

    def defaults(self, config: Config, known: Config) -> dict[str, Any]:
        part = {self.part: self.default_part} if self.part else {}
        return {"rope_theta": self.default_theta, "rope_scaling": None, **part}

    def to_args(self, known: Config) -> dict[str, Any]:
        args: dict[str, Any] = {"use_rotary_position_embeddings": True, "add_position_embedding": False}
        if "rope_theta" in known:
            theta = known["rope_theta"]
            # type=int in megatron/arguments.py of every fork.
            args["rope_theta"] = int(theta) if theta == int(theta) else theta
        if not self.part or self.part in known:
            args["rotary_percent"] = known[self.part] if self.part else 1.0
        if known.get("rope_scaling"):
            args["rope_scaling"] = known["rope_scaling"]
        return args

    def refusals(self, known: Config) -> Iterator[str]:
        if known.get("rope_scaling"):
            words = ", ".join(f"{name} {shown(value)}" for name, value in known["rope_scaling"].items())
            yield f"scaling of rotary positions (rope_parameters: {words})"

    def core_refusals(self, known: Config) -> Iterator[str]:
        """None: Megatron-Core has arguments for two kinds of scaling, and its target refuses the others."""
        return iter(())

    def to_config(self, args: Args) -> dict[str, Any]:
        values: dict[str, Any] = {"rope_scaling": scaling_of(args)} if args else {}
        if args.get("rope_theta") is not None:
            values["rope_theta"] = float(positive("args.rope_theta", args["rope_theta"]))
        if self.part and args.get("rotary_percent") is not None:
            values[self.part] = float(number("args.rotary_percent", args["rotary_percent"]))
        return values

    def objections(self, args: Args, sizes: ModelSizes, known: Config) -> Iterator[str]:
        if not self.part and args.get("rotary_percent") not in (None, 1):
            yield f"args.rotary_percent {args['rotary_percent']!r}: transformers' model turns whole heads"
        if args.get("rotary_interleaved"):
            yield "args.rotary_interleaved True: transformers turns the halves of a head, not its pairs"
        if args.get("no_rope_freq") is not None:
            yield f"args.no_rope_freq {args['no_rope_freq']!r}: transformers' model has positions in every layer"

    def write(self, known: Config) -> dict[str, Any]:
        scaling, theta = known.get("rope_scaling"), known["rope_theta"]
        parameters = {"rope_type": "default", **(scaling or {}), "rope_theta": theta}
        written: dict[str, Any] = {"rope_parameters": parameters, "rope_theta": theta, self.base: theta}
        if self.part:
            parameters[_PARTIAL] = written[self.part] = known[self.part]
        return {**written, "rope_scaling": dict(scaling)} if scaling else written


def _table(config: Config, name: str) -> Mapping[str, Any]:
    table = config.get(name) or {}
    if not isinstance(table, Mapping) or any(isinstance(value, Mapping) for value in table.values()):
        raise ValueError(f"{name} is not one table for all layers: {str(table)[:80]}")
    return table


def _first(*places: tuple[str, Mapping[str, Any]]) -> float | int | None:
    """The value in the first place that has one; None if no place has one."""
    return next((number(name, table[name]) for name, table in places if table.get(name) is not None), None)


def _scaling(table: Mapping[str, Any]) -> dict[str, Any] | None:
    """The kind of scaling and its parameters, None if there is none."""
    kind = table.get("rope_type", table.get("type", "default"))
    if kind == "default":
        return None
    return {"rope_type": kind, **{name: table[name] for name in sorted(table) if name not in _NOT_SCALING}}


def scaling_of(args: Args) -> dict[str, Any] | None:
    """The scaling of a run's positions, None if it had none. Only Megatron-LM has arguments for it."""
    if args.get("rope_scaling"):
        table = _table(args, "rope_scaling")
        if "factor" in table:
            number("args.rope_scaling factor", table["factor"])
        return dict(table)
    if args.get("use_rope_scaling"):
        factor = number("args.rope_scaling_factor", args.get("rope_scaling_factor", 8.0))
        return {"rope_type": "llama3", "factor": float(factor), **LLAMA3_SCALING}
    if args.get("rotary_seq_len_interpolation_factor") is not None:
        factor = number("args.rotary_seq_len_interpolation_factor", args["rotary_seq_len_interpolation_factor"])
        return {"rope_type": "linear", "factor": float(factor)}
    return None
