"""The verbs beside one another, in threads, in a loop of asyncio and in processes; ended by their caller; their log."""

from __future__ import annotations

import asyncio
import copy
import json
import logging
import multiprocessing
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from threading import Barrier, Lock

import pytest

import streamconv
from tests.places import FRAMEWORKS, ROOT
from tests.trees import tree

SRC = FRAMEWORKS / "bs_bloom_tp2pp2_fp32_z0"
WITH_ROOT = {**os.environ, "PYTHONPATH": str(ROOT)}

# A fork of a process that has threads is what this file is about; Python 3.12 warns of it.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

Bytes = dict[str, bytes]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Bytes:
    """The bytes of a conversion that nothing disturbs."""
    folder = tmp_path_factory.mktemp("one") / "out"
    streamconv.convert(SRC, folder, tp=1, pp=3)
    return tree(folder)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Bytes:
    """The bytes of another one."""
    folder = tmp_path_factory.mktemp("other") / "out"
    streamconv.convert(SRC, folder, to="huggingface", dtype="bf16")
    return tree(folder)


# -- threads, asyncio, processes ---------------------------------------------------------------------------------------


def test_two_conversions_in_two_threads_are_both_right(tmp_path: Path, one: Bytes, other: Bytes) -> None:
    """Each waits in its first step until the other is there too, so that both are under way at once."""
    together = Barrier(2, timeout=30)

    def meet() -> Callable[[int, int], None]:
        lock, met = Lock(), False

        def step(_: int, __: int) -> None:
            nonlocal met
            with lock:
                if not met:
                    together.wait()
                met = True

        return step

    def first() -> None:
        streamconv.convert(SRC, tmp_path / "one", tp=1, pp=3, progress=meet())

    def second() -> None:
        streamconv.convert(SRC, tmp_path / "other", to="huggingface", dtype="bf16", progress=meet())

    with ThreadPoolExecutor(2) as threads:
        for done in [threads.submit(first), threads.submit(second)]:
            done.result()
    assert tree(tmp_path / "one") == one
    assert tree(tmp_path / "other") == other


def test_two_conversions_into_one_folder_are_refused(tmp_path: Path, one: Bytes) -> None:
    refusals: list[streamconv.StreamconvError] = []

    def again(_: int, __: int) -> None:
        if not refusals:
            with pytest.raises(streamconv.DestinationError) as caught:
                streamconv.convert(SRC, tmp_path / "out", tp=1, pp=3)
            refusals.append(caught.value)

    streamconv.convert(SRC, tmp_path / "out", tp=1, pp=3, jobs=1, progress=again)
    assert len(refusals) == 1
    assert tree(tmp_path / "out") == one


def test_a_loop_of_asyncio_goes_on_meanwhile(tmp_path: Path, one: Bytes, other: Bytes) -> None:
    async def both() -> tuple[streamconv.Verification, int]:
        turns = 0

        async def turn() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        turning = asyncio.create_task(turn())
        await asyncio.gather(
            asyncio.to_thread(streamconv.convert, SRC, tmp_path / "one", tp=1, pp=3),
            asyncio.to_thread(streamconv.convert, SRC, tmp_path / "other", to="huggingface", dtype="bf16"),
        )
        found = await asyncio.to_thread(streamconv.verify, tmp_path / "one", against=SRC)
        turning.cancel()
        return found, turns

    found, turns = asyncio.run(both())
    assert found.exit_code == 0
    assert found.comparison is not None
    assert found.comparison.is_faithful
    assert turns > 10
    assert tree(tmp_path / "one") == one
    assert tree(tmp_path / "other") == other


@pytest.mark.slow
def test_a_result_shows_itself_where_it_is_unpickled(tmp_path: Path) -> None:
    """A new interpreter has nothing but the pickles."""
    out = tmp_path / "out"
    results = [streamconv.convert(SRC, out), streamconv.plan(SRC), streamconv.inspect(out), streamconv.diff(SRC, out)]
    results += [streamconv.verify(out, SRC), streamconv.bench(tmp_path, SRC, size="1M"), streamconv.families()]
    shown = []
    for number, result in enumerate(results):
        (tmp_path / f"{number}.pickle").write_bytes(pickle.dumps(result))
        shown.append([repr(result), str(result), json.loads(json.dumps(result.to_dict())), result._repr_html_()])
        assert copy.copy(result) == copy.deepcopy(result) == result
    script = (
        "import json, pickle\n"
        f"for number in range({len(results)}):\n"
        "    result = pickle.load(open(f'{number}.pickle', 'rb'))\n"
        "    print(json.dumps([repr(result), str(result), result.to_dict(), result._repr_html_()]))\n"
    )
    words = [sys.executable, "-c", script]
    done = subprocess.run(words, cwd=tmp_path, env=WITH_ROOT, capture_output=True, text=True, check=True)
    assert [json.loads(line) for line in done.stdout.splitlines()] == shown


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_child_process_converts_and_hands_its_results_back(method: str, tmp_path: Path, one: Bytes) -> None:
    """The parent has run threads before (in the fixture). Results and errors come back as they are."""
    with ProcessPoolExecutor(1, multiprocessing.get_context(method)) as child:
        report = child.submit(streamconv.convert, SRC, tmp_path / "out", tp=1, pp=3).result(timeout=60)
        inspected = child.submit(streamconv.inspect, tmp_path / "out").result(timeout=60)
        refused = child.submit(streamconv.convert, SRC, tmp_path / "out").exception(timeout=60)
    assert tree(tmp_path / "out") == one
    assert repr(report).startswith("<ConversionReport: megatron-legacy, ")
    assert report.to_dict()["destination"] == str(tmp_path / "out")
    assert str(inspected) == str(streamconv.inspect(tmp_path / "out"))
    assert isinstance(refused, streamconv.DestinationError)
    assert refused.where == str(tmp_path / "out")
    assert "overwrite=True" in str(refused)


