"""What a refused write says: the right code, where, and a remedy that helps."""

from __future__ import annotations

import errno
import re
from pathlib import Path

import pytest

from tests.faults.fault import Fault, error
from tests.places import FRAMEWORKS
from tests.processes import STREAMCONV, run_main, start
from tests.small_disk import small_disk

BLOOM = FRAMEWORKS / "bs_bloom_tp2pp2_fp32_z0"
LAYER = BLOOM / "global_step3" / "layer_03-model_00-model_states.pt"
FREE = "  remedy: free disk space and run the same command again\n"


@pytest.mark.slow
def test_a_disk_without_room_for_another_name_is_full(tmp_path: Path) -> None:
    """Each number of inodes is too small at another call: to make a folder, a file, the journal, a link."""
    codes, said = [], set()
    for inodes in (2, 3, 5, 7, 9, 12, 40):
        with small_disk(tmp_path / f"{inodes}", 4 << 20, f",nr_inodes={inodes}") as disk:
            done = run_main(BLOOM, disk / "out", "--tp", 1, "--pp", 2)
            codes.append(done.returncode)
            if done.returncode == 0:
                continue
            assert f": No space left on device\n  where: {disk}" in done.stderr, done.stderr
            assert done.stderr.endswith(FREE)
            said.add(done.stderr.splitlines()[-3])
            assert not (disk / "out" / "latest_checkpointed_iteration.txt").exists()
    assert codes == [4] * (len(codes) - 1) + [0]
    assert len(said) > 1


def test_a_folder_that_cannot_be_made_is_a_full_disk(tmp_path: Path) -> None:
    for at in range(1, 6):
        done = Fault("mkdir", error(errno.ENOSPC), tmp_path, at).run(BLOOM, tmp_path / "out")
        assert done.returncode == 4, done.stderr
        assert done.stderr.endswith(FREE)
        assert not (tmp_path / "out" / "latest_checkpointed_iteration.txt").exists()


def test_a_disk_that_is_read_only_is_no_reason_to_run_again(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 4 << 20, ",ro") as disk:
        done = run_main(BLOOM, disk / "out")
    assert done.returncode == 5
    assert done.stderr.endswith(
        f"error: cannot write there: Read-only file system\n  where: {disk / 'out'}\n"
        "  remedy: it is mounted to be read only: mount it to be written, or choose another place\n"
    )


def test_a_file_that_may_not_be_so_long_is_no_reason_to_run_again(tmp_path: Path) -> None:
    done = start(["bash", "-c", 'ulimit -f 10; exec "$@"', "bash", *STREAMCONV], BLOOM, tmp_path / "out")
    assert done.returncode == 5
    assert "error: cannot create the file: File too large\n" in done.stderr
    assert "  remedy: a file may not be so long there (ulimit -f" in done.stderr
    assert "again" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_disk_that_fails_for_once_is_a_reason_to_run_again(tmp_path: Path) -> None:
    done = Fault("sync", error(errno.EIO), tmp_path).run(BLOOM, tmp_path / "out", "--engine", "serial")
    assert done.returncode == 5
    assert done.stderr.endswith("  remedy: when the storage works again, run the same command again\n")
    assert run_main(BLOOM, tmp_path / "out").returncode == 0


@pytest.mark.parametrize(
    ("flag", "what"), [("--html", "page"), pytest.param("--plot", "picture", marks=pytest.mark.slow)]
)
def test_a_report_that_finds_no_room_is_a_full_disk(flag: str, what: str) -> None:
    if flag == "--plot":
        pytest.importorskip("matplotlib")
    done = run_main("inspect", LAYER, "--stats", flag, "/dev/full")
    assert done.returncode == 4
    assert done.stderr.endswith(f"error: cannot write the {what}: No space left on device\n  where: /dev/full\n{FREE}")


@pytest.mark.parametrize("verb", ["plan", "inspect", "verify"])
def test_a_folder_that_cannot_be_listed_is_storage_trouble(verb: str) -> None:
    done = Fault("list", error(errno.EIO), BLOOM).run(verb, BLOOM)
    assert done.returncode == 5
    assert re.match(rf"error: cannot (go on|list the folder): Input/output error\n  where: {BLOOM}", done.stderr)
    assert done.stderr.endswith("  remedy: when the storage works again, run the same command again\n")
