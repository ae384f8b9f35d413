"""Compare streamconv with `cp -r` and with plain torch on the same checkpoint: time, throughput, peak memory.

    python benchmarks/make_checkpoint.py /data/8g --preset 8g
    python benchmarks/compare.py /data/8g --work /data/out --tp 1 --pp 1 --json results.json

Every contender is a child process. Rounds alternate: each round runs every contender once, starting with another one
each time, and the table gives medians. The time of a run ends when its output is on the disk: the output's file system
is synced inside the timed span, and it begins with the interpreter: importing torch from a cold disk takes seconds, so
compare on checkpoints of several GB. The cache is cold by default: before each run all is synced and the page cache is
dropped (`/proc/sys/vm/drop_caches`), or without root the source's files are dropped with posix_fadvise, which is
weaker; the report says which.

  cp               `cp -r`: the job of copying the bytes, no conversion
  streamconv       with its default way of reading; streamconv-pread and streamconv-mmap choose one
  torch            benchmarks/plain_torch.py: torch.load, cat, torch.save for each target rank
  torch-mmap       the same with torch.load(mmap=True)

MB/s count the bytes of the source, 10^6 to the MB, for every contender. Peak RSS is the largest sum over the process
and its children; pages of mapped files count. The cgroup peak, where cgroups can be used, includes the page cache of
all that was read and written. With --limit each contender runs inside a memory cgroup of that size without swap; one
that is killed there is reported as such and not run again.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import machine
import measure

HERE = Path(__file__).resolve().parent
UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
CONTENDERS = ("cp", "streamconv", "streamconv-pread", "streamconv-mmap", "torch", "torch-mmap")
DEFAULT_CONTENDERS = "cp,streamconv,torch,torch-mmap"
COLUMNS = " " * 16 + "   wall s     min..max   x cp    MB/s   cpu s   peak RSS  cgroup peak"
Samples = dict[str, list[measure.Result]]


def target_of(name: str, options: argparse.Namespace) -> Path:
    """Where one contender writes."""
    return Path(options.work) / f"output-{name}"


def command_for(name: str, options: argparse.Namespace, target: Path) -> list[str]:
    """The command of one contender, writing to `target`."""
    source, degrees = str(options.source), ["--tp", str(options.tp), "--pp", str(options.pp)]
    kind, _, variant = name.partition("-")
    if kind == "cp":
        return ["cp", "-r", source, str(target)]
    if kind == "torch":
        script = [sys.executable, str(HERE / "plain_torch.py"), source, str(target), *degrees]
        return [*script, "--mmap"] if variant else script
    convert = [*shlex.split(options.streamconv), "convert", source, str(target), "--max-ram", options.max_ram]
    return [*convert, *degrees, *(["--io", variant] if variant else [])]


def run_once(name: str, options: argparse.Namespace, version: int | None) -> measure.Result:
    """Prepare the cache, run one contender, delete its output."""
    target = target_of(name, options)
    if options.warm:
        measure.warm_caches(options.source)
        measure.sync_file_system(options.work)
    else:
        measure.drop_caches(options.source)
    try:
        return measure.run(command_for(name, options, target), options.work, version, options.limit)
    finally:
        shutil.rmtree(target, ignore_errors=True)


def run_rounds(options: argparse.Namespace, version: int | None) -> Samples:
    """All rounds of all contenders. One that did not finish is not run again."""
    samples: Samples = {name: [] for name in options.contenders}
    for number in range(options.rounds):
        shift = number % len(options.contenders)
        for name in options.contenders[shift:] + options.contenders[:shift]:
            if any(result.outcome != "done" for result in samples[name]):
                continue
            result = run_once(name, options, version)
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
        summary[field] = None if None in values else median(values)
    walls = [result.wall_seconds for result in results]
    return summary | {"wall_seconds_range": [min(walls), max(walls)]}


def table(summaries: dict[str, dict[str, Any]], source_nbytes: int) -> str:
    """The human table, one line a contender."""
    base = summaries.get("cp", {}).get("wall_seconds")
    return "\n".join([COLUMNS, *(row(name, summary, base, source_nbytes) for name, summary in summaries.items())])


def row(name: str, summary: dict[str, Any], base: float | None, source_nbytes: int) -> str:
    """One contender's line; `base` is the time of `cp -r`, if that was run."""
    if summary["outcome"] != "done":
        return f"{name:16} {summary['outcome']:>8}"
    wall, (least, most) = summary["wall_seconds"], summary["wall_seconds_range"]
    ratio, spread = f"{wall / base:.2f}" if base else "-", f"{least:.1f}..{most:.1f}"
    times = f"{wall:8.2f} {spread:>12} {ratio:>6} {source_nbytes / wall / 1e6:7.0f} {summary['cpu_seconds']:7.2f}"
    rss, peak = megabytes(summary["peak_rss_nbytes"]), megabytes(summary["cgroup_peak_nbytes"])
    return f"{name:16} {times} {rss:>10} {peak:>12}"


def megabytes(nbytes: float | None) -> str:
    """Bytes as MB of 10^6, or a dash where there is no figure."""
    return "-" if nbytes is None else f"{nbytes / 1e6:.0f} MB"


