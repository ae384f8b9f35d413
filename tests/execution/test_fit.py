"""Blocks, threads and buffers fit the budget, and the number that a refusal says is one that works."""

from __future__ import annotations

import json
import os
import re
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from streamconv import convert, plan
from streamconv.containers.torch_save.zip_writer import TorchLayout
from streamconv.core.errors import MemoryBudgetError, UsageError
from streamconv.execution.fit import Fit, _needed_nbytes, check_budget, settings_for
from streamconv.execution.options import RunOptions
from streamconv.io.direct import PAGE
from streamconv.io.source import IO_MODES
from streamconv.memory.budget import MIB
from streamconv.memory.fit import largest_block
from streamconv.models.parameter import ParameterId, Section
from streamconv.moves.tiles import buffer_nbytes
from streamconv.planning.plan import OutputTensor, Plan
from tests import hf_models
from tests.options import given
from tests.places import REAL
from tests.processes import STREAMCONV, start
from tests.stored import stored

pytestmark = pytest.mark.disk

MOST_THREADS = 16 * (os.cpu_count() or 1)


@pytest.fixture(scope="module")
def work() -> Plan:
    return plan(REAL[1].folder, to="megatron-legacy")


def wide(work: Plan, path: Path, columns: int, dtype: torch.dtype = torch.float32) -> Plan:
    """A plan whose one matrix is split on its columns, so that it is moved row by row."""
    (tensor,) = stored(path, torch.zeros(1, dtype=dtype).expand(40, columns).contiguous())
    first, second = tensor.slice(1, 0, columns // 2), tensor.slice(1, columns // 2, columns)
    files = []
    for file, half in zip(work.files, (first, second), strict=False):
        assert isinstance(file.layout, TorchLayout)
        layout = replace(file.layout, storages=((4096, half.nbytes),))
        column_half = OutputTensor(("matrix",), ParameterId(Section.LAYER, 0, "matrix"), half)
        files.append(replace(file, entries=(column_half,), layout=layout))
    return replace(work, files=tuple(files))


def refusal(work: Plan, choices: dict[str, Any], error: type[Exception]) -> str:
    with pytest.raises(error) as caught:
        check_budget(work, RunOptions(**choices))
    return str(caught.value)


def said(text: str, flag: str) -> str:
    found = re.search(rf"say {flag} (\d+[KM]) or more", text)
    assert found, text
    return found[1]


def a_little_more(size: str) -> str:
    """A mebibyte more: between two calls this process itself may have grown by some pages."""
    return f"{int(size[:-1]) + 1}{size[-1]}"


def fits(fit: Fit) -> bool:
    """Whether all buffers, and as much again, are inside the budget."""
    return fit.spare >= 0 and buffer_nbytes(fit.block, fit.threads) <= fit.budget.nbytes


# -- what fits ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("jobs", [None, 1, 2, 3, 8])
def test_buffers_fit_every_budget_from_the_floor_on(jobs: int | None, work: Plan) -> None:
    floor = int(said(refusal(work, {"max_ram": "1M", "jobs": jobs}, MemoryBudgetError), "--max-ram")[:-1])
    blocks = []
    for more in (*range(1, 40), 60, 100, 200, 500, 1000, 4000, 100_000):
        choices: dict[str, Any] = {"max_ram": f"{floor + more}M", "jobs": jobs}
        if jobs is not None and buffer_nbytes(64 << 10, jobs) > more * MIB // 4:
            continue  # so many threads may not fit
        fit = check_budget(work, RunOptions(**choices))
        assert fits(fit)
        assert fit.threads == (jobs or fit.threads)
        assert fit.block % PAGE == 0
        assert fit.block >= max(work.smallest_block, 64 << 10)
        assert 256 << 10 <= fit.window <= 16 * MIB
        blocks.append(fit.block * fit.threads)
    assert blocks[-1] == max(blocks)
    assert len(blocks) > 5


@pytest.mark.parametrize(
    ("free", "blocks"),
    [
        (1 * MIB, [90_112, 65_536, 65_536]),
        (16 * MIB, [2_060_288, 1_007_616, 483_328]),
        (100 * MIB, [13_115_392, 6_537_216, 3_248_128]),
        (123_456_789, [15_450_112, 7_704_576, 3_829_760]),
        (255 * MIB, [16_777_216, 16_732_160, 8_343_552]),
        (500 * MIB, [16_777_216, 16_777_216, 16_404_480]),
        (1000 * MIB, [16_777_216, 16_777_216, 16_777_216]),
    ],
)
def test_the_block_for_one_two_and_four_threads_is_this(free: int, blocks: list[int]) -> None:
    """Two fifths of what is free, in whole pages, between 64 KiB and 16 MiB."""

    def block(threads: int) -> int:
        return largest_block(free, lambda block: _needed_nbytes(block, threads), 64 << 10, 16 * MIB, PAGE)

    assert [block(threads) for threads in (1, 2, 4)] == blocks


@pytest.mark.parametrize("columns", [18_001, 40_000, 300_000])
def test_a_block_holds_a_row_of_the_widest_matrix(columns: int, work: Plan, tmp_path: Path) -> None:
    plan = wide(work, tmp_path / "wide.pt", columns)
    assert plan.smallest_block >= 4 * columns
    floor = said(refusal(plan, {"max_ram": "1M"}, MemoryBudgetError), "--max-ram")
    for more in ("0M", "3M", "50M", "3000M"):
        fit = check_budget(plan, RunOptions(max_ram=f"{int(a_little_more(floor)[:-1]) + int(more[:-1])}M"))
        assert fit.block >= plan.smallest_block
        assert fits(fit)


def test_what_is_held_besides_raises_the_floor(work: Plan) -> None:
    floors = [check_budget(work, RunOptions(max_ram="4G"), held).floor_nbytes for held in (0, 100 * MIB, 1000 * MIB)]
    assert abs(floors[1] - floors[0] - 100 * MIB) <= 2 * MIB
    assert abs(floors[2] - floors[0] - 1000 * MIB) <= 2 * MIB
    with pytest.raises(MemoryBudgetError, match="workable floor"):
        check_budget(work, RunOptions(max_ram="500M"), 1000 * MIB)


@pytest.mark.parametrize("asked", ["64K", "65K", "1M", "8M", "20MB"])
def test_a_block_that_is_asked_for_is_given_in_whole_pages(asked: str, work: Plan) -> None:
    fit = check_budget(work, RunOptions(max_ram="8G", block_size=asked, jobs=3))
    nbytes = {"64K": 65536, "65K": 65536, "1M": MIB, "8M": 8 * MIB, "20MB": 20_000_000 // PAGE * PAGE}[asked]
    assert (fit.block, fit.threads) == (nbytes, 3)
    assert (fit.settings.block, fit.settings.threads, fit.settings.io) == (nbytes, 3, "direct")


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "choices",
    [
        {},
        {"jobs": 1},
        {"jobs": 8},
        {"jobs": MOST_THREADS},
        {"block_size": "1M"},
        {"block_size": "4M"},
        {"block_size": "64M"},
        {"jobs": 1, "block_size": "4M"},
        {"jobs": 2, "block_size": "16M"},
        {"jobs": 7, "block_size": "512K"},
    ],
    ids=str,
)
def test_the_budget_that_is_said_works(choices: dict[str, Any], work: Plan) -> None:
    """From the floor on, where it is one thread that fits at first, then two."""
    floor = int(said(refusal(work, {"max_ram": "1M"}, MemoryBudgetError), "--max-ram")[:-1])
    choices = choices.copy()
    for above in (0, 200, 400, 600, 800, 1000, 1500, 4000, 12_000):
        choices["max_ram"] = f"{floor * 1024 + above}K"
        with suppress(MemoryBudgetError):
            assert fits(check_budget(work, RunOptions(**choices)))
            continue
        choices["max_ram"] = a_little_more(said(refusal(work, choices, MemoryBudgetError), "--max-ram"))
        assert fits(check_budget(work, RunOptions(**choices)))


@pytest.mark.slow
def test_the_floor_of_a_plan_that_looks_at_values_works(tmp_path: Path) -> None:
    """Biases are read to find out whether they are zero, with numpy, and what moves bytes is still to be loaded."""
    hf_models.make("llama", tmp_path / "hf", attention_bias=True)
    config = tmp_path / "hf" / "config.json"
    convert(tmp_path / "hf", tmp_path / "there", to="megatron-core", max_ram="4G")
    words = [tmp_path / "there", "--to", "huggingface", "--config", config]
    planned = json.loads(start([*STREAMCONV, "plan"], *words, "--json").stdout)
    floor = (planned["memory"]["floor_nbytes"] >> 20) + 1  # the interpreter itself varies by a page or two
    done = start([*STREAMCONV, "convert"], *words, tmp_path / "back", "--max-ram", f"{floor}M", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["peak_nbytes"] <= floor << 20


def test_the_floor_that_is_said_works(work: Plan) -> None:
    floor = said(refusal(work, {"max_ram": "1M"}, MemoryBudgetError), "--max-ram")
    assert fits(check_budget(work, RunOptions(max_ram=a_little_more(floor))))
    assert f"{int(floor[:-1])}.00 MiB" in refusal(work, {"max_ram": "2M"}, MemoryBudgetError)


def test_the_numbers_of_what_does_not_fit_are_said(work: Plan) -> None:
    text = refusal(work, {"max_ram": "1G", "block_size": "1G", "jobs": 3}, MemoryBudgetError)
    assert "1.00 GiB (--max-ram 1G)" in text
    assert "--jobs" in text
    assert "--block-size" in text
    assert int(said(text, "--max-ram")[:-1]) > 3 * 3 * 1024


@pytest.mark.parametrize("asked", ["1", "1K", "4K", "63K", "65535"])
def test_the_block_size_that_is_said_works(asked: str, work: Plan) -> None:
    text = refusal(work, {"max_ram": "4G", "block_size": asked}, UsageError)
    assert f"--block-size {asked}: a row of this model's matrices needs 65536" in text
    assert check_budget(work, RunOptions(max_ram="4G", block_size=said(text, "--block-size"))).block == 65536


@pytest.mark.parametrize("columns", [16_384, 17_408, 18_000, 18_001, 20_480, 50_001, 262_144])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_block_size_that_is_said_works_for_rows_of_any_length(
    columns: int, dtype: torch.dtype, work: Plan, tmp_path: Path
) -> None:
    plan = wide(work, tmp_path / "wide.pt", columns, dtype)
    smallest = max(plan.smallest_block, 64 << 10)
    text = refusal(plan, {"max_ram": "8G", "block_size": "16K"}, UsageError)
    assert f"needs {smallest}" in text
    fit = check_budget(plan, RunOptions(max_ram="8G", block_size=said(text, "--block-size")))
    assert smallest <= fit.block < smallest + 2 * PAGE


@pytest.mark.parametrize("size", ["", "lots", "0", "-1", "1.5M", "8X", "0K"])
def test_a_block_size_that_is_none_is_refused(size: str) -> None:
    for words in ({}, {"max_ram": "4G"}):
        with pytest.raises(UsageError, match=f"block_size={size!r}: not a size"):
            given(**words, block_size=size)


@pytest.mark.parametrize("jobs", [0, -1, MOST_THREADS + 1, 10**9])
def test_a_number_of_threads_that_makes_no_sense_is_refused(jobs: int, work: Plan) -> None:
    text = refusal(work, {"max_ram": "8G", "jobs": jobs}, UsageError)
    assert f"--jobs {jobs}: choose 1 to {MOST_THREADS} threads" in text
    with pytest.raises(UsageError, match=f"--jobs {jobs}"):
        settings_for(None, RunOptions(jobs=jobs))


@pytest.mark.parametrize("jobs", [1, MOST_THREADS])
def test_the_numbers_of_threads_that_are_said_work(jobs: int, work: Plan) -> None:
    assert check_budget(work, RunOptions(max_ram="64G", jobs=jobs)).threads == jobs
    assert settings_for(None, RunOptions(jobs=jobs)).threads == jobs


@pytest.mark.parametrize("io", ["", "telepathy"])
def test_a_mode_that_is_none_is_refused_with_those_that_are(io: str, work: Plan) -> None:
    with pytest.raises(UsageError, match=f"io={io!r}: no such choice") as caught:
        given(io=io)
    assert "direct, pread" in str(caught.value)
    for mode in IO_MODES:
        assert check_budget(work, RunOptions(io=mode, max_ram="4G")).io == mode


def test_without_a_plan_the_choices_are_taken_as_they_are(work: Plan) -> None:
    settings = settings_for(None, RunOptions(io="pread", jobs=3, block_size="1M"))
    assert (settings.block, settings.threads, settings.io) == (MIB, 3, "pread")
    assert settings_for(None, RunOptions(block_size="1")).block == PAGE
    assert (
        settings_for(work, RunOptions(max_ram="4G", jobs=1))
        == check_budget(work, RunOptions(max_ram="4G", jobs=1)).settings
    )
