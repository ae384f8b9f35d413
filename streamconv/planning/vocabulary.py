"""The number of vocabulary rows in the target, and the content of its padding.

Megatron pads the vocabulary to a multiple of ``make_vocab_size_divisible_by * TP``
[``megatron/tokenizer/tokenizer.py:_vocab_size_with_padding``], so the padded size depends on TP. New padding rows
repeat the last true row, as Megatron-LM's own converter fills them [``tools/checkpoint/saver_base.py``,
``saver_megatron.py``].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streamconv.core.errors import AmbiguousError, DamagedError, UsageError
from streamconv.core.lazy import LazyTensor, concat
from streamconv.formats.source import positive_int

__all__ = ["VocabularyPlan", "plan_vocabulary", "repad", "unpad_vocabulary"]

DEFAULT_DIVISOR = 128
_MOST_ROWS = 1 << 31


@dataclass(frozen=True, slots=True)
class VocabularyPlan:
    """Rows stored in the source, rows in the target, and true rows (None if every stored row is kept)."""

    stored: int
    padded: int
    true: int | None
    reason: str

    @property
    def is_verbatim(self) -> bool:
        """Whether all stored rows, padding included, are copied."""
        return self.true is None


def plan_vocabulary(
    stored: int,
    recorded: int | None,
    said: int | None,
    args: Mapping[str, Any] | None,
    source_tp: int,
    tp: int,
    where: Path = Path(),
    *,
    is_padded: bool = True,
) -> VocabularyPlan:
    """The vocabulary of a target that pads it.

    Args:
        stored: rows in the source over all ranks.
        recorded: true size from the checkpoint, None if it does not record one.
        said: true size from ``--vocab-size``.
        args: training arguments, for ``make_vocab_size_divisible_by`` and ``pad_vocab_size_to``.
        source_tp: tensor-parallel size of the source.
        tp: tensor-parallel size of the target.
        where: the checkpoint, for messages.
        is_padded: whether the source is padded by the same rule; a Hugging Face model is not.

    Raises:
        UsageError: the true size is above the stored rows, or below the recorded size.
        DamagedError: an argument is not a positive number, or the padded size is too large.
        AmbiguousError: the true size is unknown and the stored rows do not divide over ``tp``.
    """
    true = _true_size(stored, recorded, said)
    if tp == source_tp and said is None and is_padded:
        return VocabularyPlan(stored, stored, None, "TP stays, all stored rows are copied")
    if true is None:
        if stored % tp == 0:
            return VocabularyPlan(
                stored, stored, None, f"the true size is unknown; {stored} stored rows divide over TP {tp}"
            )
        raise AmbiguousError(
            f"the true vocabulary size is unknown and {stored} stored rows do not divide over TP {tp}",
            remedy="say --vocab-size N",
        )
    fixed = positive_int(args, "pad_vocab_size_to", where)
    if fixed is not None and fixed >= true and fixed % tp == 0:
        padded, rule = fixed, f"args.pad_vocab_size_to {fixed}"
    else:
        divisor = positive_int(args, "make_vocab_size_divisible_by", where) or DEFAULT_DIVISOR
        padded, rule = -(-true // (divisor * tp)) * divisor * tp, f"a multiple of {divisor} x TP {tp}"
    if padded >= _MOST_ROWS:
        raise DamagedError(f"a vocabulary padded to {padded} rows ({rule})", where=where)
    if padded == stored:
        return VocabularyPlan(stored, stored, None, f"the padded size stays ({rule})")
    return VocabularyPlan(stored, padded, true, f"{true} true rows, padded to {rule}")


def _true_size(stored: int, recorded: int | None, said: int | None) -> int | None:
    true = said if said is not None else recorded
    if true is not None and not 0 < true <= stored:
        raise UsageError(f"a vocabulary of {true} true rows: {stored} rows are stored", remedy="check --vocab-size")
    if said is not None and recorded is not None and said < recorded:
        raise UsageError(
            f"--vocab-size {said} would drop true rows: the checkpoint records {recorded}",
            remedy="leave it out, or say more",
        )
    return true


def unpad_vocabulary(
    stored: int, recorded: int | None, said: int | None, policy: str | None, *, keeps_padding: bool
) -> VocabularyPlan:
    """The vocabulary of a target that does not pad it.

    Args:
        stored: rows in the source over all ranks.
        recorded: true size from the checkpoint, None if it does not record one.
        said: true size from ``--vocab-size``.
        policy: ``strip`` or ``keep``, from ``--vocab-padding``; None is ``keep`` for a family whose published
            models keep it, else ``strip``.
        keeps_padding: whether the family's published models keep the padding.

    Raises:
        UsageError: the true size is above the stored rows, or below the recorded size.
        AmbiguousError: padding is to be stripped and the true size is unknown.
    """
    true = _true_size(stored, recorded, said)
    if (policy or ("keep" if keeps_padding and said is None else "strip")) == "keep":
        why = "--vocab-padding keep" if policy else "the published models of this family keep the padding"
        return VocabularyPlan(stored, stored, None, f"{why}; {true or 'an unknown number'} of them are true")
    if true is None:
        raise AmbiguousError(
            f"the true vocabulary size is unknown, and the padding among {stored} stored rows is to be stripped",
            remedy="say --vocab-size N, or --vocab-padding keep",
        )
    if true == stored:
        return VocabularyPlan(stored, stored, None, "all stored rows are true")
    return VocabularyPlan(stored, true, true, f"{stored - true} rows of padding are stripped")


def repad(whole: LazyTensor, vocabulary: VocabularyPlan) -> LazyTensor:
    """A vocabulary tensor ``(stored, ..)`` as ``(padded, ..)``: true rows, then copies of the last one."""
    if vocabulary.true is None:
        return whole
    rows = whole.slice(0, 0, vocabulary.true)
    if vocabulary.padded == vocabulary.true:
        return rows
    fill = whole.repeat_row(vocabulary.true - 1, vocabulary.padded - vocabulary.true)
    return concat([rows, fill], 0)
