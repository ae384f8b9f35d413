"""A GPT-NeoX folder: layer files of DeepSpeed's pipeline engine, with GPT-NeoX's numbers, names and summed biases.

Sources: gpt-neox ``megatron/checkpointing.py`` (what is recorded), ``megatron/model/gpt2_model.py`` (the pipeline),
``megatron/model/transformer.py`` (parallel residual; query_key_value rows are ``[np, 3, hn]`` on each rank).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from streamconv.core.errors import AmbiguousError, DamagedError, UnsupportedError
from streamconv.formats.common.faults import COPY_AGAIN, REMOVE_OTHERS, Faults
from streamconv.formats.deepspeed.evidence import agree
from streamconv.formats.deepspeed.folder import RunKind, folder_of_kind, names_in, tag_folder
from streamconv.formats.deepspeed.grid import check_grid
from streamconv.formats.deepspeed.layer_files import Layers
from streamconv.formats.deepspeed.names import parse_names
from streamconv.formats.deepspeed.partition import PipelineModules, release_of, stages_by_method
from streamconv.formats.deepspeed.rank_files import (
    RankFiles,
    left_behind,
    open_ranks,
    recorded_shapes,
    refuse_old_rows,
    refuse_second_module,
)
from streamconv.formats.deepspeed.stages import find_stages
from streamconv.formats.gpt_neox.args import NeoxRun, read_run
from streamconv.formats.gpt_neox.layer_files import NeoxLayers, open_neox_layers
from streamconv.formats.gpt_neox.names import FIRST_BLOCK
from streamconv.formats.gpt_neox.options import SOURCE_OPTIONS
from streamconv.formats.gpt_neox.refusals import refusal
from streamconv.formats.options import TrainingSourceOptions
from streamconv.formats.recorded import find_iteration, whole
from streamconv.formats.source import Dropped, Fact, SourceFormat, StoredModel
from streamconv.models.families import gpt_neox
from streamconv.models.orders import QkvLayout
from streamconv.models.parameter import ParameterId, Section

__all__ = ["SOURCE", "claims", "open_model"]

_HEADS = ParameterId(Section.HEAD, -1, "lm_head.weight")


def claims(path: Path) -> str | None:
    """What makes a folder GPT-NeoX's, None if nothing does."""
    folder = folder_of_kind(path, RunKind.NEOX)
    if folder is None:
        return None
    return next(iter(names_in(folder).layers.values()), folder.name)


def open_model(path: Path, options: TrainingSourceOptions) -> StoredModel:
    """Open a GPT-NeoX checkpoint, metadata only.

    Args:
        path: the checkpoint's root (with ``latest``) or the tag's folder.
        options: the user's options for it.

    Raises:
        SourceError: it is not there, or has a mechanism that is refused by name.
        AmbiguousError: an option is needed for something that the checkpoint does not record.
        DamagedError: files are missing, broken or contradict each other.
    """
    folder, remark = tag_folder(path, options.tag)
    children = sorted(child.name for child in folder.iterdir())
    if any("_expert_" in name for name in children):
        raise UnsupportedError("GPT-NeoX with a mixture of experts (MoE): not translated", where=folder)
    names = parse_names(children)
    ranks = open_ranks(folder, [names.ranks[rank] for rank in sorted(names.ranks)], Faults())
    refuse_old_rows(ranks)
    run = read_run(folder, ranks)
    check_grid(folder, names, ranks.sizes(run.args, is_pipeline=True), Faults())
    layers = open_neox_layers(folder, names)
    _check_against(folder, run, layers)
    model = _with_sizes(_model(folder, ranks, run, layers, options), ranks, layers)
    stages, evidence = _stages(model, ranks, run, layers, options)
    refuse_second_module(ranks)
    dropped = left_behind(folder, children, ranks)
    if layers.buffers:
        what = f"{layers.buffers} inv_freq buffers"
        dropped.append(Dropped(what, layers.buffers_nbytes, "no parameters: computed from the base"))
    return replace(model, stages=stages).noting(facts=[evidence], warnings=[remark] if remark else [], dropped=dropped)


