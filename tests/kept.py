"""Models whose names a conversion keeps: what was written, read by the libraries that own the containers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from streamconv import convert
from tests.stored import counted

Tensors = dict[str, torch.Tensor]
TARGETS = "safetensors", "pytorch-bin"


def kept(source: Path, out: Path, to: str = "safetensors", **options: Any) -> Tensors:
    """What a conversion wrote, read by the container's own library."""
    how: dict[str, Any] = {"to": to, "max_ram": "1G", **options}
    convert(source, out, **how)
    return written(out)


def written(out: Path) -> Tensors:
    found: Tensors = {}
    for path in sorted([*out.glob("*.safetensors"), *out.glob("*.bin")]):
        part = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
        assert not found.keys() & part.keys()
        found |= part
    return found


def assert_same(found: Tensors, wanted: Tensors) -> None:
    assert set(found) == set(wanted)
    for name, tensor in wanted.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape), name
        assert torch.equal(bits(found[name]), bits(tensor)), name


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().flatten().view(torch.uint8) if tensor.numel() else tensor.flatten()


def model(folder: Path, **config: Any) -> Tensors:
    """A folder of a model of no known family: 9 tensors of 24 different values each."""
    tensors = {f"layers.{number}.{key}": counted(4, 6, start=24 * (3 * number + place)) for number in range(3)
               for place, key in enumerate(("up", "down", "norm"))}  # fmt: skip
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    if config:
        (folder / "config.json").write_text(json.dumps(config))
    return tensors
