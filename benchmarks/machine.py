"""Facts about the machine that belong beside a measurement. Linux."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
from datetime import datetime, timezone
from pathlib import Path


def facts(folder: Path) -> dict[str, str | int | None]:
    """What a reader needs to judge a figure: processor, memory, kernel, the file system of `folder`, versions."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "cpu": first_match("/proc/cpuinfo", r"model name\s*:\s*(.+)") or platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_nbytes": int(first_match("/proc/meminfo", r"MemTotal:\s*(\d+)") or 0) * 1024,
        "swap_nbytes": int(first_match("/proc/meminfo", r"SwapTotal:\s*(\d+)") or 0) * 1024,
        "kernel": platform.release(),
        "file_system": file_system(folder),
        "python": platform.python_version(),
        "torch": version("torch"),
        "numpy": version("numpy"),
        "safetensors": version("safetensors"),
        "streamconv": version("streamconv"),
        "commit": commit(),
    }


def first_match(path: str, pattern: str) -> str | None:
    """The first group of `pattern` in a file, or None."""
    match = re.search(pattern, Path(path).read_text())
    return match.group(1).strip() if match else None


def version(package: str) -> str | None:
    """Installed version of a package, without importing it."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def commit() -> str | None:
    """The repository's commit, with `-dirty` where files differ from it; None outside a repository."""
    command = ["git", "-C", str(Path(__file__).resolve().parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def file_system(folder: Path) -> str:
    """Kind, device and options of the mount that holds `folder`."""
    resolved = folder.resolve()
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    above = [mount for mount in mounts if resolved.is_relative_to(mount[1])]
    device, _, kind, options = max(above, key=lambda mount: len(mount[1]))[:4]
    return f"{kind} on {device} ({options})"