# -- ended by the caller -----------------------------------------------------------------------------------------------


class Enough(Exception):  # noqa: N818 - a caller's own
    """What a caller raises."""


@pytest.mark.parametrize("engine", ["threads", "serial"])
@pytest.mark.parametrize("kind", [Enough, KeyboardInterrupt, SystemExit])
def test_what_a_callback_raises_ends_the_run_and_the_next_goes_on(
    kind: type[BaseException], engine: str, tmp_path: Path, one: Bytes
) -> None:
    out = tmp_path / "out"
    raised = kind("enough")

    def stop(done: int, total: int) -> None:
        if done > total / 2:
            raise raised

    with pytest.raises(kind) as caught:
        streamconv.convert(SRC, out, tp=1, pp=3, engine=engine, progress=stop)
    assert caught.value is raised
    assert [path.name for path in out.iterdir()] == [".streamconv"]
    with pytest.raises(streamconv.StreamconvError, match="another") as refused:
        streamconv.convert(SRC, out, tp=2, engine=engine)
    assert "restart=True" in str(refused.value)
    report = streamconv.convert(SRC, out, tp=1, pp=3, engine=engine)
    assert 0 < report.resumed_nbytes < report.write_nbytes
    assert tree(out) == one


def test_what_a_callback_raises_at_once_leaves_nothing_published(tmp_path: Path, one: Bytes) -> None:
    def stop(_: int, __: int) -> None:
        raise Enough

    for _ in range(2):
        with pytest.raises(Enough):
            streamconv.convert(SRC, tmp_path / "out", tp=1, pp=3, progress=stop)
        assert [path.name for path in (tmp_path / "out").iterdir()] == [".streamconv"]
    streamconv.convert(SRC, tmp_path / "out", tp=1, pp=3)
    assert tree(tmp_path / "out") == one


@pytest.mark.parametrize(
    "call",
    [
        lambda out, stop: streamconv.inspect(out, stats=True, progress=stop),
        lambda out, stop: streamconv.inspect(out, check=True, progress=stop),
        lambda out, stop: streamconv.verify(out, SRC, progress=stop),
        lambda _, stop: streamconv.digest(SRC, progress=stop),
        lambda out, stop: streamconv.diff(SRC, out, progress=stop),
        lambda out, stop: streamconv.convert(SRC, None, progress=stop),
    ],
    ids=["inspect, stats", "inspect, check", "verify", "digest", "diff", "convert to nowhere"],
)
@pytest.mark.parametrize("kind", [Enough, KeyboardInterrupt])
def test_what_a_callback_raises_ends_every_verb(
    kind: type[BaseException], call: Callable[[Path, Callable[[int, int], None]], object], tmp_path: Path
) -> None:
    streamconv.convert(SRC, tmp_path / "out", tp=1, pp=3)
    seen: list[tuple[int, int]] = []

    def stop(done: int, total: int) -> None:
        raise kind

    with pytest.raises(kind):
        call(tmp_path / "out", stop)
    call(tmp_path / "out", lambda *both: seen.append(both))
    assert max(done for done, _ in seen) == seen[-1][1] > 0


def test_a_stream_that_is_left_early_ends_and_another_begins_anew() -> None:
    names = [tensor.name for tensor in streamconv.stream(SRC, tp=1, framework="np")]
    for _ in range(3):
        stream = streamconv.stream(SRC, tp=1, framework="np")
        assert next(stream).name == names[0]
        del stream
    together = zip(*(streamconv.stream(SRC, tp=1, framework="np") for _ in range(2)), strict=True)
    assert [a.name for a, b in together if a.name == b.name and (a.tensor == b.tensor).all()] == names


# -- the log -----------------------------------------------------------------------------------------------------------


def test_the_log_has_what_was_planned_and_converted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="streamconv"):
        plan = streamconv.plan(SRC)
        assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
            ("INFO", f"planned {plan!r}"),
            *(("WARNING", f"{SRC}: {warning}") for warning in plan.warnings),
        ]
        assert plan.warnings
        caplog.clear()
        report = streamconv.convert(SRC, tmp_path / "out")
    assert {record.name for record in caplog.records} == {"streamconv"}
    messages = [record.getMessage() for record in caplog.records]
    assert messages[0] == f"planned {report.plan!r}"
    assert messages[-1] == f"converted {report!r}"


def test_the_warnings_of_a_plan_are_warnings_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="streamconv"):
        plan = streamconv.plan(SRC)
    assert [record.getMessage() for record in caplog.records] == [f"{SRC}: {warning}" for warning in plan.warnings]


@pytest.mark.slow
def test_nobody_who_does_not_listen_hears_anything(tmp_path: Path) -> None:
    """Neither a log that is not configured, nor a warning of Python's, nor a bar writes on stdout or stderr. And what
    is inside a result shows itself as results do.
    """
    script = (
        "import json, sys, streamconv\n"
        f"src, out = {str(SRC)!r}, {str(tmp_path / 'out')!r}\n"
        "warnings = streamconv.plan(src).warnings\n"
        "streamconv.convert(src, out)\n"
        "found = streamconv.verify(out, src)\n"
        "lines = [repr(found.report), repr(found.comparison)]\n"
        "streamconv.inspect(out, stats=True), streamconv.diff(src, out)\n"
        "print(json.dumps([len(warnings), *lines]))\n"
    )
    words = [sys.executable, "-W", "always", "-c", script]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    count, inspected, compared = json.loads(done.stdout)
    assert count > 0
    assert inspected.startswith("<InspectionReport: Megatron-LM, legacy, ")
    assert compared.startswith("<Comparison: the parameters are equal, ")
