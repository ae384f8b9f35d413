"""One table of element types, and the casts between them.

A ``DType`` records the names of a type: torch's attribute (``torch.bfloat16``), torch's storage class in a pickle
(``BFloat16Storage``), and numpy's. The storage class names are those of ``torch/storage.py`` (``_new_dtypes`` have
none: such a tensor is stored as ``UntypedStorage``, and the pickle records its dtype separately).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from streamconv.core.errors import DifferenceError
from streamconv.core.kinds import Choice

__all__ = ["CAST_TYPES", "DTYPES", "DType", "cast_into", "dtype_from_storage", "dtype_named"]

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    NDArray = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class DType:
    """An element type: torch's name, bytes per element, torch's storage class if it has one."""

    name: str
    itemsize: int
    storage: str | None
    is_floating: bool

    @property
    def numpy(self) -> np.dtype[Any]:
        """The numpy type of the same bytes (from ml_dtypes where numpy has none)."""
        return _numpy_dtype(self.name)

    def __str__(self) -> str:
        return self.name


_TABLE = (
    DType("float64", 8, "DoubleStorage", True),
    DType("float32", 4, "FloatStorage", True),
    DType("float16", 2, "HalfStorage", True),
    DType("bfloat16", 2, "BFloat16Storage", True),
    DType("float8_e4m3fn", 1, None, True),
    DType("float8_e5m2", 1, None, True),
    DType("int64", 8, "LongStorage", False),
    DType("int32", 4, "IntStorage", False),
    DType("int16", 2, "ShortStorage", False),
    DType("int8", 1, "CharStorage", False),
    DType("uint8", 1, "ByteStorage", False),
    DType("bool", 1, "BoolStorage", False),
    DType("complex64", 8, "ComplexFloatStorage", False),
    DType("complex128", 16, "ComplexDoubleStorage", False),
)
DTYPES = {dtype.name: dtype for dtype in _TABLE}
_BY_STORAGE = {dtype.storage: dtype for dtype in _TABLE if dtype.storage}
CAST_TYPES = Choice(
    {"bf16": DTYPES["bfloat16"], "fp16": DTYPES["float16"], "fp32": DTYPES["float32"], "fp64": DTYPES["float64"]},
    also={"bfloat16": "bf16", "float16": "fp16", "half": "fp16", "float32": "fp32", "float": "fp32", "float64": "fp64"},
    python="str | DType",
)
"""The types that weights can be cast to."""


@cache
def _numpy_dtype(name: str) -> np.dtype[Any]:
    import numpy as np  # imported here and below: a plan needs no arrays, and often takes less time than this import

    if name.startswith(("bfloat16", "float8")):
        import ml_dtypes

        name = getattr(ml_dtypes, name)
    dtype: np.dtype[Any] = np.dtype(name)
    return dtype


def dtype_named(name: str) -> DType | None:
    """The type that torch calls ``name`` (``bfloat16``), or None."""
    return DTYPES.get(name)


def dtype_from_storage(storage_class: str) -> DType | None:
    """The type of a pickled torch storage class (``BFloat16Storage``), or None."""
    return _BY_STORAGE.get(storage_class)


def cast_into(source: NDArray, target: NDArray) -> None:
    """Cast ``source`` element by element into ``target`` (same shape), rounding to nearest even as torch does.

    Raises:
        DifferenceError: a finite value became infinite in float16, whose largest value is 65504. The other types have
            the range of float32.
    """
    import numpy as np

    if source.dtype == np.float64 and target.dtype == np.float16:
        source = source.astype(np.float32)  # torch goes through float32 too, and so rounds twice
    with np.errstate(over="ignore", invalid="ignore"):
        np.copyto(target, source, casting="unsafe")
    if target.dtype == np.float16 and source.dtype != np.float16:
        _refuse_overflow(source, target)


def _refuse_overflow(source: NDArray, target: NDArray) -> None:
    import numpy as np

    infinite = np.isinf(target)
    if not infinite.any():
        return
    values = source[infinite].astype(np.float64)
    lost = values[np.isfinite(values)]
    if lost.size:
        raise DifferenceError(
            f"casting {source.dtype} to float16: {lost.size} finite values exceed 65504, the first is {lost[0]:g}",
            remedy="cast to bf16 or keep the source's type",
        )
