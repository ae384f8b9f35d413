"""What tests of execution share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.conftest import MEMORY


@pytest.fixture
def fast(tmp_path: Path) -> Iterator[Path]:
    """A folder where it costs little to make things durable: a kill, unlike a power cut, needs no disk."""
    with TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else tmp_path) as name:
        yield Path(name)
