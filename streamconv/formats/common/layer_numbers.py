"""The layer's number in a tensor's name, whichever framework's name it is."""

from __future__ import annotations

import re

__all__ = ["place_of"]

_LAYER = re.compile(r"(?:^|.*[.:])(?:layers|h|blocks|layer|block)\.([0-9]{1,9})\.(.+)", re.DOTALL)


def place_of(name: str) -> tuple[int | None, str]:
    """(layer, parameter without its layer) of a tensor: ``(3, "mlp.dense_h_to_4h.weight")``.

    In every framework the layer's number follows ``layers``, ``h`` or ``blocks``.
    """
    match = _LAYER.fullmatch(name)
    return (int(match[1]), match[2]) if match else (None, name)
