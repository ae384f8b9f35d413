"""What was noted comes back, what was being noted counts for nothing, and another run's journal is refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamconv import convert, plan
from streamconv.core.errors import DamagedError, DestinationError
from streamconv.execution.identity import identity_of, refuse_another
from streamconv.execution.journal import Journal
from streamconv.execution.tile_log import TileDone, TileLog
from streamconv.io.checksums import crc32
from streamconv.moves.jobs import RunJob
from streamconv.planning.plan import Plan
from tests.places import REAL, ROOT

SOURCE = REAL[1].folder
IDENTITY = {"journal": 1, "choices": {}, "sources": {}, "digest": "of these tests"}


@pytest.fixture(scope="module")
def work() -> Plan:
    return plan(SOURCE, to="megatron-legacy")


def tile(work: Plan, job: int, first: int = 0, last: int = 1) -> TileDone:
    """A tile with checksums that are those of nothing; it must not be the whole of a storage."""
    made = work.jobs[job].tile(first, last)
    reads = tuple(100 * job + number for number in range(len(made.reads)))
    return TileDone(job, first, last, reads, tuple(5000 + 100 * job + n for n in range(len(made.writes))))


def batches(work: Plan) -> list[list[TileDone]]:
    """What three commits note."""
    return [[tile(work, 0), tile(work, 3)], [tile(work, 1, 2, 5)], [tile(work, 2), tile(work, 4, 1, 3), tile(work, 5)]]


def write_journal(path: Path, *noted: list[TileDone]) -> bytes:
    journal = Journal(path)
    with closing(journal):
        journal.begin(IDENTITY)
        for done in noted:
            journal.add(done)
    return path.read_bytes()


def resumed(path: Path, work: Plan) -> list[tuple[int, int, int]]:
    """What remains to be done after what a journal says is done."""
    log, journal = TileLog(work.jobs), Journal(path)
    try:
        for done in journal.tiles():
            log.enter(done)
    except ValueError as error:
        raise journal.unfit(error) from error
    return list(log.remaining())


def remaining_after(work: Plan, *noted: list[TileDone]) -> list[tuple[int, int, int]]:
    log = TileLog(work.jobs)
    for done in noted:
        for entry in done:
            log.enter(entry)
    return list(log.remaining())


def values(path: Path) -> list[Any]:
    return list(Journal(path).read())


def plain(*noted: list[TileDone]) -> list[Any]:
    return [json.loads(json.dumps(done)) for done in noted]


def line(value: Any) -> bytes:
    """A whole line, as hostile as its value."""
    text = value if isinstance(value, bytes) else json.dumps(value, separators=(",", ":")).encode()
    return b"%s %08x\n" % (text, crc32(text))


def test_what_is_added_comes_back(work: Plan, tmp_path: Path) -> None:
    noted = batches(work)
    write_journal(tmp_path / "journal", *noted)
    assert values(tmp_path / "journal") == [IDENTITY, *plain(*noted)]
    assert resumed(tmp_path / "journal", work) == remaining_after(work, *noted)


def test_a_journal_that_is_begun_anew_forgets_the_old_one(work: Plan, tmp_path: Path) -> None:
    write_journal(tmp_path / "journal", *batches(work))
    write_journal(tmp_path / "journal")
    assert values(tmp_path / "journal") == [IDENTITY]


def test_a_last_line_cut_anywhere_counts_for_nothing_and_all_before_it_counts(work: Plan, tmp_path: Path) -> None:
    path, noted = tmp_path / "journal", batches(work)
    shorter = len(write_journal(path, *noted[:2]))
    data = write_journal(path, *noted)
    for cut in range(shorter, len(data)):
        path.write_bytes(data[:cut])
        assert values(path) == [IDENTITY, *plain(*noted[:2])]
        assert resumed(path, work) == remaining_after(work, *noted[:2])


def test_a_first_line_cut_anywhere_is_no_journal(tmp_path: Path) -> None:
    data = write_journal(tmp_path / "journal")
    for cut in range(len(data)):
        (tmp_path / "journal").write_bytes(data[:cut])
        assert values(tmp_path / "journal") == []


@pytest.mark.parametrize("flip", [0x01, 0x20, 0x80, 0xFF, "newline"])
@pytest.mark.parametrize("number", [1, 2])
def test_a_flipped_byte_anywhere_in_a_line_ends_the_journal_there(
    number: int, flip: int | str, work: Plan, tmp_path: Path
) -> None:
    path, noted = tmp_path / "journal", batches(work)
    start = len(write_journal(path, *noted[: number - 1]))
    stop = len(write_journal(path, *noted[:number]))
    data = write_journal(path, *noted)
    for place in range(start, stop):
        wrong = ord("\n") if isinstance(flip, str) else data[place] ^ flip
        if wrong == data[place]:
            continue
        path.write_bytes(data[:place] + bytes([wrong]) + data[place + 1 :])
        assert values(path) == [IDENTITY, *plain(*noted[: number - 1])]
        assert resumed(path, work) == remaining_after(work, *noted[: number - 1])


# -- which run it is of ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_same_run_is_the_same_in_every_process(work: Plan) -> None:
    program = (
        "import json, sys\nfrom streamconv import plan\nfrom streamconv.execution.identity import identity_of\n"
        "print(json.dumps(identity_of(plan(sys.argv[1]))))"
    )
    for seed in ("0", "77"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        words = [sys.executable, "-c", program, str(SOURCE)]
        done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
        noted = json.loads(done.stdout)
        refuse_another(noted, identity_of(work), Path("out"))
        assert noted == json.loads(json.dumps(identity_of(work)))


@pytest.mark.parametrize(
    ("choices", "says"),
    [
        ({"tp": 1}, r"another layout: TP 1 .*, not TP 2"),
        ({"pp": 1}, r"another layout: "),
        ({"pp_layers": (1, 3)}, r"another layout: .*, not "),
        ({"dtype": "bf16"}, r"another dtype: .*, not as stored"),
        ({"replicated": "mean"}, r"another replicated: mean, not first"),
        ({"for_release": True}, r"with other options"),
        ({"keep_args": False}, r"with other options"),
        ({"iteration": 4}, r"with other options"),
        ({"dialect": "2023-09"}, r"with other options"),
    ],
)
def test_a_run_with_other_choices_is_refused_and_says_which(choices: Any, says: str, work: Plan) -> None:
    noted = json.loads(json.dumps(identity_of(plan(SOURCE, **choices, to="megatron-legacy"))))
    with pytest.raises(DestinationError, match=says) as caught:
        refuse_another(noted, identity_of(work), Path("the destination"))
    assert "the destination" in str(caught.value)
    assert "--restart" in str(caught.value)
    refuse_another(noted, identity_of(plan(SOURCE, **choices, to="megatron-legacy")), Path("the destination"))


def test_another_source_and_another_digest_are_refused(work: Plan, tmp_path: Path) -> None:
    with pytest.raises(DestinationError, match=r"of another source, or its source has changed since: "):
        refuse_another(identity_of(work) | {"sources": {}}, identity_of(work), tmp_path)
    with pytest.raises(DestinationError, match="with other options"):
        refuse_another(identity_of(work) | {"digest": "0"}, identity_of(work), tmp_path)


@pytest.mark.parametrize("version", [0, 1, "2", None])
def test_a_journal_of_another_version_is_refused(version: Any, work: Plan) -> None:
    with pytest.raises(DestinationError, match="of another version"):
        refuse_another(identity_of(work) | {"journal": version}, identity_of(work), Path("out"))


@pytest.fixture
def copy(tmp_path: Path) -> tuple[Path, Path]:
    """A copy of the source, and one of its files."""
    root = Path(shutil.copytree(SOURCE, tmp_path / "copy"))
    return root, root / "global_step3" / "layer_03-model_01-model_states.pt"


def change(path: Path, what: str) -> None:
    before = path.stat()
    if what == "time":
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 2000))
    elif what == "size":
        with path.open("ab") as file:
            file.write(b"\0")
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    else:
        path.unlink()


@pytest.mark.parametrize("what", ["time", "size"])
def test_a_source_that_has_changed_since_is_refused_by_its_name(what: str, copy: tuple[Path, Path]) -> None:
    root, path = copy
    noted = json.loads(json.dumps(identity_of(plan(root, to="megatron-legacy"))))
    change(path, what)
    now = plan(root, to="megatron-legacy")
    with pytest.raises(DestinationError, match=f"its source has changed since: .*{path.name}") as caught:
        refuse_another(noted, identity_of(now), root)
    assert "--restart" in str(caught.value)


def test_the_same_files_by_another_path_are_the_same_source(
    copy: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    root, _ = copy
    (tmp_path / "link").symlink_to(root)
    monkeypatch.chdir(root / "global_step3")
    noted = identity_of(plan(root, to="megatron-legacy"))
    moved = Path(shutil.copytree(root, tmp_path / "mounted elsewhere"))
    for path in (tmp_path / "link", Path(".."), Path("../../copy"), root / "global_step3", moved):
        assert identity_of(plan(path, to="megatron-legacy")) == noted


def test_a_time_of_change_that_went_through_a_float_is_the_same(copy: tuple[Path, Path]) -> None:
    """As file systems in user space have it."""
    root, path = copy
    noted = identity_of(plan(root, to="megatron-legacy"))
    status = path.stat()
    assert int(status.st_mtime) == status.st_mtime_ns // 10**9
    os.utime(path, ns=(status.st_atime_ns, int(status.st_mtime * 10**9)))
    refuse_another(noted, identity_of(plan(root, to="megatron-legacy")), root)


# -- journals that do not fit ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        ([[9999, 0, 1, [1], [1]]], "there is no job 9999"),
        ([[-1, 0, 1, [1], [1]]], "the journal does not fit"),
        ([[7, 0, 1 << 40, [1], [1]]], "job 7 has no range"),
        ([[7, -1, 1, [1], [1]]], "the journal does not fit"),
        ([[7, 3, 3, [1], [1]]], "job 7 has no range 3 to 3"),
        ([[7, 0, 5, [1], [1]], [7, 4, 8, [1], [1]]], "job 7 has no range 4 to 8"),
        ([[7, 0, 5, [1], [1]], [7, 0, 5, [1], [1]]], "job 7 has no range 0 to 5"),
        ([[7, 0, 5, [], [1]]], "the journal does not fit"),
        ([[7, 0, 5, [1], [1, 1]]], "the journal does not fit"),
    ],
)
def test_tiles_that_the_jobs_do_not_have_are_refused(entries: Any, says: str, work: Plan, tmp_path: Path) -> None:
    assert isinstance(work.jobs[7], RunJob)
    assert len(work.jobs[7].sinks) == 1
    (tmp_path / "journal").write_bytes(line(IDENTITY) + line([]) + line(entries))
    with pytest.raises(DestinationError, match=says) as caught:
        resumed(tmp_path / "journal", work)
    assert "--restart" in str(caught.value)


def assert_refused_or_good(value: Any, work: Plan, path: Path) -> None:
    """A line is refused as such, or the run that goes on with it gets to its end; it may find its checksums wrong."""
    path.write_bytes(line(IDENTITY) + line(value))
    log = TileLog(work.jobs)
    try:
        for done in Journal(path).tiles():
            log.enter(done)
    except (DestinationError, ValueError):
        return
    for job, first, last in list(log.remaining()):
        with suppress(DamagedError):
            for start, stop in work.jobs[job].cut(first, last, 4096):
                log.enter(tile(work, job, start, stop))


ODD: list[Any] = [
    None,
    True,
    False,
    -1,
    0.0,
    0.5,
    2.5,
    float("nan"),
    float("inf"),
    1 << 33,
    1 << 80,
    "3",
    "",
    [],
    [1],
    {},
]


@pytest.mark.parametrize("first", [0, 3])
@pytest.mark.parametrize("odd", ODD, ids=repr)
def test_a_tile_of_odd_types_is_refused_or_as_good_as_a_real_one(
    odd: Any, first: int, work: Plan, tmp_path: Path
) -> None:
    for place in range(7):
        entry: list[Any] = [7, first, 8, [77], [78]]
        if place < 5:
            entry[place] = odd
        else:
            entry[place - 2][0] = odd
        assert_refused_or_good([entry], work, tmp_path / "journal")
    assert_refused_or_good(odd, work, tmp_path / "journal")
    assert_refused_or_good([odd], work, tmp_path / "journal")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=JSON)
def test_a_line_of_any_json_is_refused_or_says_nothing(value: Any, work: Plan, tmp_path: Path) -> None:
    assert_refused_or_good(value, work, tmp_path / "journal")


@pytest.mark.parametrize(
    "text", [b"", b"no json", b"\xff\xfe\x00", b"[" * 100_000, b"9" * 5000], ids=lambda t: repr(t[:9])
)
def test_a_whole_line_that_is_no_json_is_refused(text: bytes, work: Plan, tmp_path: Path) -> None:
    (tmp_path / "journal").write_bytes(line(IDENTITY) + line(text))
    with pytest.raises(DestinationError):
        resumed(tmp_path / "journal", work)


@pytest.mark.parametrize(
    "first",
    [
        5,
        [],
        "text",
        {},
        {"journal": 1},
        {"journal": 1, "choices": {}},
        {"journal": 1, "choices": [], "sources": [], "digest": []},
        {"journal": 1, "choices": "same", "digest": 3},
        {"journal": 1, "choices": "same", "sources": 5, "digest": None},
        {"journal": [1], "choices": {}, "sources": {}, "digest": ""},
        b"",
        b"no json",
        b"\xff\xfe\x00",
        b"[" * 100_000,
    ],
    ids=lambda first: repr(first)[:40],
)
def test_a_first_line_that_is_none_of_ours_is_refused_and_kept(first: Any, tmp_path: Path) -> None:
    if isinstance(first, dict) and first.get("choices") == "same":
        first = first | {"choices": identity_of(plan(SOURCE, to="megatron-legacy"))["choices"]}
    (tmp_path / "out/.streamconv/new").mkdir(parents=True)
    path = tmp_path / "out/.streamconv/journal"
    path.write_bytes(line(first))
    with pytest.raises(DestinationError, match="restart=True") as caught:
        convert(SOURCE, tmp_path / "out", max_ram="1G", to="megatron-legacy")
    assert str(tmp_path / "out") in str(caught.value)
    assert path.read_bytes() == line(first)
