"""A signal ends a command in words and with its own code, whenever it comes: while the program is imported, while it
opens or works, while names change, while it prints, and when all is done.
"""

from __future__ import annotations

import signal
import sys
import tempfile
from itertools import count
from pathlib import Path

import pytest

from tests.faults.fault import Fault, sends
from tests.places import FRAMEWORKS, ROOT
from tests.processes import STREAMCONV, run_main, start
from tests.trees import tree

BLOOM = FRAMEWORKS / "bs_bloom_tp2pp2_fp32_z0"
SIGNALS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated", signal.SIGHUP: "terminated"}
# A shell starts what runs behind it with SIGINT ignored, and this may be one.
HEARD = [
    sys.executable,
    "-c",
    "import os, signal, sys\n"
    "for number in (signal.SIGINT, signal.SIGHUP):\n"
    "    signal.signal(number, signal.SIG_DFL)\n"
    "os.execv(sys.argv[1], sys.argv[1:])",
]
TRACKER = "latest_checkpointed_iteration.txt"
UNDECIDED = (
    "the destination holds the whole result, or what it held before: then the same command goes on where this ended"
)


@pytest.mark.parametrize(("number", "at"), list(zip(SIGNALS, (16, 40, 80), strict=True)))
def test_a_signal_while_the_program_is_imported(number: signal.Signals, at: int, tmp_path: Path) -> None:
    """The modules are imported in turn; at the first of them, Python has not come to the line that listens."""
    fault = Fault("open", sends(number), ROOT / "streamconv", at)
    done = fault.start([*HEARD, *STREAMCONV], BLOOM, tmp_path / "out")
    assert done.returncode == 128 + number
    assert done.stderr == f"{SIGNALS[number]}; no checkpoint was changed\n"
    assert done.stdout == ""
    assert not (tmp_path / "out").exists()


def commands() -> dict[str, str]:
    """The functions of :mod:`streamconv.__main__` that an installation makes commands of."""
    lines = (ROOT / "pyproject.toml").read_text().partition("[project.scripts]\n")[2].partition("\n\n")[0].splitlines()
    return {name: door for name, _, door in (line.partition(" = ") for line in lines)}


@pytest.mark.parametrize("name", commands())
def test_each_command_has_a_front_door_that_listens(name: str) -> None:
    module, _, function = commands()[name].strip('"').partition(":")
    assert module == "streamconv.__main__"
    program = f"import sys; from {module} import {function}; sys.exit({function}())"
    done = start([sys.executable, "-c", program], "--help")
    assert done.returncode == 0, done.stderr
    assert name in done.stdout
    fault = Fault("open", sends(signal.SIGTERM), ROOT / "streamconv", 16)
    ended = fault.start([sys.executable, "-c", program], "--help")
    assert (ended.returncode, ended.stderr) == (143, "terminated; no checkpoint was changed\n")


@pytest.mark.parametrize(("number", "verb"), list(zip(SIGNALS, ("convert", "inspect", "plan"), strict=True)))
def test_a_signal_while_a_checkpoint_is_opened(verb: str, number: signal.Signals, tmp_path: Path) -> None:
    words = (verb, BLOOM, *([tmp_path / "out"] if verb == "convert" else []))
    done = Fault("read", sends(number), BLOOM, 9).start([*HEARD, *STREAMCONV], *words)
    assert done.returncode == 128 + number
    assert done.stderr == f"{SIGNALS[number]}; no checkpoint was changed\n"
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("expected") / "out"
    assert run_main(BLOOM, out, "--tp", 1).returncode == 0
    return tree(out)


@pytest.mark.parametrize(("call", "step"), [pytest.param("sync", 3, marks=pytest.mark.slow), ("rename", 1)])
def test_a_signal_while_the_result_appears(call: str, step: int, expected: dict[str, bytes], tmp_path: Path) -> None:
    """Whole or not there, before and after it is decided; and the last words hold."""
    appeared = set()
    for at in count(1, step):
        out = tmp_path / f"{at}"
        done = Fault(call, sends(signal.SIGTERM), out, at).run(BLOOM, out, "--tp", 1)
        if done.returncode == 0:
            break
        assert done.returncode == 143, done.stderr
        assert done.stderr.endswith(f"terminated; {UNDECIDED}\n")
        appeared.add((out / TRACKER).exists())
        if not (out / TRACKER).exists():
            assert run_main(BLOOM, out, "--tp", 1).returncode == 0
        assert tree(out) == expected
    assert appeared == ({True, False} if call == "sync" else {True})


