"""Time and memory against the size of a checkpoint, and planning time against its number of tensors.

    python benchmarks/scaling.py --work /data/scaling --sizes 1g,3g,8g --json scaling.json

Three parts, chosen with --parts. The sources are made by make_checkpoint.py below --work, one at a time, and deleted.

  size   for each preset of --sizes: `streamconv convert` and `cp -r` alternating, as compare.py does it
  null   BLOOM-176B (352 GB) as a sparse folder, `streamconv convert --to null` in a memory cgroup of --null-limit:
         everything is read, checked and put together, nothing is written. A hole reads as zeros without a disk, so this
         shows that memory stays bounded and how long the processor takes, not what a disk would do; and a sparse
         file records no CRC-32, so none is compared
  plan   `streamconv plan` on sparse folders of BLOOM-176B's width with --layers layers: metadata alone

With --warm the parts null and plan leave the cache as it is: reading the holes of such a folder would warm nothing.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import contenders
import machine
import measure
import options as opt
from bloom_shapes import BloomShape, layer_files
from contenders import Job
from options import mebibytes, megabytes

PARTS = ("size", "null", "plan")
WIDTH = {"hidden": 14336, "heads": 112, "vocab": 250880, "tp": 4, "pp": 2}
"""BLOOM-176B's, for the folders that are only planned."""
COLUMNS = (
    f"{'':14} {'':12} {'wall s':>9} {'min..max':>16} {'MB/s':>6} {'cpu s':>8} {'peak RSS':>10} {'cgroup peak':>12}"
)


def counts(text: str) -> list[int]:
    """Whole numbers of at least 2."""
    numbers = [opt.positive(word) for word in opt.words(text)]
    if not numbers or min(numbers) < WIDTH["pp"]:
        raise argparse.ArgumentTypeError(f"{text!r}: write numbers of layers, at least {WIDTH['pp']} each")
    return numbers


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    opt.add_work(parser)
    opt.add_target(parser)
    parser.add_argument("--parts", type=opt.some_of(PARTS), default="size,null,plan", help="default: %(default)s")
    parser.add_argument("--sizes", type=opt.words, default="1g,8g", help="presets of make_checkpoint.py (%(default)s)")
    parser.add_argument("--null-preset", default="bloom-176b", help="made sparse, read to nowhere (%(default)s)")
    parser.add_argument("--null-limit", type=opt.size, default="128M", help="its budget and cgroup (%(default)s)")
    parser.add_argument("--layers", type=counts, default="10,35,70,140,280", help="planned (%(default)s)")
    return parser


def measured(samples: contenders.Samples, **facts: Any) -> dict[str, Any]:
    """One point of a curve: what was measured, with medians and every sample."""
    summaries = {name: contenders.summarise(results) for name, results in samples.items()}
    return {**facts, "summary": summaries, "samples": opt.plain(samples)}


def show(label: str, point: dict[str, Any], nbytes: int | None) -> None:
    """Print a line for each contender of one point."""
    for name, summary in point["summary"].items():
        start = f"{label:14} {name:12}"
        if summary["outcome"] != "done":
            print(f"{start} {summary['outcome']:>9}", flush=True)
            continue
        wall, (least, most) = summary["wall_seconds"], summary["wall_seconds_range"]
        speed = f"{nbytes / wall / 1e6:6.0f}" if nbytes else f"{'-':>6}"
        memory = f"{megabytes(summary['peak_rss_nbytes']):>10} {megabytes(summary['cgroup_peak_nbytes']):>12}"
        times = f"{wall:9.2f} {f'{least:.2f}..{most:.2f}':>16} {speed} {summary['cpu_seconds']:8.2f}"
        print(f"{start} {times} {memory}", flush=True)


