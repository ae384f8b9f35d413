"""Open a file of ``torch.save`` in either format, and tell what any other file looks like."""

from __future__ import annotations

from pathlib import Path

from streamconv.containers.stored_file import StoredFile
from streamconv.containers.torch_save.legacy_reader import is_torch_old, open_torch_old
from streamconv.containers.torch_save.zip_reader import open_torch_zip
from streamconv.core.errors import UnsupportedError
from streamconv.io.reading import reading

__all__ = ["looks_like", "open_torch"]

_HEAD_NBYTES = 512
_TAR_MAGIC = slice(257, 262)
_DECOMPRESS = "decompress it first"
_BEGINNINGS = (
    (b"version https://git-lfs", "a git-lfs pointer: the data is not here", "run `git lfs pull` in its folder"),
    (b"\x1f\x8b", "gzip", _DECOMPRESS),
    (b"BZh", "bzip2", _DECOMPRESS),
    (b"\xfd7zXZ", "xz", _DECOMPRESS),
    (b"\x28\xb5\x2f\xfd", "zstandard", _DECOMPRESS),
    (b"PK\x05\x06", "an empty zip", None),
    (b"\x89HDF\r\n", "HDF5", None),
    (b"GGUF", "GGUF", None),
    (b"\x93NUMPY", "a numpy array", None),
)
_OLD_PICKLES = (b"(dp", b"(lp", b"(i", b"ccopy_reg\n", b"ccopyreg\n", b"c__builtin__\n", b"ccollections\n", b"cposix\n")


def open_torch(path: Path) -> StoredFile:
    """Read the metadata of a file of ``torch.save``; its first bytes tell which of the two formats it has.

    Raises:
        SourceError: there is no such file.
        UnsupportedError: it is something else; the message tells what it looks like.
        DamagedError: it is cut off or inconsistent.
        UnsafeError: its pickle is too large or does what no checkpoint needs.
        StorageError: the system refused to read.
    """
    with reading(path) as file:
        head = file.read(0, _HEAD_NBYTES)
    if head.startswith(b"PK\x03\x04"):
        return open_torch_zip(path)
    if is_torch_old(head):
        return open_torch_old(path)
    words, remedy = looks_like(head)
    raise UnsupportedError(f"not a file of torch.save: it looks like {words}", where=path, remedy=remedy)


def looks_like(head: bytes) -> tuple[str, str | None]:
    """(what a file that begins with ``head`` seems to be, what to do about it or None); 512 bytes are enough."""
    if not head:
        return "an empty file", "copy or download it again"
    for beginning, words, remedy in _BEGINNINGS:
        if head.startswith(beginning):
            return words, remedy
    if head[_TAR_MAGIC] == b"ustar":
        # torch/serialization.py:_legacy_load tries this first; releases before 0.1.10 wrote it.
        return "tar, which torch before 0.1.10 wrote", "load and save it once with torch.load(.., weights_only=False)"
    if (head[:1] == b"\x80" and len(head) > 1 and head[1] <= 5) or head.startswith(_OLD_PICKLES):
        return "a bare pickle", "torch.save does not write one; find out what did"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= 100 << 20:
        return "safetensors", "its name must end in .safetensors"
    if not any(head):
        return "zeros: a copy or a download that did not end", "copy or download it again"
    return _text(head) or "nothing that is known", None


def _text(head: bytes) -> str | None:
    """The kind of text in a file that begins with ``head``; None if it is not ASCII text."""
    start = head.lstrip().lower()
    if any(byte < 9 for byte in head) or not head.isascii():
        return None
    if start.startswith((b"<!doctype html", b"<html", b"<head")):
        return "an HTML page, such as a server gives instead of a file"
    return "JSON" if start.startswith((b"{", b"[")) else "text"