@pytest.mark.slow
def test_a_signal_at_the_rename_that_decides_waits_whichever_thread_gets_it(
    expected: dict[str, bytes], tmp_path: Path
) -> None:
    """numpy has threads of its own, which block no signal; a process that was forked has them not."""
    for number in range(8):
        out = tmp_path / f"{number}"
        done = Fault("rename", sends(signal.SIGTERM), out / TRACKER).start(STREAMCONV, BLOOM, out, "--tp", 1)
        assert (done.returncode, tree(out)) == (143, expected), done.stderr


@pytest.mark.slow
def test_a_signal_while_the_result_is_printed(expected: dict[str, bytes], tmp_path: Path) -> None:
    ends = set()
    for at in count(1):
        out = tmp_path / f"{at}"
        fault = Fault("write", sends(signal.SIGTERM), Path(tempfile.gettempdir()), at)
        done = fault.run(BLOOM, out, "--tp", 1)
        if done.returncode == 0:
            break
        assert done.returncode == 143
        ends.add((done.stderr.splitlines()[-1].partition("terminated; ")[2], (out / TRACKER).exists()))
    whole = {(words, there) for words, there in ends if words.endswith("holds the whole result")}
    assert {there for _, there in whole} == {True}
    assert ends - whole == {("no checkpoint was changed", False), (UNDECIDED, False)}


# A thread that counts as started only when what it does is long done.
BUSY = (
    "import threading\n"
    "start, seen = threading.Thread.start, []\n"
    "def slow(self):\n"
    "    start(self)\n"
    "    if not seen:\n"
    "        seen.append(self)\n"
    "        time.sleep(1)\n"
    "threading.Thread.start = slow\n"
)


@pytest.mark.parametrize("busy", ["", BUSY], ids=["idle", "busy"])
@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_signal_in_a_destructor_is_not_lost(number: signal.Signals, busy: str) -> None:
    """Python prints an exception that is raised there, and goes on; so the signal is sent again.

    A busy machine may do that before the thread that sends it counts as started.
    """
    program = (
        "import os, sys, time\n"
        "from streamconv.cli.main import guarded\n"
        f"{busy}"
        "class Last:\n"
        f"    def __del__(self): os.kill(os.getpid(), {number.value})\n"
        "def command(words):\n"
        "    Last()\n"
        "    time.sleep(60)\n"
        "    return 0\n"
        "sys.exit(guarded(command, []))\n"
    )
    done = start([*HEARD, sys.executable, "-c", program])
    assert (done.returncode, done.stderr) == (128 + number, f"{SIGNALS[number]}; no checkpoint was changed\n")


def test_an_interrupt_of_a_text_that_is_executed_keeps_its_exit_code() -> None:
    """As of a dataclass, whose methods are made so while a module is imported."""
    program = (
        "import sys\n"
        "from streamconv.cli.main import guarded\n"
        "def command(words):\n"
        "    exec('import os; os.kill(os.getpid(), 2)')\n"
        "sys.exit(guarded(command, []))\n"
    )
    done = start([*HEARD, sys.executable, "-c", program])
    assert (done.returncode, done.stderr) == (130, "interrupted; no checkpoint was changed\n")


def test_a_signal_when_all_is_done_changes_nothing(tmp_path: Path) -> None:
    program = (
        "import atexit, os, signal, sys\n"
        "atexit.register(lambda: [os.kill(os.getpid(), n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)])\n"
        "from streamconv.__main__ import main\n"
        "sys.exit(main())\n"
    )
    done = start([sys.executable, "-c", program], "inspect", BLOOM, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert start([sys.executable, "-c", program], "inspect", tmp_path / "nothing").returncode == 3