def size(text: str) -> int:
    """Bytes of a size such as 512M or 1G (powers of 1024)."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size: write 512M or 1G")
    return int(float(match.group(1)) * UNITS[match.group(2).upper()])


def contenders(text: str) -> list[str]:
    """The names in a comma-separated list."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = sorted(set(names) - set(CONTENDERS))
    if unknown or not names or len(set(names)) < len(names):
        raise argparse.ArgumentTypeError(f"{text!r}: choose among {', '.join(CONTENDERS)}, each once")
    return names


def positive(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="Megatron-DeepSpeed checkpoint folder; it is only read")
    parser.add_argument("--work", type=Path, required=True, help="folder for outputs, each deleted after its run")
    parser.add_argument("--tp", type=positive, default=1, help="tensor-parallel size to write (default: 1)")
    parser.add_argument("--pp", type=positive, default=1, help="pipeline-parallel size to write (default: 1)")
    parser.add_argument("--max-ram", default="1G", help="streamconv's budget (default: 1G)")
    parser.add_argument("--contenders", type=contenders, default=DEFAULT_CONTENDERS, help="default: %(default)s")
    parser.add_argument("--rounds", type=positive, default=5, help="runs of each contender (default: 5)")
    parser.add_argument("--warm", action="store_true", help="read the source once before each run instead")
    parser.add_argument("--limit", type=size, metavar="SIZE", help="memory cgroup's limit for every contender")
    command = f"{shlex.quote(sys.executable)} -m streamconv"
    parser.add_argument("--streamconv", metavar="CMD", default=command, help="how to start it (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write machine, job, medians and all samples here")
    return parser


def check(parser: argparse.ArgumentParser, options: argparse.Namespace, version: int | None) -> tuple[int, int]:
    """Refuse what cannot be measured; returns the source's bytes by size and on disk."""
    if not options.source.is_dir():
        parser.error(f"{options.source} is not a folder")
    if options.limit is not None and version is None:
        parser.error("--limit needs root and a writable memory cgroup, which this machine does not offer")
    if options.work.resolve().is_relative_to(options.source.resolve()):
        parser.error(f"{options.work} lies inside {options.source}, which is only read: choose another --work")
    options.work.mkdir(parents=True, exist_ok=True)
    leftovers = [target_of(name, options) for name in options.contenders if target_of(name, options).exists()]
    if leftovers:
        parser.error(f"{leftovers[0]} is already there: remove it or choose another --work")
    nbytes, disk_nbytes = measure.folder_nbytes(options.source)
    free = shutil.disk_usage(options.work).free
    if nbytes * 1.05 > free:
        parser.error(f"{options.work} has {free / 1e9:.1f} GB free, the job writes about {nbytes / 1e9:.1f} GB")
    return nbytes, disk_nbytes


def describe(options: argparse.Namespace, nbytes: int, disk_nbytes: int, version: int | None) -> dict[str, Any]:
    """The job: what every contender was given."""
    cold = "drop_caches" if measure.can_drop_caches() else "posix_fadvise"
    return {
        "source_nbytes": nbytes,
        "source_disk_nbytes": disk_nbytes,
        "source_files": len(measure.regular_files(options.source)),
        "tp": options.tp,
        "pp": options.pp,
        "max_ram": options.max_ram,
        "rounds": options.rounds,
        "cache": "warm" if options.warm else f"cold ({cold})",
        "limit_nbytes": options.limit,
        "cgroup_version": version,
        "commands": {name: command_for(name, options, target_of(name, options)) for name in options.contenders},
    }


def header(job: dict[str, Any], facts: dict[str, Any]) -> str:
    """Two or three lines above the table."""
    lines = [
        f"{facts['cores']} cores of {facts['cpu']}, {facts['memory_nbytes'] / 1e9:.1f} GB, {facts['file_system']}",
        f"{job['source_nbytes'] / 1e9:.3f} GB in {job['source_files']} files to tp {job['tp']} pp {job['pp']}, "
        f"cache {job['cache']}, {job['rounds']} rounds, limit {megabytes(job['limit_nbytes'])}",
    ]
    if job["source_disk_nbytes"] < 0.9 * job["source_nbytes"]:
        lines.append("the source has holes: no time here means anything for a real one, and cp copies the holes")
    if job["cgroup_version"] is None:
        lines.append("no memory cgroup could be made: no cgroup peaks")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison; 0 when every contender finished every round, else 1."""
    parser = build_parser()
    options = parser.parse_args(argv)
    version = measure.cgroup_version()
    nbytes, disk_nbytes = check(parser, options, version)
    facts, job = machine.facts(options.work), describe(options, nbytes, disk_nbytes, version)
    samples = run_rounds(options, version)
    summaries = {name: summarise(results) for name, results in samples.items()}
    print(header(job, facts), table(summaries, nbytes), sep="\n\n")
    if options.json:
        every = {name: [asdict(result) for result in results] for name, results in samples.items()}
        report = {"machine": facts, "job": job, "summary": summaries, "samples": every}
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0 if all(summary["outcome"] == "done" for summary in summaries.values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
