"""One flipped bit in any record of a source that has checksums: the conversion is refused, and names the record.

Where a conversion has no use for a record, it says so before it begins: the record is among what the plan leaves out.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import streamconv
from streamconv.core.errors import DamagedError
from streamconv.execution.options import RunOptions
from streamconv.execution.run import run_plan
from streamconv.planning.plan import Plan
from tests import damage
from tests.places import FIXTURES, REAL

SERIAL = RunOptions(jobs=1, engine="serial")
BLOOM, GPT16, GPT32, PLAIN = REAL[1].folder, REAL[2].folder, REAL[4].folder, REAL[5].folder
CORE = FIXTURES / "megatron_core"
# Each kind of conversion: what it does with the source's records.
CONVERSIONS: dict[str, tuple[Path, Mapping[str, Any]]] = {
    "padding stripped, of a core torch source": (CORE / "torch_llama_tp2pp2", {"to": "huggingface", "vocab_size": 101}),
    "padding stripped, rows transposed": (GPT16, {"to": "huggingface"}),
    "TP 2 to 1": (BLOOM, {"to": "megatron-legacy", "tp": 1, "pp": 1}),
    "TP 2 to 4, padded otherwise": (GPT32, {"to": "megatron-legacy", "tp": 4, "pp": 1}),
    "cast": (PLAIN, {"to": "megatron-legacy", "dtype": "bf16"}),
    "mean of replicas": (BLOOM, {"to": "megatron-legacy", "replicated": "mean"}),
    "kept": (GPT32, {"to": "deepspeed"}),
    "of torch_dist": (CORE / "torch_dist_gpt_tp2pp2", {"to": "huggingface", "vocab_size": 101}),
}
FLIPS = 1000 // len(CONVERSIONS)


class EndedError(Exception):
    """What ends a run early."""


@contextmanager
def flipped(path: Path, byte: int, bit: int) -> Iterator[None]:
    """One bit turned over, as a disk turns it: neither size nor times change."""
    status = path.stat()
    damage.flip(path, byte, bit)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    yield
    damage.flip(path, byte, bit)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def places(folder: Path) -> list[tuple[Path, str, int, int]]:
    """(file, name of a tensor, first byte, bytes) of every tensor's record below a folder."""
    found = []
    files = streamconv.open_checkpoint(folder)
    for name, tensor in files.items():
        for storage in {view.storage for piece in tensor.pieces for view in piece.views}:
            found += [(storage.path, name, storage.offset, storage.nbytes)]
    return found


def refusal(work: Plan, out: Path | None = None) -> str:
    """What the conversion says of the damage that it finds, nothing if it finds none."""
    try:
        run_plan(work, out, SERIAL)
    except DamagedError as error:
        return str(error)
    return ""


def words_for(path: Path, name: str) -> str:
    """How a plan calls what it leaves out: optimizer files by their kind, other state by the key that it is under."""
    if path.name.endswith("_optim_states.pt"):
        return "*_optim_states.pt"
    return name.partition(":")[2].removeprefix("model.").partition(".")[0]


@pytest.mark.sweep(2)
@pytest.mark.parametrize("kind", CONVERSIONS)
def test_a_flipped_bit_of_a_source_is_refused_or_in_what_is_left_out(kind: str, tmp_path: Path) -> None:
    source, choices = CONVERSIONS[kind]
    folder = tmp_path / "src"
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("oracle_*"))
    work = streamconv.plan(folder, **choices)
    left_out = " ".join(dropped.name for dropped in work.dropped)
    report = run_plan(work, None, SERIAL)
    assert (report.records_in_part, report.records_without_crc) == (0, 0)
    chosen, refused = random.Random(kind), 0
    found = places(folder)
    # Most of a folder is optimizer state: a few of its records are enough.
    states = [place for place in found if "exp_avg" in place[1] or "fp32" in place[1]]
    found = [place for place in found if place not in states] + chosen.sample(states, min(10, len(states)))
    while refused < FLIPS:
        path, name, start, nbytes = chosen.choice(found)
        with flipped(path, start + chosen.randrange(nbytes), chosen.randrange(8)):
            words = refusal(work)
        if words:
            assert "its CRC-32 is " in words
            assert str(path) in words
            refused += 1
        else:
            assert words_for(path, name) in left_out, name


