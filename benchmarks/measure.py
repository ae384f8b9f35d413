"""Run a command as a child process and measure it: wall time with the disk synced, peak memory, processor time.

Memory is measured three ways, since they answer different questions.

- Peak RSS is what the processes themselves held: the largest sum over the child and its descendants, sampled from
  /proc, or the kernel's own figure for the child (`ru_maxrss`) where that is larger. Pages of mapped files count.
- `ru_maxrss` alone cannot be trusted for small children: a child starts with the peak of the process that started it,
  so it says nothing below that. `Result.rss_floor_nbytes` is this process's own peak; keep this process small.
- The cgroup's peak is all memory the run took from the machine, page cache included, read and written.

Cgroups need root and a writable memory controller of version 1 or 2. Each run gets a fresh one. Everything here is for
Linux.
"""

from __future__ import annotations

import ctypes
import os
import resource
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

CGROUP_V1 = Path("/sys/fs/cgroup/memory")
CGROUP_V2 = Path("/sys/fs/cgroup")
DROP_CACHES = Path("/proc/sys/vm/drop_caches")
SAMPLE_SECONDS = 0.02
TIMELINE_SECONDS = 0.05
FORKED_ONLY = 0x40  # PF_FORKNOEXEC in the kernel's sched.h
# Through a shell in either case, so that a command that cannot be started is a failed run (exit code 126 or 127).
START = ["/bin/sh", "-c", 'exec "$@"', "sh"]
START_IN_CGROUP = ["/bin/sh", "-c", 'echo $$ > "$0" && exec "$@"']


@dataclass(frozen=True, slots=True)
class Result:
    """One run of one command. A memory figure is None where it could not be measured."""

    outcome: str
    exit_code: int
    wall_seconds: float
    cpu_seconds: float
    peak_rss_nbytes: int
    ru_maxrss_nbytes: int
    rss_floor_nbytes: int
    cgroup_peak_nbytes: int | None
    oom_kills: int
    output_tail: str


@dataclass(frozen=True, slots=True)
class Moment:
    """Memory at one moment of a run: RSS of its processes; all that its cgroup is charged with, and parts of that."""

    seconds: float
    rss_nbytes: int
    usage_nbytes: int
    anonymous_nbytes: int
    cache_nbytes: int
    dirty_nbytes: int


class MemoryCgroup:
    """A fresh memory cgroup of version 1 or 2, with an optional limit and no swap."""

    def __init__(self, version: int, limit_nbytes: int | None) -> None:
        """Make the cgroup and set its limit; OSError when that is not allowed."""
        self.version = version
        root = CGROUP_V1 if version == 1 else CGROUP_V2
        self.path = Path(tempfile.mkdtemp(prefix="benchmark-", dir=root))
        if limit_nbytes is not None:
            self._limit(limit_nbytes)

    def _limit(self, nbytes: int) -> None:
        """Bound memory, and memory with swap where the kernel accounts for swap."""
        if self.version == 1:
            self._write("memory.limit_in_bytes", nbytes)
            with suppress(FileNotFoundError):
                self._write("memory.memsw.limit_in_bytes", nbytes)
        else:
            self._write("memory.max", nbytes)
            with suppress(FileNotFoundError):
                self._write("memory.swap.max", 0)

    def _write(self, name: str, value: int) -> None:
        """Set one of the cgroup's files, which exists if the kernel has it."""
        with (self.path / name).open("r+") as file:
            file.write(str(value))

    def enter(self, command: Sequence[str]) -> list[str]:
        """The command that joins this cgroup and then becomes `command`."""
        return [*START_IN_CGROUP, str(self.path / "cgroup.procs"), *command]

    def peak_nbytes(self) -> int | None:
        """Most memory ever charged here; None on kernels that do not record it."""
        name = "memory.max_usage_in_bytes" if self.version == 1 else "memory.peak"
        try:
            return int((self.path / name).read_text())
        except FileNotFoundError:
            return None

    def moment(self, seconds: float) -> Moment:
        """What is held here now."""
        usage = "memory.usage_in_bytes" if self.version == 1 else "memory.current"
        fields = ("total_rss", "total_cache", "total_dirty") if self.version == 1 else ("anon", "file", "file_dirty")
        stat = dict(line.split() for line in (self.path / "memory.stat").read_text().splitlines())
        pids = (self.path / "cgroup.procs").read_text().split()
        rss = sum(status_nbytes(int(pid), "VmRSS") for pid in pids)
        parts = (int(stat.get(field, 0)) for field in fields)
        return Moment(seconds, rss, int((self.path / usage).read_text()), *parts)

    def oom_kills(self) -> int:
        """Processes killed here because of the limit."""
        name = "memory.oom_control" if self.version == 1 else "memory.events"
        fields = dict(line.split() for line in (self.path / name).read_text().splitlines())
        return int(fields.get("oom_kill", 0))

    def remove(self) -> None:
        """Remove the cgroup; the last of its processes may need a moment to go."""
        deadline = time.monotonic() + 5
        while (self.path / "cgroup.procs").read_text() and time.monotonic() < deadline:
            time.sleep(0.05)
        self.path.rmdir()


