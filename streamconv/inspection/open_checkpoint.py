"""Open any checkpoint file, or a folder of them, as a mapping of names to lazy tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from streamconv.containers.open_any import CHECKPOINT_SUFFIXES, checkpoint_files, open_any
from streamconv.containers.stored_file import StoredFile
from streamconv.core.errors import SourceError
from streamconv.core.lazy import LazyTensor
from streamconv.formats.deepspeed.source import resolve_tag

__all__ = ["Checkpoint", "open_checkpoint"]


class Checkpoint(Mapping[str, LazyTensor]):
    """Lazy tensors by name.

    In a file a name is the dotted path of its keys
    (``model.language_model.encoder.layers.0.mlp.dense_h_to_4h.weight``). In a folder it begins with the path of the
    file below the folder: ``layer_03-model_00-model_states.pt:input_layernorm.weight``. A file's metadata is read at
    the first access to one of its names.
    """

    def __init__(self, path: Path, files: Mapping[str, Path]) -> None:
        self.path = path
        self._paths = dict(files)
        self._opened: dict[str, StoredFile] = {}
        self._tensors: dict[str, dict[str, LazyTensor]] = {}

    @property
    def files(self) -> tuple[str, ...]:
        """The paths of the files below the folder; a single empty path if the checkpoint is a file."""
        return tuple(self._paths)

    def state(self, file: str = "") -> Any:
        """The content of a file, with lazy tensors in it and unknown classes as inert records."""
        return self._open(file).state

    def _open(self, file: str) -> StoredFile:
        if file not in self._opened:
            self._opened[file] = open_any(self._paths[file])
            self._tensors[file] = self._opened[file].tensors()
        return self._opened[file]

    def __getitem__(self, name: str) -> LazyTensor:
        file, _, tensor = name.partition(":") if "" not in self._paths else ("", "", name)
        if file not in self._paths:
            raise KeyError(name)
        self._open(file)
        return self._tensors[file][tensor]

    def __iter__(self) -> Iterator[str]:
        for file in self._paths:
            self._open(file)
            yield from (f"{file}:{name}" if file else name for name in self._tensors[file])

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        files = "" if "" in self._paths else f", {len(self._paths)} files"
        return f"Checkpoint({str(self.path)!r}{files})"


def open_checkpoint(path: str | Path, tag: str | None = None) -> Checkpoint:
    """Open a file of tensors, or a folder of them, lazily and without executing anything in it.

    Args:
        path: a torch, safetensors or ``.distcp`` file, or a folder; for a DeepSpeed root the tag in ``latest`` is
            taken.
        tag: another tag of a DeepSpeed root.

    Raises:
        SourceError: ``path`` does not exist, or the folder has no such file.
    """
    root = Path(path)
    if root.is_file():
        return Checkpoint(root, {"": root})
    folder = resolve_tag(root, tag)
    files = {str(file.relative_to(folder)): file for file in checkpoint_files(folder)}
    if not files:
        raise SourceError(f"no checkpoint file ({', '.join(CHECKPOINT_SUFFIXES)}) in the folder", where=folder)
    return Checkpoint(folder, files)
