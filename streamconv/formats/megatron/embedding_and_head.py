"""The two ends of a model that Megatron-LM's ranks wrote: its embedding, its head, and the copies of a tied head."""

from __future__ import annotations

from dataclasses import replace

from streamconv.core.errors import DamagedError, UnsupportedError
from streamconv.core.layout import RankCoordinates
from streamconv.formats.megatron.rank_files import Ranks
from streamconv.formats.source import Dropped, StoredModel
from streamconv.models.parameter import WORDS, Section

__all__ = ["check_ends", "check_head", "copies_aside"]


def check_ends(ranks: Ranks) -> None:
    """Check that the embedding is in the first chunk of all, and the final norm and the head, or its copy, in the last.

    Raises:
        DamagedError: embedding or final norm is missing, or one of them is on another stage.
    """
    chunks, last = list(ranks.chunks(0)), ranks.found.pp - 1
    for number, (stage, chunk, part) in enumerate(chunks):
        path = ranks.path(RankCoordinates(0, stage))
        where = f"stage {stage} of {ranks.found.pp}" + (f", chunk {chunk}," if ranks.vpp > 1 else "")
        sections = {parameter.section for parameter in part.tensors}
        is_last = number == len(chunks) - 1
        for section, is_home, home in (
            (Section.EMBEDDING, number == 0, "stage 0"),
            (Section.FINAL_NORM, is_last, f"stage {last}"),
        ):
            if (section in sections) != is_home:
                what = section.value.replace("_", " ")
                article = "an" if what.startswith("e") else "a"
                has = f"has {article if section in sections else 'no'}"
                raise DamagedError(f"{where} {has} {what}: it belongs on {home}", where=path)
        copied = any(ranks.parts[RankCoordinates(rank, stage)][chunk].copy for rank in range(ranks.found.tp))
        if not is_last and (Section.HEAD in sections or copied):
            raise DamagedError(f"{where} has a head: it belongs on stage {last}", where=path)


def check_head(ranks: Ranks, is_untied: bool | None, head: str, copy: str) -> None:
    """Check that the last stage has a head or, with several stages, a copy of the embedding, and not both.

    Args:
        ranks: what was opened, copies set apart.
        is_untied: whether args or the user declare the head untied, None if neither does.
        head: the name of a head in the files.
        copy: the name of a copy.

    Raises:
        DamagedError: the last stage has neither, both, or not what is declared.
    """
    last = RankCoordinates(0, ranks.found.pp - 1)
    part = ranks.parts[last][-1]
    has_head = any(parameter.section is Section.HEAD for parameter in part.tensors)
    has_copy = any(chunk.copy for parts in ranks.parts.values() for chunk in parts)
    reason = None
    if has_head and has_copy:
        reason = f"a head of its own and {copy}: a model has one of them"
    elif is_untied and not has_head:
        reason = f"args say that the head is not tied to the embedding, and there is no {head}"
    elif ranks.found.pp > 1 and not (has_head or has_copy):
        reason = f"{'no' if head == copy else f'neither {head} nor'} {copy} on the last stage"
    if reason:
        raise DamagedError(reason, where=ranks.path(last), remedy="copy the file again from its storage")


def copies_aside(ranks: Ranks, model: StoredModel, label: str) -> StoredModel:
    """The model with the tied head's copies as ``copies``, without those that share the embedding's bytes (PP 1).

    Args:
        ranks: what was opened.
        model: the model that was made of them.
        label: the name of the copy in the files.

    Raises:
        DamagedError: a copy has another shape than its original, or other keys than on the first rank.
        UnsupportedError: a copy has no original in the embedding.
    """
    last = ranks.found.pp - 1
    copies = []
    keys = set(ranks.parts[RankCoordinates(0, last)][-1].copy)
    for rank in range(ranks.found.tp):
        mine = RankCoordinates(rank, last)
        part, path = ranks.parts[mine][-1], ranks.path(mine)
        if set(part.copy) != keys:
            raise DamagedError(f"{label} has other keys than on rank 0", where=path)
        for key, copy in part.copy.items():
            first = ranks.parts[RankCoordinates(rank, 0)][0]
            original = first.tensors.get(WORDS.beside(f"word_embeddings.{key}"))
            if original is None:
                raise UnsupportedError(f"{label}.{key} is a copy of nothing in the embedding", where=path)
            if (copy.shape, copy.dtype) != (original.shape, original.dtype):
                raise DamagedError(
                    f"{label}.{key} is {copy.shape} {copy.dtype}, the embedding {original.shape} {original.dtype}",
                    where=path,
                )
            if copy.pieces != original.pieces:
                copies.append((f"{label}.{key} of rank {rank}", copy, original))
    if not copies:
        return model
    nbytes = sum(copy.nbytes for _, copy, _ in copies)
    dropped = Dropped(f"{label} of {ranks.found.tp} ranks", nbytes, "a copy of the word embedding")
    return replace(model, copies=tuple(copies)).noting(dropped=[dropped])