def _check_against(folder: Path, run: NeoxRun, layers: NeoxLayers) -> None:
    """Check the run's arguments against the layer files."""
    args = run.args or {}
    for what, said, stored in (
        ("layers", args.get("num_layers"), layers.num_layers),
        ("heads of its own", args.get("untie_embeddings_and_output_weights"), _HEADS in layers.tensors),
    ):
        if said not in (None, stored):
            raise DamagedError(
                f"{run.evidence} say {what}: {said}, the layer files {stored}",
                where=folder,
                remedy=COPY_AGAIN if said > stored else REMOVE_OTHERS,
            )
    place = ParameterId(Section.LAYER, 0, "self_attention.query_key_value.weight")
    fused = layers.tensors.get(place, (None,))[0]
    if fused is not None and len(fused.shape) == 2 and fused.shape[0] * layers.tp < 3 * fused.shape[1]:
        raise UnsupportedError(
            f"GPT-NeoX with grouped-query attention (query_key_value has {fused.shape[0] * layers.tp} rows for "
            f"{fused.shape[1]} columns): not translated",
            where=folder,
        )


def _model(
    folder: Path, ranks: RankFiles, run: NeoxRun, layers: NeoxLayers, options: TrainingSourceOptions
) -> StoredModel:
    shares, evidence = _residual(folder, run, layers.tp, options)
    args = run.args if shares is None else {**(run.args or {}), "use_parallel_residual": shares}
    facts, warnings = [Fact("query_key_value rows interleaved", "every GPT-NeoX splits them by head")], []
    if shares is not None:
        words = "summed over" if shares else "the same on"
        facts.append(Fact(f"row-parallel biases are {words} tensor-parallel ranks", evidence))
    if run.partition_method is None:
        warnings.append(
            f"no configuration files in {folder.name}/configs: nothing says the kind of positions (rotary is taken for "
            "granted), the part of a head that they turn, nor the activation"
        )
    if _HEADS not in layers.tensors and run.partition_method is None:
        warnings.append("no final_linear: the head is taken for the word embedding, and nothing confirms it")
    return StoredModel(
        path=folder,
        format="GPT-NeoX",
        tp=layers.tp,
        num_layers=layers.num_layers,
        tensors=layers.tensors,
        stages=None,
        pp=None,
        args=args,
        iteration=find_iteration(folder, ranks.state, options.iteration),
        vocab_size=None,
        qkv=QkvLayout.INTERLEAVED,
        shares=shares is True,
        family=gpt_neox.FAMILY.name,
        named={**layers.named, **{file.path: file.globals for file in ranks.files}},
        facts=tuple(facts),
        warnings=tuple(warnings),
    )


def _residual(folder: Path, run: NeoxRun, tp: int, options: TrainingSourceOptions) -> tuple[bool | None, str]:
    """Whether the run had a parallel residual (None if unknown, which is allowed only at TP 1), and the evidence.

    With one, the block sums over the ranks instead of ``RowParallelLinear``, and each rank adds its bias before that
    sum. Without one, the bias is added after the sum, and ranks hold copies [``megatron/model/transformer.py:
    ParallelTransformerLayer``, ``megatron/mpu/layers.py:RowParallelLinear.forward``].
    """
    said = options.entries.get("use_parallel_residual", options.entries.get("gpt_j_residual"))
    known = (run.args or {}).get("use_parallel_residual")
    for value, evidence in ((said, "--config"), (known, f"gpt_j_residual in {run.evidence}")):
        if isinstance(value, bool):
            return value, evidence
    if tp == 1:
        return None, ""
    raise AmbiguousError(
        f"whether row-parallel biases are summed over {tp} ranks cannot be known: it depends on gpt_j_residual, which "
        "no file here says",
        where=folder,
        remedy="copy the run's *.yml to the folder configs here, or say use_parallel_residual true or false in "
        "--config (true for Pythia and GPT-NeoX-20B)",
    )


