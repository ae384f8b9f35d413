"""Who reads the messages may go away: the work goes on, and its own exit code counts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.places import FRAMEWORKS
from tests.processes import start

BLOOM = FRAMEWORKS / "bs_bloom_tp2pp2_fp32_z0"
GPT = FRAMEWORKS / "dsp_gptuntied_tp2pp1_fp32_z0"
NAMES = ["iter_0000003", "latest_checkpointed_iteration.txt", "streamconv.json"]


def shell(line: str, *words: object) -> subprocess.CompletedProcess[str]:
    """What a line of bash prints, in which ``$S`` is the program, and ``$1`` and on are the words."""
    program = f'S() {{ {sys.executable} -m streamconv "$@"; }}; {line}'
    return start(["bash", "-c", program, "bash"], *words)


@pytest.mark.parametrize(
    "line",
    [
        'S convert "$1" "$2" 2>&1 | head -1; exit ${PIPESTATUS[0]}',
        'S convert "$1" "$2" 2>&1 | true; exit ${PIPESTATUS[0]}',
        'S convert "$1" "$2" --json | true; exit ${PIPESTATUS[0]}',
        'S convert "$1" "$2" -vv 2>/dev/full',
        'S convert "$1" "$2" 2>&-',
        'S convert "$1" "$2" >&- 2>&- <&-',
        'S convert "$1" "$2" >&-',
    ],
)
def test_a_conversion_ends_though_nobody_reads_its_messages(line: str, tmp_path: Path) -> None:
    done = shell(line, BLOOM, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == NAMES


def test_a_file_does_not_get_the_messages_of_a_closed_stream(tmp_path: Path) -> None:
    """The next file that is opened would have the number of stderr."""
    assert shell('S convert "$1" "$2" -vv >&- 2>&- <&-', BLOOM, tmp_path / "silent").returncode == 0
    assert shell('S convert "$1" "$2"', BLOOM, tmp_path / "heard").returncode == 0
    for path in (tmp_path / "heard").rglob("*"):
        if path.is_file():
            assert (tmp_path / "silent" / path.relative_to(tmp_path / "heard")).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("words", ["2>&1 | head -1", "| true", "--json | true", "2>/dev/full | true"])
def test_a_difference_is_one_though_nobody_reads_it(words: str) -> None:
    assert shell(f'S diff "$1" "$2" {words}; exit ${{PIPESTATUS[0]}}', BLOOM, GPT).returncode == 7


def test_damage_is_damage_though_nobody_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "cut.pt"
    path.write_bytes((BLOOM / "global_step3" / "layer_01-model_00-model_states.pt").read_bytes()[:-40])
    for line in ('S verify "$1" 2>&1 | true', 'S inspect "$1" --strict 2>&1 | true', 'S verify "$1" 2>/dev/full | cat'):
        assert shell(f"{line}; exit ${{PIPESTATUS[0]}}", path).returncode == 6


def test_a_result_that_cannot_be_printed_is_an_error_in_words() -> None:
    done = shell('S inspect "$1" --json >/dev/full', BLOOM)
    assert done.returncode == 5
    assert "error: the result could not be printed: No space left on device\n  where: stdout" in done.stderr
    assert "bug" not in done.stderr
    different = shell('S diff "$1" "$2" >/dev/full', BLOOM, GPT)
    assert different.returncode == 7


@pytest.mark.parametrize("words", ["--help", "convert --help", "families --help", "--version"])
def test_a_help_that_cannot_be_printed_is_an_error_in_words(words: str) -> None:
    done = shell(f"S {words} >/dev/full")
    assert done.returncode == 5
    assert done.stderr == "error: the result could not be printed: No space left on device\n  where: stdout\n"


def test_a_help_of_argparse_that_cannot_be_printed_is_an_error_too() -> None:
    program = "import sys; from streamconv.bigscience.deepspeed_to_megatron import main; sys.exit(main())"
    for words, code in (("--help >/dev/full", 5), ("--help >/dev/null", 0), ("--nothing >/dev/full", 2)):
        assert shell(f"{sys.executable} -c '{program}' {words}").returncode == code


def test_a_reader_that_stays_gets_all(tmp_path: Path) -> None:
    done = shell('S inspect "$1" --json | cat', BLOOM)
    assert json.loads(done.stdout)["kind"] == "folder"
