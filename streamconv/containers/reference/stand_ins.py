"""Inert classes in place of those that a training script's pickle names, for torch's ``weights_only`` unpickler.

That unpickler imports nothing, but it refuses a file that names a class it does not know, and most checkpoints hold an
enum or a namespace of arguments. A stand-in is known under such a name, and keeps what it is given.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from streamconv.containers.pickles.machine import Global, Record
from streamconv.containers.pickles.verdicts import modern_name, verdict

__all__ = ["stand_ins"]


class _StandIn(Record):
    """As the record that our own reader makes of such a call: the same tensors are found in it, by the same names."""

    __slots__ = ()
    named: Global

    def __new__(cls, *args: Any) -> _StandIn:
        self = super().__new__(cls)
        self.cls, self.args, self.state, self.items = cls.named, args, None, []
        return self

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state


def stand_ins(named: Iterable[Global]) -> list[type]:
    """A class for each name that torch would refuse, and that is no call which could run code: such a file is refused.

    ``torch.serialization.safe_globals`` takes them: it goes by a class's module and qualified name.
    """
    names = {modern_name(value): value for value in named if verdict(value) == "refused"}
    return [_stand_in(full, value) for full, value in names.items()]


def _stand_in(full: str, value: Global) -> type:
    module, _, name = full.rpartition(".")
    return type(name, (_StandIn,), {"__slots__": (), "__module__": module, "__qualname__": name, "named": value})
