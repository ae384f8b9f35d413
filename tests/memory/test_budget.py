"""What ``--max-ram`` means, and what the container's memory cgroups leave of this host."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from streamconv.core.errors import UsageError
from streamconv.memory.budget import MIB, MemoryBudget, _walk, format_bytes, parse_budget, peak_rss_nbytes
from tests.memory.cgroup import memory_cgroup
from tests.options import given
from tests.places import ROOT

pytestmark = pytest.mark.disk

UNLIMITED_V1 = 9223372036854771712
V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
V2 = ("memory.max", "memory.current", "inactive_file")

# -- words -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("32G", 32 * 2**30),
        ("32GiB", 32 * 2**30),
        ("32GB", 32 * 10**9),
        ("1.5G", 3 * 2**29),
        ("512M", 2**29),
        ("512MiB", 2**29),
        ("512MB", 512 * 10**6),
        ("64K", 2**16),
        ("64KiB", 2**16),
        ("64KB", 64_000),
        ("2T", 2**41),
        ("2TiB", 2**41),
        ("2TB", 2 * 10**12),
        ("1000", 1000),
        ("1000B", 1000),
    ],
)
def test_a_size_is_read_to_the_byte(text: str, nbytes: int) -> None:
    for word in (text, text.lower(), text.upper(), f"  {text} "):
        assert parse_budget(word).nbytes == nbytes


def test_a_space_may_stand_before_the_unit() -> None:
    assert parse_budget("32 GiB").nbytes == 32 * 2**30


def test_a_budget_says_where_it_comes_from() -> None:
    assert str(parse_budget("32G")) == "32.00 GiB (--max-ram 32G)"
    assert parse_budget("auto").source == "auto: half of what is available"
    assert str(MemoryBudget(1536, "a test")) == "1.50 KiB (a test)"


@pytest.mark.parametrize(
    "text", ["", " ", "lots", "-1G", "0", "0G", "0%", "0.1", "101%", "100.5%", "5X", "G", "1e3", "1G2"]
)
def test_what_is_no_size_is_refused_by_its_words(text: str) -> None:
    with pytest.raises(UsageError, match=re.escape(f"max_ram={text!r}: ")):
        given(max_ram=text)


def test_a_percentage_is_of_the_limit_of_this_host() -> None:
    whole = parse_budget("100%").nbytes
    assert 0 < whole <= psutil.virtual_memory().total
    assert parse_budget("50%").nbytes == whole // 2
    assert parse_budget("12.5%").nbytes == whole // 8


@pytest.mark.parametrize("word", ["auto", "AUTO", " Auto "])
def test_auto_is_at_most_half_of_the_limit(word: str) -> None:
    assert 0 < parse_budget(word).nbytes <= parse_budget("50%").nbytes


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.00 KiB"),
        (1610612736, "1.50 GiB"),
        (5 * MIB, "5.00 MiB"),
        (2**40, "1.00 TiB"),
        (2**51, "2048.00 TiB"),
        (-3 * 2**20, "-3.00 MiB"),
    ],
)
def test_bytes_are_written_in_the_largest_unit_that_they_fill(nbytes: int, text: str) -> None:
    assert format_bytes(nbytes) == text


# -- cgroups ---------------------------------------------------------------------------------------------------------


def group(folder: Path, names: tuple[str, str, str], limit: int | str, used: int, reclaimable: int) -> None:
    """The files of one memory cgroup, as the kernel writes them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"cache 7\nrss 9\n{names[2]} {reclaimable}\nunevictable 0\n")


@pytest.mark.parametrize("names", [V1, V2], ids=["v1", "v2"])
def test_page_cache_that_the_kernel_can_drop_counts_as_free(names: tuple[str, str, str], tmp_path: Path) -> None:
    group(tmp_path / "job", names, 64 * MIB, 40 * MIB, 30 * MIB)
    assert _walk(tmp_path, "/job", *names) == [(64 * MIB, 10 * MIB)]


@pytest.mark.parametrize("names", [V1, V2], ids=["v1", "v2"])
def test_more_reclaimable_than_used_is_nothing_used(names: tuple[str, str, str], tmp_path: Path) -> None:
    group(tmp_path / "job", names, 64 * MIB, 10 * MIB, 30 * MIB)
    assert _walk(tmp_path, "/job", *names) == [(64 * MIB, 0)]


