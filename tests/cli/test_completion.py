"""Completion as it is met at a prompt: TAB is pressed in bash and in zsh, and fish is asked what it would offer."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import shlex
import shutil
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from streamconv.cli.program import VERBS
from tests.processes import run_main

# At the prompt, ^T says what the line holds, and empties it.
BASHRC = """
PS1='ready> '
said() { printf '<<%s>>' "$READLINE_LINE"; READLINE_LINE=; }
bind -x '"\\C-t": said'
eval "$(_STREAMCONV_COMPLETE=bash_source streamconv)"
"""
ZSHRC = """
PS1='ready> '
autoload -Uz compinit
compinit -u
said() { print -rn -- "<<$BUFFER>>"; BUFFER=; }
zle -N said
bindkey '^T' said
eval "$(_STREAMCONV_COMPLETE=zsh_source streamconv)"
"""
# What fish offers for each line that it reads; a null character ends a line, and an answer.
FISH = """
_STREAMCONV_COMPLETE=fish_source streamconv | source
while read --null line
    complete -C "$line"
    printf '\\0'
end
"""
COMMANDS = {"bash": ["bash", "--noprofile", "-i"], "zsh": ["zsh", "-d", "-i"], "fish": ["fish", "-c", FISH]}
EMPTY, SAY = "\x15", "\x14"
PATIENCE = 60


def asked(instruction: str, *words: object, **typed: str) -> subprocess.CompletedProcess[str]:
    return run_main(*words, variables={"_STREAMCONV_COMPLETE": instruction, **typed})


def test_an_empty_instruction_is_none() -> None:
    done = asked("", "families")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("BLOOM")


@pytest.mark.parametrize("instruction", ["bash", "bash_", "tcsh_source", "fish_x", "1"])
def test_an_instruction_that_no_shell_gives_is_refused(instruction: str) -> None:
    done = asked(instruction, "families")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"error: _STREAMCONV_COMPLETE={instruction}: not what a shell asks for completion\n"
        "  remedy: unset it, or say one of bash_source, zsh_source, fish_source for a script\n"
    )


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_that_does_not_say_what_is_typed_is_refused(shell: str) -> None:
    for typed in ({}, {"COMP_WORDS": "streamconv p"}, {"COMP_CWORD": "1"}):
        done = asked(f"{shell}_complete", **typed)
        assert (done.returncode, done.stdout) == (2, "")
        assert f"{shell}_complete without what is typed" in done.stderr
    done = asked("bash_complete", COMP_WORDS="streamconv p", COMP_CWORD="x")
    assert done.returncode == 2


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_bytes_that_are_no_text_are_completed(shell: str) -> None:
    word = "\udcff\udcfe"
    place = word if shell == "fish" else "2"
    done = asked(f"{shell}_complete", COMP_WORDS=f"streamconv plan {word}", COMP_CWORD=place)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("file")


class Shell:
    """A shell that has loaded the completion of streamconv."""

    def __init__(self, writes_to: int, reads_from: int) -> None:
        self.writes_to, self.reads_from = writes_to, reads_from

    def completed(self, line: str) -> str:
        """The last word of a line after TAB, without quotes."""
        raise NotImplementedError

    def listed(self, line: str) -> str:
        """What the shell lists for the end of a line."""
        raise NotImplementedError

    def answer(self, keys: str, pattern: str) -> str:
        """Send some keys, and read until a pattern is found; returns its group."""
        os.write(self.writes_to, keys.encode())
        seen, end = "", time.monotonic() + PATIENCE
        while (found := re.search(pattern, seen, re.DOTALL)) is None:
            assert time.monotonic() < end, f"no {pattern} in {seen}"
            if select.select([self.reads_from], [], [], 1)[0]:
                read = os.read(self.reads_from, 1 << 16).decode()
                assert read, f"it ended: {seen}"
                seen = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", seen + read)
        assert "Traceback" not in seen, seen
        return found[1]


class Terminal(Shell):
    """bash or zsh, in a terminal."""

    def completed(self, line: str) -> str:
        return shlex.split(self.answer(f"{EMPTY}{line}\t{SAY}", "<<(.*)>>"))[-1]

    def listed(self, line: str) -> str:
        return self.answer(f"{EMPTY}{line}\t\t{SAY}", "(.*)<<.*>>")


class Fish(Shell):
    """fish, whose ``complete -C`` offers what TAB would choose from."""

    def completed(self, line: str) -> str:
        offered = [row.partition("\t")[0] for row in self.listed(line).splitlines()]
        return offered[0] if len(offered) == 1 else line.rpartition(" ")[2]

    def listed(self, line: str) -> str:
        return self.answer(f"{line}\0", "(.*)\0")


@contextmanager
def started(name: str, folder: Path, variables: dict[str, str]) -> Iterator[Shell]:
    """A shell in a folder."""
    if name == "fish":
        pipe = subprocess.PIPE
        words = COMMANDS[name]
        with subprocess.Popen(
            words, cwd=folder, env=variables, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            yield Fish(process.stdin.fileno(), process.stdout.fileno())
        return
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 200, 0, 0))
    # The first terminal that the leader of a session opens is the one that controls it.
    words = ["sh", "-c", 'exec "$@" <"$0" >"$0" 2>&1', os.ttyname(follower), *COMMANDS[name]]
    with subprocess.Popen(words, cwd=folder, env=variables, start_new_session=True) as process:
        try:
            terminal = Terminal(leader, leader)
            terminal.answer("", "(ready> )")
            yield terminal
        finally:
            process.kill()
    os.close(leader)
    os.close(follower)


@pytest.fixture(scope="module")
def folder(disk: Path) -> Path:
    """The folder that the shells are in, in a home with a ``streamconv``.

    It is on a disk: memory may be mounted so that no program in it runs.
    """
    home = Path(tempfile.mkdtemp(dir=disk))
    (home / ".bashrc").write_text(BASHRC)
    (home / ".zshrc").write_text(ZSHRC)
    program = home / "bin" / "streamconv"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m streamconv "$@"\n')
    program.chmod(0o755)
    here = home / "here"
    for name in ("checkpoint", "results", "tokens", "my model", "one,two"):
        (here / name).mkdir(parents=True)
    for name in ("tokens.json", "entries.json"):
        (here / name).touch()
    return here


@pytest.fixture(scope="module")
def variables(folder: Path) -> dict[str, str]:
    """The environment of the shells, with nobody's own settings."""
    home = folder.parent
    path = f"{home / 'bin'}:{os.environ['PATH']}"
    return {"HOME": str(home), "PATH": path, "TERM": "xterm", "LANG": "C.UTF-8", "INPUTRC": "/dev/null"}


