"""An adapter out of what holds it, and the model that it and its base make together."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from streamconv.containers.json_file import read_config
from streamconv.core.dtypes import DType
from streamconv.core.errors import AmbiguousError, DamagedError, UnsupportedError
from streamconv.core.lazy import LazyTensor
from streamconv.core.low_rank import LowRank
from streamconv.core.text import shown
from streamconv.formats.common.adapter_files import ADAPTER_CONFIG
from streamconv.formats.named import NamedModel
from streamconv.formats.peft.names import AdapterName, adapter_names, base_name, is_adapter
from streamconv.formats.remarks import Dropped, Fact

__all__ = ["Merged", "adapter_config", "adapter_of", "merged"]

_LONGEST_PATTERN = 200
_MOST_QUANTIFIERS = 3
# What peft computes otherwise than base + scale * B @ A [peft/tuners/lora/config.py:LoraConfig].
_OTHERWISE = (
    "use_dora",
    "use_qalora",
    "use_bdlora",
    "lora_bias",
    "layer_replication",
    "target_parameters",
    "trainable_token_indices",
)
# Ways to begin that leave the base as it is; others (pissa, olora, corda, loftq, lora_ga) take a part out of the base
# when the adapter is loaded [peft/tuners/lora/layer.py:LoraLayer.reset_lora_parameters].
_BEGINNINGS = (None, True, False, "gaussian", "orthogonal", "eva")
_LARGEST_SCALE = 3.4e38


@dataclass(frozen=True, slots=True)
class Merged:
    """A base with its adapter: the model, whose tensors are those of the base, and the update of each that has one."""

    model: NamedModel
    updates: Mapping[str, LowRank]


def adapter_config(home: Path) -> dict[str, Any] | None:
    """The entries of the ``adapter_config.json`` in a folder, None if there is none.

    Raises:
        DamagedError: it is no JSON object.
    """
    path = home / ADAPTER_CONFIG
    return read_config(path) if path.is_file() else None


def adapter_of(model: NamedModel) -> NamedModel | None:
    """The adapter among a model's tensors, by the names of its own file; None if there is none.

    Raises:
        AmbiguousError: there are several adapters.
    """
    if not is_adapter(model.tensors):
        return None
    parsed = adapter_names(model.tensors)
    named = {each.adapter for each in parsed.values() if each.adapter is not None}
    if len(named) > 1:
        raise AmbiguousError(
            f"{len(named)} adapters are there: {', '.join(sorted(named))}",
            where=model.path,
            remedy="save the one that is meant with peft's save_pretrained(selected_adapters=[..])",
        )
    taken = _in_file(model, parsed) if named else dict.fromkeys(model.tensors)
    [(twice, count)] = Counter(new or name for name, new in taken.items()).most_common(1)
    if count > 1:
        raise DamagedError(f"two tensors of the adapter are {twice} in its file", where=model.path)
    tensors = {new or name: model.tensors[name] for name, new in taken.items()}
    left = {name: tensor for name, tensor in model.tensors.items() if name not in taken}
    shared = {taken[n] or n: taken[k] or k for n, k in model.shared.items() if n in taken and k in taken}
    dropped = [Dropped(f"{len(left)} weights of the base", sum(each.nbytes for each in left.values()), "not trained")]
    return replace(model, tensors=tensors, shared=shared, sources={}, padding={}).noting(
        facts=[Fact(f"an adapter of {len(tensors)} tensors", "names of peft")], dropped=dropped if left else []
    )


def _in_file(model: NamedModel, parsed: Mapping[str, AdapterName]) -> dict[str, str | None]:
    """The tensors of an adapter in a live model, and their names in a file, None if these are the same.

    Beside LoRA's matrices and whole modules, weights of the base may be trained (``bias="all"``). Which are is known if
    the run records what is frozen, or holds no weight of the base that an adapter stands beside.
    """
    others = [name for name in model.tensors if name not in parsed and ".original_module." not in name]
    has_base = any(".base_layer.weight" in name for name in others)
    trained = [
        name
        for name in others
        if (name not in model.frozen if model.frozen else not has_base) and name not in model.buffers
    ]
    own: dict[str, str | None] = {name: each.in_file for name, each in parsed.items()}
    return {name: own.get(name) for name in model.tensors if name in own or name in trained}


def merged(base: NamedModel, adapter: NamedModel, config: Mapping[str, Any] | None, dtype: DType | None) -> Merged:
    """A base with its adapter, as peft's ``merge_and_unload`` makes it; the weights are not computed here.

    Args:
        base: the model that the adapter was trained on.
        adapter: from :func:`adapter_of`.
        config: the entries of the adapter's ``adapter_config.json``.
        dtype: the dtype that all is cast to later; None gives what the adapter replaces the dtype of the base.

    Raises:
        UnsupportedError: the adapter is of a kind that is merged otherwise, by name.
        DamagedError: the adapter does not fit the base.
    """
    _refuse_otherwise(adapter, config)
    said = config or {}
    updates: dict[str, LowRank] = {}
    tensors = dict(base.tensors)
    halves: dict[tuple[str, bool], dict[str, LazyTensor]] = {}
    for name, tensor in adapter.tensors.items():
        parsed = adapter_names([name]).get(name)
        if parsed is None:
            whole = base_name(name)
            _refuse_tokens(name, adapter)
            _fit(whole, tensor.shape, base, adapter)
            if tensors[whole] is not base.tensors[whole]:
                raise DamagedError(f"two tensors of the adapter are {whole}", where=adapter.path)
            tensors[whole] = tensor if dtype is not None else tensor.cast(base.tensors[whole].dtype)
        elif parsed.kind in ("lora_A", "lora_B") and parsed.end == ".weight":
            _add_half(halves.setdefault((parsed.module, False), {}), parsed, tensor, adapter)
        elif parsed.kind in ("lora_embedding_A", "lora_embedding_B"):
            _add_half(halves.setdefault((parsed.module, True), {}), parsed, tensor, adapter)
        else:
            raise UnsupportedError(
                f"{name}: an adapter with {parsed.kind}{parsed.end} is not merged",
                where=adapter.path,
                remedy="merge it with peft",
            )
    for (module, embeds), pair in halves.items():
        weight = f"{module}.weight"
        whole_weight = base.tensors.get(weight)
        if whole_weight is not None and not whole_weight.dtype.is_floating:
            raise UnsupportedError(
                f"{weight} of the base is {whole_weight.dtype}: an adapter of a quantised model is not merged",
                where=base.path,
                remedy="give the model before it was quantised",
            )
        updates[weight] = _update(weight, pair, said, adapter, transposed=embeds or bool(said.get("fan_in_fan_out")))
        _fit(weight, updates[weight].shape, base, adapter)
    for name in [name for name, kept in base.shared.items() if kept in updates or name in updates]:
        raise UnsupportedError(
            f"the adapter changes {base.shared[name]}, which {name} shares: peft's merge leaves that to the model",
            where=adapter.path,
            remedy="merge it with peft",
        )
    replaced = [name for name in tensors if tensors[name] is not base.tensors[name]]
    model = replace(
        base,
        tensors=tensors,
        format=f"{base.format}, with an adapter of {adapter.format}",
        sources={},
        padding={},
        named={**base.named, **adapter.named},
    ).noting(
        facts=[
            *adapter.facts,
            Fact(f"{len(updates)} weights with scale * B @ A added, {len(replaced)} replaced", ADAPTER_CONFIG),
        ],
        warnings=adapter.warnings,
        dropped=[*adapter.dropped, *_replaced(base, replaced)],
    )
    return Merged(model, updates)


def _add_half(pair: dict[str, LazyTensor], parsed: AdapterName, tensor: LazyTensor, adapter: NamedModel) -> None:
    half = parsed.kind[-1]
    if half in pair:
        raise DamagedError(f"two tensors of the adapter are {parsed.kind} of {parsed.module}", where=adapter.path)
    pair[half] = tensor


def _refuse_tokens(name: str, adapter: NamedModel) -> None:
    """Refuse the trained rows of an embedding [``peft/tuners/trainable_tokens/layer.py``]."""
    if "trainable_tokens_" in name:
        raise UnsupportedError(
            f"{name}: an adapter with trained tokens is not merged", where=adapter.path, remedy="merge it with peft"
        )


def _replaced(base: NamedModel, names: list[str]) -> Iterator[Dropped]:
    if names:
        nbytes = sum(base.tensors[name].nbytes for name in names)
        yield Dropped(f"{len(names)} weights of the base ({', '.join(names[:3])})", nbytes, "the adapter has its own")


def _refuse_otherwise(adapter: NamedModel, config: Mapping[str, Any] | None) -> None:
    if config is None:
        raise UnsupportedError(
            f"an adapter without {ADAPTER_CONFIG}: nothing says its scale",
            where=adapter.home,
            remedy="copy it from where the training was configured",
        )
    if config.get("peft_type") != "LORA":
        raise UnsupportedError(f"an adapter of the kind {config.get('peft_type')!r} is not merged", where=adapter.home)
    beginning = config.get("init_lora_weights")
    if not any(beginning is known or (isinstance(beginning, str) and beginning == known) for known in _BEGINNINGS):
        raise UnsupportedError(
            f"an adapter that began as {shown(beginning)} (init_lora_weights) is not merged: it took a part out of the "
            "base",
            where=adapter.home,
            remedy="merge it with peft, or save it with path_initial_model_for_weight_conversion",
        )
    for entry in _OTHERWISE:
        if config.get(entry):
            raise UnsupportedError(
                f"an adapter with {entry} is not merged", where=adapter.home, remedy="merge it with peft"
            )


def _update(
    weight: str, pair: Mapping[str, LazyTensor], config: Mapping[str, Any], adapter: NamedModel, *, transposed: bool
) -> LowRank:
    """What an adapter adds to a weight. Of matrices that are stored (in, out) it is the transpose of B @ A."""
    left, right = pair.get("B"), pair.get("A")
    if left is None or right is None:
        raise DamagedError(f"the adapter's A or B for {weight} is missing", where=adapter.path)
    if len(left.shape) == len(right.shape) != 2:
        raise UnsupportedError(
            f"A for {weight} has {len(right.shape)} axes: an adapter of a convolution is not merged",
            where=adapter.path,
            remedy="merge it with peft",
        )
    if len(left.shape) != 2 or len(right.shape) != 2 or left.shape[1] != right.shape[0]:
        raise DamagedError(f"A and B for {weight} have the shapes {right.shape} and {left.shape}", where=adapter.path)
    module = weight.removesuffix(".weight")
    rank = _pattern(config.get("rank_pattern"), module, config.get("r"))
    alpha = _pattern(config.get("alpha_pattern"), module, config.get("lora_alpha"))
    if type(rank) is not int or not 0 < rank == right.shape[0] or type(alpha) not in (int, float):
        raise DamagedError(
            f"{ADAPTER_CONFIG} says rank {shown(rank)} and alpha {shown(alpha)} for {module}, whose A has "
            f"{right.shape[0]} rows",
            where=adapter.home,
        )
    by = math.sqrt(rank) if config.get("use_rslora") else rank
    if not -_LARGEST_SCALE < alpha < _LARGEST_SCALE:
        raise DamagedError(f"{ADAPTER_CONFIG} says alpha {shown(alpha)} for {module}", where=adapter.home)
    scale = alpha / by
    if transposed:
        left, right = right.permute(1, 0), left.permute(1, 0)
    return LowRank(left, right, scale)


def _pattern(said: Any, module: str, usual: Any) -> Any:
    """The value of the first pattern that a module's name ends with [``peft/utils/other.py:get_pattern_key``]."""
    for key, value in said.items() if isinstance(said, dict) else ():
        # Groups and many quantifiers could take time without end, and the file may come from anywhere.
        quantifiers = sum(key.count(sign) for sign in "*+?{")
        if len(key) > _LONGEST_PATTERN or "(" in key or quantifiers > _MOST_QUANTIFIERS:
            raise UnsupportedError(
                f"the pattern {key[:80]!r} in {ADAPTER_CONFIG} is not read", remedy="merge it with peft"
            )
        try:
            if re.match(rf"(.*\.)?({key})$", module):
                return value
        except (re.error, OverflowError) as error:
            raise UnsupportedError(f"the pattern {key!r} in {ADAPTER_CONFIG}: {error}") from error
    return usual


def _fit(weight: str, shape: tuple[int, ...], base: NamedModel, adapter: NamedModel) -> None:
    stored = base.tensors.get(weight)
    if stored is None or stored.shape != shape:
        words = "lacks" if stored is None else f"has {list(stored.shape)} of"
        raise DamagedError(
            f"the base {words} {weight}, for which the adapter has {list(shape)}",
            where=base.path,
            remedy=f"give the model that the adapter was trained on ({adapter.path})",
        )
