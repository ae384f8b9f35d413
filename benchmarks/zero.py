"""Compare streamconv with DeepSpeed's own zero_to_fp32.py: plain ZeRO folders to one safetensors folder of masters.

    python benchmarks/zero.py --nbytes 8G --work /data
    python benchmarks/zero.py --nbytes 1G --stages 2 --rounds 1 --json short.json

For each stage a checkpoint is made (make_zero.py; DP 4, about --nbytes on the disk) and deleted at the end. Both write
the fp32 masters as safetensors. Rounds alternate, the cache is cold, and syncing is part of the time, as in compare.py:

  streamconv 256M     `streamconv convert --to safetensors --weights master --max-ram 256M` in a cgroup of that size
  streamconv          the same without a limit, and with the budget that it chooses itself
  zero_to_fp32        `python checkpoint-1000/zero_to_fp32.py checkpoint-1000 OUT --safe_serialization`, no limit
  zero_to_fp32 SIZE   the same in the smallest memory cgroup in which it finishes

First, and not counted, both run once, the outputs are compared number by number (same_tensors.py), and the smallest
cgroup is sought by halving, in steps of 12.5%, one run each; one that takes more than --patience seconds counts as not
finished: it reads its own code from the disk again and again. If a run fails in a round, the next step up is taken.

On the disk there are at most the checkpoint and two outputs, 1.7 times --nbytes. It needs deepspeed, root, a memory
cgroup and no swap. The table is Markdown, for docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import contenders
import machine
import measure
import options as opt
import table
from contenders import Job, Samples, script
from options import MIB, mebibytes

CONTENDERS = ("streamconv", "zero_to_fp32")
STEP = 0.875
LEAST = 128 * MIB
"""Where the search begins: importing torch and deepspeed takes more."""
STEPS_ABOVE = 2
"""Steps from the peak RSS up to where the search ends."""
Run = Callable[[str], measure.Result]


@dataclass(frozen=True, slots=True)
class ZeroJob(Job):
    """The same, with the commands for ZeRO folders; `max_ram` is empty where streamconv chooses."""

    def command(self, name: str) -> list[str]:
        """The command of one contender."""
        source, target = str(self.source), str(self.target(name))
        if name == "zero_to_fp32":
            return [sys.executable, str(self.source / "zero_to_fp32.py"), source, target, "--safe_serialization"]
        start = [*shlex.split(self.streamconv), "convert", source, target, "--to", "safetensors", "--weights", "master"]
        return [*start, *(["--max-ram", self.max_ram] if self.max_ram else []), *shlex.split(self.options)]


def split(key: str) -> tuple[str, int | None]:
    """Contender and limit of a name such as `zero_to_fp32 256M`."""
    name, _, limit = key.partition(" ")
    return name, opt.size(limit) if limit else None


def limited(name: str, nbytes: int) -> str:
    """The name of a contender in a cgroup."""
    return f"{name} {mebibytes(nbytes)}"


@contextmanager
def checkpoint(work: Path, stage: int, nbytes: int) -> Iterator[Path]:
    """The checkpoint of a stage, made in a child process; it is deleted afterwards."""
    folder = work / f"zero{stage}"
    try:
        command = [*script("make_zero.py"), str(folder), "--stage", str(stage), "--nbytes", str(nbytes)]
        subprocess.run(command, check=True, stdout=sys.stderr)
        yield next(folder.iterdir())
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class Bench:
    """How each run is made."""

    job: ZeroJob
    version: int
    patience: int

    def prepared(self, key: str) -> tuple[str, ZeroJob, int | None]:
        """Name, job and limit of a run; streamconv's budget is the limit."""
        name, limit = split(key)
        return name, replace(self.job, max_ram=mebibytes(limit) if limit else ""), limit

    def run(self, key: str) -> measure.Result:
        """One run of a round."""
        name, job, limit = self.prepared(key)
        return contenders.run_once(name, job, warm=False, version=self.version, limit=limit)

    def kept(self, key: str) -> measure.Result:
        """One run whose output stays."""
        name, job, limit = self.prepared(key)
        contenders.prepare_cache(job.source, job.work, warm=False)
        return measure.run(job.command(name), job.work, self.version, limit)

    def probe(self, key: str) -> measure.Result:
        """One run of the search, ended when it takes too long."""
        name, job, limit = self.prepared(key)
        contenders.prepare_cache(job.source, job.work, warm=False)
        command = ["timeout", "--signal=KILL", str(self.patience), *job.command(name)]
        try:
            return measure.run(command, job.work, self.version, limit)
        finally:
            shutil.rmtree(job.target(name), ignore_errors=True)

    def first(self, keys: Sequence[str]) -> tuple[dict[str, measure.Result], dict[str, Any]]:
        """Run each once, and say how large the outputs are and whether they are the same."""
        results: dict[str, measure.Result] = {}
        outputs = [self.job.target(split(key)[0]) for key in keys]
        try:
            for key in keys:
                results[key] = said("first", key, self.kept(key))
            sizes = {key: measure.folder_nbytes(out)[0] for key, out in zip(keys, outputs, strict=True)}
            found: dict[str, Any] = {"output_nbytes": sizes, "outputs_same": None}
            if len(keys) > 1 and all(result.outcome == "done" for result in results.values()):
                command = [*script("same_tensors.py"), *map(str, outputs)]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                print(f"first: {done.stdout}{done.stderr}", end="", file=sys.stderr)
                found |= {"outputs_same": done.returncode == 0, "comparison": done.stdout.strip()}
            return results, found
        finally:
            for out in outputs:
                shutil.rmtree(out, ignore_errors=True)


