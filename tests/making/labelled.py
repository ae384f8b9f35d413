"""Labelled models: every element has a value of its own, so what stands in a wrong place says where it comes from.

A model is held whole, as one tensor-parallel rank of Megatron has it: rows of ``query_key_value`` are
``[groups, heads / groups + 2, head_dim]``, gate before up. What frameworks store of it is written by the other modules
of this folder, each by its framework's own rules; no code of the package is used here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

QKV, GLU = "self_attention.query_key_value.", "mlp.dense_h_to_4h."
WORDS, HEAD = "word_embeddings.weight", "lm_head.weight"


class Row(Protocol):
    """A parameter in a family's table: where it belongs, its key there, the names of its sizes."""

    @property
    def section(self) -> Any: ...
    @property
    def key(self) -> str: ...
    @property
    def shape(self) -> tuple[str, ...]: ...


@dataclass(frozen=True)
class Sizes:
    """Sizes of a labelled model; ``vocab`` has no padding."""

    num_layers: int = 12
    hidden: int = 16
    heads: int = 4
    groups: int = 4
    head_dim: int = 4
    ffn: int = 24
    vocab: int = 50
    positions: int = 20
    gated: bool = False

    def shape(self, names: Iterable[str]) -> tuple[int, ...]:
        """The whole shape of a parameter on one rank."""
        fused = {
            "qkv": (self.heads + 2 * self.groups) * self.head_dim,
            "attention": self.heads * self.head_dim,
            "ffn_in": (1 + self.gated) * self.ffn,
        }
        return tuple(fused[name] if name in fused else int(getattr(self, name)) for name in names)


@dataclass(frozen=True)
class Labelled:
    """A model by canonical names (``layers.3.mlp.dense_h_to_4h.weight``), its own head among them if it has one."""

    sizes: Sizes
    tensors: Mapping[str, torch.Tensor]
    starts: Mapping[str, int] = field(repr=False)

    @property
    def has_head(self) -> bool:
        return HEAD in self.tensors

    @property
    def has_positions(self) -> bool:
        return "position_embeddings.weight" in self.tensors

    def of_layer(self, layer: int) -> dict[str, torch.Tensor]:
        """A layer's parameters by their keys."""
        start = f"layers.{layer}."
        return {name.removeprefix(start): tensor for name, tensor in self.tensors.items() if name.startswith(start)}

    def origin(self, value: float) -> str:
        """Which element of which parameter a value is."""
        for name, start in self.starts.items():
            if start <= value < start + self.tensors[name].numel():
                return f"{name}[{int(value) - start}]"
        return f"{value}, which no element has"


def labelled(rows: Iterable[Row], sizes: Sizes, *, head: bool) -> Labelled:
    """A model with the parameters of a family's table, its elements counted from 1."""
    tensors: dict[str, torch.Tensor] = {}
    starts: dict[str, int] = {}
    first = 1
    for row in rows:
        if row.section.value == "head" and not head:
            continue
        shape = sizes.shape(row.shape)
        for name in _names(row, sizes.num_layers):
            count = torch.Size(shape).numel()
            starts[name] = first
            tensors[name] = torch.arange(first, first + count, dtype=torch.float32).reshape(shape)
            first += count
    assert first < 1 << 24, "not every label is exact in float32"
    return Labelled(sizes, tensors, starts)


def _names(row: Row, num_layers: int) -> list[str]:
    if row.section.value == "layer":
        return [f"layers.{layer}.{row.key}" for layer in range(num_layers)]
    return [f"final_layernorm.{row.key}" if row.section.value == "final_norm" else row.key]


def assert_same(found: Mapping[str, Any], expected: Mapping[str, Any], model: Labelled, where: str = "") -> None:
    """The same names, types, shapes and bits; else what stands where."""
    assert set(found) == set(expected), f"{where}: {sorted(set(found) ^ set(expected))}"
    for name, tensor in expected.items():
        mine = found[name]
        assert (mine.dtype, mine.shape) == (tensor.dtype, tensor.shape), f"{where} {name}: {mine.dtype} {mine.shape}"
        if not torch.equal(mine, tensor):
            at = (mine != tensor).reshape(-1).nonzero()[0, 0]
            stands, due = (model.origin(float(one.reshape(-1)[at])) for one in (mine, tensor))
            raise AssertionError(f"{where} {name}: element {at} is {stands}, not {due}")


def part_of(model: Labelled, name: str, part: str) -> torch.Tensor:
    """The queries, the keys, the values, the gate or the up of a fused parameter, heads in their order."""
    tensor, sizes = model.tensors[name], model.sizes
    if part in ("gate", "up"):
        return tensor.chunk(2)[part == "up"].contiguous()
    return _heads(tensor, sizes)[part].flatten(0, 2).contiguous()


def _heads(tensor: torch.Tensor, sizes: Sizes) -> dict[str, torch.Tensor]:
    """Each part as (groups, heads of a group, head_dim, ..)."""
    rows = tensor.unflatten(0, (sizes.groups, -1, sizes.head_dim))
    return {"query": rows[:, :-2], "key": rows[:, -2:-1], "value": rows[:, -1:]}
