"""Megatron-LM's legacy checkpoint as a source, written by Megatron-LM itself or by streamconv.

Sources: ``megatron/checkpointing.py:save_checkpoint`` of Megatron-LM v2.0 to core_v0.17 (``megatron/training`` since
core_v0.7), ``megatron/model/gpt_model.py:state_dict_for_save_checkpoint``.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from streamconv.core.errors import DamagedError, UnsupportedError
from streamconv.core.layout import FIRST_RANK
from streamconv.formats.common.row_orders import join_separate_heads, settle_glu
from streamconv.formats.megatron.core.claims import dist_folder, is_core
from streamconv.formats.megatron.embedding_and_head import check_ends, check_head, copies_aside
from streamconv.formats.megatron.folder import claims as claims_ranks
from streamconv.formats.megatron.legacy.names import HEAD_COPY, cautions, stage_tensors, translated_args
from streamconv.formats.megatron.legacy.options import SOURCE_OPTIONS
from streamconv.formats.megatron.legacy.refusals import refusal, refuse_args
from streamconv.formats.megatron.rank_files import Ranks, left_behind, open_ranks, to_model
from streamconv.formats.options import RowOrderOptions
from streamconv.formats.source import Fact, SourceFormat, StoredModel
from streamconv.models.orders import QkvLayout
from streamconv.models.parameter import Section

__all__ = ["SOURCE", "claims", "open_model"]

# megatron/checkpointing.py:fix_query_key_value_ordering, up to core_v0.17.
_ROWS = {0: QkvLayout.BLOCKS, 1: QkvLayout.ALTERNATING, 2: QkvLayout.INTERLEAVED, 3: QkvLayout.INTERLEAVED}


def claims(path: Path) -> str | None:
    """What makes a folder a legacy Megatron-LM checkpoint or the root of some, None if nothing does."""
    words = claims_ranks(path)
    return None if words is None or is_core(path) or dist_folder(path) is not None else words


def open_model(path: Path, options: RowOrderOptions) -> StoredModel:
    """Open a legacy Megatron-LM checkpoint, metadata only.

    Args:
        path: the root (with ``latest_checkpointed_iteration.txt``) or an iteration's folder.
        options: the user's options for it; ``tag`` is the name of another ``iter_*`` folder, or ``release``.

    Raises:
        SourceError: it is not there.
        AmbiguousError: the root does not name one of its checkpoints, and no tag does.
        UnsupportedError: it is of a kind that is refused by name.
        DamagedError: files are missing, broken or contradict each other.
    """
    ranks = open_ranks(path, options, refuse_args, stage_tensors)
    version = _known_version(ranks)
    check_ends(ranks)
    check_head(ranks, (ranks.args or {}).get("untie_embeddings_and_output_weights"), "output_layer", HEAD_COPY)
    args = None if ranks.args is None else translated_args(ranks.args)
    model = to_model(ranks, options, "Megatron-LM, legacy", args)
    ages = sorted({age for parts in ranks.parts.values() for part in parts for age in part.ages})
    names = Fact(" and ".join(ages or ["names of 2021"]), "the keys of `language_model`")
    model = model.noting(facts=[names], warnings=cautions(ranks.args or {}))
    model = copies_aside(ranks, model, HEAD_COPY)
    model = join_separate_heads(model, options) or _settle_qkv(model, version, options)
    # bigscience's fork, whose order is the other one, has no norms without bias.
    is_megatron_lm = "input_layernorm.bias" not in model.keys(Section.LAYER, 0)
    model = settle_glu(model, options, "no norm has a bias: not bigscience's fork" if is_megatron_lm else None)
    return model.noting(dropped=left_behind(ranks))


def _known_version(ranks: Ranks) -> float:
    """The checkpoint_version, which determines the row order of query_key_value; 0 if it is not recorded.

    [``megatron/checkpointing.py:get_checkpoint_version``, ``load_checkpoint``]
    """
    version, path = ranks.state.get("checkpoint_version", 0), ranks.files[FIRST_RANK].path
    if isinstance(version, bool) or not isinstance(version, int | float):
        raise DamagedError(f"checkpoint_version is {str(version)[:40]!r}, not a number", where=path)
    if version not in _ROWS:
        raise UnsupportedError(
            f"checkpoint_version {version}: its query_key_value rows are in an unknown order",
            where=path,
            remedy="versions 0 to 3 are known: v2.0 to core_v0.17 of Megatron-LM",
        )
    return version


def _settle_qkv(model: StoredModel, version: float, options: RowOrderOptions) -> StoredModel:
    """The model with the row order of query_key_value, by its version, its arguments or the user's choice.

    deepspeedai's fork writes this layout too (without DeepSpeed), and since 676a482c rows of ``[3, heads, head_dim]``
    under the same checkpoint_version.
    """
    layout, evidence, warnings = _ROWS[int(version)], f"checkpoint_version {version}", []
    if "ds_sequence_parallel_fpdt" in (model.args or {}):
        layout = QkvLayout.BLOCKS
        evidence = "args has ds_sequence_parallel_fpdt: written since commit 676a482c of Megatron-DeepSpeed"
    if options.qkv_layout is not None:
        if options.qkv_layout is not layout:
            warnings.append(f"--qkv-layout {options.qkv_layout.value} against the evidence ({evidence})")
        layout, evidence = options.qkv_layout, "--qkv-layout"
    fact = Fact(f"query_key_value rows {layout.value}", evidence)
    return replace(model, qkv=layout).noting(facts=[fact], warnings=warnings)


SOURCE = SourceFormat("megatron-legacy", open_model, claims, refusal, SOURCE_OPTIONS, "legacy Megatron-LM")
