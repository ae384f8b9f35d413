"""Make files and folders, look at each with the commands, and count what must not happen.

``python -m tests.fuzz.run --files 5000 --folders 50``. Item number N of a seed is always the same: ``--only N`` (or
``--only folder:N``) makes it again, leaves it in the scratch folder, and says what was wrong. Each batch runs in a
process of its own, so that one file's memory is not counted for the next.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.fuzz.kinds import FILES, Seeds, folder, seeds
from tests.fuzz.look import Fault, commands_of_file, commands_of_folder, empty, look, watch
from tests.processes import import_all

BATCH = {"file": 200, "folder": 10}
_MOST_FAULTS = 200
_PATIENCE = 60


def items(
    kind: str, seed: int, numbers: range, found: Seeds, scratch: Path
) -> Iterator[tuple[int, str, list[list[str]]]]:
    """Make each item; its number, what it is, and the commands to look at it with."""
    makers = [(name, make) for name, (often, make) in FILES.items() for _ in range(often)]
    for number in numbers:
        rng = random.Random(f"{seed} {kind} {number}")
        where = empty(scratch / "item")
        (scratch / "at").write_text(f"{kind}:{number}")
        if kind == "file":
            name, make = rng.choice(makers)
            yield number, name, commands_of_file(make(rng, found, where), rng.random())
        else:
            made, source = folder(rng, found, where)
            yield number, source.name, commands_of_folder(made, source, rng.random())


def batch(kind: str, seed: int, numbers: range, found: Seeds, scratch: Path) -> dict[str, Any]:
    """Look at some items in this process: how many of each name, exit codes, and faults."""
    names: Counter[str] = Counter()
    codes: Counter[str] = Counter()
    faults: list[dict[str, Any]] = []
    for number, name, commands in items(kind, seed, numbers, found, scratch):
        names[name] += 1
        for words in commands:
            code, fault = look(words)
            codes[str(code)] += 1
            if fault is not None:
                faults.append(_entry(kind, number, name, fault))
    return {"names": names, "codes": codes, "faults": faults}


def _entry(kind: str, number: int, name: str, fault: Fault) -> dict[str, Any]:
    return {"item": f"{kind}:{number}", "name": name, "kind": fault.kind, "what": fault.what, "verb": fault.words[0]}


def in_a_process(kind: str, seed: int, numbers: range, found: Seeds, scratch: Path) -> dict[str, Any]:
    """Look at some items in a process of its own, which is ended if it hangs."""
    place = scratch / "result.json"
    place.unlink(missing_ok=True)
    pid = os.fork()
    if pid == 0:
        try:
            place.write_text(json.dumps(batch(kind, seed, numbers, found, scratch)))
        except BaseException:  # noqa: BLE001 - whatever it is, the process ends here, and says why
            traceback.print_exc()
        os._exit(0)
    began, last = time.monotonic(), ""
    while os.waitpid(pid, os.WNOHANG)[0] == 0:
        time.sleep(0.01)
        at = (scratch / "at").read_text() if (scratch / "at").is_file() else ""
        began, last = (began, last) if at == last else (time.monotonic(), at)
        if time.monotonic() - began > _PATIENCE:
            os.kill(pid, 9)
    if place.is_file():
        result: dict[str, Any] = json.loads(place.read_text())
        return result
    item = (scratch / "at").read_text()
    left = range(int(item.partition(":")[2]) + 1, numbers.stop)
    rest = in_a_process(kind, seed, left, found, scratch) if left else {"names": {}, "codes": {}, "faults": []}
    rest["faults"].append({"item": item, "name": "", "kind": "process ended", "what": "it hung or died", "verb": ""})
    return rest


def run(seed: int, files: int, folders: int, scratch: Path, *, seconds: float, talk: bool = False) -> dict[str, Any]:
    """Make and look at so many folders and files, or as many as the time allows; what is recorded of it."""
    end = time.monotonic() + seconds
    import_all()
    found = seeds(scratch / "seeds")
    watch()
    result: dict[str, Any] = {"seed": seed}
    for kind, count in (("folder", folders), ("file", files)):
        names: Counter[str] = Counter()
        codes: Counter[str] = Counter()
        faults: list[dict[str, Any]] = []
        began = time.monotonic()
        for first in range(0, count, BATCH[kind]):
            if time.monotonic() > end:
                break
            part = in_a_process(kind, seed, range(first, min(count, first + BATCH[kind])), found, scratch)
            names.update(part["names"])
            codes.update(part["codes"])
            faults += part["faults"]
            if talk and (part["faults"] or first % (50 * BATCH[kind]) == 0):
                _say(kind, sum(names.values()), count, time.monotonic() - began, part["faults"])
        taken = time.monotonic() - began
        result[f"{kind}s"] = {
            "asked": count,
            "made": sum(names.values()),
            "per_second": round(sum(names.values()) / taken, 1) if count else 0,
            "by_name": dict(sorted(names.items())),
            "exit_codes": dict(sorted(codes.items())),
            "faults": len(faults),
            "first_faults": faults[:_MOST_FAULTS],
        }
    return result


def _say(kind: str, made: int, count: int, seconds: float, faults: list[dict[str, Any]]) -> None:
    print(f"{made} of {count} {kind}s, {made / seconds:.0f}/s", file=sys.stderr, flush=True)
    for fault in faults[:5]:
        print(f"  {fault}", file=sys.stderr, flush=True)


def _again(seed: int, only: str, scratch: Path) -> None:
    kind, _, number = only.rpartition(":")
    watch()
    wanted = range(int(number), int(number) + 1)
    for _, name, commands in items(kind or "file", seed, wanted, seeds(scratch / "seeds"), scratch):
        for words in commands:
            print(name, words, *look(words))


def main() -> int:
    """Run it; returns 0 if nothing happened that must not."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--files", type=int, default=5000)
    parser.add_argument("--folders", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="end after these, with fewer")
    parser.add_argument("--only", help="one item by its number")
    parser.add_argument("--out", type=Path, help="record the counts in this file, as JSON")
    parser.add_argument("--scratch", type=Path, help="where the files are made")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="streamconv-fuzz-") as folder_name:
        scratch = options.scratch or Path(folder_name)
        if options.only:
            _again(options.seed, options.only, scratch)
            return 0
        result = run(options.seed, options.files, options.folders, scratch, seconds=options.seconds, talk=True)
    text = json.dumps(result, indent=2)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")
    return 1 if result["files"]["faults"] or result["folders"]["faults"] else 0


if __name__ == "__main__":
    sys.exit(main())
