"""What one file may cost. Whatever is made of it, looked at, written out or read is bounded by its size.

A pickle of a few hundred bytes can hold a value 2^40 times over, since a value that is there once may be named again
and again; two numbers can say that 2^40 elements are read from one. An honest file needs a small part of each limit:
what it holds takes about as many bytes in it.
"""

from __future__ import annotations

from streamconv.core.errors import UnsafeError

__all__ = ["DEEPEST", "LARGEST_SIZE", "MOST_AXES", "Effort"]

DEEPEST = 200
"""The most containers inside one another."""
MOST_AXES = 64
"""The most axes of a tensor, as torch and numpy have it."""
LARGEST_SIZE = (1 << 63) - 1
"""The largest size, offset or stride."""
_REMEDY = "no checkpoint needs this: find out who wrote the file"


class Effort:
    """The limits of one file, from the size of its metadata and of all of it; each ``check`` raises when one is passed.

    Attributes:
        where: the file's name in messages.
        objects: the most containers and recalled values that a pickle may make.
        values: the most values to look at, each as often as it is held.
        text: the most characters in all of them, and in the dotted names that lead to them.
        tensors: the most tensors, each as often as it is held; one of its own takes 50 bytes of pickle.
        nbytes: the most bytes of them.
    """

    __slots__ = ("metadata", "nbytes", "objects", "stored", "tensors", "text", "values", "where")

    def __init__(self, where: str, metadata: int, stored: int = 0) -> None:
        """``metadata``: bytes of the pickle; ``stored``: those of the file that its tensors are in."""
        self.where, self.metadata, self.stored = where, metadata, stored
        self.objects = metadata // 2 + (1 << 16)
        self.values = 2 * metadata + (1 << 17)
        self.text = 16 * metadata + (4 << 20)
        self.tensors = metadata // 40 + (1 << 12)
        self.nbytes = 16 * stored + (256 << 20)

    def too_many_objects(self) -> UnsafeError:
        """The error for a pickle that makes more objects than its size allows."""
        return self._error(f"{self.metadata} bytes of pickle make more than {self.objects} objects")

    def check_depth(self, depth: int) -> None:
        """Raise an :class:`UnsafeError` if containers are nested too deep."""
        if depth > DEEPEST:
            raise self._error(f"containers nested deeper than {DEEPEST}")

    def check(self, values: int, text: int, tensors: int, nbytes: int) -> None:
        """Check what all of a file comes to.

        Raises:
            UnsafeError: it is more than the file's size allows.
        """
        if values > self.values:
            what = f"{_number(values)} values in {self.metadata} bytes"
            raise self._error(f"{what}: containers hold one another many times")
        if text > self.text:
            raise self._error(f"{_number(text)} characters of names and text in {self.metadata} bytes")
        if tensors > self.tensors:
            raise self._error(f"{_number(tensors)} tensors in {self.metadata} bytes: many are the same")
        if nbytes > self.nbytes:
            raise self._error(
                f"its tensors have {_number(nbytes)} bytes, the file {self.stored}: elements are read many times"
            )

    def _error(self, what: str) -> UnsafeError:
        return UnsafeError(what, where=self.where, remedy=_REMEDY)


def _number(value: int) -> str:
    """A number in digits; one that has too many as a power of 2."""
    return str(value) if value < 1 << 64 else f"more than 2^{value.bit_length() - 1}"
