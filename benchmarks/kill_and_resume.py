"""Kill conversions at random moments, run the same command again until it is done, and compare every byte.

    python benchmarks/kill_and_resume.py --work /data/out --tp 1 --pp 1 --json kills.json
    python benchmarks/kill_and_resume.py /data/8g --work /data/out --kills 20

First the conversion runs three times undisturbed: its files' SHA-256 are what every later result is held against, and
the median of the times is the span that moments are drawn from, uniformly, by a generator with a seed. Then conversions
follow one another until --kills processes have been killed with SIGKILL: the command is started, killed after the time
drawn, and started again with the same words and a new draw until it ends by itself, and the files are compared. A draw
later than a run's end kills nothing and is no kill. The last conversion runs to its end.

What a kill left in the destination tells where it fell:

  before    there is no journal yet: the interpreter starts, the plan is made
  filling   the journal is there: tensors are read, put together, written
  publishing  the intention to publish is noted
  after     the result is published and the work folder gone: the process was about to end

Then, --rounds times, a run is killed after 85 % of that time, the page cache is dropped, and the same command is run
again. A run that goes on reads back what it trusts: how long it took, and how many bytes of the result it read back,
beside a run of the whole.

Written bytes are what the kernel charges the process with (`ru_oublock`), so what was written again is the sum over a
conversion's runs less what an undisturbed run writes. SIGKILL ends a process, not a machine: the page cache survives,
and nothing here says what a loss of power would do.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import contenders
import machine
import measure
import options as opt
from contenders import Job
from options import megabytes

PHASES = ("before", "filling", "publishing", "after")
UNDISTURBED_RUNS = 3
KILLED_AT = 0.85
TRACKER = "latest_checkpointed_iteration.txt"
Sums = dict[str, str]


@dataclass(frozen=True, slots=True)
class Attempt:
    """One run of the command. `drawn_seconds` is when it would be killed, `phase` where it was."""

    resumes: bool
    drawn_seconds: float | None
    seconds: float
    exit_code: int
    phase: str | None
    written_nbytes: int
    output_tail: str


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=opt.folder, nargs="?", help="checkpoint folder (default: made of --preset)")
    opt.add_work(parser, rounds=False, warm=False)
    opt.add_target(parser)
    parser.add_argument("--preset", default="1g", help="of make_checkpoint.py, where no source is given (1g)")
    parser.add_argument("--kills", type=opt.positive, default=100, help="how many (default: 100)")
    parser.add_argument("--rounds", type=opt.positive, default=3, help="of going on after 85 %% (default: 3)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    return parser


def sums(folder: Path) -> Sums:
    """SHA-256 of every file below a folder."""
    digests = {}
    for path in measure.regular_files(folder):
        digest = hashlib.sha256()
        with path.open("rb", buffering=0) as file:
            while block := file.read(1 << 20):
                digest.update(block)
        digests[str(path.relative_to(folder))] = digest.hexdigest()
    return digests


def phase_of(target: Path) -> str:
    """Where a killed run was, told by what it left."""
    work = target / ".streamconv"
    if (work / "publishing.json").exists():
        return "publishing"
    if (work / "journal").exists():
        return "filling"
    return "after" if (target / TRACKER).exists() else "before"


def attempt(command: Sequence[str], target: Path, drawn: float | None) -> Attempt:
    """Run the command; kill it and whatever it started once `drawn` seconds have passed."""
    resumes = (target / ".streamconv" / "journal").exists()
    with tempfile.TemporaryFile() as output:
        start = time.perf_counter()
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
        ended_by_itself = wait(child.pid, drawn)
        if not ended_by_itself:
            os.killpg(child.pid, signal.SIGKILL)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - start
        killed = child.returncode == -signal.SIGKILL and not ended_by_itself
        return Attempt(
            resumes=resumes,
            drawn_seconds=drawn,
            seconds=seconds,
            exit_code=child.returncode,
            phase=phase_of(target) if killed else None,
            written_nbytes=usage.ru_oublock * 512,
            output_tail="" if killed or child.returncode == 0 else measure.tail(output.fileno()),
        )


def wait(pid: int, seconds: float | None) -> bool:
    """Wait for a child, which stays to be reaped; False when it is still running after `seconds`."""
    descriptor = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return bool(poll.poll(None if seconds is None else seconds * 1000))
    finally:
        os.close(descriptor)


def undisturbed(job: Job) -> tuple[Sums, float, int]:
    """Run the conversion a few times: its files' sums, its median time, what it writes."""
    target = job.target("streamconv")
    runs: list[Attempt] = []
    reference: Sums = {}
    for _ in range(UNDISTURBED_RUNS):
        try:
            runs.append(attempt(job.command("streamconv"), target, None))
            if runs[-1].exit_code:
                raise SystemExit(f"the undisturbed run ended with {runs[-1].exit_code}:\n{runs[-1].output_tail}")
            found = sums(target)
        finally:
            shutil.rmtree(target, ignore_errors=True)
        if reference and found != reference:
            raise SystemExit(f"two undisturbed runs differ: {differences(reference, found)}")
        reference = found
    return reference, median(run.seconds for run in runs), int(median(run.written_nbytes for run in runs))


def differences(expected: Sums, found: Sums) -> list[str]:
    """Names of the files that differ, are missing or are too many."""
    return sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))


def conversion(job: Job, draws: random.Random, span: float, kills: int) -> list[Attempt]:
    """One conversion, killed at most `kills` times; its last attempt is the one that was not killed."""
    target = job.target("streamconv")
    attempts: list[Attempt] = []
    while not attempts or attempts[-1].phase:
        rest = kills - sum(run.phase is not None for run in attempts)
        attempts.append(attempt(job.command("streamconv"), target, draws.uniform(0, span) if rest else None))
    return attempts


