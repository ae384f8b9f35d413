"""One checkpoint of a comparison: its tensors, and what is in it beside them."""

from __future__ import annotations

from dataclasses import dataclass, field

from streamconv.core.lazy import LazyTensor
from streamconv.core.replica import Replica
from streamconv.verification.rest import NotCompared

__all__ = ["Copy", "Side"]


@dataclass(frozen=True, slots=True)
class Copy:
    """A copy of a tensor, the original that it should equal, and the name of the original if that is a whole tensor."""

    tensor: LazyTensor
    original: LazyTensor
    name: str | None


@dataclass(slots=True, repr=False)
class Side:
    """One checkpoint: its tensors by name, and the kind of names (canonical, own or stored).

    ``replicas`` are copies that should be equal within this side: those of ranks, and a tied head's. ``copies`` has the
    copies that are not in ``tensors``, under their own names. ``vocabulary`` names the tensors whose rows are tokens,
    ``lacks`` the parameters that this model lacks and others of its family have. ``not_compared`` is what is in the
    checkpoint and not in ``tensors``: under canonical names all but the parameters, under stored names what is broken.
    """

    path: str
    what: str
    names: str
    tensors: dict[str, LazyTensor]
    vocabulary: frozenset[str] = frozenset()
    lacks: frozenset[str] = frozenset()
    not_compared: list[NotCompared] = field(default_factory=list)
    vocab_size: int | None = None
    heads: int | None = None
    replicas: tuple[Replica, ...] = ()
    copies: dict[str, Copy] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def __repr__(self) -> str:
        return f"Side({self.path!r}, {self.what}, {len(self.tensors)} tensors by {self.names} names)"