@pytest.mark.parametrize("names", [V1, V2], ids=["v1", "v2"])
def test_every_level_above_limits_too(names: tuple[str, str, str], tmp_path: Path) -> None:
    group(tmp_path, names, 256 * MIB, 100 * MIB, 0)
    group(tmp_path / "a", names, 32 * MIB, 8 * MIB, MIB)
    group(tmp_path / "a/b", names, 64 * MIB, 4 * MIB, 0)
    assert _walk(tmp_path, "/a/b", *names) == [(64 * MIB, 4 * MIB), (32 * MIB, 7 * MIB), (256 * MIB, 100 * MIB)]
    assert _walk(tmp_path, "/a", *names) == [(32 * MIB, 7 * MIB), (256 * MIB, 100 * MIB)]


@pytest.mark.parametrize("names", [V1, V2], ids=["v1", "v2"])
def test_files_above_the_root_are_never_read(names: tuple[str, str, str], tmp_path: Path) -> None:
    group(tmp_path, names, MIB, MIB, 0)
    group(tmp_path / "root/a", names, 32 * MIB, 8 * MIB, 0)
    assert _walk(tmp_path / "root", "/a", *names) == [(32 * MIB, 8 * MIB)]


@pytest.mark.parametrize("names", [V1, V2], ids=["v1", "v2"])
def test_inside_a_container_the_root_stands_for_a_path_of_the_host(names: tuple[str, str, str], tmp_path: Path) -> None:
    group(tmp_path, names, 96 * MIB, 5 * MIB, 0)
    assert _walk(tmp_path, "/docker/0123456789ab", *names) == [(96 * MIB, 5 * MIB)]


@pytest.mark.parametrize(("names", "word"), [(V1, UNLIMITED_V1), (V2, "max")], ids=["v1", "v2"])
def test_no_limit_is_no_level(names: tuple[str, str, str], word: int | str, tmp_path: Path) -> None:
    group(tmp_path, names, word, 5 * MIB, 0)
    group(tmp_path / "a", names, 32 * MIB, 8 * MIB, 0)
    group(tmp_path / "a/b", names, word, 8 * MIB, 0)
    assert _walk(tmp_path, "/a/b", *names) == [(32 * MIB, 8 * MIB)]
    assert _walk(tmp_path, "/", *names) == []


def test_a_limit_above_the_memory_of_the_host_is_none(tmp_path: Path) -> None:
    group(tmp_path, V2, psutil.virtual_memory().total + 1, 0, 0)
    assert _walk(tmp_path, "/", *V2) == []


def test_the_root_of_v2_has_no_files_and_limits_nothing(tmp_path: Path) -> None:
    assert _walk(tmp_path, "/", *V2) == []
    group(tmp_path / "a", V2, 32 * MIB, 8 * MIB, 0)
    (tmp_path / "a/memory.stat").unlink()
    assert _walk(tmp_path, "/a", *V2) == [(32 * MIB, 8 * MIB)]


# -- this process ----------------------------------------------------------------------------------------------------


def run(code: str, *before: str) -> list[int]:
    """The numbers that a fresh interpreter prints."""
    done = subprocess.run([*before, sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return [int(word) for word in done.stdout.split()]


def test_the_peak_grows_by_what_is_touched_and_stays_when_it_is_freed() -> None:
    before, during, after = run(
        "from streamconv.memory.budget import peak_rss_nbytes as peak\n"
        "print(peak())\n"
        "held = bytearray(b'x') * (64 << 20)\n"
        "print(peak())\n"
        "del held\n"
        "print(peak())\n"
    )
    assert 63 * MIB <= during - before <= 80 * MIB
    assert after >= during - MIB  # the kernel counts pages in batches
    assert peak_rss_nbytes() >= psutil.Process().memory_info().rss // 2


def test_in_a_cgroup_the_budget_is_of_the_cgroup() -> None:
    with memory_cgroup(256 * MIB) as cgroup:
        auto, half, whole = run(
            "from streamconv.memory.budget import parse_budget\n"
            "for word in ('auto', '50%', '100%'):\n"
            "    print(parse_budget(word).nbytes)\n",
            *cgroup.words([]),
        )
    assert 0 < auto <= 128 * MIB
    assert half == 128 * MIB
    assert whole == 256 * MIB
