"""The ``Plan``: every output file with every byte's place, before anything is written.

A plan is immutable. Making it checks everything that can be checked: unknown or missing tensors, sizes that do not
divide, incomplete coverage.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from streamconv.core.coverage import Coverage
from streamconv.core.dtypes import DType
from streamconv.core.identity import FileIdentity
from streamconv.core.layout import ParallelLayout, RankCoordinates
from streamconv.core.lazy import LazyTensor
from streamconv.core.low_rank import LowRank
from streamconv.core.replica import Replica
from streamconv.core.result import Result
from streamconv.formats.source import Dropped, Fact
from streamconv.formats.target import FileLayout
from streamconv.io.identity import identities_of, identity_now
from streamconv.io.reading import status_of
from streamconv.memory.budget import BudgetedMemory
from streamconv.models.parameter import ParameterId
from streamconv.moves.jobs import Job, Target
from streamconv.moves.lower import lower

__all__ = ["OutputFile", "OutputTensor", "Plan"]


@dataclass(frozen=True, slots=True)
class OutputTensor:
    """A stored tensor of the result: its names in the model's state dict (a tied one has two), its parameter, its
    value, and what is added to that, if anything.
    """

    names: tuple[str, ...]
    parameter: ParameterId
    tensor: LazyTensor
    update: LowRank | None = None

    @property
    def read(self) -> tuple[LazyTensor, ...]:
        """The tensors that it is made of."""
        return (self.tensor,) if self.update is None else (self.tensor, self.update.left, self.update.right)


@dataclass(frozen=True, slots=True, repr=False)
class OutputFile:
    """One file of the result: its path below the destination, the rank whose shards it holds, its layout, and the
    tensor of each storage.
    """

    path: str
    rank: RankCoordinates
    layout: FileLayout
    entries: tuple[OutputTensor, ...]

    def __repr__(self) -> str:
        return f"OutputFile({self.path!r}, {len(self.entries)} tensors, {self.layout.nbytes} bytes)"


@dataclass(frozen=True, repr=False)
class Plan(Result):
    """A complete, checked conversion.

    ``root`` is the folder that was given; ``source``, the one of the checkpoint, may be below it.
    ``facts`` are facts about the source; ``warnings`` are what a user should read before trusting the result;
    ``choices`` are decisions for the target, ``notes`` facts about it. ``texts`` are the commit record, ``small`` other
    small files of the result, and ``copied`` files that are copied byte for byte; all by their names in the result.
    ``owned`` are patterns of names in the destination that make up a checkpoint of this kind, ``beside`` patterns of
    names that accompany one. ``memory`` is the budget that it was planned for, if any;
    ``keeps_names`` says that no family is translated.
    """

    root: Path
    source: Path
    source_format: str
    family: str
    source_layout: str
    target_format: str
    target_layout: ParallelLayout
    dtype: DType | None
    iteration: int | None
    files: tuple[OutputFile, ...]
    texts: Mapping[str, str]
    replicas: tuple[Replica, ...]
    replicated_policy: str
    coverage: Coverage
    facts: tuple[Fact, ...]
    choices: tuple[Fact, ...]
    notes: tuple[Fact, ...]
    warnings: tuple[str, ...]
    dropped: tuple[Dropped, ...]
    small: Mapping[str, str | bytes] = field(default_factory=dict)
    copied: Mapping[str, Path] = field(default_factory=dict)
    owned: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    memory: BudgetedMemory | None = None
    keeps_names: bool = False

    @property
    def target_words(self) -> str:
        """The format of the result, and its layout, if it is a translated model's."""
        return self.target_format if self.keeps_names else f"{self.target_format}, {self.target_layout}"

    def within(self, memory: BudgetedMemory) -> Plan:
        """The same plan with its budget; what was computed of it stays."""
        plan = copy(self)
        object.__setattr__(plan, "memory", memory)
        return plan

    @cached_property
    def jobs(self) -> Sequence[Job]:
        """The byte moves that fill the files' storages."""
        return lower(
            Target(number, offset, entry.tensor, entry.update)
            for number, file in enumerate(self.files)
            for (offset, _), entry in zip(file.layout.storages, file.entries, strict=True)
        )

    @cached_property
    def source_paths(self) -> tuple[Path, ...]:
        """The files that tensor bytes are read from."""
        tensors = (tensor for file in self.files for entry in file.entries for tensor in entry.read)
        pieces = (piece for tensor in tensors for piece in tensor.pieces)
        return tuple(sorted({view.storage.path for piece in pieces for view in piece.views}))

    @cached_property
    def identities(self) -> tuple[FileIdentity, ...]:
        """The files that tensor bytes are read from, those of compared replicas too, as they were when opened; and
        those that are copied, as they are when this is asked first.

        Raises:
            SourceError: a file that is copied is gone.
            StorageError: the system refused to look at one.
        """
        tensors = [tensor for file in self.files for entry in file.entries for tensor in entry.read]
        read = identities_of([*tensors, *(copy for replica in self.replicas for copy in replica.copies)])
        return *read, *map(identity_now, self.copied.values())

    @property
    def write_nbytes(self) -> int:
        """Bytes of all output files: also the disk space that the conversion needs."""
        small = (*self.texts.values(), *self.small.values())
        texts = sum(len(text.encode() if isinstance(text, str) else text) for text in small)
        copied = sum(status_of(path).st_size for path in self.copied.values())
        return sum(file.layout.nbytes for file in self.files) + texts + copied

    @property
    def tensor_nbytes(self) -> int:
        """Bytes of all tensors in the output files."""
        return sum(nbytes for file in self.files for _, nbytes in file.layout.storages)

    @property
    def read_nbytes(self) -> int:
        """Tensor bytes that the conversion reads, the comparison of replicas not counted."""
        return sum(job.read_nbytes for job in self.jobs)

    @property
    def smallest_block(self) -> int:
        """The smallest block in bytes that each job can be cut into; it depends on row lengths, not on tensor sizes."""
        return max((job.smallest_block for job in self.jobs), default=0)
