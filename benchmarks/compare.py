"""Compare streamconv with `cp -r` and with plain torch on the same checkpoint: time, throughput, peak memory.

    python benchmarks/make_checkpoint.py /data/8g --preset 8g
    python benchmarks/compare.py /data/8g --work /data/out --tp 1 --pp 1 --json results.json

Every contender is a child process. Rounds alternate: each round runs every contender once, starting with another one
each time, and the table gives medians. The time of a run ends when its output is on the disk: the output's file system
is synced inside the timed span, and it begins with the interpreter: importing torch from a cold disk takes seconds, so
compare on checkpoints of several GB. The cache is cold by default: before each run all is synced and the page cache is
dropped (`/proc/sys/vm/drop_caches`), or without root the source's files are dropped with posix_fadvise, which is
weaker; the report says which. What is read past the page cache (streamconv-direct) does not gain from --warm.

  cp               `cp -r`: the job of copying the bytes, no conversion
  streamconv       with its default way of reading; streamconv-direct and -pread choose one
  torch            benchmarks/plain_torch.py: torch.load, cat, torch.save for each target rank
  torch-mmap       the same with torch.load(mmap=True)
  safetensors      the same, mapped, with one safetensors file for each target rank: another format, and no arguments
  original         deepspeed_to_megatron.py of Megatron-DeepSpeed, which you bring (--original), started and repaired
                   by benchmarks/run_original.py; it is skipped when it is not there

--dtype is for streamconv alone: what it then reads and writes is no longer what the others do.

MB/s count the bytes of the source, 10^6 to the MB, for every contender. Peak RSS is the largest sum over the process
and its children; pages of mapped files count. The cgroup peak, where cgroups can be used, includes the page cache of
all that was read and written. With --limit each contender runs inside a memory cgroup of that size without swap; one
that is killed there, or that refuses the job, is reported as such and not run again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import contenders
import machine
import measure
import options as opt
from contenders import Job
from options import megabytes
from run_original import REPAIRS

DEFAULT_CONTENDERS = "cp,streamconv,torch,torch-mmap"
COLUMNS = " " * 18 + "   wall s     min..max   x cp    MB/s   cpu s   peak RSS  cgroup peak"


def table(summaries: dict[str, dict[str, Any]], source_nbytes: int) -> str:
    """The human table, one line a contender."""
    base = summaries.get("cp", {}).get("wall_seconds")
    return "\n".join([COLUMNS, *(row(name, summary, base, source_nbytes) for name, summary in summaries.items())])


def row(name: str, summary: dict[str, Any], base: float | None, source_nbytes: int) -> str:
    """One contender's line; `base` is the time of `cp -r`, if that was run."""
    if summary["outcome"] != "done":
        return f"{name:18} {summary['outcome']:>8}"
    wall, (least, most) = summary["wall_seconds"], summary["wall_seconds_range"]
    ratio, spread = f"{wall / base:.2f}" if base else "-", f"{least:.1f}..{most:.1f}"
    times = f"{wall:8.2f} {spread:>12} {ratio:>6} {source_nbytes / wall / 1e6:7.0f} {summary['cpu_seconds']:7.2f}"
    rss, peak = megabytes(summary["peak_rss_nbytes"]), megabytes(summary["cgroup_peak_nbytes"])
    return f"{name:18} {times} {rss:>10} {peak:>12}"


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    opt.add_source(parser)
    opt.add_work(parser)
    opt.add_target(parser)
    parser.add_argument("--dtype", choices=("bf16", "fp16", "fp32"), help="cast, streamconv only (default: as stored)")
    parser.add_argument("--contenders", type=contenders.listed, default=DEFAULT_CONTENDERS, help="default: %(default)s")
    parser.add_argument("--original", type=Path, metavar="PATH", help="a copy of deepspeed_to_megatron.py")
    parser.add_argument("--limit", type=opt.size, metavar="SIZE", help="memory cgroup's limit for every contender")
    return parser


def describe(options: argparse.Namespace, job: Job, nbytes: tuple[int, int], version: int | None) -> dict[str, Any]:
    """The job: what every contender was given."""
    return {
        "source_nbytes": nbytes[0],
        "source_disk_nbytes": nbytes[1],
        "source_files": len(measure.regular_files(job.source)),
        "tp": job.tp,
        "pp": job.pp,
        "max_ram": job.max_ram,
        "dtype": job.dtype,
        "rounds": options.rounds,
        "cache": opt.cache_state(options.warm),
        "limit_nbytes": options.limit,
        "cgroup_version": version,
        "commands": {name: job.command(name) for name in options.contenders},
        "repairs_of_the_original": list(REPAIRS) if "original" in options.contenders else [],
    }


def header(job: dict[str, Any], facts: dict[str, Any]) -> str:
    """Two or three lines above the table."""
    lines = [
        opt.headline(facts),
        f"{job['source_nbytes'] / 1e9:.3f} GB in {job['source_files']} files to tp {job['tp']} pp {job['pp']}, "
        f"cache {job['cache']}, {job['rounds']} rounds, limit {megabytes(job['limit_nbytes'])}",
    ]
    if job["dtype"]:
        lines.append(f"streamconv casts to {job['dtype']}, the others keep what is stored: not the same work")
    if job["source_disk_nbytes"] < 0.9 * job["source_nbytes"]:
        lines.append("the source has holes: no time here means anything for a real one, and cp copies the holes")
    if job["cgroup_version"] is None:
        lines.append("no memory cgroup could be made: no cgroup peaks")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison; 0 when every contender finished every round, else 1."""
    parser = build_parser()
    options = parser.parse_args(argv)
    version = measure.cgroup_version() if options.limit is None else opt.check_cgroup(parser, "--limit")
    factor = 2 if options.dtype == "fp32" else 1
    nbytes = opt.check_folders(parser, options.source, options.work, factor)
    job = Job.given(options)
    options.contenders = contenders.available(parser, job, options.contenders)
    described = describe(options, job, nbytes, version)

    def run(name: str) -> measure.Result:
        return contenders.run_once(name, job, warm=options.warm, version=version, limit=options.limit)

    samples = contenders.run_rounds(options.contenders, options.rounds, run)
    summaries = {name: contenders.summarise(results) for name, results in samples.items()}
    print(header(described, machine.facts(options.work)), table(summaries, nbytes[0]), sep="\n\n")
    opt.write_report(options, "compare", job=described, summary=summaries, samples=opt.plain(samples))
    return 0 if all(summary["outcome"] == "done" for summary in summaries.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