@pytest.fixture(scope="module", params=COMMANDS)
def shell(request: pytest.FixtureRequest, folder: Path, variables: dict[str, str]) -> Iterator[Shell]:
    """Each shell that there is."""
    if shutil.which(request.param) is None:
        pytest.skip(f"there is no {request.param}")
    with started(request.param, folder, variables) as shell:
        yield shell


def test_a_verb_is_completed(shell: Shell) -> None:
    assert shell.completed("streamconv pl") == "plan"


def test_verbs_are_listed(shell: Shell) -> None:
    listed = shell.listed("streamconv ")
    assert [verb for verb in VERBS if verb not in listed] == []


def test_an_option_is_completed(shell: Shell) -> None:
    assert shell.completed("streamconv convert A B --max-r") == "--max-ram"


def test_a_verb_has_its_own_options(shell: Shell) -> None:
    assert shell.completed("streamconv diff A B --a-conf") == "--a-config"
    assert shell.completed("streamconv plan A --a-conf") == "--a-conf"


def test_a_choice_is_completed(shell: Shell) -> None:
    assert shell.completed("streamconv plan A --to deeps") == "deepspeed"
    assert shell.completed("streamconv plan A --dtype b") == "bf16"


def test_a_choice_may_be_typed_in_capitals(shell: Shell) -> None:
    assert shell.completed("streamconv plan A --to DEEPS") == "deepspeed"


def test_a_choice_after_an_equals_sign_keeps_its_option(shell: Shell) -> None:
    assert shell.completed("streamconv plan A --to=deepspeed --dtype=b") == "--dtype=bf16"


def test_choices_are_listed_after_an_equals_sign(shell: Shell) -> None:
    listed = shell.listed("streamconv plan A --to=")
    assert [word for word in ("deepspeed", "huggingface", "megatron-core", "gpt-neox") if word not in listed] == []


def test_paths_of_a_verb_are_completed(shell: Shell) -> None:
    assert shell.completed("streamconv convert chec") == "checkpoint/"
    assert shell.completed("streamconv convert --to=deepspeed checkpoint/ res") == "results/"


def test_without_a_verb_the_first_words_are_paths(shell: Shell) -> None:
    assert shell.completed("streamconv chec") == "checkpoint/"
    assert shell.completed("streamconv checkpoint/ res") == "results/"


def test_without_a_verb_the_options_are_those_of_convert(shell: Shell) -> None:
    assert shell.completed("streamconv checkpoint/ results/ --max-r") == "--max-ram"
    assert shell.completed("streamconv --max-r") == "--max-ram"
    assert shell.completed("streamconv --vers") == "--version"


def test_an_option_that_takes_a_folder_is_offered_no_files(shell: Shell) -> None:
    assert shell.completed("streamconv convert A B --tokenizer tok") == "tokens/"
    assert shell.completed("streamconv convert A B --tokenizer=tok") == "--tokenizer=tokens/"


def test_an_option_that_takes_a_path_is_offered_files(shell: Shell) -> None:
    assert shell.completed("streamconv plan A --config=ent") == "--config=entries.json"
    assert shell.completed("streamconv verify A --against chec") == "checkpoint/"


def test_paths_may_have_blanks_and_commas_in_them(shell: Shell) -> None:
    assert shell.completed("streamconv plan my") == "my model/"
    assert shell.completed("streamconv convert 'my model' B --max-r") == "--max-ram"
    assert shell.completed("streamconv plan one,") == "one,two/"


def test_a_path_may_begin_at_home(shell: Shell) -> None:
    assert shell.completed("streamconv plan ~/he") == "~/here/"
    assert shell.completed("streamconv plan A --tokenizer $HOME/he") == "$HOME/here/"


def test_a_mistake_earlier_in_the_line_is_no_matter_for_completion(shell: Shell) -> None:
    assert shell.completed("streamconv pln A --max-r") == "--max-ram"
    assert shell.completed("streamconv plan A --tp none --max-r") == "--max-ram"


@pytest.mark.parametrize("shell", ["fish"], indirect=True)
def test_fish_says_all_of_what_a_verb_is_for(shell: Shell) -> None:
    assert shell.listed("streamconv pl") == f"plan\t{VERBS['plan']}\n"
