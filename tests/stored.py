"""Small torch files whose every element is different, and lazy tensors over them."""

from __future__ import annotations

from pathlib import Path

import torch

from streamconv.containers.torch_save.zip_reader import open_torch_zip
from streamconv.core.lazy import LazyTensor


def counted(*shape: int, dtype: torch.dtype = torch.float32, start: int = 0) -> torch.Tensor:
    """A tensor that counts up from ``start``; keep it below 256 for bfloat16, 2048 for float16."""
    count = 1
    for size in shape:
        count *= size
    return torch.arange(start, start + count, dtype=torch.float64).to(dtype).reshape(shape)


def stored(path: Path, *tensors: torch.Tensor) -> list[LazyTensor]:
    """The tensors as a real torch file has them, opened lazily; views of one storage stay views of it."""
    torch.save({str(number): tensor for number, tensor in enumerate(tensors)}, path)
    opened = open_torch_zip(path).tensors()
    return [opened[str(number)] for number in range(len(tensors))]
