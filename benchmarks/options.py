"""What the scripts here share: options, the check of the folders, the state of the cache, the report."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import machine
import measure

UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
MIB = 1 << 20
HERE = Path(__file__).resolve().parent


def size(text: str) -> int:
    """Bytes of a size such as 512M or 1G (powers of 1024)."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size: write 512M or 1G")
    return int(float(match.group(1)) * UNITS[match.group(2).upper()])


def positive(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def words(text: str) -> list[str]:
    """The words in a comma-separated list."""
    return [word.strip() for word in text.split(",") if word.strip()]


def some_of(known: Sequence[str]) -> Callable[[str], list[str]]:
    """A parser of comma-separated words, each one of ``known``."""

    def chosen(text: str) -> list[str]:
        found = words(text)
        if not found or not set(found) <= set(known):
            raise argparse.ArgumentTypeError(f"{text!r}: choose among {', '.join(known)}")
        return found

    return chosen


def megabytes(nbytes: float | None) -> str:
    """Bytes as MB of 10^6, or a dash where there is no figure."""
    return "-" if nbytes is None else f"{nbytes / 1e6:.0f} MB"


def mebibytes(nbytes: int) -> str:
    """Whole MiB as streamconv's options take them."""
    return f"{nbytes // MIB}M"


def folder(text: str) -> Path:
    """A folder's absolute path."""
    return Path(text).resolve()


def add_work(
    parser: argparse.ArgumentParser,
    rounds: bool = True,
    warm: bool = True,
    work: str = "folder for outputs, each deleted after its run",
    required: bool = True,
) -> None:
    """The options of every script that runs something; `work` says what --work is for."""
    parser.add_argument("--work", type=folder, required=required, help=work)
    if rounds:
        parser.add_argument("--rounds", type=positive, default=5, help="runs of each contender (default: 5)")
    if warm:
        parser.add_argument("--warm", action="store_true", help="read the source once before each run instead")
    command = f"{shlex.quote(sys.executable)} -m streamconv"
    parser.add_argument("--streamconv", metavar="CMD", default=command, help="how to start it (default: %(default)s)")
    parser.add_argument("--options", metavar="ARGS", default="", help="more options for `streamconv convert`, quoted")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write machine, job, medians and all samples here")


def add_target(parser: argparse.ArgumentParser, max_ram: bool = True) -> None:
    """The options that say what is converted to what."""
    parser.add_argument("--tp", type=positive, default=1, help="tensor-parallel size to write (default: 1)")
    parser.add_argument("--pp", type=positive, default=1, help="pipeline-parallel size to write (default: 1)")
    if max_ram:
        parser.add_argument("--max-ram", default="1G", help="streamconv's budget (default: 1G)")


def add_source(parser: argparse.ArgumentParser) -> None:
    """The checkpoint that is converted."""
    parser.add_argument("source", type=folder, help="Megatron-DeepSpeed checkpoint folder; it is only read")


def check_folders(parser: argparse.ArgumentParser, source: Path, work: Path, factor: float = 1) -> tuple[int, int]:
    """Refuse folders that cannot be used; returns the source's bytes by size and on disk.

    `factor` is the output's size over the source's.
    """
    if not source.is_dir():
        parser.error(f"{source} is not a folder")
    if work.resolve().is_relative_to(source.resolve()):
        parser.error(f"{work} lies inside {source}, which is only read: choose another --work")
    work.mkdir(parents=True, exist_ok=True)
    nbytes, disk_nbytes = measure.folder_nbytes(source)
    free = shutil.disk_usage(work).free
    if nbytes * factor * 1.05 > free:
        parser.error(f"{work} has {free / 1e9:.1f} GB free, the job writes about {nbytes * factor / 1e9:.1f} GB")
    return nbytes, disk_nbytes


def check_cgroup(parser: argparse.ArgumentParser, why: str) -> int:
    """Refuse to go on without a memory cgroup; returns its version."""
    version = measure.cgroup_version()
    if version is None:
        parser.error(f"{why} needs root and a writable memory cgroup, which this machine does not offer")
    return version


def check_swap(parser: argparse.ArgumentParser) -> None:
    """Refuse to bound memory while there is swap, where what does not fit would go."""
    if len(Path("/proc/swaps").read_text().splitlines()) > 1:
        parser.error("swap is on, so a limit on memory says little: switch it off (swapoff -a) for this measurement")


def cache_state(warm: bool) -> str:
    """In which state the page cache is before a run."""
    return "warm" if warm else f"cold ({'drop_caches' if measure.can_drop_caches() else 'posix_fadvise'})"


def headline(facts: Mapping[str, Any]) -> str:
    """The machine in one line; how the file system is mounted stands in the reports."""
    disk = facts["file_system"].partition(" (")[0]
    return f"{facts['cores']} cores of {facts['cpu']}, {facts['memory_nbytes'] / 1e9:.1f} GB, {disk}"


def plain(samples: Mapping[str, Sequence[measure.Result]]) -> dict[str, list[dict[str, Any]]]:
    """Samples as JSON takes them; what was printed is kept of runs that did not finish."""
    return {name: [plain_result(result) for result in results] for name, results in samples.items()}


def plain_result(result: measure.Result) -> dict[str, Any]:
    """One sample as JSON takes it."""
    fields = asdict(result)
    if result.outcome == "done":
        del fields["output_tail"]
    return fields


def write_report(options: argparse.Namespace, kind: str, **parts: Any) -> None:
    """Write what was measured and where as JSON, if a file was asked for. Its folders are named by what they are."""
    if options.json is None:
        return
    text = json.dumps({"kind": kind, "machine": machine.facts(options.work), **parts}, indent=2)
    places = {getattr(options, "source", None): "SRC", options.work: "WORK", HERE: "benchmarks"}
    places |= {getattr(options, "original", None): "deepspeed_to_megatron.py", Path(sys.executable): "python"}
    for place, name in sorted(places.items(), key=lambda item: len(str(item[0])), reverse=True):
        if place is not None:
            text = re.sub(re.escape(str(place)) + r"(?![\w.-])", name, text)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(text + "\n")
