"""Memory over time: one run of each contender, sampled every 50 ms.

    python benchmarks/memory_over_time.py /data/8g --work /data/out --tp 1 --pp 1 --json memory.json

Every contender runs in a memory cgroup of its own, without a limit unless --limit sets one. Sampled are the RSS of its
processes (mapped files count) and what the cgroup is charged with: all of it, its anonymous memory, its page cache, and
the part of that which is still to be written. The time ends when the output is on the disk; the cgroup is watched
until then. One run each, so the times here are no comparison: compare.py makes that.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any

import contenders
import machine
import measure
import options as opt
from contenders import Job
from options import megabytes

DEFAULT_CONTENDERS = "cp,streamconv,torch,torch-mmap"
FIELDS = ("seconds", "rss_nbytes", "usage_nbytes", "anonymous_nbytes", "cache_nbytes", "dirty_nbytes")
COLUMNS = f"{'':18} {'':>8} {'wall s':>8} {'samples':>8} {'most RSS':>10} {'anonymous':>10} {'cache':>10} {'dirty':>10}"


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    opt.add_source(parser)
    opt.add_work(parser, rounds=False)
    opt.add_target(parser)
    parser.add_argument("--contenders", type=contenders.listed, default=DEFAULT_CONTENDERS, help="default: %(default)s")
    parser.add_argument("--original", type=Path, metavar="PATH", help="a copy of deepspeed_to_megatron.py")
    parser.add_argument("--limit", type=opt.size, metavar="SIZE", help="memory cgroup's limit for every contender")
    return parser


def row(name: str, result: measure.Result, moments: Sequence[measure.Moment]) -> str:
    """One contender's line: the largest of each figure."""
    fields = ("rss_nbytes", "anonymous_nbytes", "cache_nbytes", "dirty_nbytes")
    most = [max(getattr(moment, field) for moment in moments) for field in fields]
    figures = " ".join(f"{megabytes(value):>10}" for value in most)
    return f"{name:18} {result.outcome:>8} {result.wall_seconds:8.2f} {len(moments):8} {figures}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run every contender once; 0 when all finished."""
    parser = build_parser()
    options = parser.parse_args(argv)
    version = opt.check_cgroup(parser, "memory over time")
    nbytes, _ = opt.check_folders(parser, options.source, options.work)
    job = Job.given(options)
    runs: dict[str, dict[str, Any]] = {}
    print(opt.headline(machine.facts(options.work)), "", COLUMNS, sep="\n")
    for name in contenders.available(parser, job, options.contenders):
        moments: list[measure.Moment] = []
        result = contenders.run_once(
            name, job, warm=options.warm, version=version, limit=options.limit, timeline=moments
        )
        print(row(name, result, moments), flush=True)
        runs[name] = {**opt.plain_result(result), "moments": [astuple(moment) for moment in moments]}
    described = {
        "source_nbytes": nbytes,
        "tp": options.tp,
        "pp": options.pp,
        "max_ram": options.max_ram,
        "cache": opt.cache_state(options.warm),
        "limit_nbytes": options.limit,
        "interval_seconds": measure.TIMELINE_SECONDS,
    }
    opt.write_report(options, "memory_over_time", job=described, fields=FIELDS, runs=runs)
    return 0 if all(run["outcome"] == "done" for run in runs.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
