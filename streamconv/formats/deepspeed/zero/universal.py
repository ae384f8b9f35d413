"""A universal checkpoint: a folder for each parameter, whole, with a file for each of its states.

``zero/<parameter>/fp32.pt`` is the parameter alone or a dictionary with it as ``param``, whose other entries
(``cat_dim``, ``vocab_tensor``, ``param_n_sub_params``, ``sub_param_shape``; in bigscience's fork
``vocab_divisibility_padding_tensor``) say how a loader cuts it for its ranks [deepspeed/checkpoint/ds_to_universal.py:
merge_tp_slices]. Of stage 3 without tensor parallelism it is flat; model files have its shape. Names that share another
one's parameter, frozen parameters and buffers are there too, from the 16-bit module.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

from streamconv.containers.stored_file import StoredFile
from streamconv.containers.torch_save.open import open_torch
from streamconv.core.errors import DamagedError
from streamconv.core.lazy import LazyTensor
from streamconv.formats.common.faults import COPY_AGAIN
from streamconv.formats.deepspeed.folder import ZERO
from streamconv.io.reading import nbytes_there

__all__ = ["Universal", "open_universal"]


_STATES = ("exp_avg.pt", "exp_avg_sq.pt", "step.pt")


@dataclass(frozen=True, slots=True)
class Universal:
    """The fp32 parameters of a universal checkpoint, their files, and the bytes of the other states."""

    tensors: dict[str, LazyTensor]
    files: tuple[StoredFile, ...]
    state_files: int
    state_nbytes: int


def open_universal(folder: Path, shapes: Mapping[str, tuple[int, ...]]) -> Universal:
    """Open the parameters of a universal checkpoint, metadata only.

    Args:
        folder: the one that has ``zero``.
        shapes: the shapes that model files record, for parameters that are stored flat.

    Raises:
        DamagedError: a file is missing or broken, or has another number of elements than its shape.
    """
    tensors: dict[str, LazyTensor] = {}
    files: list[StoredFile] = []
    states: list[Path] = []
    for child in sorted((folder / ZERO).iterdir()):
        if not child.is_dir():
            continue
        states += [each for each in child.glob("*.pt") if each.name != "fp32.pt" and each.is_file()]
        if not any((child / name).is_file() for name in ("fp32.pt", *_STATES)):
            continue
        if not (child / "fp32.pt").is_file():
            raise DamagedError(f"{child.name} has no fp32.pt", where=child, remedy=COPY_AGAIN)
        file = open_torch(child / "fp32.pt")
        tensors[child.name] = _shaped(_parameter(file), shapes.get(child.name), file.path)
        files.append(file)
    if not shapes and len(tensors) > 1 and not any(len(tensor.shape) != 1 for tensor in tensors.values()):
        raise DamagedError(
            f"all {len(tensors)} parameters are stored flat, and no model file beside `{ZERO}` says their shapes",
            where=folder,
            remedy="copy the *_model_states.pt files there from the run",
        )
    lost = [name for name, shape in shapes.items() if name not in tensors and all(shape)]
    if lost:
        raise DamagedError(f"{len(lost)} parameters have no folder, the first is {lost[0]}", where=folder / ZERO)
    order = {name: place for place, name in enumerate(shapes)}
    names = sorted(tensors, key=lambda name: (order.get(name, len(order)), name))
    return Universal({name: tensors[name] for name in names}, tuple(files), len(states), nbytes_there(states))


def _parameter(file: StoredFile) -> LazyTensor:
    state = file.state
    tensor = state.get("param") if isinstance(state, dict) else state
    if not isinstance(tensor, LazyTensor):
        raise DamagedError("no parameter in a universal checkpoint's fp32.pt", where=file.path)
    return tensor


def _shaped(tensor: LazyTensor, shape: tuple[int, ...] | None, where: Path) -> LazyTensor:
    if shape is None or tensor.shape == shape:
        return tensor
    is_flat = len(tensor.shape) == 1
    if tensor.numel != prod(shape) if is_flat else len(tensor.shape) != len(shape):
        raise DamagedError(f"a tensor {tensor.shape} of a parameter whose recorded shape is {shape}", where=where)
    # Without its padding a vocabulary is shorter than recorded.
    if not is_flat:
        return tensor
    return tensor.shaped(shape)
