"""What a Megatron-DeepSpeed folder says of itself, weighed: parallel sizes, and the row order of query_key_value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from streamconv.errors import AmbiguousError, DamagedError
from streamconv.families.base import QkvLayout
from streamconv.formats.base import Fact, ShardedModel, SourceOptions

__all__ = ["ParallelSize", "agree", "settle_qkv"]


@dataclass(frozen=True, slots=True)
class ParallelSize:
    """A size that was agreed on (None if nothing says it), from what, and what spoke against it."""

    value: int | None
    facts: list[Fact]
    warnings: list[str]


def agree(folder: Path, what: str, said: Mapping[str, int], counted: int | None, files: str) -> ParallelSize:
    """One parallel size out of what is recorded and how many files there are; the record counts before the
    arguments.
    """
    facts = [f"{source} says {value}" for source, value in said.items()]
    if counted is not None:
        facts.append(f"{files} count {counted}")
    values = list(said.values())
    trusted = values[0] if values else counted
    if trusted is None:
        return ParallelSize(None, [], [f"the source's {what} is unknown: there are no mp_rank files"])
    if counted is not None and trusted != counted:
        raise DamagedError(
            f"the source's {what} is contradictory: {', '.join(facts)}",
            where=folder,
            remedy="files are missing, or left over from another run: keep the checkpoint's own files, all of them",
        )
    warnings = [f"the source's {what}: {', '.join(facts)}; took {trusted}"] if len(set(values)) > 1 else []
    return ParallelSize(trusted, [Fact(f"{what} {trusted}", ", ".join(facts))], warnings)


def settle_qkv(model: ShardedModel, options: SourceOptions, bigscience_numbering: bool) -> None:
    """Decide the row order, which no key and no shape shows.

    Args:
        model: gets the order, and the fact with its evidence.
        options: what the user says outweighs the evidence.
        bigscience_numbering: whether the files are numbered as only forks without blocks number them.

    Raises:
        AmbiguousError: nothing tells.
    """
    evidence: tuple[QkvLayout, str] | None = None
    if model.args is not None:
        blocks = "ds_sequence_parallel_fpdt" in model.args
        words = "has" if blocks else "does not have"
        since = "since" if blocks else "before"
        layout = QkvLayout.BLOCKS if blocks else QkvLayout.INTERLEAVED
        evidence = (
            layout,
            f"args {words} ds_sequence_parallel_fpdt: written {since} commit 676a482c of Megatron-DeepSpeed",
        )
    elif bigscience_numbering:
        evidence = (
            QkvLayout.INTERLEAVED,
            "the file numbers are those of bigscience's fork, or of deepspeedai's before 2023-07",
        )
    if options.qkv_layout is not None:
        if evidence and evidence[0] is not options.qkv_layout:
            model.warnings.append(f"--qkv-layout {options.qkv_layout.value} against the evidence ({evidence[1]})")
        evidence = options.qkv_layout, "--qkv-layout"
    if evidence is None:
        raise AmbiguousError(
            "the row order of query_key_value cannot be known: there are no args, and both orders have its shape",
            where=model.path,
            remedy="say --qkv-layout interleaved ([heads,3,head_dim]) or blocks ([3,heads,head_dim], since 2024-12)",
        )
    model.qkv = evidence[0]
    model.facts.append(Fact(f"query_key_value rows {evidence[0].value}", evidence[1]))
