"""A process of its own: open a file again and again, and at each time let another read of it go wrong.

    LD_PRELOAD=faults.so python -m tests.faults.each_read HOW FILE ..

It prints a JSON list: for each file a list with what came of each read. That is (exit code, message), or the tensors'
names; the last open is one that no read went wrong of.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from itertools import count
from pathlib import Path
from typing import Any

from streamconv.containers.open_any import open_any
from streamconv.core.errors import StreamconvError


def attempt(path: Path) -> Any:
    try:
        return sorted(open_any(path).tensors())
    except StreamconvError as error:
        return error.exit_code, str(error)


def main(how: str, names: list[str]) -> None:
    library = ctypes.CDLL(None)
    results = []
    for name in names:
        path, outcomes = Path(name), []
        data = path.read_bytes()
        for at in count(1):
            library.fault_begin()
            os.environ.update(FAULT_CALL="read", FAULT_HOW=how, FAULT_BELOW=name, FAULT_AT=str(at))
            outcomes.append(attempt(path))
            os.environ["FAULT_HOW"] = "none"
            if how.startswith("cut"):
                path.write_bytes(data)
            if library.fault_count() < at:
                break
        results.append(outcomes)
    print(json.dumps(results))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
