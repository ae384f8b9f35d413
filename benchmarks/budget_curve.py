"""Time and throughput against the memory budget, each budget enforced by a memory cgroup of exactly that size.

    python benchmarks/budget_curve.py /data/8g --work /data/out --tp 1 --pp 1 --cp --json curve.json

For each budget B, `streamconv convert --max-ram B` runs inside a memory cgroup of B without swap, its page cache
included; the script refuses to run where swap is on. Rounds alternate over the budgets, and over `cp -r` in a cgroup of
the same size with --cp. How a run ended:

  done      the result is there
  refused   streamconv said before it wrote anything that the budget is below what the job needs (exit code 4)
  killed    the kernel killed it for the limit: a budget that was promised and not kept

Then the smallest cgroup is sought in which the conversion finishes: between the largest budget that failed and the
smallest that did not, halving in steps of 4 MiB, one run each; what is found runs --rounds times, and if one of these
fails the next step up is tried. That takes for granted that more memory never hurts. What streamconv itself names as
its floor is reported beside it. With --warm the source's pages are charged to the reader that warmed them, not to the
cgroup: limits mean what they say with a cold cache only.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import contenders
import machine
import measure
import options as opt
from contenders import Job
from options import MIB, mebibytes, megabytes

BUDGETS = "1G,512M,256M,128M,96M,64M,48M"
STEP = 4 * MIB
FLOOR = re.compile(r"--max-ram (\d+)M or more")
COLUMNS = f"{'budget':>8} {'':12} {'wall s':>8} {'min..max':>14} {'MB/s':>6} {'peak RSS':>10} {'cgroup peak':>12}"
Run = Callable[[str, int], measure.Result]


def budgets(text: str) -> list[int]:
    """Budgets in whole MiB, the largest first."""
    sizes = sorted({opt.size(word) for word in opt.words(text)}, reverse=True)
    if not sizes or any(nbytes < MIB or nbytes % MIB for nbytes in sizes):
        raise argparse.ArgumentTypeError(f"{text!r}: write sizes in whole MiB, such as 1G,256M")
    return sizes


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    opt.add_source(parser)
    opt.add_work(parser)
    opt.add_target(parser, max_ram=False)
    parser.add_argument("--budgets", type=budgets, default=BUDGETS, help="default: %(default)s")
    parser.add_argument("--cp", action="store_true", help="run `cp -r` in a cgroup of the same size too")
    parser.add_argument("--no-search", action="store_true", help="do not seek the smallest cgroup")
    return parser


def split(key: str) -> tuple[str, int]:
    """Contender and budget of a name such as `cp 256M`."""
    name, _, budget = key.partition(" ")
    return name, opt.size(budget)


def smallest(summaries: dict[str, dict[str, Any]], run: Run, rounds: int) -> tuple[int | None, list[dict[str, Any]]]:
    """The smallest cgroup in which every round finishes, and every run that was made to find it."""
    ours = {split(key)[1]: summary["outcome"] for key, summary in summaries.items() if split(key)[0] == "streamconv"}
    done = [budget for budget, outcome in ours.items() if outcome == "done"]
    if not done:
        return None, []
    high = min(done)
    low = max((budget for budget in ours if budget < high), default=0)
    tried: list[dict[str, Any]] = []

    def finishes(budget: int) -> bool:
        result = run("streamconv", budget)
        tried.append({"budget_nbytes": budget, **opt.plain_result(result)})
        print(f"search: {mebibytes(budget)} {result.outcome}, {result.wall_seconds:.2f} s", file=sys.stderr)
        return result.outcome == "done"

    below, above = 0, (high - low - 1) // STEP  # steps below `high`: the most that finish, and the most to try
    while below < above:
        middle = (below + above + 1) // 2
        if finishes(high - middle * STEP):
            below = middle
        else:
            above = middle - 1
    while below and not all(finishes(high - below * STEP) for _ in range(rounds)):
        below -= 1
    return high - below * STEP, tried


def named_floor(results: Sequence[str]) -> int | None:
    """The floor that streamconv named when it refused, in bytes."""
    found = (FLOOR.search(output) for output in results)
    return next((int(match.group(1)) * MIB for match in found if match), None)


def row(key: str, summary: dict[str, Any], source_nbytes: int) -> str:
    """One line of the table."""
    name, budget = split(key)
    start = f"{mebibytes(budget):>8} {name:12}"
    if summary["outcome"] != "done":
        return f"{start} {summary['outcome']:>8}"
    wall, (least, most) = summary["wall_seconds"], summary["wall_seconds_range"]
    memory = f"{megabytes(summary['peak_rss_nbytes']):>10} {megabytes(summary['cgroup_peak_nbytes']):>12}"
    return f"{start} {wall:8.2f} {f'{least:.1f}..{most:.1f}':>14} {source_nbytes / wall / 1e6:6.0f} {memory}"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the curve; 0 unless a run was killed or failed. A refusal is an answer."""
    parser = build_parser()
    options = parser.parse_args(argv)
    version = opt.check_cgroup(parser, "a budget that is enforced")
    opt.check_swap(parser)
    nbytes, disk_nbytes = opt.check_folders(parser, options.source, options.work)
    base = Job.given(options, max_ram="")
    names = contenders.available(parser, base, ["streamconv", *(["cp"] if options.cp else [])])

    def run(name: str, budget: int) -> measure.Result:
        job = replace(base, max_ram=mebibytes(budget))
        return contenders.run_once(name, job, warm=options.warm, version=version, limit=budget)

    keys = [f"{name} {mebibytes(budget)}" for budget in options.budgets for name in names]
    samples = contenders.run_rounds(keys, options.rounds, lambda key: run(*split(key)))
    summaries = {key: contenders.summarise(results) for key, results in samples.items()}
    least, tried = (None, []) if options.no_search else smallest(summaries, run, options.rounds)
    outputs = [result.output_tail for results in samples.values() for result in results if result.outcome != "done"]
    floor = named_floor(outputs + [probe.get("output_tail", "") for probe in tried])
    described = {
        "source_nbytes": nbytes,
        "source_disk_nbytes": disk_nbytes,
        "tp": options.tp,
        "pp": options.pp,
        "rounds": options.rounds,
        "cache": opt.cache_state(options.warm),
        "cgroup_version": version,
    }
    print(opt.headline(machine.facts(options.work)))
    print(
        f"{nbytes / 1e9:.3f} GB to tp {options.tp} pp {options.pp}, cache {described['cache']}, {options.rounds} rounds"
    )
    print("", COLUMNS, *(row(key, summary, nbytes) for key, summary in summaries.items()), "", sep="\n")
    if least is not None:
        said = f"; streamconv names {mebibytes(floor)} as its floor" if floor else ""
        print(f"smallest cgroup in which it finishes: {mebibytes(least)}{said}")
    found = {"smallest_nbytes": least, "named_floor_nbytes": floor, "runs": tried}
    opt.write_report(
        options, "budget_curve", job=described, summary=summaries, search=found, samples=opt.plain(samples)
    )
    outcomes = {summary["outcome"] for key, summary in summaries.items() if split(key)[0] == "streamconv"}
    return 0 if outcomes <= {"done", "refused"} else 1


if __name__ == "__main__":
    sys.exit(main())
