"""Files that cost more than their size are refused, or read at the cost of their size."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.fuzz.cases import CASES, ESCAPE
from tests.fuzz.parts import table, tensor, text, torch_zip
from tests.processes import STREAMCONV, run_main, start

SECONDS, NBYTES = 10, 300 << 20
COMMANDS = (("inspect", "--stats", "--check", "--tree", "--globals"), ("inspect", "--json"), ("verify",))
# The most memory that it had, in KiB: what the system says of an ended process counts its parent's too.
MEASURED = """
import re, sys
from streamconv.cli.main import main
code = main(sys.argv[1:])
print("most", re.search("VmHWM: *([0-9]+)", open("/proc/self/status").read().replace("\\t", " "))[1])
sys.exit(code)
"""
LARGE = (
    "a million empty sets.pt",
    "a million memo entries.pt",
    "20,000 sizes for each of 800 tensors.pt",
    "a long name before 20,000 tensors.pt",
    "nested lists in a header.safetensors",
)


@pytest.mark.parametrize("case", CASES)
def test_a_hostile_file_costs_what_its_size_allows(case: str, tmp_path: Path) -> None:
    path = tmp_path / case
    path.write_bytes(CASES[case]())
    for words in (*COMMANDS, ("diff", path)):
        began = time.monotonic()
        done = run_main(*words, path)
        said = done.stdout + done.stderr
        assert done.returncode in (0, 3, 6), said
        assert time.monotonic() - began < SECONDS
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", said)
        assert len(said) < (1 << 20) + 16 * path.stat().st_size


@pytest.mark.slow
@pytest.mark.parametrize("case", LARGE)
def test_its_memory_too(case: str, tmp_path: Path) -> None:
    path = tmp_path / case
    path.write_bytes(CASES[case]())
    # A process that this one starts inherits what this one has used as its own most, so it is asked for itself.
    words = [sys.executable, "-c", MEASURED, "verify", str(path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 6, done.stderr
    assert int(done.stdout.rpartition("most ")[2]) << 10 < NBYTES


@pytest.mark.parametrize("program", ["inspect_checkpoint", "inspect_deepspeed_checkpoint", "deepspeed_to_megatron"])
def test_the_old_commands_print_no_control_characters(program: str, tmp_path: Path) -> None:
    folder = tmp_path / f"g{ESCAPE}\n"
    folder.mkdir()
    tree = table(**{f"w{ESCAPE}": tensor(), "kind": b"c" + f"a{ESCAPE}\nb\n".encode(), "x\nfake": text(ESCAPE)})
    (folder / f"mp_rank_00_model_states.pt{ESCAPE}").write_bytes(torch_zip(tree))
    (folder / "mp_rank_00_model_states.pt").write_bytes(torch_zip(tree))
    given: dict[str, list[object]] = {
        "inspect_checkpoint": [folder / "mp_rank_00_model_states.pt"],
        "inspect_deepspeed_checkpoint": ["--folder", folder],
        "deepspeed_to_megatron": ["--input_folder", folder, "--output_folder", tmp_path / "out"],
    }
    done = run_main(*given[program], module=f"streamconv.bigscience.{program}")
    said = done.stdout + done.stderr
    assert "owned" in said
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", said)
    assert "\nfake" not in said


def test_a_name_that_is_no_text_is_printed(tmp_path: Path) -> None:
    """A file's name may be bytes that are no UTF-8: Python has lone surrogates for them, which no stream takes."""
    path = tmp_path / os.fsdecode(b"a\xff.pt")
    path.write_bytes(b"")
    done = start(STREAMCONV, "inspect", path)
    assert done.returncode == 3
    assert "an empty file" in done.stderr
