"""Conversions to go wrong: to each target, fresh and over an older checkpoint; and what may be seen of them."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.points import Call, Done, Point, calls_of, run
from tests.places import FRAMEWORKS, MADE
from tests.trees import tree

__all__ = ["TARGETS", "Case", "Target", "Tree", "assert_none", "prepare", "shown"]

BLOOM = str(FRAMEWORKS / "bs_bloom_tp2pp2_fp32_z0")
LLAMA = str(FRAMEWORKS / "dsp_llama_gqa_tp2pp2_fp32_z0")
NEOX = str(MADE / "neox_L3_tp2pp2_z1")
# One tile after another in one thread: each run makes the same calls in the same order.
SERIAL = ("--engine", "serial", "--max-ram", "2G", "--quiet")
WORK = ".streamconv"
SHOWN = 20

Tree = dict[str, bytes]
"""The files below a folder, by their paths in it."""


@dataclass(frozen=True, slots=True)
class Target:
    """What to convert to: the words of the command line, and how a loader finds the result.

    ``record`` is the file that says which checkpoint is there. ``is_flat``: the weights lie beside it, and not in a
    folder that it names. ``older`` are the words that make another checkpoint under the same names.
    """

    name: str
    words: tuple[str, ...]
    record: str
    is_flat: bool = False
    older: tuple[str, ...] = ("--dtype", "bf16")
    how: str = "planned"

    @property
    def source(self) -> Path:
        return Path(self.words[0])


TRACKER = "latest_checkpointed_iteration.txt"
CORE = (LLAMA, "--to", "megatron-core", "--tp", "2", "--pp", "1", *SERIAL)
TARGETS = (
    Target("legacy", (BLOOM, "--to", "megatron-legacy", "--tp", "1", "--pp", "2", *SERIAL), TRACKER),
    Target("core", CORE, TRACKER),
    Target("core-torch", (*CORE, "--container", "torch"), TRACKER),
    Target("deepspeed", (BLOOM, "--to", "deepspeed", "--tp", "1", "--pp", "2", *SERIAL), "latest"),
    Target(
        "huggingface",
        (LLAMA, "--to", "huggingface", "--max-shard-size", "60KB", *SERIAL),
        "config.json",
        is_flat=True,
        older=("--dtype", "bf16", "--max-shard-size", "40KB"),
    ),
    Target("gpt-neox", (NEOX, "--to", "gpt-neox", "--tp", "1", "--pp", "1", *SERIAL), "latest"),
)


def shown(files: Tree) -> Tree:
    """What of a destination is not work that has not ended."""
    return {name: data for name, data in files.items() if not name.startswith(f"{WORK}/")}


@dataclass(frozen=True)
class Case:
    """A conversion into ``destination``, which holds ``before``; ``new`` is its result and ``calls`` what it does."""

    target: Target
    destination: Path
    words: tuple[str, ...]
    variables: Mapping[str, str]
    older: Path | None
    before: Tree
    new: Tree
    calls: list[Call] = field(default_factory=list)

    @property
    def published(self) -> int:
        """The number of the call that decides."""
        return self.deciding(self.calls)

    def deciding(self, calls: Sequence[Call]) -> int:
        """The number of the call that puts the commit record into place: the last, if none does."""
        record = str(self.destination / self.target.record)
        return max((number for number, call in enumerate(calls, 1) if call.other == record), default=len(calls))

    def reset(self) -> None:
        """Put the destination, and what is beside it, back to what it was before."""
        place = self.destination.parent
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        if self.older is not None:
            shutil.copytree(self.older, self.destination)

    def run(self, point: Point | None = None, how: str = "", below: Path | None = None) -> Done:
        """The conversion, with something that happens at a point of it."""
        variables = {**self.variables, **(point.variables if point else {})}
        return run(self.words, self.destination, variables, how=how or self.target.how, below=below)

    def calls_now(self, kind: str = "change", how: str = "", below: Path | None = None) -> list[Call]:
        """The calls of a run on what the destination holds now."""
        how = how or self.target.how
        return calls_of(self.words, self.destination, self.variables, kind=kind, how=how, below=below)

    def seen(self) -> Tree:
        """What the destination shows."""
        return shown(tree(self.destination))

    def _loaded(self, files: Tree) -> Tree | None:
        """What a loader reads; None if it finds no checkpoint."""
        read = {name: data for name, data in files.items() if self.target.is_flat or "/" in name}
        return {**read, "record": files[self.target.record]} if read and self.target.record in files else None

    def mixed(self, files: Tree) -> Iterator[str]:
        """What is wrong with what is shown, if it is taken for a checkpoint, and is neither the old nor the new."""
        if self.target.record not in files:
            return
        wholes = (self.before, self.new) if self.before else (self.new,)
        allowed = [self._loaded(each) for each in wholes] + ([None] if self.before else [])
        if self._loaded(files) not in allowed:
            yield f"a loader finds {differences(files, self.new)}"

    def again(self, how: str = "") -> Iterator[str]:
        """What is wrong with the same command, run again."""
        done = self.run(how=how)
        if done.code != 0:
            yield f"the same command again ends with {done.code}: {done.last_words}"
        files = self.seen()
        if files != self.new:
            yield f"the same command again ({done.code}) leaves {differences(files, self.new)}"
        if (self.destination / WORK).exists():
            yield f"the same command again ({done.code}) leaves {sorted(tree(self.destination / WORK))} of its work"


def assert_none(findings: Iterable[str]) -> None:
    """That nothing was found; otherwise how much, and what first."""
    found = list(findings)
    assert not found, "\n".join([f"{len(found)} findings", *found[:SHOWN]])


def differences(files: Tree, expected: Tree) -> str:
    """The names that are not as expected, each with why."""
    words = {name: "more" for name in files if name not in expected}
    words.update({name: "none" for name in expected if name not in files})
    words.update({name: "other bytes" for name in expected if name in files and files[name] != expected[name]})
    some = ", ".join(f"{name}: {word}" for name, word in sorted(words.items())[:4])
    return f"{len(words)} of {len(expected)} files amiss ({some})"


def prepare(
    target: Target, folder: Path, *, overwrite: bool = False, variables: Mapping[str, str] | None = None
) -> Case:
    """A conversion, of which an undisturbed run has been made; afterwards the destination is as it was before."""
    made = folder / "made"
    made.mkdir(parents=True)
    done = run(target.words, made / "new", how=target.how)
    assert done.code == 0, done.text
    older = made / "old" if overwrite else None
    if older is not None:
        done = run((*target.words, *target.older), older, how=target.how)
        assert done.code == 0, done.text
    case = Case(
        target,
        folder / "at" / "dst",
        (*target.words, *(["--overwrite"] if overwrite else [])),
        variables or {},
        older,
        {} if older is None else tree(older),
        tree(made / "new"),
    )
    case.reset()
    case.calls.extend(case.calls_now())
    assert case.seen() == case.new
    case.reset()
    return case
