"""What a terminal sees while a command runs: a bar, what is logged above it, and nothing of both at the end."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
from pathlib import Path

import pytest

from streamconv.cli.main import main
from tests.places import FRAMEWORKS

BLOOM = FRAMEWORKS / "bs_bloom_tp2pp2_fp32_z0"
ANEW = "\r\x1b[2K"
MAIN = "import sys; from streamconv.cli.main import main; code = main(); {then}; sys.exit(code)"


def on_terminal(*words: object, columns: int = 100, term: str = "xterm", then: str = "pass") -> tuple[int, str]:
    """The exit code, and what a terminal receives from stderr."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    command = [sys.executable, "-c", MAIN.format(then=then), *map(str, words)]
    variables = {**os.environ, "TERM": term}
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=follower, env=variables) as process:
        os.close(follower)
        seen = b""
        while True:
            try:
                chunk = os.read(leader, 4096)
            except OSError:  # the other end is closed
                break
            if not chunk:
                break
            seen += chunk
        os.close(leader)
    return process.returncode, seen.decode().replace("\r\n", "\n")


def left_on(screen: str) -> list[str]:
    """The lines that stay, after those that were written anew."""
    return [line.rpartition(ANEW)[2] for line in screen.split("\n")]


@pytest.mark.parametrize("columns", [40, 100])
def test_a_terminal_sees_a_bar_of_one_line_that_goes(columns: int, tmp_path: Path) -> None:
    code, screen = on_terminal("verify", BLOOM, columns=columns)
    assert code == 0
    bars = [part for part in screen.split(ANEW) if part.startswith("verifying [")]
    assert bars
    assert all(len(bar.rstrip()) < columns for bar in bars)
    assert re.match(r"verifying \[############\] 839.11 KiB", bars[-1])
    assert left_on(screen) == [""]


def test_what_is_logged_stands_above_the_bar(tmp_path: Path) -> None:
    code, screen = on_terminal("convert", BLOOM, tmp_path / "out", "-v", "--max-ram", "1G")
    assert code == 0
    assert "converting [" in screen
    lines = left_on(screen)
    logged = [line for line in lines if " ms  " in line]
    assert any(re.match(r" +\d+ ms  converted <ConversionReport: ", line) for line in logged)
    assert not any("converting" in line for line in lines)


@pytest.mark.parametrize("term", ["dumb", "unknown"])
def test_a_terminal_without_a_cursor_gets_lines(term: str) -> None:
    code, screen = on_terminal("verify", BLOOM, "-v", term=term)
    assert code == 0
    assert "\x1b" not in screen
    assert "\r" not in screen
    first, second, last = screen.split("\n")
    assert first.startswith("verifying: 839.11 KiB of 839.11 KiB (100%), ")
    assert re.match(r" +\d+ ms  verified <Verification: ", second)
    assert last == ""


def test_a_bar_takes_no_memory_of_a_conversion() -> None:
    """With what draws it in memory, a budget that ``plan`` finds enough was too little on a terminal."""
    code, screen = on_terminal("convert", BLOOM, "--to", "null", then="assert not sys.modules.keys() & {'rich'}")
    assert code == 0, screen
    assert "converting [" in screen


def test_a_command_runs_in_any_thread(tmp_path: Path) -> None:
    """Signals are the main thread's."""
    codes: list[int] = []
    words = ["convert", str(BLOOM), str(tmp_path / "out"), "-q", "--max-ram", "50%"]
    thread = threading.Thread(target=lambda: codes.extend((main(words), main(["plan", "nothing", "-q"]))))
    thread.start()
    thread.join()
    assert codes == [0, 3]
    assert (tmp_path / "out" / "latest_checkpointed_iteration.txt").read_text() == "3"


def test_what_is_logged_is_printed_once_however_many_commands_ran(capfd: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        assert main(["families", "-v"]) == 0
        assert capfd.readouterr().err.count("listed <FamilyTable") == 1
    assert main(["families"]) == 0
    assert capfd.readouterr().err == ""
