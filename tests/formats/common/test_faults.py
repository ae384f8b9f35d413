"""A fault stops a strict reader at once; a tolerant one keeps it and goes on."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import pytest

from streamconv.containers.torch_save.open import open_torch
from streamconv.core.errors import DamagedError, StreamconvError, UnsupportedError
from streamconv.formats.common.faults import Collected, Faults, listed

FAULT = DamagedError("a file is missing", where="here")


def test_a_strict_reader_stops_at_the_first_fault(tmp_path: Path) -> None:
    with pytest.raises(DamagedError, match="a file is missing"):
        Faults().note(FAULT)
    (tmp_path / "x.pt").write_bytes(b"no torch file")
    with pytest.raises(UnsupportedError):
        Faults().opened(tmp_path / "x.pt", open_torch)


def test_a_tolerant_reader_keeps_each_fault(tmp_path: Path) -> None:
    faults = Collected()
    assert not faults
    (tmp_path / "x.pt").write_bytes(b"no torch file")
    assert faults.opened(tmp_path / "x.pt", open_torch) is None
    faults.note(FAULT)
    assert faults
    assert faults.found == [FAULT]
    assert list(faults.unopened) == [tmp_path / "x.pt"]
    assert faults.knows(DamagedError("a file is missing", where="here"))
    assert not faults.knows(DamagedError("a file is missing", where="elsewhere"))
    assert faults.knows(_error(tmp_path / "x.pt"))


def _error(path: Path) -> StreamconvError:
    with pytest.raises(StreamconvError) as caught:
        open_torch(path)
    return caught.value


def test_of_many_the_first_four_are_listed() -> None:
    assert listed("abc", 3) == "a, b, c"
    assert listed("abcd", 4) == "a, b, c, d"
    assert listed(count(), 10**12) == "0, 1, 2, 3 and 999999999996 more"
