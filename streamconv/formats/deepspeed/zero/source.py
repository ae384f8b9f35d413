"""A DeepSpeed run of a model with names of its own, as a source of whole named tensors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from streamconv.core.errors import SourceError, UnsupportedError
from streamconv.core.lazy import LazyTensor
from streamconv.formats.common.faults import Faults
from streamconv.formats.deepspeed.folder import (
    RunKind,
    Tagged,
    folder_of_kind,
    is_universal,
    names_in,
    strays_in,
    tag_folder,
)
from streamconv.formats.deepspeed.grid import RecordedSizes, check_grid, check_partitions
from streamconv.formats.deepspeed.names import LATEST, FolderNames
from streamconv.formats.deepspeed.rank_files import RankFiles, left_behind, open_ranks
from streamconv.formats.deepspeed.zero.masters import frozen_parameters, open_masters, shared_in
from streamconv.formats.deepspeed.zero.module import Module, open_module
from streamconv.formats.deepspeed.zero.options import MASTER, MODEL, SOURCE_OPTIONS, ZeroSourceOptions
from streamconv.formats.deepspeed.zero.recorded import buffer_names, groups_of, shapes_of
from streamconv.formats.deepspeed.zero.universal import open_universal
from streamconv.formats.named import NamedModel
from streamconv.formats.recorded import iteration_of, whole
from streamconv.formats.source import Dropped, Fact, SourceFormat
from streamconv.models.family import ModelFamily

__all__ = ["SOURCE", "claims", "open_model"]

_TITLE = "DeepSpeed"


def claims(path: Path) -> str | None:
    """What makes a folder a run of DeepSpeed whose model has its own names, None if nothing does."""
    folder = folder_of_kind(path, RunKind.OWN)
    if folder is None:
        return None
    if folder != path:
        return f"the file `{LATEST}`" if (path / LATEST).is_file() else folder.name
    names = names_in(folder)
    return next(iter([*names.model_files, *names.optimizer.values(), *names.experts.values()]), "the folder zero")


def refusal(family: ModelFamily) -> str | None:
    """None: a run can hold any family, by the names of its Hugging Face model."""
    return None


def open_model(path: Path, options: ZeroSourceOptions) -> NamedModel:
    """Open a run, metadata only.

    Args:
        path: the root (with ``latest``) or the tag's folder.
        options: the user's options for it.

    Raises:
        SourceError: it is not there, or of a kind that is refused by name.
        AmbiguousError: an option is needed to say which checkpoint is meant.
        DamagedError: files are missing, broken or contradict each other.
    """
    tagged = tag_folder(path, options.tag)
    folder = tagged.folder
    names = names_in(folder)
    ranks = open_ranks(folder, _model_files(names), Faults())
    if is_universal(folder):
        model = _open_universal(folder, ranks, options)
    else:
        check_grid(folder, names, ranks.sizes(None, is_pipeline=bool(names.layers)), Faults())
        model = _open_run(folder, names, ranks, options)
    return _placed(model, path, tagged, ranks, options)


def _model_files(names: FolderNames) -> list[str]:
    return [*(names.ranks[rank] for rank in sorted(names.ranks)), *(names.zero3[at] for at in sorted(names.zero3))]


def _placed(model: NamedModel, path: Path, tagged: Tagged, ranks: RankFiles, options: ZeroSourceOptions) -> NamedModel:
    """The model with where it was found, its configuration, and its step."""
    folder = tagged.folder
    homes = dict.fromkeys((path, folder, folder.parent))
    home = next((each for each in homes if (each / "config.json").is_file()), folder.parent if folder != path else path)
    step = iteration_of(folder.name)
    recorded = whole(ranks.state.get("global_steps")) if step is None else step
    named = {file.path: file.globals for file in ranks.files} | dict(model.named)
    model = replace(
        model, home=home, iteration=options.iteration or recorded, named=named, frozen=model.frozen | _frozen(ranks)
    )
    strays = strays_in(folder, names_in(folder))
    return model.noting(warnings=[*([tagged.remark] if tagged.remark else []), *strays])


def _open_run(folder: Path, names: FolderNames, ranks: RankFiles, options: ZeroSourceOptions) -> NamedModel:
    if not ranks.files and not names.layers:
        raise SourceError("no model file: neither mp_rank_* nor zero_pp_rank_*_model_states.pt", where=folder)
    module = open_module(folder, names, ranks)
    has_parameters = any(name not in module.placeholders and name not in module.buffers for name in module.tensors)
    wanted = options.weights or (MODEL if has_parameters and not module.placeholders else MASTER)
    if wanted == MASTER or module.placeholders:
        # The optimizer files hold what placeholders stand for: without them it is lost, whatever is asked for.
        check_partitions(folder, names, RecordedSizes(), Faults())
    if wanted == MODEL and module.placeholders:
        raise UnsupportedError(
            f"the model's files hold placeholders for {len(module.placeholders)} parameters (ZeRO stage 3)",
            where=folder,
            remedy="take the masters: --weights master",
        )
    layout = _layout(names, module)
    if wanted == MASTER:
        return _masters(folder, names, ranks, module, layout)
    masters = f"{len(names.optimizer)} optimizer files"
    fact = Fact(
        f"the module's weights ({_dtypes(module.tensors.values())})",
        f"{'asked for' if options.weights else 'default'}; --weights master takes the masters in {masters}"
        if names.optimizer
        else "there are no masters",
    )
    return NamedModel(
        path=folder,
        home=folder,
        format=_format(names),
        layout=layout,
        tensors=module.tensors,
        shared={name: kept for name, kept in shared_in(ranks).items() if {name, kept} <= module.tensors.keys()},
        weights=MODEL,
        masters=masters if names.optimizer else None,
        facts=(fact,),
        dropped=tuple(left_behind(folder, _children(folder), ranks)),
        buffers=module.buffers,
        replicas=module.replicas,
        named={file.path: file.globals for file in module.files},
    )


def _masters(folder: Path, names: FolderNames, ranks: RankFiles, module: Module, layout: str) -> NamedModel:
    masters = open_masters(folder, names, ranks, module)
    why = "the model's files hold placeholders" if module.placeholders else "asked for; --weights model is the default"
    facts = [Fact(f"the optimizer's masters ({masters.dtype}) of {len(masters.files)} optimizer files", why)]
    parameters = [name for name in masters.from_module if name not in module.buffers and module.tensors[name].numel]
    warnings = list(masters.remarks)
    if parameters:
        warnings.append(
            f"{len(parameters)} parameters are not in the optimizer, and are taken from the module, the first is "
            f"{parameters[0]}"
        )
    used = sum(tensor.nbytes for tensor in masters.rebuilt.sources.values())
    there = sum(file.path.stat().st_size for file in masters.files)
    dropped = [
        Dropped(
            "moments and steps in *_optim_states.pt files", max(0, there - used), "optimizer state: parameters only"
        )
    ]
    rest = [name for name in module.tensors if name not in masters.from_module and module.tensors[name].numel]
    if rest:
        nbytes = sum(module.tensors[name].nbytes for name in rest)
        dropped.append(Dropped(f"{len(rest)} tensors of the module", nbytes, "the masters are taken instead"))
    dropped += left_behind(folder, (), ranks, read=("module", "frozen_param_fragments"))
    return NamedModel(
        path=folder,
        home=folder,
        format=_format(names),
        layout=layout,
        tensors=masters.rebuilt.tensors,
        shared={
            name: kept for name, kept in shared_in(ranks).items() if {name, kept} <= masters.rebuilt.tensors.keys()
        },
        sources=masters.rebuilt.sources,
        padding=masters.rebuilt.padding,
        weights=MASTER,
        facts=tuple(facts),
        warnings=tuple(warnings),
        dropped=tuple(dropped),
        buffers=module.buffers,
        # Stage 1 does not record what is frozen.
        frozen=frozenset(name for name in masters.from_module if name not in module.buffers),
        replicas=tuple(masters.replicas),
        named={file.path: file.globals for file in (*module.files, *masters.files)},
    )


def _open_universal(folder: Path, ranks: RankFiles, options: ZeroSourceOptions) -> NamedModel:
    if options.weights == MODEL:
        raise UnsupportedError(
            "a universal checkpoint is read by its fp32 parameters", where=folder, remedy="leave out --weights model"
        )
    shapes: dict[str, tuple[int, ...]] = {}
    for file in ranks.files:
        for group in groups_of(file.state, file.path) or ():
            shapes |= group
    found = open_universal(folder, shapes if len(ranks.files) == 1 or _is_stage_3(ranks) else {})
    tensors = dict(found.tensors)
    sources = {f"{name}/fp32.pt": tensor for name, tensor in tensors.items()}
    padding = {}
    if ranks.files:
        frozen = frozen_parameters(ranks.files)
        missing = {name: tensor for name, tensor in frozen.tensors.items() if name not in tensors}
        if missing:
            tensors |= missing
            sources |= frozen.sources
            padding = frozen.padding
    for name, tensor in _buffers(ranks):
        if name not in tensors:
            tensors[name] = sources[f"{name} of the module"] = tensor
    shared = {name: kept for name, kept in shared_in(ranks).items() if kept in tensors}
    rounded = [sources.pop(f"{name}/fp32.pt") for name in shared if name in found.tensors]
    tensors |= {name: tensors[kept] for name, kept in shared.items()}
    dropped = [
        Dropped(
            f"{found.state_files} files of moments and steps", found.state_nbytes, "optimizer state: parameters only"
        )
    ]
    if rounded:
        nbytes = sum(tensor.nbytes for tensor in rounded)
        dropped.append(
            Dropped(f"{len(rounded)} rounded copies of shared parameters", nbytes, "the parameter itself counts")
        )
    return NamedModel(
        path=folder,
        home=folder,
        format=f"{_TITLE} universal checkpoint",
        layout="whole parameters",
        tensors=tensors,
        shared=shared,
        sources=sources,
        padding=padding,
        weights=MASTER,
        buffers=frozenset(name for file in ranks.files for name in buffer_names(file.state)),
        facts=(Fact(f"{len(found.files)} folders of parameters", "zero/*/fp32.pt"),),
        dropped=tuple(dropped),
        named={file.path: file.globals for file in found.files},
    )


def _frozen(ranks: RankFiles) -> frozenset[str]:
    said = ((file.state.get("frozen_param_shapes"), file.path) for file in ranks.files)
    groups = (shapes_of(shapes, "frozen_param_shapes", path) for shapes, path in said if shapes is not None)
    return frozenset(name for group in groups for name in group)


def _buffers(ranks: RankFiles) -> Iterator[tuple[str, LazyTensor]]:
    """The buffers in the model files, which a universal checkpoint of stage 3 has nowhere else."""
    for file in ranks.files[:1] if _is_stage_3(ranks) else ranks.files:
        module = file.state.get("module")
        for name in sorted(buffer_names(file.state)):
            tensor = module.get(name) if isinstance(module, dict) else None
            if isinstance(tensor, LazyTensor) and tensor.numel:
                yield name, tensor


def _is_stage_3(ranks: RankFiles) -> bool:
    return any(file.path.name.startswith("zero_pp_rank_") for file in ranks.files)


def _children(folder: Path) -> list[str]:
    return sorted(child.name for child in folder.iterdir())


def _format(names: FolderNames) -> str:
    if names.zero3:
        return f"{_TITLE}, ZeRO stage 3"
    if names.layers:
        return f"{_TITLE}, pipeline of own modules"
    return f"{_TITLE}, ZeRO stage 1 or 2, or the BF16 optimizer" if names.optimizer else f"{_TITLE}, one module"


def _layout(names: FolderNames, module: Module) -> str:
    data = f"{names.dp} data-parallel ranks" if names.dp else "one copy"
    return data if module.stages == 1 else f"{module.stages} stages, {data}"


def _dtypes(tensors: Iterable[LazyTensor]) -> str:
    return ", ".join(sorted({tensor.dtype.name for tensor in tensors if tensor.dtype.is_floating}))


SOURCE = SourceFormat("deepspeed-zero", open_model, claims, refusal, SOURCE_OPTIONS, "plain DeepSpeed")