def said(when: str, key: str, result: measure.Result) -> measure.Result:
    """The result, and a line about it."""
    print(f"{when}: {key} {result.outcome}, {result.wall_seconds:.2f} s", file=sys.stderr)
    if result.outcome == "failed":
        print(result.output_tail, file=sys.stderr)
    return result


def ladder(peak_nbytes: int) -> list[int]:
    """Limits in whole MiB from above the peak RSS down, each 12.5% smaller."""
    size, sizes = peak_nbytes / STEP**STEPS_ABOVE, []
    while size >= LEAST:
        sizes.append(int(size) // MIB * MIB)
        size *= STEP
    return sizes


def smallest(name: str, sizes: Sequence[int], probe: Run) -> tuple[int, list[dict[str, Any]]]:
    """How many of the falling sizes suffice, if more memory never hurts, and every run that was made to find it."""
    tried: list[dict[str, Any]] = []
    low, high = 0, len(sizes)
    while low < high:
        middle = (low + high) // 2
        key = limited(name, sizes[middle])
        result = said("search", key, probe(key))
        tried.append({"limit_nbytes": sizes[middle], **opt.plain_result(result)})
        low, high = (middle + 1, high) if result.outcome == "done" else (low, middle)
    return low, tried


def measure_stage(options: argparse.Namespace, stage: int, version: int) -> dict[str, Any]:
    """Everything about one stage."""
    with checkpoint(options.work, stage, options.nbytes) as source:
        job = ZeroJob(source, options.work, 1, 1, "", options.streamconv, options.options)
        bench = Bench(job, version, options.patience)
        nbytes = measure.folder_nbytes(source)[0]
        ours = limited("streamconv", options.max_ram)
        counted = {"streamconv": [ours, "streamconv"], "zero_to_fp32": ["zero_to_fp32"]}
        firsts = {"streamconv": ours, "zero_to_fp32": "zero_to_fp32"}
        results, found = bench.first([firsts[name] for name in options.contenders])
        keys = [key for name in options.contenders for key in counted[name]]
        sizes: list[int] = []
        enough = 0
        tried: list[dict[str, Any]] = []
        free = results.get("zero_to_fp32")
        if free is not None and free.outcome == "done" and not options.no_search:
            sizes = ladder(free.peak_rss_nbytes)
            enough, tried = smallest("zero_to_fp32", sizes, bench.probe)
            keys += [limited("zero_to_fp32", sizes[enough - 1])] if enough else []
        samples = contenders.run_rounds(keys, options.rounds, bench.run)
        tried += step_up(samples, sizes[:enough], options.rounds, bench.run)
        smallest_nbytes = split(list(samples)[-1])[1] if enough else None
        return {
            "source_nbytes": nbytes,
            **found,
            "commands": {key: bench.prepared(key)[1].command(split(key)[0]) for key in samples},
            "first": {key: opt.plain_result(result) for key, result in results.items()},
            "search": {"smallest_nbytes": smallest_nbytes, "runs": tried},
            "summary": {key: contenders.summarise(results) for key, results in samples.items()},
            "samples": opt.plain(samples),
        }


def step_up(samples: Samples, sizes: Sequence[int], rounds: int, run: Run) -> list[dict[str, Any]]:
    """While the last contender fails in its cgroup, put the same in the next larger one in its place; what failed."""
    failed: list[dict[str, Any]] = []
    for nbytes, larger in zip(sizes[::-1], sizes[-2::-1], strict=False):
        key = limited("zero_to_fp32", nbytes)
        if all(result.outcome == "done" for result in samples[key]):
            break
        failed += [{"limit_nbytes": nbytes, **asdict(result)} for result in samples.pop(key)]
        samples |= contenders.run_rounds([limited("zero_to_fp32", larger)], rounds, run)
    return failed


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    opt.add_work(parser, warm=False, work="folder for all that is made (default: a temporary one)", required=False)
    parser.add_argument("--nbytes", type=opt.size, default="8G", help="of each checkpoint, about (default: 8G)")
    parser.add_argument("--stages", type=opt.some_of(("2", "3")), default="2,3", help="of ZeRO (default: 2,3)")
    parser.add_argument("--max-ram", type=opt.size, default="256M", help="streamconv's small budget (default: 256M)")
    names = ",".join(CONTENDERS)
    parser.add_argument("--contenders", type=opt.some_of(CONTENDERS), default=names, help="default: %(default)s")
    parser.add_argument("--no-search", action="store_true", help="do not seek the smallest cgroup of zero_to_fp32")
    parser.add_argument("--patience", type=opt.positive, default=900, help="seconds in the search (default: 900)")
    parser.set_defaults(rounds=3, json=opt.HERE / "results" / "zero.json")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measure; 0 if all finished and the outputs are the same, else 1."""
    parser = build_parser()
    options = parser.parse_args(argv)
    version = opt.check_cgroup(parser, "a limit on memory")
    opt.check_swap(parser)
    if machine.version("deepspeed") is None:
        parser.error("zero_to_fp32.py comes with deepspeed, which is not installed")
    parent = options.work or Path(tempfile.gettempdir())
    parent.mkdir(parents=True, exist_ok=True)
    need, free = options.nbytes * 1.75, shutil.disk_usage(parent).free
    if need > free:
        parser.error(f"{parent} has {free / 1e9:.1f} GB free, the job takes about {need / 1e9:.1f} GB")
    with tempfile.TemporaryDirectory(prefix="zero-", dir=parent) as work:
        options.work = Path(work)
        stages = {stage: measure_stage(options, int(stage), version) for stage in options.stages}
        job = {
            "deepspeed": machine.version("deepspeed"),
            "max_ram": mebibytes(options.max_ram),
            "rounds": options.rounds,
            "cache": opt.cache_state(False),
            "cgroup_version": version,
        }
        opt.write_report(options, "zero", job=job, stages=stages)
        report = {"kind": "zero", "machine": machine.facts(options.work), "job": job, "stages": stages}
    print(table.text_of([report]))
    done = all(summary["outcome"] == "done" for each in stages.values() for summary in each["summary"].values())
    return 0 if done and all(each["outputs_same"] is not False for each in stages.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