def cgroup_version() -> int | None:
    """Version of the memory controller that can be used here; None when there is none."""
    for version in (1, 2):
        with suppress(OSError):
            cgroup = MemoryCgroup(version, None)
            controlled = (cgroup.path / ("memory.limit_in_bytes" if version == 1 else "memory.max")).exists()
            cgroup.remove()
            if controlled:
                return version
    return None


@contextmanager
def fresh_cgroup(version: int | None, limit_nbytes: int | None) -> Iterator[MemoryCgroup | None]:
    """A cgroup for one run, gone afterwards; None when cgroups cannot be used."""
    if version is None:
        yield None
        return
    cgroup = MemoryCgroup(version, limit_nbytes)
    try:
        yield cgroup
    finally:
        cgroup.remove()


class TreeSampler(threading.Thread):
    """Samples the memory of a process and its descendants until stopped."""

    def __init__(self, pid: int) -> None:
        """Prepare to watch `pid`."""
        super().__init__(daemon=True)
        self.pid = pid
        self.peak_nbytes = 0
        self._done = threading.Event()

    def run(self) -> None:
        """Sample until `stop`. A lone process is asked for its own high-water mark, which misses no peak."""
        while not self._done.wait(SAMPLE_SECONDS):
            if not has_begun(self.pid):
                continue
            tree = process_tree(self.pid)
            field = "VmHWM" if len(tree) == 1 else "VmRSS"
            self.peak_nbytes = max(self.peak_nbytes, sum(status_nbytes(pid, field) for pid in tree))

    def stop(self) -> int:
        """Stop and return the peak in bytes."""
        self._done.set()
        self.join()
        return self.peak_nbytes


class Timeline(threading.Thread):
    """Appends a cgroup's moments to a list until stopped."""

    def __init__(self, cgroup: MemoryCgroup, moments: list[Moment]) -> None:
        """Prepare to watch `cgroup`; time counts from now."""
        super().__init__(daemon=True)
        self.cgroup = cgroup
        self.moments = moments
        self._start = time.perf_counter()
        self._done = threading.Event()

    def run(self) -> None:
        """Sample at once, then at each interval."""
        while True:
            self.moments.append(self.cgroup.moment(time.perf_counter() - self._start))
            if self._done.wait(TIMELINE_SECONDS):
                return

    def stop(self) -> None:
        """Stop after the sample that is under way."""
        self._done.set()
        self.join()


@contextmanager
def recorded(cgroup: MemoryCgroup | None, moments: list[Moment] | None) -> Iterator[None]:
    """Record a cgroup's memory meanwhile, where there is a list to record it in."""
    if moments is None:
        yield
        return
    if cgroup is None:
        raise ValueError("memory over time is read from a cgroup: there is none")
    timeline = Timeline(cgroup, moments)
    timeline.start()
    try:
        yield
    finally:
        timeline.stop()


def has_begun(pid: int) -> bool:
    """Whether a child has become another program: until then its memory is that of the process that started it."""
    with suppress(OSError):
        flags = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[6]
        return not int(flags) & FORKED_ONLY
    return False


