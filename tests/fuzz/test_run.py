"""The harness itself: what it makes is looked at without a fault, and it would see one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.kinds import FILES
from tests.places import ROOT


def python(*words: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr
    return done


@pytest.mark.slow
def test_a_few_hundred_files_and_folders_are_looked_at_without_a_fault(tmp_path: Path) -> None:
    out = tmp_path / "counts.json"
    words = ("--seed", "5", "--files", "400", "--folders", "4", "--out", str(out), "--scratch", str(tmp_path / "made"))
    python("-m", "tests.fuzz.run", *words)
    found = json.loads(out.read_text())
    assert (found["files"]["made"], found["folders"]["made"]) == (400, 4)
    assert found["files"]["first_faults"] == found["folders"]["first_faults"] == []
    assert len(found["files"]["by_name"]) > len(FILES) - 3
    assert {"0", "3", "6"} <= found["files"]["exit_codes"].keys()


@pytest.mark.parametrize("deed", ["os.system('true')", "__import__('streamconv_canary')"])
def test_an_execution_would_be_seen(deed: str) -> None:
    code = f"""
import contextlib, os
from tests.fuzz.look import executed, watch
watch()
with contextlib.suppress(ImportError):
    {deed}
print(len(executed))
"""
    assert int(python("-c", code).stdout) > 0


def test_the_same_number_makes_the_same_file(tmp_path: Path) -> None:
    made = []
    for name in ("a", "b"):
        python("-m", "tests.fuzz.run", "--seed", "5", "--only", "17", "--scratch", str(tmp_path / name))
        made.append({path.name: path.read_bytes() for path in (tmp_path / name / "item").rglob("*") if path.is_file()})
    assert made[0] == made[1] != {}