@pytest.mark.parametrize("source", [BLOOM, CORE / "torch_llama_tp2pp2"], ids=["deepspeed", "megatron-core"])
def test_a_flipped_bit_of_a_pickle_is_refused(source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "src"
    shutil.copytree(source, folder)
    chosen = random.Random(1)
    for path in sorted(folder.rglob("*.pt")):
        if "data.pkl" not in damage.records(path) or path.name.startswith("oracle_"):
            continue
        start, nbytes = damage.records(path)["data.pkl"]
        with (
            flipped(path, start + chosen.randrange(nbytes), chosen.randrange(8)),
            pytest.raises(DamagedError, match=r"record data\.pkl: its CRC-32 is ") as caught,
        ):
            streamconv.convert(folder, None)
        assert str(path) in str(caught.value)


def last_padding_row(folder: Path) -> tuple[Path, int]:
    """The file of the last vocabulary shard of a core checkpoint at TP 2, and a byte of its last row: padding."""
    path = folder / "iter_0000007" / "mp_rank_01_000" / "model_optim_rng.pt"
    tensor = streamconv.open_checkpoint(path)["model.embedding.word_embeddings.weight"]
    (view,) = tensor.pieces[0].views
    return path, view.storage.offset + view.storage.nbytes - 1


def test_padding_is_read_for_the_checksum_of_the_rows_before_it(tmp_path: Path) -> None:
    """The case of a shard whose true rows were converted without looking at its checksum."""
    source, made, other = tmp_path / "src", tmp_path / "hf", tmp_path / "copy"
    shutil.copytree(CORE / "torch_llama_tp2pp2", source)
    shutil.copytree(source, other)
    options: dict[str, Any] = {"vocab_size": 101}
    streamconv.convert(source, made, to="huggingface", **options)
    assert streamconv.verify(made, source, **options).exit_code == 0
    path, byte = last_padding_row(source)
    damage.flip(path, byte, 3)
    words = rf"record data/\d+: its CRC-32 is .*\n.*{path.name}"
    with pytest.raises(DamagedError, match=words):
        streamconv.convert(source, tmp_path / "again", to="huggingface", **options)
    assert not (tmp_path / "again" / "model.safetensors").exists()
    with pytest.raises(DamagedError, match=words):
        streamconv.verify(made, source, **options)
    with pytest.raises(DamagedError, match=words):
        streamconv.diff(other, source, **options)
    with pytest.raises(DamagedError, match=words):
        list(streamconv.stream(source, to="megatron-core", tp=1, pp=1, **options))
    with pytest.raises(DamagedError, match=words):
        streamconv.digest(source, **options)


def test_a_run_that_goes_on_compares_every_checksum_too(tmp_path: Path) -> None:
    """The checksums of what an earlier run has read are in its journal."""
    folder, out = tmp_path / "src", tmp_path / "out"
    shutil.copytree(CORE / "torch_llama_tp2pp2", folder, ignore=shutil.ignore_patterns("oracle_*"))
    work = streamconv.plan(folder, to="huggingface", vocab_size=101)
    whole = run_plan(work, None, SERIAL)

    def interrupt(done: int, total: int) -> None:
        if 2 * done > total:
            raise EndedError

    def begin() -> None:
        with pytest.raises(EndedError):
            run_plan(work, out, SERIAL, progress=interrupt, restart=True)

    begin()
    path, byte = last_padding_row(folder)
    with flipped(path, byte, 0):
        assert "its CRC-32 is " in refusal(work, out)
    begin()
    report = run_plan(work, out, SERIAL)
    assert report.resumed_nbytes > 0
    assert (report.records_checked, report.records_in_part) == (whole.records_checked, 0)
    assert (report.read_nbytes, report.destination) == (whole.read_nbytes, out)


def test_a_stream_that_ends_early_says_what_was_not_checked(caplog: pytest.LogCaptureFixture) -> None:
    stream = streamconv.stream(BLOOM, to="megatron-legacy", tp=1)
    next(stream)
    with caplog.at_level("WARNING", "streamconv"):
        del stream
    (words,) = [record.getMessage() for record in caplog.records if "ended early" in record.getMessage()]
    assert words == (
        "the stream ended early: of the source's records 57 were compared with their CRC-32, and 1, which were read in "
        "part, were not"
    )
