"""Look at one made file or folder with every command, and tell what must not happen."""

from __future__ import annotations

import io
import re
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from streamconv.bigscience import inspect_checkpoint, inspect_deepspeed_checkpoint
from streamconv.cli.main import main

# Seconds of the process's own time: what else the machine does is not the file's fault.
SECONDS, NBYTES = 10, 300 << 20
CANARY = "streamconv_canary"
PROGRAMS = {
    "inspect_checkpoint": inspect_checkpoint.main,
    "inspect_deepspeed_checkpoint": inspect_deepspeed_checkpoint.main,
}
# What a pickle that is executed would do; the words of the interpreter's own audit.
_EXECUTES = (
    *("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.spawn", "os.startfile", "pty.spawn", "socket."),
    *("pickle.find_class", "webbrowser.open", "ftplib.", "urllib.", "smtplib."),
)
_RAW = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_NAMED = ("import", "exec", "compile", "open", "ctypes.dlopen")
executed: list[str] = []


class TooLong(BaseException):
    """A command has taken too long."""


def watch() -> None:
    """Note in ``executed`` whatever the process executes from now on."""

    def hook(event: str, args: tuple[object, ...]) -> None:
        if event.startswith(_EXECUTES) or (event in _NAMED and CANARY in str(args[0])):
            executed.append(f"{event} {str(args)[:200]}")

    sys.addaudithook(hook)


@dataclass(frozen=True)
class Fault:
    """What must not happen: the kind, where it came from, and the command."""

    kind: str
    what: str
    words: tuple[str, ...]


def look(words: Sequence[str]) -> tuple[int, Fault | None]:
    """(the exit code of a command, what is wrong with how it ended)."""
    out, error, start = io.StringIO(), io.StringIO(), time.process_time()
    before = len(executed)
    signal.signal(signal.SIGPROF, _too_long)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    program, arguments = (PROGRAMS[words[0]], words[1:]) if words[0] in PROGRAMS else (main, words)
    try:
        with redirect_stdout(out), redirect_stderr(error):
            code = program(arguments)
    except TooLong as end:
        return -1, Fault("too long", str(end), tuple(words))
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException as end:  # noqa: BLE001 - nothing may leave main
        return -1, Fault("left main", _place(repr(end), end), tuple(words))
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    said = out.getvalue() + error.getvalue()
    nbytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    fault = None
    if executed[before:]:
        fault = Fault("execution", executed[before], tuple(words))
    elif code == 1 or code not in range(9):
        fault = Fault(f"exit {code}", _traceback(program, arguments), tuple(words))
    elif time.process_time() - start > SECONDS:
        fault = Fault("too long", f"{time.process_time() - start:.0f} s", tuple(words))
    elif nbytes > NBYTES:
        fault = Fault("too large", f"{nbytes >> 20} MiB", tuple(words))
    elif raw := _RAW.search(said):
        around = said[max(0, raw.start() - 60) : raw.end() + 20]
        fault = Fault("raw bytes", repr(around), tuple(words))
    return code, fault


def _too_long(_: int, frame: FrameType | None) -> None:
    raise TooLong("" if frame is None else f"{frame.f_code.co_filename}:{frame.f_lineno}")


def _place(text: str, error: BaseException) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return text if trace is None else f"{text} at {trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"


def _traceback(program: Callable[[Sequence[str]], int], words: Sequence[str]) -> str:
    """The last place in our own code that the traceback of a command names, and the error."""
    error = io.StringIO()
    with redirect_stdout(io.StringIO()), redirect_stderr(error):
        program([*words, "-vv"])
    text = error.getvalue()
    places = re.findall(r'File "[^"]*/(streamconv/[^"]+)", line (\d+)', text)
    lines = [line for line in text.splitlines() if line.startswith("unexpected")]
    return f"{lines[-1][:160] if lines else text[-200:]} at {':'.join(places[-1]) if places else 'nowhere'}"


def commands_of_file(path: Path, choice: float) -> list[list[str]]:
    """One of the commands that look at a file or a small folder."""
    given = str(path)
    turns = [
        ["inspect", given, "--tree", "--globals"],
        ["inspect", given, "--json"],
        ["inspect", given, "--stats", "--check", "--max-ram", "1G"],
        ["diff", given, given, "--max-ram", "1G"],
        ["verify", given, "--max-ram", "1G"],
        ["inspect_checkpoint", given] if path.is_file() else ["plan", given, "--to", "huggingface"],
    ]
    return [turns[int(choice * len(turns))]]


TARGETS = ("megatron-legacy", "megatron-core", "deepspeed", "huggingface", "gpt-neox")


def commands_of_folder(made: Path, source: Path, choice: float) -> list[list[str]]:
    """The commands that look at a folder."""
    given = str(made)
    target = TARGETS[int(choice * len(TARGETS))]
    return [
        ["inspect", given, "--tree", "--globals", "--stats", "--check", "--max-ram", "1G"],
        ["inspect", given, "--target-tp", "2", "--target-pp", "1", "--json"],
        ["plan", given, "--to", target, "--max-ram", "1G"],
        ["diff", given, str(source), "--max-ram", "1G"],
        ["verify", given, "--max-ram", "1G"],
        ["inspect_deepspeed_checkpoint", "--folder", given],
    ]


def empty(where: Path) -> Path:
    """A folder that is there and empty."""
    shutil.rmtree(where, ignore_errors=True)
    where.mkdir(parents=True)
    return where
