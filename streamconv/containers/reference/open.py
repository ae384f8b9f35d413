"""Open a file with its format's own reader: ``torch.load``, ``safetensors.safe_open``, torch's distributed reader.

Our own reader has opened it first, and says which names it holds: a file that is broken, or does what no checkpoint
needs, does not come this far. Nothing is executed: ``torch.load`` has ``weights_only``, and the ``.metadata`` of a
distributed checkpoint, which torch would unpickle, is given to its reader as our own parse has it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import TYPE_CHECKING

from streamconv.containers.pickles.reader import leaves_of
from streamconv.containers.reference.stand_ins import stand_ins
from streamconv.containers.reference.torch_tensors import REFUSALS, ReferenceFile, refused
from streamconv.containers.stored_file import StoredFile
from streamconv.core.errors import UnsupportedError

if TYPE_CHECKING:
    import torch

__all__ = ["check_torch", "open_reference"]

_FIRST_SAFE = (2, 6)
# The classes that torch knows, and the filters of warnings, are those of the process.
_LOADING = Lock()


def check_torch(*, distributed: bool = False) -> None:
    """Import torch, whose memory must be in use before a budget is checked.

    Args:
        distributed: whether ``.distcp`` files will be read, by a part of torch as large as the rest.

    Raises:
        UnsupportedError: this release can be made to run code in spite of ``weights_only`` (CVE-2025-32434).
    """
    import torch

    release = tuple(int(number) for number in torch.__version__.split(".")[:2])
    if release < _FIRST_SAFE:
        raise UnsupportedError(
            f"torch {torch.__version__} can be made to run what a file names (CVE-2025-32434)",
            remedy="use torch 2.6 or newer",
        )
    if distributed and torch.distributed.is_available():
        import torch.distributed.checkpoint


def open_reference(ours: StoredFile) -> ReferenceFile:
    """Open a file that :func:`streamconv.containers.open_any.open_any` has opened with its format's own reader.

    Raises:
        UnsupportedError: that reader refuses it; the message says why.
    """
    if ours.kind == "safetensors":
        return _open_safetensors(ours)
    if ours.kind == "distcp":
        from streamconv.containers.reference.distributed import open_chunks

        return open_chunks(ours.path)
    return _open_torch(ours)


def _open_safetensors(ours: StoredFile) -> ReferenceFile:
    from safetensors import SafetensorError, safe_open

    reader = "safetensors.safe_open"
    try:
        with safe_open(ours.path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
    except (*REFUSALS, SafetensorError) as error:
        raise refused(reader, ours.path, error) from error
    return ReferenceFile.mapped(ours.path, reader, tensors)


def _open_torch(ours: StoredFile) -> ReferenceFile:
    import torch

    reader = "torch.load"
    try:
        with _LOADING, torch.serialization.safe_globals(stand_ins(ours.globals)), _without_warnings():
            state = torch.load(ours.path, map_location="cpu", mmap=True, weights_only=True)
    except REFUSALS as error:
        raise refused(reader, ours.path, error) from error
    return ReferenceFile.mapped(ours.path, reader, dict(_named(state, str(ours.path))))


def _named(state: object, where: str) -> Iterator[tuple[str, torch.Tensor]]:
    import torch

    for path, tensor in leaves_of(torch.Tensor, state, where):
        yield ".".join(map(str, path)), tensor


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Torch warns of pickle protocols and of old classes of storages; what it makes of them is looked at anyway."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
