"""A run that goes on trusts nothing that it does not read back: what differs is done again."""

from __future__ import annotations

import json
import random
import shutil
from itertools import count
from pathlib import Path

import pytest

from streamconv.core.work_folder import RECEIPT
from tests.faults.fault import IO_ERROR, Fault
from tests.places import FRAMEWORKS, ROOT
from tests.processes import run_main
from tests.trees import tree

BLOOM = FRAMEWORKS / "bs_bloom_tp2pp2_fp32_z0"
LAYER = BLOOM / "global_step3" / "layer_06-model_00-model_states.pt"
WORDS = ("--to", "megatron-legacy", "--tp", 1, "--pp", 2, "--engine", "serial")
GOING_ON = "going on with a conversion that ended early, at "
AGAIN = "are not as they were written, and are done again"


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("expected") / "out"
    assert run_main(BLOOM, out, *WORDS).returncode == 0
    return tree(out)


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A destination whose run ended at one of the last source files, with a journal."""
    out = tmp_path_factory.mktemp("interrupted") / "out"
    for at in count(4):  # its first reads are of metadata
        done = Fault("read", IO_ERROR, LAYER, at).run(BLOOM, out, *WORDS)
        assert done.returncode == 5, done.stderr
        if (out / ".streamconv" / "journal").exists():
            break
    return out


@pytest.fixture
def left(interrupted: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(interrupted, tmp_path / "out"))


def staged(out: Path) -> list[Path]:
    return sorted((out / ".streamconv" / "new").rglob("*.pt"))


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def go_on(out: Path, expected: dict[str, bytes], *words: object) -> str:
    done = run_main(BLOOM, out, *WORDS, *words)
    assert done.returncode == 0, done.stderr
    assert tree(out) == expected
    return done.stderr


@pytest.mark.parametrize("io", ["direct", "pread"])
def test_it_says_that_it_goes_on_and_from_how_far(io: str, left: Path, expected: dict[str, bytes]) -> None:
    said = go_on(left, expected, "--io", io, "--jobs", 2, "--engine", "threads")
    share = int(said.partition(GOING_ON)[2].partition("%")[0])
    assert 40 < share < 100
    assert AGAIN not in said


def test_a_flipped_bit_in_what_is_staged_is_not_published(
    left: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    rng, found = random.Random(4), 0
    for number in range(6):
        out = Path(shutil.copytree(left, tmp_path / f"{number}"))
        path = rng.choice(staged(out))
        flip(path, rng.randrange(8 * path.stat().st_size))
        found += AGAIN in go_on(out, expected)
    assert found


@pytest.mark.parametrize("what", ["gone", "shorter", "longer", "empty", "zeros", "a link", "a folder that is a link"])
def test_a_staged_file_that_is_not_as_it_was_is_made_again(
    what: str, left: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    path = staged(left)[0]
    nbytes = path.stat().st_size
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / path.name).write_bytes(path.read_bytes())
    if what == "gone":
        path.unlink()
    elif what == "a link":
        path.unlink()
        path.symlink_to(tmp_path / "elsewhere" / path.name)
    elif what == "a folder that is a link":
        shutil.rmtree(path.parent)
        path.parent.symlink_to(tmp_path / "elsewhere")
    elif what == "zeros":
        path.write_bytes(bytes(nbytes))
    else:
        size = {"shorter": nbytes // 2, "longer": nbytes + 9, "empty": 0}[what]
        path.write_bytes((path.read_bytes() + bytes(9))[:size])
    before = tree(tmp_path / "elsewhere")
    assert (AGAIN in go_on(left, expected)) == (what != "longer")
    assert tree(tmp_path / "elsewhere") == before


def test_a_journal_that_got_further_than_the_files_is_not_believed(
    left: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    for path in staged(left):
        path.write_bytes(bytes(path.stat().st_size))
    assert AGAIN in go_on(left, expected)


def test_what_is_done_again_is_noted_once_and_the_next_run_goes_on(left: Path, expected: dict[str, bytes]) -> None:
    path = staged(left)[0]
    path.write_bytes(bytes(path.stat().st_size))
    for at in count(4):
        done = Fault("read", IO_ERROR, LAYER, at).run(BLOOM, left, *WORDS)
        assert done.returncode == 5, done.stderr
        if GOING_ON in done.stderr:
            break
    assert AGAIN in done.stderr
    assert AGAIN not in go_on(left, expected)


def test_a_staged_file_that_cannot_be_read_back_is_storage_trouble(left: Path, expected: dict[str, bytes]) -> None:
    before = (left / ".streamconv" / "journal").read_bytes()
    done = Fault("read", IO_ERROR, left / ".streamconv" / "new").run(BLOOM, left, *WORDS)
    assert done.returncode == 5, done.stderr
    assert f"  where: {left / '.streamconv' / 'new'}" in done.stderr
    assert (left / ".streamconv" / "journal").read_bytes() == before
    go_on(left, expected)


def test_what_no_run_staged_is_not_published(left: Path, expected: dict[str, bytes], tmp_path: Path) -> None:
    new = left / ".streamconv" / "new"
    (new / "iter_0000003" / "planted").write_text("")
    (new / "planted").write_text("")
    (new / "link").symlink_to(tmp_path)
    go_on(left, expected)
    assert not (left / "link").is_symlink()


def test_the_same_source_by_another_path_goes_on(left: Path, expected: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "mounted").symlink_to(BLOOM.parent)
    done = run_main(tmp_path / "mounted" / BLOOM.name, left, *WORDS)
    assert done.returncode == 0, done.stderr
    assert GOING_ON in done.stderr
    assert tree(left) == expected


def test_the_same_command_again_finds_its_own_result(
    expected: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    assert run_main(BLOOM, out, *WORDS).returncode == 0
    monkeypatch.chdir(ROOT)
    for source in (BLOOM, BLOOM.relative_to(ROOT)):
        done = run_main(source, out, *WORDS)
        assert (done.returncode, tree(out)) == (0, expected), done.stderr
        assert f"wrote   nothing: {out} holds the whole result of this conversion already" in done.stdout
    for words in (("--dtype", "bf16"), ("--no-args",), ("--pp", 1)):
        done = run_main(BLOOM, out, *WORDS, *words)
        assert (done.returncode, tree(out)) == (8, expected)
    redone = run_main(BLOOM, out, *WORDS, "--overwrite")
    assert redone.returncode == 0
    assert "wrote   nothing" not in redone.stdout
    assert tree(out) == expected


@pytest.mark.parametrize("what", ["younger", "shorter", "gone", "another tracker", "another receipt", "no receipt"])
def test_a_result_that_was_touched_is_not_taken_for_ones_own(what: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run_main(BLOOM, out, *WORDS).returncode == 0
    (model, *_) = sorted(out.rglob("*.pt"))
    if what == "younger":
        flip(model, 70_000)
    elif what == "shorter":
        model.write_bytes(model.read_bytes()[:-1])
    elif what == "gone":
        model.unlink()
    elif what == "another tracker":
        (out / "latest_checkpointed_iteration.txt").write_text("4")
    elif what == "another receipt":
        (out / RECEIPT).write_text((out / RECEIPT).read_text().replace('"digest": "', '"digest": "0'))
    else:
        (out / RECEIPT).unlink()
    before = tree(out)
    done = run_main(BLOOM, out, *WORDS)
    assert (done.returncode, tree(out)) == (8, before)


def test_a_receipt_alone_is_no_checkpoint_and_a_file_of_its_name_is_the_users(tmp_path: Path) -> None:
    (tmp_path / RECEIPT).write_text('{"digest": "of what is gone"}')
    assert run_main(BLOOM, tmp_path, *WORDS).returncode == 0
    for name, text in (("file", "{}"), ("words", "precious"), ("folder", None)):
        out = tmp_path / name
        out.mkdir()
        if text is None:
            (out / RECEIPT / "precious").mkdir(parents=True)
        else:
            (out / RECEIPT).write_text(text)
        before = tree(out)
        assert run_main(BLOOM, out, *WORDS).returncode == 8
        assert tree(out) == before
        assert (out / RECEIPT).exists()


@pytest.mark.parametrize(
    ("source", "choices"),
    [
        (FRAMEWORKS / "dsp_llama_gqa_tp2pp2_fp32_z0", (("--glu-order", "gate-up"), ("--glu-order", "up-gate"))),
        (BLOOM, (("--qkv-layout", "interleaved"), ("--qkv-layout", "blocks"), ("--qkv-layout", "alternating"))),
    ],
)
def test_what_moves_other_bytes_is_another_conversion(
    source: Path, choices: tuple[tuple[str, str], ...], tmp_path: Path
) -> None:
    """Though the result has the same files, names and shapes."""
    digests = set()
    for number, words in enumerate(choices):
        out = tmp_path / f"{number}"
        assert run_main(source, out, "--to", "huggingface", *words).returncode == 0
        digests.add(json.loads((out / RECEIPT).read_text())["digest"])
        for other in choices:
            expected = 0 if other == words else 8
            assert run_main(source, out, "--to", "huggingface", *other).returncode == expected
    assert len(digests) == len(choices)
