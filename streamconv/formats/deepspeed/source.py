"""A Megatron-DeepSpeed folder: the pipeline engine's layer files, or without that engine a module in each rank's file.

Sources: ``deepspeed/runtime/pipe/module.py`` (layer files), ``deepspeed/runtime/engine.py:_save_checkpoint``
(``mp_rank_*``), ``megatron/checkpointing.py`` of both Megatron-DeepSpeed forks (the client's own entries).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from streamconv.core.errors import DamagedError, UnsupportedError
from streamconv.core.lazy import LazyTensor, concat
from streamconv.formats.common.faults import COPY_AGAIN, REMOVE_OTHERS, Faults
from streamconv.formats.common.shards import count_layers, join_ranks
from streamconv.formats.deepspeed.evidence import agree, settle_rows
from streamconv.formats.deepspeed.folder import RunKind, folder_of_kind, names_in, strays_in, tag_folder
from streamconv.formats.deepspeed.grid import check_grid
from streamconv.formats.deepspeed.layer_files import module_tensors, open_layers
from streamconv.formats.deepspeed.names import LATEST, FolderNames, parse_names
from streamconv.formats.deepspeed.options import DEEPSPEEDAI, SOURCE_OPTIONS
from streamconv.formats.deepspeed.rank_files import (
    RankFiles,
    left_behind,
    open_ranks,
    recorded_shapes,
    recorded_sizes,
    refuse_old_rows,
    refuse_second_module,
)
from streamconv.formats.deepspeed.refusals import refusal, refuse_plain_deepspeed
from streamconv.formats.deepspeed.stages import find_stages
from streamconv.formats.options import RowOrderOptions
from streamconv.formats.recorded import find_iteration, true_vocabulary, whole
from streamconv.formats.source import Fact, SourceFormat, StoredModel
from streamconv.models.parameter import ParameterId, Section

__all__ = ["SOURCE", "claims", "open_model"]

_LOCAL_POSITIONS = "position_embeddings.local_embeddings.weight"


def claims(path: Path) -> str | None:
    """What makes a folder a Megatron-DeepSpeed checkpoint, None if nothing does."""
    folder = folder_of_kind(path, RunKind.MEGATRON)
    if folder is None:
        return None
    if (path / LATEST).is_file():
        return "the file `latest`"
    return next(iter(names_in(folder).model_files), folder.name)


def open_model(path: Path, options: RowOrderOptions) -> StoredModel:
    """Open a Megatron-DeepSpeed checkpoint, metadata only.

    Args:
        path: the checkpoint's root (with ``latest``) or the tag's folder.
        options: the user's options for it.

    Raises:
        SourceError: it is not there, not a Megatron-DeepSpeed checkpoint, or of a kind that is refused by name.
        AmbiguousError: an option is needed for something that the checkpoint does not record.
        DamagedError: files are missing, broken or contradict each other.
    """
    tagged = tag_folder(path, options.tag)
    strays = strays_in(tagged.folder, names_in(tagged.folder))
    return _open_folder(tagged.folder, options).noting(warnings=[*([tagged.remark] if tagged.remark else []), *strays])


def _open_folder(folder: Path, options: RowOrderOptions) -> StoredModel:
    children = sorted(child.name for child in folder.iterdir())
    names = parse_names(children)
    if names.experts:
        raise UnsupportedError("a mixture of experts (MoE) in Megatron's names: not translated", where=folder)
    ranks = open_ranks(folder, [names.ranks[rank] for rank in sorted(names.ranks)], Faults())
    refuse_old_rows(ranks)
    check_grid(folder, names, ranks.sizes(ranks.args, is_pipeline=bool(names.layers)), Faults())
    if names.layers:
        return _open_pipeline(folder, children, names, ranks, options)
    refuse_plain_deepspeed(folder, ranks.state)
    return _open_without_pipeline(folder, children, ranks, options)


def _open_pipeline(
    folder: Path, children: list[str], names: FolderNames, ranks: RankFiles, options: RowOrderOptions
) -> StoredModel:
    layers = open_layers(folder, names, whole((ranks.args or {}).get("num_layers")))
    tp = agree(folder, "TP", recorded_sizes(ranks, "tp", "tensor_model_parallel_size"), layers.tp, "layer files")
    if len(ranks.files) % layers.tp:
        raise DamagedError(f"{len(ranks.files)} mp_rank files are no multiple of TP {layers.tp}", where=folder)
    counted = len(ranks.files) // layers.tp or None
    pp = agree(folder, "PP", recorded_sizes(ranks, "pp", "pipeline_model_parallel_size"), counted, "mp_rank files")
    kind = "Megatron-DeepSpeed, pipeline engine"
    model = _model(folder, ranks, options, kind, layers.tp, layers.num_layers, layers.tensors)
    param_shapes = [recorded_shapes(file.state) for file in ranks.files[:: layers.tp]]
    version = ranks.state.get("ds_version")
    stages, evidence = find_stages(
        folder,
        layers,
        pp.value,
        param_shapes,
        model.args,
        version if isinstance(version, str) else None,
        options.pp_layers,
    )
    model = replace(model, pp=pp.value, stages=stages, named={**model.named, **layers.named})
    numbering = Fact(f"{layers.num_layers} transformer layers", layers.numbering)
    model = model.noting(facts=[*tp.facts, *pp.facts, numbering, evidence], warnings=[*tp.warnings, *pp.warnings])
    model = settle_rows(model, options, layers.numbered_by)
    refuse_second_module(ranks)
    return model.noting(dropped=left_behind(folder, children, ranks))


def _open_without_pipeline(
    folder: Path, children: list[str], ranks: RankFiles, options: RowOrderOptions
) -> StoredModel:
    per_rank = [module_tensors(file) for file in ranks.files]
    tensors = join_ranks(per_rank, [file.path.name for file in ranks.files], folder)
    num_layers = count_layers(tensors, folder)
    tp = agree(
        folder, "TP", recorded_sizes(ranks, "tp", "tensor_model_parallel_size"), len(ranks.files), "mp_rank files"
    )
    kind = "Megatron-DeepSpeed, without pipeline"
    model = _model(folder, ranks, options, kind, len(ranks.files), num_layers, tensors)
    facts = [*tp.facts, Fact("PP 1", "the module is whole in every mp_rank file")]
    model = replace(model, pp=1, stages=(num_layers,)).noting(facts=facts, warnings=tp.warnings)
    return settle_rows(model, options, DEEPSPEEDAI).noting(dropped=left_behind(folder, children, ranks))


def _model(
    folder: Path,
    ranks: RankFiles,
    options: RowOrderOptions,
    kind: str,
    tp: int,
    num_layers: int,
    tensors: Mapping[ParameterId, tuple[LazyTensor, ...]],
) -> StoredModel:
    args, iteration = ranks.args, find_iteration(folder, ranks.state, options.iteration)
    recorded, warnings = ranks.state.get("iteration"), []
    if recorded not in (None, iteration):
        warnings.append(f"--iteration {iteration} against the recorded {recorded}")
    if args is None:
        warnings.append("no training arguments: sizes come from the tensors, the rest from options")
    elif (said := args.get("num_layers", num_layers)) != num_layers:
        remedy = COPY_AGAIN if (whole(said) or 0) > num_layers else REMOVE_OTHERS
        raise DamagedError(f"args say {said} layers, {num_layers} are there", where=folder, remedy=remedy)
    return StoredModel(
        path=folder,
        format=kind,
        tp=tp,
        num_layers=num_layers,
        tensors=_join_positions(tensors),
        stages=None,
        pp=None,
        args=args,
        iteration=iteration,
        vocab_size=true_vocabulary(ranks.state),
        qkv=options.qkv_layout,
        warnings=tuple(warnings),
        named={file.path: file.globals for file in ranks.files},
    )


def _join_positions(tensors: Mapping[ParameterId, tuple[LazyTensor, ...]]) -> dict[ParameterId, tuple[LazyTensor, ...]]:
    """The tensors with positions joined, of which each rank holds a run under sequence parallelism, else a copy."""
    place = ParameterId(Section.EMBEDDING, -1, _LOCAL_POSITIONS)
    result = dict(tensors)
    if place in result:
        whole = concat(result.pop(place), 0)
        result[ParameterId(Section.EMBEDDING, -1, "position_embeddings.weight")] = (whole,)
    return result


SOURCE = SourceFormat("deepspeed", open_model, claims, refusal, SOURCE_OPTIONS, "Megatron-DeepSpeed")