def by_size(options: argparse.Namespace, version: int | None) -> list[dict[str, Any]]:
    """Conversions and copies of each size."""
    points = []
    for preset in options.sizes:
        with contenders.checkpoint(options.work, preset, "--preset", preset) as source:
            nbytes, _ = measure.folder_nbytes(source)
            job = Job.given(options, source=source)

            def run(name: str, job: Job = job) -> measure.Result:
                return contenders.run_once(name, job, warm=options.warm, version=version)

            samples = contenders.run_rounds(["cp", "streamconv"], options.rounds, run)
        points.append(measured(samples, preset=preset, source_nbytes=nbytes))
        show(preset, points[-1], nbytes)
    return points


def to_null(options: argparse.Namespace, version: int | None) -> list[dict[str, Any]]:
    """The largest model through the whole pipeline, into nothing."""
    limit, preset = options.null_limit, options.null_preset
    with contenders.checkpoint(options.work, preset, "--preset", preset, "--sparse") as source:
        nbytes, disk_nbytes = measure.folder_nbytes(source)
        job = Job.given(options, source=source, max_ram=mebibytes(limit))
        command = job.to_null()
        samples = contenders.run_rounds(["to null"], options.rounds, runner(command, source, options, version, limit))
    facts = {"preset": preset, "source_nbytes": nbytes, "source_disk_nbytes": disk_nbytes, "limit_nbytes": limit}
    point = measured(samples, **facts, command=command)
    show(preset, point, nbytes)
    return [point]


def planning(options: argparse.Namespace, version: int | None) -> list[dict[str, Any]]:
    """Plans of ever more layers."""
    points = []
    shape = [word for name, value in WIDTH.items() for word in (f"--{name}", str(value))]
    for layers in options.layers:
        with contenders.checkpoint(
            options.work, f"{layers}-layers", *shape, "--layers", str(layers), "--sparse"
        ) as source:
            command = [
                *shlex.split(options.streamconv),
                "plan",
                str(source),
                *Job.given(options, source=source).degrees(),
            ]
            samples = contenders.run_rounds(["plan"], options.rounds, runner(command, source, options, version))
        tensors = stored_tensors(layers)
        points.append(measured(samples, layers=layers, source_tensors=tensors))
        show(f"{tensors} tensors", points[-1], None)
    return points


def stored_tensors(layers: int) -> int:
    """How many tensors the layer files of such a folder hold, every rank's counted."""
    rest = {"original_vocab": WIDTH["vocab"], "dp": 1, "dtype": "bf16", "partition": "uniform"}
    shape = BloomShape(layers=layers, **WIDTH, **rest)  # type: ignore[arg-type]
    return shape.tp * sum(len(tensors) for _, tensors in layer_files(shape))


def runner(
    command: Sequence[str], source: Path, options: argparse.Namespace, version: int | None, limit: int | None = None
) -> Callable[[str], measure.Result]:
    """Runs one command that writes nothing."""

    def run(_: str) -> measure.Result:
        if not options.warm:
            measure.drop_caches(source)
        return measure.run(command, options.work, version, limit)

    return run


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the chosen parts; 0 when every run finished."""
    parser = build_parser()
    options = parser.parse_args(argv)
    version = measure.cgroup_version()
    if "null" in options.parts:
        version = opt.check_cgroup(parser, "the part null")
        opt.check_swap(parser)
    options.work.mkdir(parents=True, exist_ok=True)
    print(opt.headline(machine.facts(options.work)))
    print(
        f"to tp {options.tp} pp {options.pp}, cache {opt.cache_state(options.warm)}, {options.rounds} rounds",
        COLUMNS,
        sep="\n\n",
    )
    measure_part = {"size": by_size, "null": to_null, "plan": planning}
    points = {part: measure_part[part](options, version) for part in options.parts}
    described = {
        "tp": options.tp,
        "pp": options.pp,
        "max_ram": options.max_ram,
        "rounds": options.rounds,
        "cache": opt.cache_state(options.warm),
        "cgroup_version": version,
    }
    opt.write_report(options, "scaling", job=described, points=points)
    summaries = [summary for part in points.values() for point in part for summary in point["summary"].values()]
    return 0 if all(summary["outcome"] == "done" for summary in summaries) else 1


if __name__ == "__main__":
    sys.exit(main())
