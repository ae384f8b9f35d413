"""A file system of its own, as small as a test wants it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(folder: Path, nbytes: int, options: str = "") -> Iterator[Path]:
    """A new folder that is a file system of so many bytes; skips the test where none can be mounted.

    ``options`` are further ones of mount: ``,ro``, or ``,nr_inodes=5`` for so many files and folders.
    """
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount a small file system")
    words = ["mount", "-t", "tmpfs", "-o", f"size={nbytes}{options}", "tmpfs", str(folder)]
    mounted = subprocess.run(words, check=False, capture_output=True)
    if mounted.returncode != 0:
        pytest.skip(f"cannot mount: {mounted.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)
