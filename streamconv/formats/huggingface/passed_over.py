"""Stored tensors that are no parameters: buffers, which transformers computes itself, and empty tensors.

transformers passes over some of them in silence [``modeling_utils.py:_adjust_missing_and_unexpected_keys``, and
``_keys_to_ignore_on_load_unexpected`` of ``models/gpt2`` and ``models/gpt_neox``], and with a warning over every other
tensor that its model has not. Files that old releases saved have them: causal masks, and frequencies in each layer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from math import prod

from streamconv.core.lazy import LazyTensor
from streamconv.formats.source import Dropped

__all__ = ["dropped_buffers", "is_buffer"]

_MASK, _EMPTY = "a causal mask", "empty: it holds nothing"
_BUFFERS = tuple(
    (re.compile(rf"(?:.*\.)?{pattern}"), reason)
    for pattern, reason in (
        (r"(?:attn|attention|self_attn|self_attention|crossattention)\.(?:masked_)?bias", _MASK),
        (r"causal_mask", _MASK),
        (r"(?:rotary_emb\.)?(?:\w+_)?inv_freq", "frequencies of rotary positions, computed from config.json"),
        (r"rotary_emb\.(?:cos|sin)(?:_cached)?", "rotary positions, computed from config.json"),
        (r"position_ids", "positions counted from 0"),
    )
)
_NUMBER = re.compile(r"(?<=\.)[0-9]+(?=\.)|^[0-9]+(?=\.)")


def is_buffer(name: str, tensor: LazyTensor) -> bool:
    """Whether a stored tensor, which is no parameter by its name, can be left out."""
    return _reason(name, tensor) is not None


def dropped_buffers(buffers: Mapping[str, LazyTensor]) -> Iterator[Dropped]:
    """What is left out, and why; tensors whose names differ in numbers alone are one entry."""
    alike: dict[tuple[str, str], list[LazyTensor]] = {}
    for name, tensor in buffers.items():
        alike.setdefault((_NUMBER.sub("*", name)[:200], _reason(name, tensor) or ""), []).append(tensor)
    for (name, reason), tensors in alike.items():
        count = f", {len(tensors)} buffers" if len(tensors) > 1 else ""
        yield Dropped(f"{name}{count}", sum(tensor.nbytes for tensor in tensors), f"no parameter: {reason}")


def _reason(name: str, tensor: LazyTensor) -> str | None:
    reason = next((words for pattern, words in _BUFFERS if pattern.fullmatch(name)), None)
    if reason == _MASK and not _is_mask(tensor.shape):
        reason = None
    return _EMPTY if reason is None and not tensor.numel else reason


def _is_mask(shape: tuple[int, ...]) -> bool:
    """A square of positions, or the one number that stands for what is masked. A bias of a layer is neither."""
    return prod(shape) == 1 or (len(shape) > 1 and shape[-1] == shape[-2] and prod(shape) == shape[-1] ** 2)
