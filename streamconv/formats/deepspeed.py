"""A Megatron-DeepSpeed folder: the pipeline engine's layer files, or one module a rank without the pipeline engine.

Sources: ``deepspeed/runtime/pipe/module.py`` (layer files), ``deepspeed/runtime/engine.py:_save_checkpoint``
(``mp_rank_*``), ``megatron/checkpointing.py`` of both Megatron-DeepSpeed forks (the client's own entries).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from streamconv.errors import DamagedError, SourceError
from streamconv.families.base import Section
from streamconv.formats import deepspeed_layers, deepspeed_refusals
from streamconv.formats.base import Fact, Place, ShardedModel, SourceFormat, SourceOptions
from streamconv.formats.deepspeed_evidence import agree, settle_qkv
from streamconv.formats.deepspeed_ranks import (
    RankFiles,
    left_behind,
    open_ranks,
    recorded_shapes,
    recorded_sizes,
    refuse_second_module,
)
from streamconv.formats.deepspeed_stages import find_stages
from streamconv.lazy import LazyTensor, concat

__all__ = ["SOURCE", "open_model", "resolve_tag"]

_LOCAL_POSITIONS = "position_embeddings.local_embeddings.weight"


def resolve_tag(path: Path, tag: str | None) -> Path:
    """The folder that holds a checkpoint's files: ``path`` itself, or the one that ``latest`` or ``tag`` names in it.

    Raises:
        SourceError: the folder, or the tag's folder, is not there.
        DamagedError: ``latest`` names something that is not a folder directly below.
    """
    if not path.is_dir():
        raise SourceError("no such folder", where=path)
    if tag is None and not (path / "latest").is_file():
        return path
    name = tag if tag is not None else _first_line(path / "latest")
    # The name comes out of a file: it may only name a direct child.
    if not name or name in (".", "..") or "/" in name or "\\" in name or "\0" in name:
        raise DamagedError(f"the tag {name!r} is not the name of a folder", where=path / "latest")
    if not (path / name).is_dir():
        tags = sorted(child.name for child in path.iterdir() if child.is_dir())
        raise SourceError(
            f"there is no folder for the tag {name!r}",
            where=path,
            remedy=f"name one with --tag: {', '.join(tags)}" if tags else None,
        )
    return path / name


def _first_line(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(4096).decode("utf-8", errors="replace").strip()


def open_model(path: Path, options: SourceOptions) -> ShardedModel:
    """Open a Megatron-DeepSpeed checkpoint, metadata only.

    Args:
        path: the checkpoint's root (with ``latest``) or the tag's folder.
        options: what the user says of it.

    Raises:
        SourceError: it is not there, not a Megatron-DeepSpeed checkpoint, or of a kind that is refused by name.
        AmbiguousError: what it does not say must be said by an option.
        DamagedError: files are missing, broken or contradict each other.
    """
    folder = resolve_tag(path, options.tag)
    names = sorted(child.name for child in folder.iterdir())
    deepspeed_refusals.refuse_other_folders(folder, names)
    layer_names = deepspeed_layers.layer_file_names(folder, names)
    ranks = open_ranks(folder, names)
    if layer_names:
        return _open_pipeline(folder, names, layer_names, ranks, options)
    deepspeed_refusals.refuse_plain_deepspeed(folder, names, ranks.state)
    return _open_without_pipeline(folder, names, ranks, options)


def _open_pipeline(
    folder: Path,
    names: list[str],
    layer_names: Mapping[tuple[int, int], str],
    ranks: RankFiles,
    options: SourceOptions,
) -> ShardedModel:
    layers = deepspeed_layers.open_layers(folder, layer_names, (ranks.args or {}).get("num_layers"))
    tp = agree(folder, "TP", recorded_sizes(ranks, "tp", "tensor_model_parallel_size"), layers.tp, "layer files")
    if len(ranks.files) % layers.tp:
        raise DamagedError(f"{len(ranks.files)} mp_rank files are no multiple of TP {layers.tp}", where=folder)
    counted = len(ranks.files) // layers.tp or None
    pp = agree(folder, "PP", recorded_sizes(ranks, "pp", "pipeline_model_parallel_size"), counted, "mp_rank files")
    kind = "Megatron-DeepSpeed, pipeline engine"
    model = _model(folder, ranks, options, kind, layers.tp, layers.num_layers, layers.tensors)
    model.pp = pp.value
    for size in (tp, pp):
        model.facts += size.facts
        model.warnings += size.warnings
    model.facts.append(Fact(f"{layers.num_layers} transformer layers", layers.numbering))
    param_shapes = [recorded_shapes(file.state) for file in ranks.files[:: layers.tp]]
    version = ranks.state.get("ds_version")
    model.stages, evidence = find_stages(
        folder,
        layers,
        model.pp,
        param_shapes,
        model.args,
        version if isinstance(version, str) else None,
        options.pp_layers,
    )
    model.facts.append(evidence)
    settle_qkv(model, options, layers.is_bigscience_numbering)
    refuse_second_module(ranks)
    model.dropped += left_behind(folder, names, ranks)
    return model


def _open_without_pipeline(folder: Path, names: list[str], ranks: RankFiles, options: SourceOptions) -> ShardedModel:
    per_rank = [deepspeed_layers.module_tensors(file) for file in ranks.files]
    tensors = deepspeed_layers.join_ranks(per_rank, [file.path.name for file in ranks.files], folder)
    num_layers = deepspeed_layers.count_layers(tensors, folder)
    tp = agree(
        folder, "TP", recorded_sizes(ranks, "tp", "tensor_model_parallel_size"), len(ranks.files), "mp_rank files"
    )
    kind = "Megatron-DeepSpeed, without pipeline"
    model = _model(folder, ranks, options, kind, len(ranks.files), num_layers, tensors)
    model.facts += [*tp.facts, Fact("PP 1", "the module is whole in every mp_rank file")]
    model.warnings += tp.warnings
    model.pp, model.stages = 1, (num_layers,)
    settle_qkv(model, options, bigscience_numbering=False)
    model.dropped += left_behind(folder, names, ranks)
    return model


def _model(
    folder: Path,
    ranks: RankFiles,
    options: SourceOptions,
    kind: str,
    tp: int,
    num_layers: int,
    tensors: Mapping[Place, tuple[LazyTensor, ...]],
) -> ShardedModel:
    args = ranks.args
    model = ShardedModel(
        path=folder,
        format=kind,
        tp=tp,
        num_layers=num_layers,
        tensors=_join_positions(tensors),
        stages=None,
        pp=None,
        args=args,
        iteration=_iteration(folder, ranks.state, options),
        vocab_size=_vocab_size(ranks.state),
        qkv=options.qkv_layout,
    )
    recorded = ranks.state.get("iteration")
    if recorded not in (None, model.iteration):
        model.warnings.append(f"--iteration {model.iteration} against the recorded {recorded}")
    if args is None:
        model.warnings.append("no training arguments: sizes come from the tensors, the rest from options")
    elif args.get("num_layers", num_layers) != num_layers:
        raise DamagedError(
            f"args say {args['num_layers']} layers, {num_layers} are there",
            where=folder,
            remedy="copy the missing layer files from the training run's storage",
        )
    return model


def _join_positions(tensors: Mapping[Place, tuple[LazyTensor, ...]]) -> dict[Place, tuple[LazyTensor, ...]]:
    """Under sequence parallelism each rank holds a run of positions; Megatron's other layouts replicate them."""
    place = (Section.EMBEDDING, -1, _LOCAL_POSITIONS)
    result = dict(tensors)
    if place in result:
        whole = concat(result.pop(place), 0)
        result[(Section.EMBEDDING, -1, "position_embeddings.weight")] = (whole,)
    return result


def _iteration(folder: Path, state: Mapping[str, Any], options: SourceOptions) -> int | None:
    if options.iteration is not None:
        return options.iteration
    recorded = state.get("iteration")
    if isinstance(recorded, int):
        if not 0 <= recorded < 10**9:
            raise DamagedError(f"the iteration is recorded as {recorded}", where=folder, remedy="say --iteration N")
        return recorded
    match = re.fullmatch(r"(?:global_step|iter_)(\d+)", folder.name)
    return int(match[1]) if match else None


def _vocab_size(state: Mapping[str, Any]) -> int | None:
    """The true vocabulary: ``checkpoint_info`` (bigscience) or ``universal_checkpoint_info`` (deepspeedai) records
    it.
    """
    for key in ("checkpoint_info", "universal_checkpoint_info"):
        info = state.get(key)
        if isinstance(info, dict) and isinstance(info.get("original_vocab_size"), int):
            return int(info["original_vocab_size"])
    return None


SOURCE = SourceFormat("deepspeed", open_model)
