"""How long it takes to look: inspect a huge folder and one file, stream all values, verify a result.

    python benchmarks/looking.py --work /data/looking --json looking.json

Four parts, chosen with --parts. What they look at is made below --work by make_checkpoint.py, and deleted.

  folder  `streamconv inspect` on BLOOM-176B as a sparse folder, with the optimizer files of 8 data ranks
  file    one file of it (1.8 GB) beside torch.load and torch.load(mmap=True), which print each tensor's shape
  stats   `streamconv inspect --stats` on --preset in a memory cgroup of --limit: all values read
  verify  `streamconv verify OUT --against SRC` of a conversion to --tp and --pp, in the same cgroup: OUT is read twice
          (CRC-32s, then values), SRC once. Rates count the bytes of SRC
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import contenders
import machine
import measure
import options as opt
from contenders import Job
from options import mebibytes
from scaling import COLUMNS, measured, runner, show

PARTS = ("folder", "file", "stats", "verify")
FILE = "layer_01-model_00-model_states.pt"
TORCH = "import sys, torch; s = torch.load(sys.argv[1], mmap={}); print({{k: v.shape for k, v in s.items()}})"


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    opt.add_work(parser)
    opt.add_target(parser)
    parser.add_argument("--parts", type=opt.some_of(PARTS), default=",".join(PARTS), help="default: %(default)s")
    parser.add_argument("--preset", default="8g", help="what stats and verify look at (%(default)s)")
    parser.add_argument("--limit", type=opt.size, default="128M", help="their budget and cgroup (%(default)s)")
    return parser


def at_metadata(options: argparse.Namespace, version: int | None) -> dict[str, list[dict[str, Any]]]:
    """The parts folder and file, on one sparse checkpoint."""
    points: dict[str, list[dict[str, Any]]] = {}
    streamconv = shlex.split(options.streamconv)
    with contenders.checkpoint(options.work, "huge", "--preset", "bloom-176b", "--sparse", "--optimizer") as source:
        if "folder" in options.parts:
            run = runner([*streamconv, "inspect", str(source)], source, options, version)
            files, (nbytes, _) = len(measure.regular_files(source)), measure.folder_nbytes(source)
            points["folder"] = [
                measured(contenders.run_rounds(["inspect"], options.rounds, run), files=files, nbytes=nbytes)
            ]
            show(f"{files} files", points["folder"][0], None)
        if "file" in options.parts:
            (path,) = source.rglob(FILE)
            commands = {
                "inspect": [*streamconv, "inspect", str(path)],
                "torch": [sys.executable, "-c", TORCH.format(False), str(path)],
                "torch-mmap": [sys.executable, "-c", TORCH.format(True), str(path)],
            }
            runs = {name: runner(command, path.parent, options, version) for name, command in commands.items()}
            samples = contenders.run_rounds(list(commands), options.rounds, lambda name: runs[name](name))
            points["file"] = [measured(samples, nbytes=path.stat().st_size)]
            show("one file", points["file"][0], None)
    return points


def at_values(options: argparse.Namespace, version: int | None) -> dict[str, list[dict[str, Any]]]:
    """The parts stats and verify, on one checkpoint with values."""
    points: dict[str, list[dict[str, Any]]] = {}
    streamconv, limit = shlex.split(options.streamconv), options.limit
    budget, result = ["--max-ram", mebibytes(limit)], options.work / "result"
    with contenders.checkpoint(options.work, options.preset, "--preset", options.preset) as source:
        nbytes, _ = measure.folder_nbytes(source)
        commands = {"stats": [*streamconv, "inspect", str(source), "--stats", *budget]}
        if "verify" in options.parts:
            job = Job.given(options, source=source)
            subprocess.run([*streamconv, "convert", str(source), str(result), *job.degrees()], check=True)
            commands["verify"] = [*streamconv, "verify", str(result), "--against", str(source), *budget]
        for part in ("stats", "verify"):
            if part in options.parts:
                run = runner(commands[part], source, options, version, limit)
                facts = {"preset": options.preset, "nbytes": nbytes, "limit_nbytes": limit}
                points[part] = [measured(contenders.run_rounds([part], options.rounds, run), **facts)]
                show(options.preset, points[part][0], nbytes)
    shutil.rmtree(result, ignore_errors=True)
    return points


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the chosen parts; 0 when every run finished."""
    parser = build_parser()
    options = parser.parse_args(argv)
    version = measure.cgroup_version()
    if {"stats", "verify"} & set(options.parts):
        version = opt.check_cgroup(parser, "the parts stats and verify")
        opt.check_swap(parser)
    options.work.mkdir(parents=True, exist_ok=True)
    print(opt.headline(machine.facts(options.work)))
    print(f"cache {opt.cache_state(options.warm)}, {options.rounds} rounds", COLUMNS, sep="\n\n")
    points: dict[str, list[dict[str, Any]]] = {}
    if {"folder", "file"} & set(options.parts):
        points |= at_metadata(options, version)
    if {"stats", "verify"} & set(options.parts):
        points |= at_values(options, version)
    described = {"rounds": options.rounds, "cache": opt.cache_state(options.warm), "cgroup_version": version}
    opt.write_report(options, "looking", job=described, points=points)
    summaries = [summary for part in points.values() for point in part for summary in point["summary"].values()]
    return 0 if all(summary["outcome"] == "done" for summary in summaries) else 1


if __name__ == "__main__":
    sys.exit(main())
