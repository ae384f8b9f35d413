"""Where tests put their files, and how many cases of each sweep they take."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.spread import CASES, Sweep

MEMORY = Path("/dev/shm")  # noqa: S108 - a file system in memory, where there is one
MEMORY_NEEDED = 4 << 30


def pytest_addoption(parser: pytest.Parser) -> None:
    words = "of many like cases take all, a spread sample of each sweep, or a few of every table of cases"
    parser.addoption("--cases", choices=CASES, default="spread", help=words)


def pytest_configure() -> None:
    """Temporary folders are in memory where there is room: making a file durable takes 10 ms on a disk, and a
    conversion does it for every file.
    """
    if MEMORY.is_dir() and shutil.disk_usage(MEMORY).free >= MEMORY_NEEDED:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the cases that :class:`Sweep` leaves out of those that were asked for by name or by mark.

    A test's cases are what it is parametrised with.
    """
    tables: dict[str, list[pytest.Item]] = {}
    steps: dict[str, int] = {}
    for item in items:
        name = item.nodeid.partition("[")[0]
        tables.setdefault(name, []).append(item)
        for mark in item.iter_markers("sweep"):
            steps[name] = mark.args[0]
    chosen = set(Sweep(config.getoption("cases")).of_tables(tables, steps))
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = [item for item in items if item in chosen]


@pytest.fixture(scope="session")
def sweep(pytestconfig: pytest.Config) -> Sweep:
    """For a test that goes through its cases in a loop of its own."""
    return Sweep(pytestconfig.getoption("cases"))


@pytest.fixture(scope="session")
def disk() -> Iterator[Path]:
    """A folder where the system keeps temporary files, for what only a disk can show."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name).resolve()


@pytest.fixture
def tmp_path(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """pytest's own; for a test that is marked `disk`, a folder in :func:`disk`."""
    if request.node.get_closest_marker("disk") is None:
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=request.getfixturevalue("disk")) as name:
        yield Path(name)