def complaint(attempts: Sequence[Attempt], reference: Sums, target: Path) -> str | None:
    """What is wrong with a conversion that came to its end; None when nothing is."""
    last = attempts[-1]
    if last.exit_code:
        return f"the last run ended with {last.exit_code}:\n{last.output_tail}"
    different = differences(reference, sums(target))
    return f"not what an undisturbed run writes: {', '.join(different[:8])}" if different else None


def going_on(job: Job, span: float, rounds: int) -> list[dict[str, Any]]:
    """Runs that go on after 85 % of the time: seconds to the kill and from there to the end, and bytes read back."""
    target, found = job.target("streamconv"), []
    for _ in range(rounds):
        try:
            killed = attempt(job.command("streamconv"), target, KILLED_AT * span)
            measure.drop_caches(target)
            began = time.perf_counter()
            done = subprocess.run([*job.command("streamconv"), "--json"], capture_output=True, text=True, check=False)
            seconds = time.perf_counter() - began
        finally:
            shutil.rmtree(target, ignore_errors=True)
        if done.returncode:
            raise SystemExit(f"the run that goes on ended with {done.returncode}:\n{done.stderr}")
        nbytes = json.loads(done.stdout)["resumed_nbytes"]
        found.append({"killed_seconds": killed.seconds, "seconds": seconds, "read_back_nbytes": nbytes})
    return found


def show_going_on(found: Sequence[dict[str, Any]], span: float) -> None:
    """Print the medians."""
    seconds, nbytes = (median(run[name] for run in found) for name in ("seconds", "read_back_nbytes"))
    print(
        f"killed after {KILLED_AT:.0%} of {span:.1f} s and run again, cold: {seconds:.1f} s more, "
        f"{megabytes(int(nbytes))} of the result read back (medians of {len(found)})"
    )


def report(every: Sequence[Sequence[Attempt]], written: int) -> dict[str, Any]:
    """Counts over all conversions."""
    runs = [run for attempts in every for run in attempts]
    phases = Counter(run.phase for run in runs if run.phase)
    return {
        "conversions": len(every),
        "kills": sum(phases.values()),
        "runs_that_resumed": sum(run.resumes for run in runs),
        "most_kills_in_one_conversion": max(len(attempts) - 1 for attempts in every),
        "kills_by_phase": {phase: phases[phase] for phase in PHASES},
        "undisturbed_written_nbytes": written,
        "written_again_nbytes": sum(run.written_nbytes for run in runs) - len(every) * written,
    }


def show(counts: dict[str, Any]) -> None:
    """Print the counts."""
    where = ", ".join(f"{count} {phase}" for phase, count in counts["kills_by_phase"].items())
    print(f"{counts['kills']} kills in {counts['conversions']} conversions, {counts['runs_that_resumed']} runs resumed")
    print(f"kills fell: {where}; at most {counts['most_kills_in_one_conversion']} in one conversion")
    whole, again = counts["undisturbed_written_nbytes"], counts["written_again_nbytes"]
    print(f"an undisturbed run writes {megabytes(whole)}; all conversions together wrote {megabytes(again)} again")


def main(argv: Sequence[str] | None = None) -> int:
    """Kill and resume; 0 when every result was the same, 1 at the first that was not."""
    parser = build_parser()
    options = parser.parse_args(argv)
    options.work.mkdir(parents=True, exist_ok=True)
    made = contenders.checkpoint(options.work, options.preset, "--preset", options.preset)
    with made if options.source is None else nullcontext(options.source) as source:
        nbytes, _ = opt.check_folders(parser, source, options.work, factor=2)
        job = Job.given(options, source=source)
        contenders.available(parser, job, ["streamconv"])
        return kill_and_resume(options, job, nbytes)


def kill_and_resume(options: argparse.Namespace, job: Job, nbytes: int) -> int:
    """All conversions; returns the exit code."""
    draws, target = random.Random(options.seed), job.target("streamconv")
    reference, span, written = undisturbed(job)
    print(opt.headline(machine.facts(options.work)))
    print(
        f"{nbytes / 1e9:.3f} GB to tp {job.tp} pp {job.pp}; {span:.2f} s undisturbed, {len(reference)} files",
        flush=True,
    )
    every: list[list[Attempt]] = []
    wrong, kills = None, 0
    while kills < options.kills and not wrong:
        try:
            every.append(conversion(job, draws, span, options.kills - kills))
            wrong = complaint(every[-1], reference, target)
        finally:
            if not wrong:
                shutil.rmtree(target, ignore_errors=True)
        kills += sum(run.phase is not None for run in every[-1])
        ends = " ".join(run.phase or "end" for run in every[-1])
        print(f"conversion {len(every)}: {ends}; {kills} kills", file=sys.stderr)
    counts = report(every, written)
    show(counts)
    print(f"DIFFERENT, see {target}: {wrong}" if wrong else "every result is the same, byte for byte")
    described = {
        "source_nbytes": nbytes,
        "preset": options.preset if options.source is None else None,
        "tp": job.tp,
        "pp": job.pp,
        "max_ram": job.max_ram,
        "kills": options.kills,
        "seed": options.seed,
        "undisturbed_seconds": span,
        "command": job.command("streamconv"),
    }
    samples = [[asdict(run) for run in attempts] for attempts in every]
    resumed = [] if wrong else going_on(job, span, options.rounds)
    if resumed:
        show_going_on(resumed, span)
    opt.write_report(
        options,
        "kill_and_resume",
        job=described,
        summary=counts,
        wrong=wrong,
        files=reference,
        samples=samples,
        going_on=resumed,
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
