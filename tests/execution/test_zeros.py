"""Zeros that a target has and its source lacks are part of a run: of its identity, its journal and its checksums."""

from __future__ import annotations

import zipfile
import zlib
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from streamconv import convert, plan
from streamconv.core.lazy import LazyTensor
from streamconv.execution.identity import identity_of
from streamconv.execution.journal import Journal
from streamconv.execution.run_tiles import run_tiles
from streamconv.execution.settings import EngineSettings
from streamconv.execution.tile_log import TileDone, TileLog
from streamconv.execution.tile_worker import Workers
from streamconv.io.output import OutputFileWriter
from streamconv.planning.plan import OutputTensor, Plan
from tests.formats.megatron.biased import ATTENTION, Biased

MADE = 24  # two biases of the MLP in each of 12 layers


@pytest.fixture
def work(tmp_path: Path) -> Plan:
    Biased("llama", ATTENTION).save(tmp_path / "hf")
    return plan(tmp_path / "hf", to="megatron-core", container="torch")


def is_made(entry: OutputTensor) -> bool:
    return all(not piece.views for piece in entry.tensor.pieces)


def with_first_zeros(work: Plan, tensor: LazyTensor) -> Plan:
    """The plan with something else in the place of the first zeros."""
    (file,) = work.files
    first = next(entry for entry in file.entries if is_made(entry))
    entries = tuple(replace(entry, tensor=tensor) if entry is first else entry for entry in file.entries)
    return replace(work, files=(replace(file, entries=entries),))


def test_zeros_are_in_the_digest_of_a_run(work: Plan) -> None:
    zeros = [entry.tensor for entry in work.files[0].entries if is_made(entry)]
    stored = next(e.tensor for e in work.files[0].entries if not is_made(e) and e.tensor.shape == zeros[1].shape)
    assert len(zeros) == MADE
    identity = identity_of(work)
    assert identity_of(with_first_zeros(work, zeros[0])) == identity
    for other in (stored, LazyTensor.zeros((7,), stored.dtype)):
        assert identity_of(with_first_zeros(work, other))["digest"] != identity["digest"]


def test_zeros_that_an_earlier_run_noted_are_not_written_again(work: Plan, tmp_path: Path) -> None:
    """Their tiles read nothing; a journal gives them back, and with them the checksums of the records they fill."""
    jobs = [job for job in work.jobs if not job.read_nbytes]
    assert len(jobs) == MADE
    log, noted = TileLog(jobs), list[TileDone]()
    writer = OutputFileWriter(tmp_path / "out", work.files[0].layout.nbytes, 1 << 20, "pread")
    with closing(writer), closing(Workers(EngineSettings(4096, 2, "pread"))) as workers:
        run_tiles(log, [writer], workers, lambda _: None, noted.extend)
    assert (log.read_nbytes, list(log.remaining())) == (0, [])
    journal, again = Journal(tmp_path / "journal"), TileLog(jobs)
    with closing(journal):
        journal.begin(identity_of(work))
        journal.add(noted)
    for done in Journal(tmp_path / "journal").tiles():
        again.enter(done)
    assert list(again.remaining()) == []
    for (offset, nbytes), entry in zip(work.files[0].layout.storages, work.files[0].entries, strict=True):
        if is_made(entry):
            assert again.targets.whole((0, offset), nbytes) == zlib.crc32(bytes(nbytes))


@pytest.mark.parametrize("io", ["direct", "pread"])
def test_torch_opens_what_was_written(work: Plan, io: str, tmp_path: Path) -> None:
    convert(work.source, tmp_path / "core", to="megatron-core", container="torch", max_ram="1G", io=io)
    path = tmp_path / "core" / "release" / "mp_rank_00" / "model_optim_rng.pt"
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
    state = torch.load(path, weights_only=False)
    for layer in range(12):
        for module, rows in (("linear_fc1", 48), ("linear_fc2", 16)):
            assert torch.equal(state["model"][f"decoder.layers.{layer}.mlp.{module}.bias"], torch.zeros(rows))
