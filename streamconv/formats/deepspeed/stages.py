"""Which pipeline stage owns which transformer layer: recorded, recomputed, or given by the user."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from streamconv.core.errors import DamagedError, UsageError
from streamconv.formats.deepspeed.layer_files import Layers
from streamconv.formats.deepspeed.partition import PipelineModules, release_of, stages_by_method
from streamconv.formats.source import Fact
from streamconv.models.parameter import Section

__all__ = ["find_stages"]

_PARAM = re.compile(r"([0-9]{1,9})\..+", re.DOTALL)


def find_stages(
    folder: Path,
    layers: Layers,
    pp: int | None,
    param_shapes: Sequence[Any],
    args: Mapping[str, Any] | None,
    version: str | None,
    said: tuple[int, ...] | None,
) -> tuple[tuple[int, ...] | None, Fact]:
    """The number of layers on each stage of the source (None if unknown), and the evidence.

    Args:
        folder: the checkpoint, for messages.
        layers: its layer files.
        pp: the pipeline-parallel size, None if unknown.
        param_shapes: as the first tensor-parallel rank of each stage records them.
        args: the training arguments, if there are any.
        version: the ``ds_version`` that is recorded.
        said: the user's ``--pp-layers``, used if the checkpoint does not determine them.

    Raises:
        DamagedError: the recorded stages do not cover each layer once.
        UsageError: ``said`` does not add up to the number of layers.
    """
    if pp == 1:
        return (layers.num_layers,), Fact("one stage", "PP 1")
    if pp is not None and all(isinstance(groups, list | tuple) and groups for groups in param_shapes):
        return _recorded(folder, layers, param_shapes), Fact("stages recorded", "param_shapes of the mp_rank files")
    if pp is not None and args is not None:
        # deepspeedai's fork has no such argument: it always partitions by type:transformer.
        method = str(args.get("pp_partition_method") or "type:transformer")
        stages = _recomputed(layers, args, method, pp, version)
        if stages is not None:
            words = (
                f"param_shapes is not recorded; pp_partition_method {method}, DeepSpeed {version or 'of any version'}"
            )
            return stages, Fact("stages recomputed", words)
    if said is not None and len(said) == (pp or len(said)):
        if sum(said) != layers.num_layers:
            raise UsageError(f"--pp-layers adds up to {sum(said)} layers, the source has {layers.num_layers}")
        return said, Fact("stages as said", "--pp-layers; the source does not record them")
    return None, Fact("stages unknown", "nothing in the folder tells which stage owned which layer")


def _recorded(folder: Path, layers: Layers, param_shapes: Sequence[Any]) -> tuple[int, ...]:
    blocks = range(layers.first_block, layers.first_block + layers.num_layers)
    owned: list[list[int]] = []
    for groups in param_shapes:
        names = [name for group in groups if isinstance(group, dict) for name in group if isinstance(name, str)]
        indices = {int(match[1]) for name in names if (match := _PARAM.fullmatch(name))}
        owned.append(sorted(indices & set(blocks)))
    if [index for stage in owned for index in stage] != list(blocks):
        raise DamagedError(
            f"param_shapes give stages {owned}, which do not cover layers {blocks[0]} to {blocks[-1]} once, in order",
            where=folder,
            remedy="the mp_rank files belong to another checkpoint, or one is missing",
        )
    return tuple(len(stage) for stage in owned)


def _recomputed(
    layers: Layers, args: Mapping[str, Any], method: str, pp: int, version: str | None
) -> tuple[int, ...] | None:
    release = release_of(version)
    layouts = {stages_by_method(_modules(layers, args, norm), method, pp, release) for norm in (True, False)}
    # bigscience builds the embedding norm on the first stage only (dd06ea32), so ranks may count differently.
    return layouts.pop() if len(layouts) == 1 else None


def _modules(layers: Layers, args: Mapping[str, Any], count_embedding_norm: bool) -> PipelineModules:
    """The modules that ``GPTModelPipe`` of the fork built, with the number of trainable parameters of each on one rank.

    [megatron/model/gpt_model.py of both forks: ``_to_float16``, the embedding, a function if activations are
    transposed, the layers, ``undo``, the final norm, the tied embedding or the head, ``float16_to_fp32``]
    """
    numels: dict[tuple[Section, int], int] = {}
    for parameter, shards in layers.tensors.items():
        if parameter.key.startswith("word_embeddings.norm.") and not count_embedding_norm:
            continue
        module = parameter.section, parameter.layer
        numels[module] = numels.get(module, 0) + shards[0].numel
    embedding, norm = numels[Section.EMBEDDING, -1], numels[Section.FINAL_NORM, -1]
    head = numels.get((Section.HEAD, -1))
    blocks = [("ParallelTransformerLayerPipe", numels[Section.LAYER, i]) for i in range(layers.num_layers)]
    before = [("<lambda>", 0)] * (layers.first_block - 2)
    behind = [("undo", 0)] * (layers.final_norm - layers.first_block - layers.num_layers)
    last = [("EmbeddingPipe", embedding) if head is None else ("LMHeadPipe", head)]
    casts = [("float16_to_fp32", 0)] if args.get("fp16") or args.get("bf16") else []
    modules = [
        ("_to_float16", 0),
        ("EmbeddingPipe", embedding),
        *before,
        *blocks,
        *behind,
        ("MixedFusedLayerNorm", norm),
        *last,
        *casts,
    ]
    names, counts = zip(*modules, strict=True)
    return PipelineModules(tuple(names), tuple(counts), layers.first_block, layers.num_layers)
