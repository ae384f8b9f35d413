"""Parts of lazy tensors: each element once, each inside its buffer, and the bytes that the tensor itself gives."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamconv.core.dtypes import DTYPES
from streamconv.core.errors import DamagedError, StorageError
from streamconv.core.lazy import LazyTensor, concat, mean, share, total
from streamconv.io.checksums import SourceChecksums
from streamconv.values.reader import TensorReader, parts
from tests.stored import counted, stored

pytestmark = pytest.mark.disk

relaxed = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def assert_covered(tensors: list[LazyTensor], nbytes: int, io: str = "pread") -> None:
    """The parts of the tensors, read, are the tensors, and each element is in one part."""
    seen = np.zeros(tensors[0].shape, np.int64)
    whole = [np.empty(tensor.shape, tensor.dtype.numpy) for tensor in tensors]
    with closing(TensorReader(io, nbytes)) as reader:
        for start, boxes in parts(tensors, nbytes):
            place = tuple(slice(a, a + n) for a, n in zip(start, boxes[0].shape, strict=True))
            seen[place] += 1
            for array, box in zip(whole, boxes, strict=True):
                assert box.shape == boxes[0].shape
                found = reader.read(box)
                assert found.shape == box.shape
                array[place] = found
    assert (seen == 1).all()
    for array, tensor in zip(whole, tensors, strict=True):
        assert np.array_equal(array, tensor.numpy())


def grown(data: st.DataObject, base: list[LazyTensor]) -> LazyTensor:
    """A random tensor of two axes made of stored views: of slices, of other orders of axes, side by side."""
    tensor = data.draw(st.sampled_from(base))
    for _ in range(data.draw(st.integers(0, 5))):
        dim = data.draw(st.integers(0, 1))
        kind = data.draw(st.sampled_from(["cut", "turn", "beside", "join", "repeat"]))
        size = tensor.shape[dim]
        if kind == "cut" and size > 1:
            low = data.draw(st.integers(0, size - 1))
            tensor = tensor.slice(dim, low, data.draw(st.integers(low + 1, size)))
        elif kind == "turn":
            tensor = tensor.permute(1, 0)
        elif kind == "beside" and tensor.numel < 2000:
            other = data.draw(st.sampled_from(base))
            fits = other.shape[1 - dim] == tensor.shape[1 - dim]
            tensor = concat([tensor, other if fits else tensor], dim)
        elif kind == "join":
            tensor = tensor.coalesced()
        elif kind == "repeat" and tensor.numel < 500:
            tensor = tensor.repeat_row(0, data.draw(st.integers(1, 4)))
    return tensor


@relaxed
@given(data=st.data())
def test_parts_of_any_tensor_are_the_tensor(data: st.DataObject, tmp_path: Path) -> None:
    dtype = data.draw(st.sampled_from([torch.float32, torch.int64, torch.uint8]))
    rows, columns = data.draw(st.tuples(st.integers(1, 30), st.integers(1, 30)))
    first, second = counted(rows, columns, dtype=dtype), counted(columns, rows, dtype=dtype)
    base = stored(tmp_path / "t.pt", first, second.t(), counted(2 * rows, columns, dtype=dtype)[::2])
    tensor = grown(data, base)
    nbytes = data.draw(st.sampled_from([8, 16, 40, 100, 1000, 1 << 20]))
    assert_covered([tensor], nbytes, data.draw(st.sampled_from(["pread", "direct"])))


@pytest.mark.slow
@relaxed
@given(data=st.data())
def test_two_tensors_of_other_layouts_are_cut_alike(data: st.DataObject, tmp_path: Path) -> None:
    rows, columns = data.draw(st.tuples(st.integers(1, 25), st.integers(1, 25)))
    whole = counted(rows, columns)
    cut = data.draw(st.integers(0, columns))
    one, turned, left, right = stored(
        tmp_path / "t.pt", whole, whole.t().contiguous(), whole[:, :cut].clone(), whole[:, cut:].clone()
    )
    tensors = [one, turned.permute(1, 0), concat([left, right], 1)]
    assert_covered(tensors, data.draw(st.sampled_from([8, 64, 500, 1 << 16])))


@relaxed
@given(data=st.data())
def test_zeros_that_are_stored_nowhere_are_read_beside_what_is(data: st.DataObject, tmp_path: Path) -> None:
    rows, columns = data.draw(st.tuples(st.integers(1, 6), st.integers(1, 12)))
    (base,) = stored(tmp_path / "t.pt", counted(rows, columns, dtype=torch.bfloat16, start=1))
    dim = data.draw(st.integers(0, 1))
    shape = (data.draw(st.integers(1, 40)), columns) if dim == 0 else (rows, data.draw(st.integers(1, 40)))
    nothing = LazyTensor.zeros(shape, base.dtype)
    tensor = data.draw(st.sampled_from([nothing, concat([base, nothing], dim), concat([nothing, base], dim)]))
    assert_covered([tensor], data.draw(st.sampled_from([8, 64, 500])))


def test_zeros_need_no_file() -> None:
    assert_covered([LazyTensor.zeros((3000,), DTYPES["float16"])], 512)
    assert_covered([LazyTensor.zeros((), DTYPES["float16"])], 8)


@relaxed
@given(data=st.data())
def test_what_is_computed_is_read_so(data: st.DataObject, tmp_path: Path) -> None:
    shape = data.draw(st.tuples(st.integers(1, 12), st.integers(1, 12)))
    copies = [torch.randn(shape, dtype=torch.float64) for _ in range(data.draw(st.integers(1, 3)))]
    tensors = stored(tmp_path / "t.pt", *copies)
    tensor = data.draw(st.sampled_from([mean(tensors), total(tensors), share(tensors[0], 3)]))
    assert_covered([tensor], data.draw(st.sampled_from([8, 64, 4096])))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.bool, torch.float8_e5m2, torch.int16])
def test_each_type_comes_as_it_is_stored(dtype: torch.dtype, tmp_path: Path) -> None:
    tensors = stored(tmp_path / "t.pt", counted(7, 9).to(dtype), counted(9, 7).to(dtype).t())
    for tensor in tensors:
        assert_covered([tensor], 16)


@pytest.mark.parametrize("shape", [(1, 5000), (5000, 1), (3, 1, 4000), (5000,)])
def test_an_expanded_tensor_larger_than_the_buffer_ends(shape: tuple[int, ...], tmp_path: Path) -> None:
    (tensor,) = stored(tmp_path / "t.pt", torch.tensor([2.5]).expand(shape))
    assert_covered([tensor], 256)


def test_scalars_and_empty_tensors(tmp_path: Path) -> None:
    scalar, empty = stored(tmp_path / "t.pt", torch.tensor(3.5), torch.empty(4, 0))
    assert_covered([scalar], 8)
    assert list(parts([empty], 8)) == []


def test_a_long_stride_is_cut_to_the_stretch_that_fits(tmp_path: Path) -> None:
    (tensor,) = stored(tmp_path / "t.pt", counted(400, 300)[:, 7])
    boxes = [box for _, (box,) in parts([tensor], 4096)]
    assert len(boxes) > 1
    assert all(piece.views[0].span(piece.shape)[1] <= 4096 for box in boxes for piece in box.pieces)
    assert_covered([tensor], 4096)


def test_a_changed_byte_is_refused_where_checksums_are_asked_for(tmp_path: Path) -> None:
    (tensor,) = stored(tmp_path / "t.pt", counted(100, 10))
    path, storage = tmp_path / "t.pt", tensor.pieces[0].views[0].storage
    data = bytearray(path.read_bytes())
    data[storage.offset + 5] ^= 1
    path.write_bytes(data)
    with closing(TensorReader("pread", 1 << 16, SourceChecksums())) as reader, pytest.raises(DamagedError, match="CRC"):
        reader.read(tensor)


def test_a_file_that_has_become_shorter_is_refused(tmp_path: Path) -> None:
    (tensor,) = stored(tmp_path / "t.pt", counted(1000, 10))
    data = (tmp_path / "t.pt").read_bytes()
    (tmp_path / "t.pt").write_bytes(data[:5000])
    with closing(TensorReader("pread", 1 << 16)) as reader, pytest.raises(StorageError, match="were when"):
        reader.read(tensor)


def test_what_is_stored_in_several_types_is_read_in_double_precision(tmp_path: Path) -> None:
    wide, narrow = torch.full((3, 4), 1 + 2**-20), counted(2, 4, dtype=torch.bfloat16)
    joined = concat(stored(tmp_path / "f.pt", wide, narrow), 0, DTYPES["bfloat16"])
    with closing(TensorReader("pread", 1 << 16)) as reader:
        found = reader.read(joined)
    assert found.dtype == np.float64
    assert np.array_equal(found, torch.cat([wide.double(), narrow.double()]).numpy())
