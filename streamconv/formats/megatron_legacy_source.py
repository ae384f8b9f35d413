"""Megatron-LM's legacy checkpoint as a source: what Megatron-LM itself wrote, and what streamconv writes.

Sources: ``megatron/checkpointing.py:save_checkpoint`` of Megatron-LM v2.0 to core_v0.17 (``megatron/training`` since
core_v0.7), ``megatron/model/gpt_model.py:state_dict_for_save_checkpoint``. Layers are numbered in their stage.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from streamconv.errors import DamagedError, UnsupportedError
from streamconv.families.base import Section
from streamconv.families.rows import QkvLayout
from streamconv.files.safe_pickle import Record, leaves_of
from streamconv.files.stored_file import StoredFile
from streamconv.files.torch_file import open_torch
from streamconv.formats import titles_from
from streamconv.formats.base import Dropped, Fact, Place, ShardedModel, SourceFormat, SourceOptions, positive_int
from streamconv.formats.deepspeed_evidence import join_separate_heads, settle_glu
from streamconv.formats.deepspeed_layers import join_ranks
from streamconv.formats.deepspeed_refusals import refuse_other_folders
from streamconv.formats.megatron_legacy import refusal
from streamconv.formats.megatron_legacy_folder import RankFolders, check_grid, claims, find_ranks, resolve_folder
from streamconv.formats.megatron_legacy_names import HEAD_COPY, StageTensors, cautions, stage_tensors, translated_args
from streamconv.formats.recorded import find_iteration, true_vocabulary
from streamconv.lazy import LazyTensor

__all__ = ["SOURCE", "claims", "open_model"]

_SAME_ARGS = (
    "num_layers",
    "hidden_size",
    "num_attention_heads",
    "num_query_groups",
    "padded_vocab_size",
    "tensor_model_parallel_size",
    "pipeline_model_parallel_size",
)
_RANDOM = "random number state: parameters only"
_SCHEDULER = "scheduler state: parameters only"
_REASONS = {
    "optimizer": "optimizer state: parameters only",
    "args": "a tensor among the arguments: not plain data",
    "rng_state": _RANDOM,
    "random_rng_state": _RANDOM,
    "np_rng_state": _RANDOM,
    "torch_rng_state": _RANDOM,
    "cuda_rng_state": _RANDOM,
    "rng_tracker_states": _RANDOM,
    "lr_scheduler": _SCHEDULER,
    "opt_param_scheduler": _SCHEDULER,
}


def open_model(path: Path, options: SourceOptions) -> ShardedModel:
    """Open a legacy Megatron-LM checkpoint, metadata only.

    Args:
        path: the root (with ``latest_checkpointed_iteration.txt``) or an iteration's folder.
        options: what the user says of it; ``tag`` is the name of another ``iter_*`` folder, or ``release``.

    Raises:
        SourceError: it is not there.
        AmbiguousError: nothing says which checkpoint of a root is meant.
        UnsupportedError: it is of a kind that is refused by name.
        DamagedError: files are missing, broken or contradict each other.
    """
    folder, chosen = resolve_folder(path, options.tag)
    refuse_other_folders(folder, sorted(child.name for child in folder.iterdir()))
    found = find_ranks(folder)
    files = {place: open_torch(folder / name) for place, name in found.files.items()}
    _check_same_run(folder, list(files.values()))
    state = files[0, 0].state
    version = _known_version(files[0, 0].path, state)
    args = _args(state)
    _refuse_args(args or {}, folder)
    sizes = [positive_int(args, f"{kind}_model_parallel_size", folder) for kind in ("tensor", "pipeline")]
    check_grid(folder, found, sizes[0] or found.tp, sizes[1] or found.pp)
    parts = {place: stage_tensors(file) for place, file in files.items()}
    _check_ends(folder, found, parts, args or {})
    model = _model(folder, found, parts, state, options)
    model.facts[:0] = [] if chosen is None else [chosen]
    model.named = {file.path: file.globals for file in files.values()}
    _copies(model, found, parts)
    if not join_separate_heads(model, options):
        _settle_qkv(model, version, options)
    # bigscience's fork, whose order is the other one, has no norms without bias.
    is_megatron_lm = "input_layernorm.bias" not in model.keys(Section.LAYER, 0)
    settle_glu(model, options, "no norm has a bias: not bigscience's fork" if is_megatron_lm else None)
    model.dropped += _left_behind(folder, found, files.values())
    return model


def _args(state: Mapping[str, Any]) -> Mapping[str, Any] | None:
    found = state.get("args")
    return found.attributes if isinstance(found, Record) else None


def _check_same_run(folder: Path, files: Sequence[StoredFile]) -> None:
    """All ranks must tell the same story."""
    stories = []
    for file in files:
        if not isinstance(file.state, dict):
            raise DamagedError("a rank's file that is not a dictionary", where=file.path)
        args = _args(file.state)
        story = {name: file.state.get(name) for name in ("iteration", "checkpoint_version")}
        story |= {"args": "there" if args else "not there"} | {n: (args or {}).get(n) for n in _SAME_ARGS}
        stories.append(story)
    for file, story in zip(files, stories, strict=True):
        for name, mine in story.items():
            if mine != stories[0][name]:
                raise DamagedError(
                    f"{name} is {str(mine)[:40]} in {file.path.relative_to(folder)}, "
                    f"but {str(stories[0][name])[:40]} in {files[0].path.relative_to(folder)}",
                    where=folder,
                    remedy="the files are of different runs or steps: keep those of one",
                )


def _known_version(path: Path, state: Mapping[str, Any]) -> float:
    """The checkpoint_version; refuse rows of query_key_value in another order than ``[heads, 3, head_dim]``.

    [``megatron/checkpointing.py:fix_query_key_value_ordering``: 0 is ``[3, heads, head_dim]``, 1 is ``[heads, head_dim,
    3]``; a file that says nothing is of version 0]
    """
    version = state.get("checkpoint_version", 0)
    if isinstance(version, bool) or not isinstance(version, int | float):
        raise DamagedError(f"checkpoint_version is {str(version)[:40]!r}, not a number", where=path)
    if not 2 <= version <= 3:
        orders: dict[float, str] = {0: "[3, heads, head_dim]", 1: "[heads, head_dim, 3]"}
        raise UnsupportedError(
            f"checkpoint_version {version}: its query_key_value rows are {orders.get(version, 'in an unknown order')}",
            where=path,
            remedy="load and save it once with a Megatron-LM that writes checkpoint_version 3.0 (v2.0 to core_v0.17)",
        )
    return version


def _refuse_args(args: Mapping[str, Any], folder: Path) -> None:
    experts, expert_parallel = args.get("num_experts"), args.get("expert_model_parallel_size")
    is_rotary = args.get("position_embedding_type") == "rope" or bool(args.get("use_rotary_position_embeddings"))
    kinds = (
        ("a mixture of experts (MoE)", any(isinstance(n, int) and n > 1 for n in (experts, expert_parallel))),
        (
            "LayerNorm and linear layers without bias",
            args.get("add_bias_linear") is False and args.get("normalization", "LayerNorm") == "LayerNorm",
        ),
        ("rotary positions in a part of each head", is_rotary and args.get("rotary_percent") not in (None, 1)),
        ("interpolated rotary positions", is_rotary and bool(args.get("rotary_seq_len_interpolation_factor"))),
        ("virtual pipeline stages", (args.get("virtual_pipeline_model_parallel_size") or 1) != 1),
    )
    for name, matches in kinds:
        if matches:
            raise UnsupportedError(
                f"{name}, as args say: not translated yet",
                where=folder,
                remedy=f"families so far in such folders: {titles_from('megatron-legacy')}",
            )


def _model(
    folder: Path,
    found: RankFolders,
    parts: Mapping[tuple[int, int], StageTensors],
    state: Mapping[str, Any],
    options: SourceOptions,
) -> ShardedModel:
    stages = tuple(parts[0, stage].num_layers for stage in range(found.pp))
    tensors: dict[Place, tuple[LazyTensor, ...]] = {}
    for stage in range(found.pp):
        ranks = [(rank, stage) for rank in range(found.tp)]
        joined = join_ranks([parts[r].tensors for r in ranks], [found.files[r] for r in ranks], folder)
        for (section, layer, key), shards in joined.items():
            place = section, layer + sum(stages[:stage]) if section is Section.LAYER else layer, key
            if place in tensors:
                raise DamagedError(f"{key} is on two stages, the later one is {stage}", where=folder)
            tensors[place] = shards
    args = _args(state)
    model = ShardedModel(
        path=folder,
        format="Megatron-LM, legacy",
        tp=found.tp,
        num_layers=sum(stages),
        tensors=tensors,
        stages=stages,
        pp=found.pp,
        args=None if args is None else translated_args(args),
        iteration=find_iteration(folder, state, options.iteration),
        vocab_size=true_vocabulary(state),
        qkv=None,
    )
    ages = sorted({age for part in parts.values() for age in part.ages}) or ["names of 2021"]
    model.facts += [
        Fact(f"TP {found.tp} x PP {found.pp}", f"{len(found.files)} rank folders" + (", as args say" if args else "")),
        Fact(f"stages of {','.join(map(str, stages))} layers", "the layers in each stage's files"),
        Fact(" and ".join(ages), "the keys of `language_model`"),
    ]
    recorded = state.get("iteration")
    if recorded not in (None, model.iteration):
        model.warnings.append(f"--iteration {model.iteration} against the recorded {recorded}")
    model.warnings += cautions(args or {})
    if args is None:
        model.warnings.append("no training arguments: sizes come from the tensors, the rest from options")
    elif args.get("num_layers", model.num_layers) != model.num_layers:
        raise DamagedError(f"args say {args['num_layers']} layers, {model.num_layers} are there", where=folder)
    return model


def _check_ends(
    folder: Path, found: RankFolders, parts: Mapping[tuple[int, int], StageTensors], args: Mapping[str, Any]
) -> None:
    """The embedding is on the first stage, the final norm and the head or its copy on the last."""
    last = found.pp - 1
    for stage in range(found.pp):
        path = folder / found.files[0, stage]
        sections = {section for section, _, _ in parts[0, stage].tensors}
        for section, home in ((Section.EMBEDDING, 0), (Section.FINAL_NORM, last)):
            if (section in sections) != (stage == home):
                has = "has a" if section in sections else "has no"
                what = section.value.replace("_", " ")
                raise DamagedError(f"stage {stage} of {found.pp} {has} {what}: it belongs on stage {home}", where=path)
        if stage != last and (Section.HEAD in sections or any(parts[r, stage].copy for r in range(found.tp))):
            raise DamagedError(f"stage {stage} of {found.pp} has a head: it belongs on stage {last}", where=path)
    has_head = any(section is Section.HEAD for section, _, _ in parts[0, last].tensors)
    has_copy = any(part.copy for part in parts.values())
    reason = None
    if has_head and has_copy:
        reason = f"a head of its own and {HEAD_COPY}: a model has one of them"
    elif args.get("untie_embeddings_and_output_weights") and not has_head:
        reason = "args say that the head is not tied to the embedding, and there is no output_layer"
    elif last > 0 and not (has_head or has_copy):
        reason = f"neither output_layer nor {HEAD_COPY} on the last stage"
    if reason:
        raise DamagedError(reason, where=folder / found.files[0, last], remedy="copy the file again from its storage")


def _copies(model: ShardedModel, found: RankFolders, parts: Mapping[tuple[int, int], StageTensors]) -> None:
    """Keep the tied head's copies aside; one that is the embedding's own bytes (PP 1) is none."""
    keys = set(parts[0, found.pp - 1].copy)
    for rank in range(found.tp):
        part = parts[rank, found.pp - 1]
        path = model.path / found.files[rank, found.pp - 1]
        if set(part.copy) != keys:
            raise DamagedError(f"{HEAD_COPY} has other keys than on rank 0", where=path)
        for key, copy in part.copy.items():
            original = parts[rank, 0].tensors.get((Section.EMBEDDING, -1, f"word_embeddings.{key}"))
            if original is None:
                raise UnsupportedError(f"{HEAD_COPY}.{key} is a copy of nothing in the embedding", where=path)
            if (copy.shape, copy.dtype) != (original.shape, original.dtype):
                raise DamagedError(
                    f"{HEAD_COPY}.{key} is {copy.shape} {copy.dtype}, the embedding {original.shape} {original.dtype}",
                    where=path,
                )
            if copy.pieces != original.pieces:
                model.copies.append((f"{HEAD_COPY}.{key} of rank {rank}", copy, original))
    if model.copies:
        nbytes = sum(copy.nbytes for _, copy, _ in model.copies)
        model.dropped.append(Dropped(f"{HEAD_COPY} of {found.tp} ranks", nbytes, "a copy of the word embedding"))


def _settle_qkv(model: ShardedModel, version: float, options: SourceOptions) -> None:
    """The fork of deepspeedai writes this layout too (without DeepSpeed), and since 676a482c rows of
    ``[3, heads, head_dim]`` under the same checkpoint_version.
    """
    layout, evidence = QkvLayout.INTERLEAVED, f"checkpoint_version {version}"
    if "ds_sequence_parallel_fpdt" in (model.args or {}):
        layout = QkvLayout.BLOCKS
        evidence = "args has ds_sequence_parallel_fpdt: written since commit 676a482c of Megatron-DeepSpeed"
    if options.qkv_layout is not None:
        if options.qkv_layout is not layout:
            model.warnings.append(f"--qkv-layout {options.qkv_layout.value} against the evidence ({evidence})")
        layout, evidence = options.qkv_layout, "--qkv-layout"
    model.qkv = layout
    model.facts.append(Fact(f"query_key_value rows {layout.value}", evidence))


def _left_behind(folder: Path, found: RankFolders, files: Iterable[StoredFile]) -> list[Dropped]:
    """The optimizer's own files, and the tensors in rank files that are no parameters, each with its reason."""
    dropped = []
    if found.optimizer:
        nbytes = sum(path.stat().st_size for path in found.optimizer)
        names = " and ".join(sorted({path.name for path in found.optimizer}))
        dropped.append(Dropped(f"{len(found.optimizer)} optimizer files ({names})", nbytes, _REASONS["optimizer"]))
    groups: dict[str, list[int]] = {}
    for file in files:
        for key in file.state:
            if key != "model":
                sizes = [tensor.nbytes for _, tensor in leaves_of(LazyTensor, file.state[key], str(file.path))]
                groups.setdefault(str(key), []).extend(sizes)
    for group, sizes in groups.items():
        if sizes:
            name = f"{len(sizes)} tensors of {group} in {len(found.files)} rank files"
            dropped.append(Dropped(name, sum(sizes), _REASONS.get(group, "not a parameter")))
    return dropped


SOURCE = SourceFormat("megatron-legacy", open_model, claims, refusal)
