"""The contenders: their commands, single runs with the cache prepared, alternating rounds, medians."""

from __future__ import annotations

import argparse
import importlib.util
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import measure
from options import HERE, words

STREAMCONV = ("streamconv", "streamconv-direct", "streamconv-pread")
CONTENDERS = ("cp", *STREAMCONV, "torch", "torch-mmap", "safetensors", "original")
BELOW_FLOOR = 4
"""streamconv's exit code when the budget (or the disk) is too small."""
Samples = dict[str, list[measure.Result]]


@dataclass(frozen=True, slots=True)
class Job:
    """What every contender is given."""

    source: Path
    work: Path
    tp: int
    pp: int
    max_ram: str
    streamconv: str
    options: str = ""
    dtype: str | None = None
    original: Path | None = None

    @classmethod
    def given(cls, options: argparse.Namespace, **more: Any) -> Job:
        """The job that the options describe; `more` says what they leave open."""
        named = {field: getattr(options, field) for field in cls.__dataclass_fields__ if hasattr(options, field)}
        return cls(**(named | more))

    def target(self, name: str) -> Path:
        """Where one contender writes."""
        return self.work / f"output-{name}"

    def command(self, name: str) -> list[str]:
        """The command of one contender."""
        source, target, degrees = str(self.source), str(self.target(name)), self.degrees()
        kind, _, variant = name.partition("-")
        if kind == "cp":
            return ["cp", "-r", source, target]
        if kind == "torch":
            return [*script("plain_torch.py"), source, target, *degrees, *(["--mmap"] if variant else [])]
        if kind == "safetensors":
            return [*script("plain_torch.py"), source, target, *degrees, "--mmap", "--safetensors"]
        if kind == "original":
            return [*script("run_original.py"), str(self.original), source, target, *degrees]
        return self.convert(target, *(["--io", variant] if variant else []))

    def convert(self, target: str, *more: str) -> list[str]:
        """The command of streamconv, writing to `target`."""
        cast = ["--dtype", self.dtype] if self.dtype else []
        start = [*shlex.split(self.streamconv), "convert", str(self.source), target]
        return [*start, *self._budget(), *cast, *more, *shlex.split(self.options)]

    def to_null(self) -> list[str]:
        """The command of streamconv that converts and discards the result."""
        start = [*shlex.split(self.streamconv), "convert", str(self.source), "--to", "null"]
        return [*start, *self._budget(), *shlex.split(self.options)]

    def _budget(self) -> list[str]:
        return ["--max-ram", self.max_ram, *self.degrees()]

    def degrees(self) -> list[str]:
        """The options for the parallel sizes to write."""
        return ["--tp", str(self.tp), "--pp", str(self.pp)]

    def lacks(self, name: str) -> str | None:
        """Why a contender cannot be run here; None when it can."""
        if name == "original" and (self.original is None or not self.original.is_file()):
            where = "no --original PATH was given" if self.original is None else f"{self.original} is not a file"
            return f"{where}: the script is not part of this repository"
        if name == "safetensors" and importlib.util.find_spec("safetensors") is None:
            return "the package safetensors is not installed"
        return None


def script(name: str) -> list[str]:
    """How a script of this folder is started."""
    return [sys.executable, str(HERE / name)]


@contextmanager
def checkpoint(work: Path, name: str, *how: str) -> Iterator[Path]:
    """A checkpoint made for one measurement, in a child process; it is deleted afterwards."""
    folder = work / f"source-{name}"
    try:
        subprocess.run([*script("make_checkpoint.py"), str(folder), *how], check=True, stdout=sys.stderr)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def listed(text: str) -> list[str]:
    """The contenders in a comma-separated list."""
    names = words(text)
    unknown = sorted(set(names) - set(CONTENDERS))
    if unknown or not names or len(set(names)) < len(names):
        raise argparse.ArgumentTypeError(f"{text!r}: choose among {', '.join(CONTENDERS)}, each once")
    return names


def available(parser: argparse.ArgumentParser, job: Job, names: Sequence[str]) -> list[str]:
    """The contenders that can be run; a line for each that cannot, and a refusal where an output is in the way."""
    for name in names:
        reason = job.lacks(name)
        if reason:
            print(f"{name} is skipped: {reason}", file=sys.stderr)
    rest = [name for name in names if not job.lacks(name)]
    leftovers = [job.target(name) for name in rest if job.target(name).exists()]
    if leftovers:
        parser.error(f"{leftovers[0]} is already there: remove it or choose another --work")
    if not rest:
        parser.error("no contender is left")
    return rest


def prepare_cache(source: Path, work: Path, warm: bool) -> None:
    """Bring the page cache into the state the measurement asks for."""
    if warm:
        measure.warm_caches(source)
        measure.sync_file_system(work)
    else:
        measure.drop_caches(source)


def run_once(
    name: str,
    job: Job,
    *,
    warm: bool,
    version: int | None,
    limit: int | None = None,
    timeline: list[measure.Moment] | None = None,
) -> measure.Result:
    """Prepare the cache, run one contender, delete its output. A budget below streamconv's floor is `refused`."""
    prepare_cache(job.source, job.work, warm)
    try:
        result = measure.run(job.command(name), job.work, version, limit, timeline)
    finally:
        shutil.rmtree(job.target(name), ignore_errors=True)
    below = name in STREAMCONV and result.exit_code == BELOW_FLOOR
    return replace(result, outcome="refused") if below else result


def run_rounds(names: Sequence[str], rounds: int, run: Callable[[str], measure.Result]) -> Samples:
    """All rounds of all names, each round beginning with another one. What did not finish is not run again.

    Two names keep their order: otherwise each would follow itself half of the time, and find the memory that it had
    touched still given to the machine.
    """
    samples: Samples = {name: [] for name in names}
    for number in range(rounds):
        shift = number % len(names) if len(names) > 2 else 0
        for name in [*names[shift:], *names[:shift]]:
            if any(result.outcome != "done" for result in samples[name]):
                continue
            result = run(name)
            samples[name].append(result)
            print(f"round {number + 1}: {name} {result.outcome}, {result.wall_seconds:.2f} s", file=sys.stderr)
            if result.outcome == "failed":
                print(result.output_tail, file=sys.stderr)
    return samples


def summarise(results: Sequence[measure.Result]) -> dict[str, Any]:
    """Medians of a contender that always finished; otherwise only how it ended."""
    ends = [result.outcome for result in results if result.outcome != "done"]
    summary: dict[str, Any] = {"outcome": ends[0] if ends else "done", "rounds": len(results)}
    if ends:
        return summary
    for field in ("wall_seconds", "cpu_seconds", "peak_rss_nbytes", "cgroup_peak_nbytes"):
        values = [getattr(result, field) for result in results]
        unseen = field == "peak_rss_nbytes" and 0 in values  # over before it could be sampled
        summary[field] = None if unseen or None in values else median(values)
    walls = [result.wall_seconds for result in results]
    return summary | {"wall_seconds_range": [min(walls), max(walls)]}
