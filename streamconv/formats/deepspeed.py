"""A Megatron-DeepSpeed folder: the pipeline engine's layer files, or one module a rank without the pipeline engine.

Sources: ``deepspeed/runtime/pipe/module.py`` (layer files), ``deepspeed/runtime/engine.py:_save_checkpoint``
(``mp_rank_*``), ``megatron/checkpointing.py`` of both Megatron-DeepSpeed forks (the client's own entries).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streamconv.errors import DamagedError, SourceError, UnsupportedError
from streamconv.families.base import Section
from streamconv.files.safe_pickle import Record
from streamconv.files.torch_zip import TorchFile, open_torch_zip
from streamconv.formats import deepspeed_layers, deepspeed_refusals
from streamconv.formats.base import Dropped, Fact, Place, ShardedModel, SourceFormat, SourceOptions
from streamconv.formats.deepspeed_evidence import agree, settle_qkv
from streamconv.formats.deepspeed_stages import find_stages
from streamconv.lazy import LazyTensor, concat

__all__ = ["SOURCE", "open_model", "resolve_tag"]

_MP_RANK = re.compile(r"mp_rank_(\d+)_model_states\.pt")
_OPTIMIZER = re.compile(r".*_optim_states\.pt")
_SAME_ARGS = ("num_layers", "hidden_size", "num_attention_heads", "tensor_model_parallel_size")
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


@dataclass(frozen=True, slots=True)
class _RankFiles:
    """The ``mp_rank_*`` files by rank; the first one's plain entries are the checkpoint's."""

    files: tuple[TorchFile, ...]

    @property
    def state(self) -> Mapping[str, Any]:
        return self.files[0].state if self.files else {}

    @property
    def args(self) -> Mapping[str, Any] | None:
        found = self.state.get("args")
        return found.attributes if isinstance(found, Record) else None

    def recorded(self, key: str) -> int | None:
        """TP or PP as DeepSpeed since 2026-08 records it, ``checkpoint_parallel_dimensions``."""
        sizes = self.state.get("checkpoint_parallel_dimensions")
        value = sizes.get(key) if isinstance(sizes, dict) else None
        return value if isinstance(value, int) else None


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
    ranks = _open_ranks(folder, names)
    if layer_names:
        return _open_pipeline(folder, names, layer_names, ranks, options)
    deepspeed_refusals.refuse_plain_deepspeed(folder, names, ranks.state)
    return _open_without_pipeline(folder, names, ranks, options)


def _open_ranks(folder: Path, names: list[str]) -> _RankFiles:
    found = [(int(match[1]), name) for name in names if (match := _MP_RANK.fullmatch(name))]
    by_rank = dict(found)
    if len(by_rank) != len(found):
        raise DamagedError(
            "two mp_rank files have the same rank", where=folder, remedy="remove the one that is not its own"
        )
    if by_rank and max(by_rank) >= len(by_rank):
        first = next(rank for rank in range(len(by_rank)) if rank not in by_rank)
        raise DamagedError(
            f"{len(by_rank)} mp_rank files of {max(by_rank) + 1}: the first missing is rank {first}",
            where=folder,
            remedy="copy the missing files from the training run's storage",
        )
    files = tuple(open_torch_zip(folder / by_rank[rank]) for rank in sorted(by_rank))
    for file in files:
        if not isinstance(file.state, dict):
            raise DamagedError("an mp_rank file that is not a dictionary", where=file.path)
    ranks = _RankFiles(files)
    _check_same_run(ranks)
    return ranks


def _story(state: Mapping[str, Any]) -> list[int | None]:
    args = state.get("args")
    attributes = args.attributes if isinstance(args, Record) else {}
    values = [state.get("iteration"), *(attributes.get(name) for name in _SAME_ARGS)]
    return [value if isinstance(value, int) else None for value in values]


def _check_same_run(ranks: _RankFiles) -> None:
    """All ranks must tell the same story, and one whose rows of query_key_value are known."""
    for file in ranks.files:
        for name, first, mine in zip(("iteration", *_SAME_ARGS), _story(ranks.state), _story(file.state), strict=True):
            if first != mine:
                raise DamagedError(
                    f"{name} is {mine} in {file.path.name}, but {first} in {ranks.files[0].path.name}",
                    where=file.path.parent,
                    remedy="the files are of different runs or steps: keep those of one",
                )
        version = file.state.get("checkpoint_version", 3.0)
        if not isinstance(version, int | float) or version < 2:
            raise UnsupportedError(
                f"checkpoint_version {version}: its query_key_value rows are in an order of before 2021",
                where=file.path,
                remedy="load and save it once with a Megatron of checkpoint_version 2.0 or above",
            )


def _open_pipeline(
    folder: Path,
    names: list[str],
    layer_names: Mapping[tuple[int, int], str],
    ranks: _RankFiles,
    options: SourceOptions,
) -> ShardedModel:
    layers = deepspeed_layers.open_layers(folder, layer_names, (ranks.args or {}).get("num_layers"))
    tp = agree(folder, "TP", _sizes(ranks, "tp", "tensor_model_parallel_size"), layers.tp, "layer files")
    if len(ranks.files) % layers.tp:
        raise DamagedError(f"{len(ranks.files)} mp_rank files are no multiple of TP {layers.tp}", where=folder)
    counted = len(ranks.files) // layers.tp or None
    pp = agree(folder, "PP", _sizes(ranks, "pp", "pipeline_model_parallel_size"), counted, "mp_rank files")
    kind = "Megatron-DeepSpeed, pipeline engine"
    model = _model(folder, ranks, options, kind, layers.tp, layers.num_layers, layers.tensors)
    model.pp = pp.value
    for size in (tp, pp):
        model.facts += size.facts
        model.warnings += size.warnings
    model.facts.append(Fact(f"{layers.num_layers} transformer layers", layers.numbering))
    param_shapes = [_param_shapes(file.state) for file in ranks.files[:: layers.tp]]
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
    _refuse_second_module(ranks)
    model.dropped += _left_behind(folder, names, ranks)
    return model


def _refuse_second_module(ranks: _RankFiles) -> None:
    for file in ranks.files:
        if any(name.startswith("module.") for name in file.tensors()):
            raise UnsupportedError(
                "there are layer files, and parameters in this file too",
                where=file.path,
                remedy="keep the one that is current",
            )


def _param_shapes(state: Mapping[str, Any]) -> Any:
    """The recorded groups of parameters, frozen ones included, or None."""
    groups, frozen = state.get("param_shapes"), state.get("frozen_param_shapes")
    return [*groups, frozen] if isinstance(groups, list | tuple) and isinstance(frozen, dict) else groups


def _open_without_pipeline(folder: Path, names: list[str], ranks: _RankFiles, options: SourceOptions) -> ShardedModel:
    per_rank = [deepspeed_layers.module_tensors(file) for file in ranks.files]
    tensors = deepspeed_layers.join_ranks(per_rank, [file.path.name for file in ranks.files], folder)
    num_layers = deepspeed_layers.count_layers(tensors, folder)
    tp = agree(folder, "TP", _sizes(ranks, "tp", "tensor_model_parallel_size"), len(ranks.files), "mp_rank files")
    kind = "Megatron-DeepSpeed, without pipeline"
    model = _model(folder, ranks, options, kind, len(ranks.files), num_layers, tensors)
    model.facts += [*tp.facts, Fact("PP 1", "the module is whole in every mp_rank file")]
    model.warnings += tp.warnings
    model.pp, model.stages = 1, (num_layers,)
    settle_qkv(model, options, bigscience_numbering=False)
    model.dropped += _left_behind(folder, names, ranks)
    return model


def _model(
    folder: Path,
    ranks: _RankFiles,
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
    if options.iteration is not None and options.iteration >= 0:
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


def _sizes(ranks: _RankFiles, recorded: str, argument: str) -> dict[str, int]:
    found = {
        "checkpoint_parallel_dimensions": ranks.recorded(f"{recorded}_degree"),
        f"args.{argument}": (ranks.args or {}).get(argument),
    }
    return {source: value for source, value in found.items() if isinstance(value, int)}


# -- what stays behind ---------------------------------------------------------------------------------------------


def _left_behind(folder: Path, names: Iterable[str], ranks: _RankFiles) -> list[Dropped]:
    dropped = []
    optimizer = [name for name in names if _OPTIMIZER.fullmatch(name)]
    if optimizer:
        nbytes = sum((folder / name).stat().st_size for name in optimizer)
        dropped.append(Dropped(f"{len(optimizer)} *_optim_states.pt files", nbytes, "optimizer state: parameters only"))
    groups: dict[str, tuple[int, int]] = {}
    for file in ranks.files:
        for name, tensor in file.tensors().items():
            group = name.split(".", 1)[0]
            if group != "module":
                count, nbytes = groups.get(group, (0, 0))
                groups[group] = (count + 1, nbytes + tensor.nbytes)
    for group, (count, nbytes) in groups.items():
        dropped.append(
            Dropped(f"{count} tensors of {group} in mp_rank files", nbytes, _REASONS.get(group, "not a parameter"))
        )
    return dropped


_REASONS = {
    "optimizer": "optimizer state: parameters only",
    "args": "a tensor among the arguments: not plain data",
    "rng_state": "random number state: parameters only",
    "torch_rng_state": "random number state: parameters only",
    "cuda_rng_state": "random number state: parameters only",
    "rng_tracker_states": "random number state: parameters only",
    "lr_scheduler": "scheduler state: parameters only",
}


SOURCE = SourceFormat("deepspeed", open_model)
