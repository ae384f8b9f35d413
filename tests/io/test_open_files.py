"""Results of more files than may be open: the soft limit follows, the hard one is named before anything is written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.places import REAL, ROOT

pytestmark = [pytest.mark.disk, pytest.mark.slow]

GPT = next(source for source in REAL if source.name == "dsh_gpt_tp2pp2_fp32_z0")
# argv: soft limit, hard limit, command line.
LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]), int(sys.argv[2])))
from streamconv.cli.main import main
sys.exit(main(sys.argv[3:]))
"""


def run(out: Path, soft: int, hard: int, io: str) -> subprocess.CompletedProcess[str]:
    words = [str(GPT.folder), str(out), "--to", "huggingface", "--max-shard-size", "1KB", "--max-ram", "1G", "--io", io]
    command = [sys.executable, "-c", LIMITED, str(soft), str(hard), *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("io", ["direct", "pread"])
def test_the_soft_limit_is_raised(io: str, tmp_path: Path) -> None:
    done = run(tmp_path / "out", 24, 1024, io)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 24


def test_the_hard_limit_is_named(tmp_path: Path) -> None:
    done = run(tmp_path / "out", 40, 40, "direct")
    assert done.returncode == 4
    assert "the system's limit is 40" in done.stderr
    assert "--max-shard-size" in done.stderr
    assert not (tmp_path / "out").exists()
