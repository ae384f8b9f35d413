"""What both targets share: shards and their index, and what goes along with a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from streamconv.core.layout import FIRST_RANK
from streamconv.formats.common.adapter_files import ADAPTER_CONFIG
from streamconv.formats.common.model_shards import indexed, shard_names, shards_of
from streamconv.formats.huggingface.configuration import config_text, dtype_name
from streamconv.formats.huggingface.names import CONFIG, GENERATION
from streamconv.formats.source import Fact
from streamconv.formats.target import Container, NamedTarget, NameSlot, TargetFile, TargetFiles
from streamconv.memory.budget import parse_size

__all__ = ["lay_out_names"]

# What of an older model in the destination would be loaded with, or instead of, the result.
_OWNED = (
    *("model*.safetensors", "model.safetensors.index.json", "pytorch_model*", CONFIG, GENERATION),
    *(ADAPTER_CONFIG, "adapter_model*"),
)


def lay_out_names(
    model: NamedTarget, whole_name: str, container: Callable[[str], Container], kind: str, *, keeps_shared: bool
) -> TargetFiles:
    """The files of a model whose names are kept.

    Args:
        model: the tensors.
        whole_name: the name of a model in one file.
        container: the container of a file with this name.
        kind: the container in words.
        keeps_shared: whether names that share a parameter share its bytes in the result.
    """
    if model.adapter is not None:
        return _adapter(model, f"adapter_model{whole_name[whole_name.rindex('.') :]}", container, kind)
    slots = {name: NameSlot(_stored_as(name, model.shared, keeps_shared=keeps_shared)) for name in model.tensors}
    sized = ((name, slot, model.tensors[name].nbytes if slot.name == name else 0) for name, slot in _together(slots))
    shards = shards_of(sized, parse_size(model.options.max_shard_size))
    names = shard_names(whole_name, len(shards))
    files = tuple(
        TargetFile(path, container(path), FIRST_RANK, shard, "") for path, shard in zip(names, shards, strict=True)
    )
    total = sum(model.tensors[name].nbytes for name, slot in slots.items() if slot.name == name)
    index = {f"{whole_name}.index.json": indexed(names, shards, total)}
    text = _config(model)
    facts = [Fact(f"{len(shards)} shard{'s' if len(shards) > 1 else ''}", f"{kind}, {len(slots)} names kept")]
    if model.shared:
        how = "they share its bytes" if keeps_shared else "written again, since safetensors shares no bytes"
        which = ", ".join(list(model.shared)[:4]) + (" .." if len(model.shared) > 4 else "")
        facts.append(Fact(f"second names of a parameter: {which}", how))
    return TargetFiles(
        files=files,
        # The configuration is the record of the result; without one, the index.
        texts={CONFIG: text} if text is not None else index,
        facts=tuple(facts),
        warnings=() if text is not None else (_without_config(model),),
        small=index if text is not None and len(shards) > 1 else {},
        owned=_OWNED,
    )


def _without_config(model: NamedTarget) -> str:
    why = "a part of a model has none" if model.options.tensors else "none is at hand"
    return f"no {CONFIG} ({why}): nothing in the result says what model it is"


def _adapter(model: NamedTarget, name: str, container: Callable[[str], Container], kind: str) -> TargetFiles:
    """An adapter's own folder: peft reads one file [``peft/utils/save_and_load.py:load_peft_weights``]."""
    tree = {each: NameSlot(each) for each in model.tensors}
    return TargetFiles(
        files=(TargetFile(name, container(name), FIRST_RANK, tree, ""),),
        texts={ADAPTER_CONFIG: model.adapter or ""},
        facts=(Fact("an adapter's own folder", f"{kind}, {len(tree)} names of peft"),),
        owned=_OWNED,
    )


def _stored_as(name: str, shared: Mapping[str, str], *, keeps_shared: bool) -> str:
    return shared.get(name, name) if keeps_shared else name


def _together(slots: Mapping[str, NameSlot]) -> list[tuple[str, NameSlot]]:
    """Names with their slots, those of one slot one behind the other: they must be in one file."""
    by_slot: dict[NameSlot, list[str]] = {}
    for name, slot in slots.items():
        by_slot.setdefault(slot, []).append(name)
    return [(name, slot) for slot, names in by_slot.items() for name in names]


def _config(model: NamedTarget) -> str | None:
    """The text of ``config.json``: that of the source, with the result's dtype and the user's entries."""
    # A part of a model is none that the configuration describes.
    if model.options.tensors or (model.config is None and "model_type" not in model.supplied):
        return None
    dtypes = [tensor.dtype.name for tensor in model.tensors.values() if tensor.dtype.is_floating]
    dtype = dtype_name(dtypes, model.config) if dtypes else None
    return config_text(model.home / CONFIG, model.config, model.supplied, dtype)