def process_tree(pid: int) -> list[int]:
    """`pid` and its descendants, as far as they are still there."""
    tree = [pid]
    for parent in tree:
        # A process may end at any of these steps; what it had is then no longer in the tree.
        with suppress(OSError):
            for path in Path(f"/proc/{parent}/task").glob("*/children"):
                tree += map(int, path.read_text().split())
    return tree


def status_nbytes(pid: int, field: str) -> int:
    """A memory field of /proc/<pid>/status in bytes; 0 when the process has ended."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    return 0


def run(
    command: Sequence[str],
    sync_folder: Path,
    version: int | None,
    limit_nbytes: int | None = None,
    timeline: list[Moment] | None = None,
) -> Result:
    """Run `command` to its end and measure it; the time includes syncing the file system of `sync_folder`.

    A command that fails or is killed is a result like any other: look at `outcome` (done, failed, killed). Where
    `timeline` is given, the cgroup's memory over time is appended to it, the sync included.
    """
    with fresh_cgroup(version, limit_nbytes) as cgroup, tempfile.TemporaryFile() as output:
        floor = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        start = time.perf_counter()
        launch = cgroup.enter(command) if cgroup else [*START, *command]
        with recorded(cgroup, timeline):
            status, usage, sampled = wait_measured(launch, output.fileno())
            sync_file_system(sync_folder)
        wall = time.perf_counter() - start
        kills = cgroup.oom_kills() if cgroup else 0
        code = os.waitstatus_to_exitcode(status)
        maxrss = usage.ru_maxrss * 1024
        return Result(
            outcome="killed" if kills or code == -9 else "failed" if code else "done",
            exit_code=code,
            wall_seconds=wall,
            cpu_seconds=usage.ru_utime + usage.ru_stime,
            peak_rss_nbytes=max(sampled, maxrss if maxrss > floor else 0),
            ru_maxrss_nbytes=maxrss,
            rss_floor_nbytes=floor,
            cgroup_peak_nbytes=cgroup.peak_nbytes() if cgroup else None,
            oom_kills=kills,
            output_tail=tail(output.fileno()),
        )


def wait_measured(command: Sequence[str], output: int) -> tuple[int, resource.struct_rusage, int]:
    """Start `command`, wait for it, and return its wait status, its usage and its sampled peak in bytes."""
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    sampler = TreeSampler(child.pid)
    sampler.start()
    try:
        _, status, usage = os.wait4(child.pid, 0)
    except BaseException:
        child.kill()
        child.wait()
        raise
    finally:
        sampled = sampler.stop()
    child.returncode = os.waitstatus_to_exitcode(status)
    return status, usage, sampled


def tail(descriptor: int, nbytes: int = 2000) -> str:
    """The last of what the child printed."""
    size = os.fstat(descriptor).st_size
    return os.pread(descriptor, nbytes, max(0, size - nbytes)).decode(errors="replace")


def sync_file_system(folder: Path) -> None:
    """Write all dirty pages of the file system that holds `folder`."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.syncfs(descriptor):
            raise OSError(ctypes.get_errno(), "cannot sync the file system", str(folder))
    finally:
        os.close(descriptor)


def can_drop_caches() -> bool:
    """Whether this process may drop the machine's page cache."""
    return os.access(DROP_CACHES, os.W_OK)


def drop_caches(source: Path) -> None:
    """Make the next read of `source` come from the disk, as far as this process may."""
    os.sync()
    if can_drop_caches():
        DROP_CACHES.write_text("3")
        return
    for path in regular_files(source):
        advise_dontneed(path)


def advise_dontneed(path: Path) -> None:
    """Ask the kernel to forget a file's pages; those another process maps stay."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def warm_caches(source: Path) -> None:
    """Read every file of `source` once."""
    for path in regular_files(source):
        with path.open("rb", buffering=0) as file:
            while file.read(1 << 22):
                pass


def regular_files(folder: Path) -> list[Path]:
    """All files below `folder`, sorted."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def folder_nbytes(folder: Path) -> tuple[int, int]:
    """Bytes in all files below `folder`: as their sizes say, and as the disk holds."""
    stats = [path.stat() for path in regular_files(folder)]
    return sum(stat.st_size for stat in stats), sum(stat.st_blocks * 512 for stat in stats)
