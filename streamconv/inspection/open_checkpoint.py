"""Open any checkpoint file, or a folder of them, as a mapping of names to lazy tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, overload

from streamconv.containers.open_any import CHECKPOINT_SUFFIXES, checkpoint_files, open_any
from streamconv.containers.reference.open import check_torch, open_reference
from streamconv.containers.stored_file import StoredFile
from streamconv.core.errors import SourceError, StreamconvError
from streamconv.core.lazy import LazyTensor
from streamconv.core.work_folder import refuse_unfinished
from streamconv.formats.deepspeed.folder import resolve_tag

if TYPE_CHECKING:
    import torch

__all__ = ["Checkpoint", "FilesOfTensors", "ReferenceCheckpoint", "open_checkpoint"]

T = TypeVar("T")


class FilesOfTensors(Mapping[str, T]):
    """Tensors of one or several files by name.

    In a file a name is the dotted path of its keys
    (``model.language_model.encoder.layers.0.mlp.dense_h_to_4h.weight``). In a folder it begins with the path of the
    file below the folder: ``layer_03-model_00-model_states.pt:input_layernorm.weight``. A file's metadata is read at
    the first access to one of its names.
    """

    def __init__(self, path: Path, files: Mapping[str, Path]) -> None:
        self.path = path
        self._paths = dict(files)

    @property
    def files(self) -> tuple[str, ...]:
        """The paths of the files below the folder; a single empty path if the checkpoint is a file."""
        return tuple(self._paths)

    def _tensors_in(self, file: str) -> Mapping[str, T]:
        raise NotImplementedError

    def __getitem__(self, name: str) -> T:
        file, _, tensor = name.partition(":") if "" not in self._paths else ("", "", name)
        if file not in self._paths:
            raise KeyError(name)
        return self._tensors_in(file)[tensor]

    def __iter__(self) -> Iterator[str]:
        for file in self._paths:
            yield from (f"{file}:{name}" if file else name for name in self._tensors_in(file))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        files = "" if "" in self._paths else f", {len(self._paths)} files"
        return f"{type(self).__name__}({str(self.path)!r}{files})"


class Checkpoint(FilesOfTensors[LazyTensor]):
    """Lazy tensors by name, as streamconv reads them."""

    def __init__(self, path: Path, files: Mapping[str, Path]) -> None:
        super().__init__(path, files)
        self._opened: dict[str, tuple[StoredFile, dict[str, LazyTensor]]] = {}

    def state(self, file: str = "") -> Any:
        """The content of a file, with lazy tensors in it and unknown classes as inert records."""
        return self._open(file)[0].state

    def _open(self, file: str) -> tuple[StoredFile, dict[str, LazyTensor]]:
        if file not in self._opened:
            opened = open_any(self._paths[file])
            self._opened[file] = opened, opened.tensors()
        return self._opened[file]

    def _tensors_in(self, file: str) -> Mapping[str, LazyTensor]:
        return self._open(file)[1]


class ReferenceCheckpoint(FilesOfTensors["torch.Tensor"]):
    """torch's tensors by the same names, as the format's own reader reads them, under mapping: do not write to them.

    A file that is refused has no names here; ``refused`` says why.
    """

    def __init__(self, path: Path, files: Mapping[str, Path]) -> None:
        super().__init__(path, files)
        self._opened: dict[str, Mapping[str, torch.Tensor]] = {}
        self._refused: dict[str, str] = {}

    @property
    def refused(self) -> dict[str, str]:
        """The files that cannot be read so, and why; this opens all of them."""
        for file in self._paths:
            self._tensors_in(file)
        return dict(self._refused)

    def _tensors_in(self, file: str) -> Mapping[str, torch.Tensor]:
        if file not in self._opened:
            try:
                self._opened[file] = open_reference(open_any(self._paths[file]))
            except StreamconvError as error:
                self._opened[file], self._refused[file] = {}, error.what
        return self._opened[file]


@overload
def open_checkpoint(path: str | Path, tag: str | None = None) -> Checkpoint: ...


@overload
def open_checkpoint(
    path: str | Path, tag: str | None = None, *, reference: bool
) -> Checkpoint | ReferenceCheckpoint: ...


def open_checkpoint(
    path: str | Path, tag: str | None = None, *, reference: bool = False
) -> Checkpoint | ReferenceCheckpoint:
    """Open a file of tensors, or a folder of them, lazily and without executing anything in it.

    Args:
        path: a torch, safetensors or ``.distcp`` file, or a folder; for a DeepSpeed root the tag in ``latest`` is
            taken.
        tag: another tag of a DeepSpeed root.
        reference: whether the format's own reader reads the files.

    Raises:
        SourceError: ``path`` does not exist, or the folder has no such file.
        DamagedError: a conversion into the folder was cut off while it moved its result into place.
        UnsupportedError: with ``reference``, this release of torch is not safe.
    """
    if reference:
        check_torch()
    kind = ReferenceCheckpoint if reference else Checkpoint
    root = Path(path)
    if root.is_file():
        return kind(root, {"": root})
    refuse_unfinished(root)
    folder = resolve_tag(root, tag)
    files = {str(file.relative_to(folder)): file for file in checkpoint_files(folder)}
    if not files:
        raise SourceError(f"no checkpoint file ({', '.join(CHECKPOINT_SUFFIXES)}) in the folder", where=folder)
    return kind(folder, files)
