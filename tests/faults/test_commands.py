"""A command whose storage fails ends with 5 and says where, whatever it was reading; what is journaled is kept."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from bisect import bisect_left
from pathlib import Path

import pytest

from tests import damage
from tests.faults.fault import IO_ERROR, Fault, error
from tests.places import FIXTURES, FRAMEWORKS, MADE
from tests.processes import run_main
from tests.trees import tree

BLOOM = FRAMEWORKS / "bs_bloom_tp2pp2_fp32_z0"
NEOX = MADE / "neox_L3_tp2pp2_z1"
CORE = FIXTURES / "megatron_core" / "torch_dist_gpt_tp2pp2"
LAYER = "global_step3/layer_03-model_00-model_states.pt"
READ = (
    (BLOOM, "latest"),
    (BLOOM, "global_step3/mp_rank_00_model_states.pt"),
    (BLOOM, LAYER),
    (NEOX, "latest"),
    (NEOX, "global_step7/configs/labels.yml"),
    (CORE, "latest_checkpointed_iteration.txt"),
    (CORE, "iter_0000007/.metadata"),
    (CORE, "iter_0000007/common.pt"),
    (CORE, "iter_0000007/__1_0.distcp"),
)


@pytest.fixture(scope="module")
def hugging_face(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "hf"
    assert run_main(BLOOM, folder, "--to", "huggingface", "--max-shard-size", "60KB").returncode == 0
    return folder


def check_storage_trouble(path: Path, folder: Path) -> None:
    troubles = (
        ("read", errno.EIO, r"read \d+ bytes at \d+: Input/output error"),
        ("read", errno.ESTALE, r"read \d+ bytes at \d+: Stale file handle"),
        ("open", errno.ETIMEDOUT, "open the file: Connection timed out"),
    )
    for verb, (call, number, words) in zip(("inspect", "verify", "diff"), troubles, strict=True):
        done = Fault(call, error(number), path).run(verb, folder, *([folder] if verb == "diff" else []))
        assert done.returncode == 5, (verb, done.stdout, done.stderr)
        assert re.match(rf"error: cannot {words}\n  where: {path}\n", done.stderr)


@pytest.mark.parametrize(("folder", "name"), READ, ids=lambda value: str(value).rpartition("/")[2])
def test_trouble_with_any_file_of_a_folder_is_no_damage(folder: Path, name: str) -> None:
    check_storage_trouble(folder / name, folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json", "model-00001-of-*.safetensors"])
def test_trouble_with_a_hugging_face_file_is_no_damage(name: str, hugging_face: Path) -> None:
    (path,) = hugging_face.glob(name)
    check_storage_trouble(path, hugging_face)


# -- conversions -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("expected")
    assert run_main(BLOOM, folder / "out", "--tp", 1).returncode == 0
    return tree(folder / "out")


@pytest.fixture(scope="module")
def metadata_reads(tmp_path_factory: pytest.TempPathFactory) -> int:
    """The number of reads of a layer file before its tensors are read; if one of them fails, nothing is left behind."""

    def leaves_work(at: int) -> bool:
        out = tmp_path_factory.mktemp("reads") / "out"
        done = Fault("read", IO_ERROR, BLOOM / LAYER, at).run(BLOOM, out, "--tp", 1, "--engine", "serial")
        assert done.returncode in (0, 5), done.stderr  # 0 if there are not so many reads
        return out.exists()

    return bisect_left(range(1, 256), True, key=leaves_work)


@pytest.mark.parametrize(
    ("how", "words"), [(IO_ERROR, "Input/output error"), ("end", "were when"), ("cut:100", "were when")]
)
@pytest.mark.parametrize("io", ["direct", "pread"])
def test_trouble_in_the_middle_keeps_what_is_done(
    how: str, words: str, io: str, metadata_reads: int, expected: dict[str, bytes], tmp_path: Path
) -> None:
    source, out = Path(shutil.copytree(BLOOM, tmp_path / "source")), tmp_path / "out"
    command = ("convert", source, out, "--tp", 1, "--io", io, "--engine", "serial", "--json")
    path, journal = source / LAYER, out / ".streamconv" / "journal"
    data, times = path.read_bytes(), (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    done = Fault("read", how, path, metadata_reads + 1).run(*command)
    assert done.returncode == 5, done.stderr
    assert re.match(rf"error: cannot read \d+ bytes at \d+: .*{words}.*\n  where: {path}\n", done.stderr)
    path.write_bytes(data)
    os.utime(path, ns=times)
    noted = journal.read_bytes()
    assert noted.count(b"\n") > 1
    # It can fail at the metadata too, or at the journal, and still nothing is lost.
    for failing, said in ((path, "cannot read"), (journal, "cannot read the journal: Input/output error")):
        again = Fault("read", IO_ERROR, failing).run(*command)
        assert (again.returncode, journal.read_bytes()) == (5, noted)
        assert f"error: {said}" in again.stderr
        assert f"  where: {failing}\n" in again.stderr
    finished = run_main(*command)
    assert finished.returncode == 0, finished.stderr
    assert json.loads(finished.stdout)["resumed_nbytes"] > 0
    assert tree(out) == expected


def test_a_short_read_in_the_middle_is_continued(expected: dict[str, bytes], tmp_path: Path) -> None:
    for io in ("direct", "pread"):
        done = Fault("read", "short", BLOOM, ever=True).run(BLOOM, tmp_path / io, "--tp", 1, "--io", io)
        assert done.returncode == 0, done.stderr
        assert tree(tmp_path / io) == expected


@pytest.mark.parametrize("name", ["latest", LAYER])
def test_a_file_that_was_cut_off_before_is_damaged(name: str, tmp_path: Path) -> None:
    source = Path(shutil.copytree(BLOOM, tmp_path / "source"))
    damage.cut(source / name, (source / name).stat().st_size * 2 // 3)
    done = run_main("plan", source)
    assert done.returncode == (3 if name == "latest" else 6)
    assert str(source) in done.stderr


def test_a_copied_file_that_cannot_be_read_is_storage_trouble(tmp_path: Path) -> None:
    (source := tmp_path / "source").mkdir()
    (source / "tokenizer.json").write_bytes(bytes(range(256)) * 10)
    words = (BLOOM, tmp_path / "out", "--to", "huggingface", "--tokenizer", source)
    for how, text in ((IO_ERROR, "Input/output error"), ("end", "0 are there"), ("cut:9", "9 are there")):
        done = Fault("read", how, source / "tokenizer.json").run(*words)
        assert done.returncode == 5, (done.stdout, done.stderr)
        assert f"cannot read 2560 bytes at 0: {text}" in done.stderr
        assert f"  where: {source / 'tokenizer.json'}\n" in done.stderr
        assert not (tmp_path / "out" / "config.json").exists()