def _with_sizes(model: StoredModel, ranks: RankFiles, layers: NeoxLayers) -> StoredModel:
    """The model with the parallel sizes that the folder's records and files agree on."""
    said = {
        "checkpoint_parallel_dimensions": (ranks.recorded("tp_degree"), ranks.recorded("pp_degree")),
        "args.model_parallel_size": ((model.args or {}).get("tensor_model_parallel_size"), None),
    }
    if len(ranks.files) % layers.tp:
        raise DamagedError(f"{len(ranks.files)} mp_rank files are no multiple of TP {layers.tp}", where=model.path)
    counted = len(ranks.files) // layers.tp or None
    tps = {source: number for source, (tp, _) in said.items() if (number := whole(tp)) is not None}
    pps = {source: number for source, (_, pp) in said.items() if (number := whole(pp)) is not None}
    tp = agree(model.path, "TP", tps, layers.tp, "layer files")
    pp = agree(model.path, "PP", pps, counted, "mp_rank files")
    return replace(model, pp=pp.value).noting(facts=[*tp.facts, *pp.facts], warnings=[*tp.warnings, *pp.warnings])


def _stages(
    model: StoredModel, ranks: RankFiles, run: NeoxRun, layers: NeoxLayers, options: TrainingSourceOptions
) -> tuple[tuple[int, ...] | None, Fact]:
    """The number of layers on each stage (recorded, recomputed, or given by the user), and the evidence."""
    version = str(ranks.state.get("ds_version") or "")
    shapes = [recorded_shapes(file.state) for file in ranks.files[:: layers.tp]]
    norm = FIRST_BLOCK + layers.num_layers + 1
    files = Layers(
        layers.tp, layers.tensors, FIRST_BLOCK, layers.num_layers, norm, None, "numbered by GPT-NeoX", layers.named
    )
    stages, fact = find_stages(model.path, files, model.pp, shapes, None, version or None, None)
    if stages is None and model.pp is not None and run.partition_method is not None:
        stages = stages_by_method(_modules(layers), run.partition_method, model.pp, release_of(version))
        if stages is not None:
            words = f"param_shapes is not recorded; pipe_partition_method {run.partition_method}"
            return stages, Fact("stages recomputed", words)
    if stages is None and options.pp_layers is not None:
        return find_stages(model.path, files, model.pp, shapes, None, version or None, options.pp_layers)
    return stages, fact


def _modules(layers: NeoxLayers) -> PipelineModules:
    """The modules that ``GPT2ModelPipe`` builds, with the number of parameters of each on one rank."""
    numels: dict[tuple[Section, int], int] = {}
    for parameter, shards in layers.tensors.items():
        module = parameter.section, parameter.layer
        numels[module] = numels.get(module, 0) + shards[0].numel
    words, head = numels.get((Section.EMBEDDING, -1), 0), numels.get((Section.HEAD, -1))
    modules = [
        ("EmbeddingPipe", words),
        ("_pre_transformer_block", 0),
        *(
            ("ParallelTransformerLayerPipe", numels.get((Section.LAYER, number), 0))
            for number in range(layers.num_layers)
        ),
        ("_post_transformer_block", 0),
        ("NormPipe", numels.get((Section.FINAL_NORM, -1), 0)),
        ("EmbeddingPipe", words) if head is None else ("ParallelLinearPipe", head),
    ]
    names, counts = zip(*modules, strict=True)
    return PipelineModules(tuple(names), tuple(counts), FIRST_BLOCK, layers.num_layers)


SOURCE = SourceFormat("gpt-neox", open_model, claims, refusal, SOURCE_OPTIONS, "GPT-NeoX")
