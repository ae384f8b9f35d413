"""Facts about stored tensors: their positions, shared bytes, and bytes that no tensor uses."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from streamconv.containers.open_any import CHECKPOINT_SUFFIXES
from streamconv.core.lazy import LazyTensor, Storage
from streamconv.formats.common.layer_numbers import place_of
from streamconv.inspection.report import FileRow, InspectionReport, TensorRow

__all__ = ["files_of_tensors", "first_byte", "storage_facts", "tensor_rows"]

_LONGEST_NAME = 200


def files_of_tensors(report: InspectionReport) -> list[FileRow]:
    """The files that may hold tensors, by their suffixes; a lone file is meant whatever its name is."""
    return [row for row in report.files if report.kind == "file" or Path(row.path).suffix in CHECKPOINT_SUFFIXES]


def first_byte(tensor: LazyTensor) -> int | None:
    """The offset of a tensor in its file in bytes, None if it is empty or stored in several places."""
    if len(tensor.pieces) != 1 or len(tensor.pieces[0].views) != 1:
        return None
    view = tensor.pieces[0].views[0]
    return view.storage.offset + view.span(tensor.pieces[0].shape)[0]


def tensor_rows(tensors: Mapping[str, LazyTensor], file: str, prefix: str = "") -> list[TensorRow]:
    """A row for each tensor of a file, in the file's order. Layer and parameter come from ``tensors``' names."""
    first: dict[tuple[Storage, int], str] = {}
    rows = []
    for name, tensor in tensors.items():
        offset, shares = first_byte(tensor), None
        if offset is not None:
            key = tensor.pieces[0].views[0].storage, offset
            other = first.setdefault(key, name)
            # Cut, since each of many tensors may share the bytes of one with a name as long as the file.
            shares = other[:_LONGEST_NAME] if other != name else None
        layer, parameter = place_of(name)
        rows.append(
            TensorRow(
                prefix + name, file, str(tensor.dtype), tensor.shape, tensor.nbytes, offset, layer, parameter, shares
            )
        )
    return rows


def storage_facts(storages: Iterable[Storage], tensors: Iterable[LazyTensor]) -> dict[str, int]:
    """The number of bytes stored for tensors, the number that some tensor uses, and the difference.

    DeepSpeed before 0.9 stored the whole stage's storage with each layer (its issues 549 and 3303).
    """
    stored = sum({storage: storage.nbytes for storage in storages}.values())
    spans: dict[Storage, list[tuple[int, int]]] = defaultdict(list)
    for tensor in tensors:
        for piece in tensor.pieces:
            for view in piece.views:
                start, nbytes = view.span(piece.shape)
                spans[view.storage].append((start, start + nbytes))
    used = sum(_covered(ranges) for ranges in spans.values())
    return {"stored_nbytes": stored, "used_nbytes": used, "unused_nbytes": stored - used}


def _covered(spans: Sequence[tuple[int, int]]) -> int:
    covered = end = 0
    for start, stop in sorted(spans):
        covered += max(0, stop - max(start, end))
        end = max(end, stop)
    return covered
