"""Plan a conversion that keeps names: whole named tensors, from any source, into files of any container."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from streamconv.core.dtypes import DType
from streamconv.core.errors import UsageError
from streamconv.core.layout import ParallelLayout, RankCoordinates
from streamconv.core.lazy import LazyTensor
from streamconv.core.low_rank import LowRank
from streamconv.core.options import Given
from streamconv.formats.common.adapter_files import ADAPTER_CONFIG
from streamconv.formats.common.layer_numbers import place_of
from streamconv.formats.huggingface.naming import own_names, refuse_placeholders
from streamconv.formats.huggingface.tokenizer import PROCESSOR_NAMES, TOKENIZER_NAMES, files_along, tokenizer_files
from streamconv.formats.named import NamedModel
from streamconv.formats.peft.adapter import adapter_config, adapter_of, merged
from streamconv.formats.peft.names import is_adapter
from streamconv.formats.remarks import Dropped, Fact
from streamconv.formats.target import NamedTarget, TargetFormat
from streamconv.formats.wrappers import without_wrappers
from streamconv.io.reading import reading
from streamconv.models.parameter import ParameterId, Section
from streamconv.planning.options import ConversionOptions
from streamconv.planning.plan import Plan
from streamconv.planning.proof_of_names import proof_of
from streamconv.planning.scatter import OutputValue, filled_files
from streamconv.planning.selection import Selection, select
from streamconv.planning.unused_options import refuse_unused_options
from streamconv.planning.whole import open_whole

__all__ = ["make_plan_of_names", "masters_at_hand"]


def make_plan_of_names(path: Path, given: Given, wanted: ConversionOptions, target: TargetFormat) -> Plan:
    """Open ``path`` and plan its conversion to a target that keeps names. Only metadata is read.

    Raises:
        StreamconvError: the conversion is refused; its class says why.
    """
    source, model = open_whole(path, given, wanted.replicated)
    refuse_unused_options(given, source, target, wanted.to)
    refuse_placeholders(model)
    if model.loss is not None:
        raise model.loss
    said: Mapping[str, Any] = given.get("config", {})
    options: Any = given.take(target.options)
    model, updates, adapter = _with_adapter(model, options.base, wanted.dtype)
    if not is_adapter(model.tensors):
        model = without_wrappers(model, own_names(model.config or said))
    chosen = select(model.tensors, options.tensors, options.skip, options.rename)
    taken = {new: _cast(model.tensors[name], wanted.dtype) for name, new in chosen.taken.items()}
    shared = {chosen.taken[name]: chosen.taken[kept] for name, kept in _shared(model, chosen).items()}
    named = NamedTarget(taken, shared, model.config, model.home, said, options, adapter)
    laid_out = target.lay_out(named)
    places = dict(_places(taken))
    added = {chosen.taken[name]: update for name, update in updates.items() if name in chosen.taken}

    def made(slot: Any, _: RankCoordinates) -> OutputValue:
        return OutputValue(places[slot.name], taken[slot.name], added.get(slot.name))

    is_part = adapter is not None or bool(options.tensors)
    copied = {} if is_part else files_along(model.home, laid_out.names, generation=True)
    if options.tokenizer is not None:
        copied |= tokenizer_files(options.tokenizer, laid_out.names)
    warnings = [*model.warnings, *laid_out.warnings, *masters_at_hand(model.masters, wanted.dtype)]
    warnings += _fused_experts(taken)
    return Plan(
        root=path,
        source=model.path,
        source_format=model.format,
        family=f"{len(model.tensors)} named tensors",
        source_layout=model.layout,
        target_format=target.name,
        target_layout=ParallelLayout(1, (1,)),
        dtype=wanted.dtype,
        iteration=model.iteration,
        files=filled_files(laid_out.files, made),
        texts=laid_out.texts,
        replicas=model.replicas,
        replicated_policy=wanted.replicated,
        coverage=proof_of(model, chosen, updates),
        facts=model.facts,
        choices=(Fact(f"target {target.name}", "asked for"),),
        notes=laid_out.facts,
        warnings=tuple(warnings),
        dropped=(*_left(model, chosen), *model.dropped),
        small=laid_out.small,
        copied=copied,
        owned=laid_out.owned,
        beside=(*TOKENIZER_NAMES, *PROCESSOR_NAMES),
        keeps_names=True,
    )


def _with_adapter(
    model: NamedModel, base: Path | None, dtype: DType | None
) -> tuple[NamedModel, Mapping[str, LowRank], str | None]:
    """(the model or the adapter in it, the updates of weights, the text of an adapter's configuration).

    With ``base`` it is the base with the adapter; without, a model that holds an adapter is the adapter alone.
    """
    adapter = adapter_of(model)
    if adapter is None:
        if base is not None:
            raise UsageError("--base: there is no adapter to merge", where=model.path, remedy="leave it out")
        return model, {}, None
    config = adapter_config(adapter.home)
    if base is not None:
        _, below = open_whole(base, Given({}))
        refuse_placeholders(below)
        whole = merged(without_wrappers(below, own_names(below.config or {})), adapter, config, dtype)
        return whole.model, whole.updates, None
    if config is None:
        words = f"an adapter without {ADAPTER_CONFIG}: its names are kept as a model's, and peft does not load it so"
        return model.noting(warnings=[words]), {}, None
    with reading(adapter.home / ADAPTER_CONFIG) as file:
        return adapter, {}, file.read(0, file.nbytes).decode("utf-8")


def _cast(tensor: LazyTensor, dtype: DType | None) -> LazyTensor:
    return tensor if dtype is None else tensor.cast(dtype)


def masters_at_hand(masters: str | None, dtype: DType | None) -> list[str]:
    """A warning if a wider type is asked for than the model has, and the run's masters have it."""
    if masters is None or dtype is None or dtype.name != "float32":
        return []
    return [f"--dtype fp32 widens the model's rounded weights; --weights master takes the masters in {masters}"]


def _shared(model: NamedModel, chosen: Selection) -> dict[str, str]:
    """Names that share another one's parameter, where both are taken; of three or more the first one taken counts."""
    groups: dict[str, list[str]] = {}
    for name in model.tensors:
        if name in chosen.taken:
            groups.setdefault(model.shared.get(name, name), []).append(name)
    return {name: names[0] for names in groups.values() for name in names[1:]}


def _places(names: Mapping[str, LazyTensor]) -> Iterator[tuple[str, ParameterId]]:
    """(name, place): what stands before the first layer counts as the embedding's, what stands behind as the norm's."""
    section = Section.EMBEDDING
    for name in names:
        layer, key = place_of(name)
        if layer is None:
            yield name, ParameterId(section, -1, name)
        else:
            section = Section.FINAL_NORM
            yield name, ParameterId(Section.LAYER, layer, key)


def _fused_experts(names: Mapping[str, LazyTensor]) -> list[str]:
    fused = [name for name in names if name.endswith(("experts.gate_up_proj", "experts.down_proj"))]
    if not fused:
        return []
    return [
        f"{len(fused)} tensors, such as {fused[0]}, hold all experts of a layer, as transformers 5 has them in memory; "
        "its own files have one tensor for each expert, and releases before 5 read only those"
    ]


def _left(model: NamedModel, chosen: Selection) -> Iterator[Dropped]:
    for flag in dict.fromkeys(chosen.left.values()):
        names = [name for name, why in chosen.left.items() if why == flag]
        nbytes = sum(model.tensors[name].nbytes for name in names)
        shown = ", ".join(names[:3]) + (" .." if len(names) > 3 else "")
        yield Dropped(f"{len(names)} tensors ({shown})", nbytes, f"{flag} says so")
