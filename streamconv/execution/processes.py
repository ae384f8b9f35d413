"""Which process a run is, and whether one has ended."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["RunningProcess", "state_of"]


@dataclass(frozen=True, slots=True)
class RunningProcess:
    """A run and its process: the host and its boot, the PID namespace (inode), the PID, the start in clock ticks after
    the boot, and a token that no other run has.
    """

    host: str
    boot: str
    pid_namespace: int
    pid: int
    start: int
    token: str

    @property
    def _place(self) -> tuple[str, str, int]:
        return self.host, self.boot, self.pid_namespace

    @classmethod
    def this(cls) -> RunningProcess:
        """A new run of this process."""
        boot, namespace = "", 0
        with suppress(OSError):
            boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
            namespace = Path("/proc/self/ns/pid").stat().st_ino
        started = state_of(os.getpid())
        start = 0 if started is None else started[1]
        return cls(os.uname().nodename, boot, namespace, os.getpid(), start, secrets.token_hex(8))

    @classmethod
    def of(cls, noted: Mapping[str, Any]) -> RunningProcess:
        """The run that notes it of itself.

        Raises:
            ValueError, TypeError: this is no such note.
        """
        made = cls(**noted)
        if not all(isinstance(word, str) for word in (made.host, made.boot, made.token)):
            raise TypeError("the host, the boot and the token are words")
        if not all(type(number) is int and 0 <= number < 1 << 63 for number in (made.pid_namespace, made.start)):
            raise ValueError("no such namespace or start")
        if type(made.pid) is not int or not 0 < made.pid < 1 << 31:
            raise ValueError("no such process")
        return made

    def has_ended(self, here: RunningProcess) -> bool | None:
        """Whether the process has ended, as seen by another run's; None if that cannot be told from there."""
        # Two virtual machines that were made of one snapshot have the same boot.
        if not self.boot or self._place != here._place:
            return None
        found = state_of(self.pid)
        if found is not None:
            return found[0] in "ZX" or found[1] != self.start
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except OSError:
            pass
        return None


def state_of(pid: int) -> tuple[str, int] | None:
    """A process's state, a letter, and its start in ticks after the boot; None if the system does not say.

    Source: fields 3 and 22 of /proc/PID/stat [proc_pid_stat(5)].
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return fields[0], int(fields[19])
    except (OSError, ValueError, IndexError):
        return None
