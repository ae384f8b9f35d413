"""Whether tensors are zero in every bit: a minus zero is not, and no NaN is."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing

import numpy as np

from streamconv.core.lazy import LazyTensor
from streamconv.io.checksums import SourceChecksums
from streamconv.values.reader import TensorReader, parts

__all__ = ["all_zero"]

# Small beside any memory budget, and enough for a bias to be read at once.
_BLOCK = 256 << 10


def all_zero(tensors: Iterable[LazyTensor]) -> bool:
    """Whether each element of each tensor is zero; reading ends at the first that is not.

    It needs two buffers of 256 KiB.

    Raises:
        DamagedError: a record's CRC-32 is not the recorded one.
        StorageError: the system refused, or a file has become shorter.
    """
    with closing(TensorReader("pread", _BLOCK, SourceChecksums())) as reader:
        boxes = (box for tensor in tensors for _, (box,) in parts((tensor,), _BLOCK))
        return not any(np.ascontiguousarray(reader.read(box)).view(np.uint8).any() for box in boxes)
