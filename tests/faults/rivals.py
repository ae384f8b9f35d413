"""Two conversions into one folder that give different results, so that it shows which of them won."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.faults.fault import Fault, library, sends
from tests.faults.race import End, Run, at_once
from tests.places import FRAMEWORKS
from tests.spread import Sweep
from tests.trees import tree

CONVERSIONS: dict[str, tuple[Path, dict[str, Any]]] = {
    "huggingface": (FRAMEWORKS / "dsp_llama_gqa_tp2pp2_fp32_z0", {"max_shard_size": "60KB"}),
    "megatron-legacy": (FRAMEWORKS / "bs_bloom_tp2pp2_fp32_z0", {"tp": 1}),
}
OTHERWISE = {"dtype": "bf16"}
# What is replaced last, and decides.
RECORDS = ("config.json", "latest_checkpointed_iteration.txt")
RACES = 50
# What a run does to names and to the disk: tests stop it before each of these calls in turn.
CALLS = ("mkdir", "open", "sync", "rename")
MOST_CALLS = 99
# A kill before any of the first syncs comes before the result is published.
_SYNCS = 20


@dataclass(frozen=True)
class Rivals:
    """Two conversions with different results, and how long one takes."""

    runs: tuple[Run, Run]
    results: tuple[dict[str, bytes], dict[str, bytes]]
    seconds: float

    def into(self, out: Path, ahead: float = 0.0, **options: Any) -> tuple[Run, Run]:
        """Both into ``out``, the first ``ahead`` seconds before the second; ``options`` are for both."""
        first, second = (replace(run, destination=str(out), options={**run.options, **options}) for run in self.runs)
        return replace(first, delay=max(0.0, -ahead)), replace(second, delay=max(0.0, ahead))

    def leftover(self, out: Path, number: int) -> None:
        """Kill the first one before it has published, each number before another sync."""
        fault = Fault("sync", sends(signal.SIGKILL), out, 1 + number % _SYNCS)
        (end,) = at_once(replace(self.into(out)[0], variables=fault.variables), preload=library())
        assert end.code == -signal.SIGKILL

    def check_one_won(self, ends: list[End], out: Path) -> None:
        assert sorted(end.code for end in ends) == [0, 8], (out, ends)
        winner = [end.code for end in ends].index(0)
        assert tree(out) == self.results[winner], ends
        assert not (out / ".streamconv").exists()

    def offsets(self, sweep: Sweep) -> Iterator[tuple[int, float]]:
        """How far the first one is ahead, in seconds: from as much as it takes alone, to as much behind."""
        middle = (RACES - 1) / 2
        for number in sweep.of(range(RACES), 9):
            yield number, (number - middle) / middle * self.seconds
