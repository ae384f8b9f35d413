"""One tensor of a checkpoint, whole, into a file of its own: ``.npy`` or ``.safetensors``."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from itertools import chain
from pathlib import Path

from streamconv.containers.pickles.writer import StoredTensor
from streamconv.containers.safetensors.writer import plan_safetensors_file
from streamconv.core.errors import DestinationError, SourceError, UsageError
from streamconv.core.kinds import nearest
from streamconv.core.lazy import LazyTensor
from streamconv.core.options import Given
from streamconv.core.result import Result
from streamconv.execution.in_order import fit_in_order, read_in_order
from streamconv.execution.options import ExtractOptions
from streamconv.formats.huggingface.naming import own_names, refuse_placeholders
from streamconv.formats.wrappers import without_wrappers
from streamconv.io.checksums import SourceChecksums
from streamconv.io.durable import sync_folder
from streamconv.io.refusals import refusals
from streamconv.io.whole_file import write_file
from streamconv.planning.unused_options import refuse_unused_for
from streamconv.planning.whole import open_whole
from streamconv.values.options import ReadingOptions

__all__ = ["Extracted", "extract"]

SUFFIXES = (".npy", ".safetensors")
_NOT_IN_NUMPY = ("bfloat16", "float8_e4m3fn", "float8_e5m2")


@dataclass(frozen=True, slots=True, repr=False)
class Extracted(Result):
    """A tensor that was written to a file of its own."""

    path: str
    source: str
    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int


def extract(
    src: Path, name: str, out: Path, given: Given, progress: Callable[[int, int], None] | None = None
) -> Extracted:
    """Write one tensor, whole, inside the memory budget. The file is there when it is whole, and not before.

    Args:
        src: a checkpoint file or folder.
        name: the tensor's name, as ``inspect`` shows it; a model's own name without wrappers will do.
        out: the file, ``.npy`` or ``.safetensors``.
        given: the user's options.
        progress: called with (bytes done, bytes in all).

    Raises:
        UsageError: there is no such tensor, or no such kind of file.
        DestinationError: the file is there already.
        StreamconvError: the source is refused; its class says why.
    """
    options = given.take(ExtractOptions)
    if out.suffix not in SUFFIXES:
        raise UsageError(f"{out.name}: a tensor is written as .npy or .safetensors", remedy="choose one by the suffix")
    if out.is_dir() or (os.path.lexists(out) and not options.overwrite):
        remedy = "choose another place" if out.is_dir() else "choose another file, or say --overwrite"
        raise DestinationError("something is there already", where=out, remedy=remedy)
    if not out.parent.is_dir():
        raise DestinationError("the folder for the file is not there", where=out.parent, remedy="make it")
    refuse_unused_for({"src": src}, given)
    tensor = _find(src, name, given)
    _refuse_source(out, tensor)
    tensor = tensor if options.dtype is None else tensor.cast(options.dtype)
    head = _npy_head(tensor) if out.suffix == ".npy" else _safetensors_head(name, tensor)
    settings, sources = fit_in_order(given.take(ReadingOptions)), SourceChecksums()
    part = out.with_name(f".{out.name}.part")
    body = (bytes(data) for _, data in read_in_order({name: tensor}, settings, sources, progress))
    try:
        write_file(part, len(head) + tensor.nbytes, chain([head], body))
        with refusals("move the file into place", out):
            part.replace(out)
            sync_folder(out.parent)
    finally:
        part.unlink(missing_ok=True)
    return Extracted(str(out), str(src), name, str(tensor.dtype), tensor.shape, len(head) + tensor.nbytes)


def _refuse_source(out: Path, tensor: LazyTensor) -> None:
    """Refuse to replace a file that the tensor is read from."""
    paths = {view.storage.path for piece in tensor.pieces for view in piece.views}
    if out.exists() and any(path.exists() and path.samefile(out) for path in paths):
        raise DestinationError("the tensor is read from this file", where=out, remedy="choose another file")


def _find(src: Path, name: str, given: Given) -> LazyTensor:
    if not src.exists():
        raise SourceError("no such file or folder", where=src)
    _, opened = open_whole(src, given)
    refuse_placeholders(opened)
    model = without_wrappers(opened, own_names(opened.config or {}))
    for tensors in (opened.tensors, model.tensors):
        if name in tensors:
            return tensors[name]
    meant = nearest(name, model.tensors)
    raise UsageError(
        f"{name}: none of {len(model.tensors)} tensors has this name",
        where=src,
        remedy=f"did you mean {meant}?" if meant else "streamconv inspect lists them",
    )


def _npy_head(tensor: LazyTensor) -> bytes:
    import numpy as np

    if tensor.dtype.name in _NOT_IN_NUMPY:
        raise UsageError(
            f".npy has no {tensor.dtype}",
            remedy="say --dtype fp32, which holds every value of it, or write .safetensors",
        )
    head = BytesIO()
    entries = {"descr": np.lib.format.dtype_to_descr(tensor.dtype.numpy), "fortran_order": False, "shape": tensor.shape}
    np.lib.format.write_array_header_1_0(head, entries)
    return head.getvalue()


def _safetensors_head(name: str, tensor: LazyTensor) -> bytes:
    layout = plan_safetensors_file({name: StoredTensor(0, tensor.dtype, tensor.shape)})
    return b"".join(_in_order(layout.frame({0: 0})))


def _in_order(frame: Iterator[tuple[int, bytes]]) -> Iterator[bytes]:
    return (data for _, data in sorted(frame))
