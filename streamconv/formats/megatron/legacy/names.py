"""The names in a rank's file of Megatron-LM's legacy checkpoint, of every release, by their place in the model.

``megatron/model/language_model.py:load_state_dict`` of Megatron-LM lists the earlier names: ``transformer`` for
``encoder`` and ``attention.`` for ``self_attention.`` up to v2.0 (4b50683264), ``layernorm`` for ``norm`` until 2023-09
(4dc0715204); ``embedding`` is nested by name, or flat in older files. ``core_v0.17`` still reads all of them. RMSNorm
came with the names of 2023-09, and its modules have the names of LayerNorm's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from streamconv.containers.pickles.reader import leaves_of
from streamconv.containers.stored_file import StoredFile
from streamconv.core.errors import DamagedError, UnsupportedError
from streamconv.core.lazy import LazyTensor
from streamconv.formats.common.refusals import refuse_keys
from streamconv.formats.megatron.legacy.refusals import families
from streamconv.formats.megatron.legacy.target import DIALECTS
from streamconv.formats.megatron.rank_files import StageTensors
from streamconv.models.parameter import ParameterId, Section

__all__ = ["HEAD_COPY", "cautions", "stage_tensors", "translated_args"]

HEAD_COPY = "word_embeddings_for_head"
_LAYER = re.compile(r"layers\.([0-9]{1,9})\.(.+)", re.DOTALL)
_MODEL = "language_model"
_RENAMED = {new: old for dialect in DIALECTS.values() for old, new in dialect.norms.items()}
_OLDEST = "the oldest names"
_ROTARY_BASE = 10000


def translated_args(args: Mapping[str, Any]) -> dict[str, Any]:
    """Megatron-LM's arguments, with the same values under the names of deepspeedai's fork added.

    ``num_query_groups`` counts only with ``group_query_attention``, and the model reads ``position_embedding_type``.
    It ignores ``rotary_base``: no release of the legacy model passes it to ``RotaryEmbedding``, whose default is 10000
    [``megatron/legacy/model/transformer.py:ParallelAttention``, ``language_model.py:TransformerLanguageModel`` of
    core_v0.4 to core_v0.17].
    """
    translated = dict(args)
    if args.get("group_query_attention"):
        translated["num_key_value_heads"] = args.get("num_query_groups")
    if args.get("norm_epsilon") is not None:
        translated.setdefault("layernorm_epsilon", args["norm_epsilon"])
    if args.get("position_embedding_type") == "rope":
        translated["use_rotary_position_embeddings"] = True
        translated.setdefault("rope_theta", _ROTARY_BASE)
    return translated


def cautions(args: Mapping[str, Any]) -> Iterator[str]:
    """Warnings of what the legacy model did otherwise than its arguments say."""
    base = args.get("rotary_base", _ROTARY_BASE)
    if args.get("position_embedding_type") == "rope" and base != _ROTARY_BASE:
        yield (
            f"args.rotary_base is {str(base)[:40]}, but Megatron-LM's legacy model has no use for it: took the "
            f"{_ROTARY_BASE} that it rotates with"
        )


def stage_tensors(file: StoredFile, entry: str) -> StageTensors:
    """The parameters of one model (``model``, ``model0``) in a rank's file.

    Raises:
        UnsupportedError: the model is of another kind, which is named, or has tensors of unknown role.
        DamagedError: there is no model, a layer is missing, or one parameter is there under two names.
    """
    model = _model_of(file, entry)
    tensors, strays = StageTensors(), []
    for path, tensor in leaves_of(LazyTensor, model[_MODEL], str(file.path)):
        name = ".".join(map(str, path))
        place = _place(name, tensors.ages)
        if place is None:
            strays.append(name)
        elif place in tensors.tensors:
            raise DamagedError(f"{name} is there under two names", where=file.path)
        else:
            tensors.tensors[place] = tensor
    # Walked apart: the copy may be the same dictionary as the embedding, and a walk visits each container once.
    for path, tensor in leaves_of(LazyTensor, model.get(HEAD_COPY), str(file.path)):
        tensors.copy[".".join(map(str, path))] = tensor
    refuse_keys({place.key for place in tensors.tensors if place.section is Section.LAYER}, file.path, families())
    if strays:
        raise UnsupportedError(
            f"{len(strays)} tensors of unknown role, the first is {_MODEL}.{strays[0]}",
            where=file.path,
            remedy="only decoders of one transformer are translated: embedding, encoder, output_layer",
        )
    tensors.check_layers(file.path)
    return tensors


def _model_of(file: StoredFile, entry: str) -> Mapping[str, Any]:
    """The model in ``entry``; raises unless it is a language model of the legacy classes."""
    model = file.state[entry]
    if not isinstance(model, dict):
        raise DamagedError(f"its `{entry}` is no dictionary", where=file.path)
    keys = {str(key) for key in model}
    kinds = (
        ("a BERT or T5 model", bool(keys & {"lm_head", "binary_head"})),
        ("a classifier or a biencoder", bool(keys - {_MODEL, HEAD_COPY}) and _MODEL in keys),
        ("no language model of Megatron-LM", not isinstance(model.get(_MODEL), dict)),
    )
    for name, matches in kinds:
        if matches:
            first = ", ".join(sorted(keys - {_MODEL, HEAD_COPY})[:4]) or "nothing"
            raise UnsupportedError(
                f"{name} (its `model` has {first}): not translated yet",
                where=file.path,
                remedy=f"models so far: those of Megatron-LM's legacy classes ({families()})",
            )
    return model


def _place(name: str, ages: set[str]) -> ParameterId | None:
    """The place of a tensor of ``language_model``, None if unknown; adds the age that its name shows to ``ages``."""
    part, _, key = name.partition(".")
    if part == "embedding":
        return ParameterId(Section.EMBEDDING, -1, key)
    if (part, key) == ("output_layer", "weight"):
        return ParameterId(Section.HEAD, -1, "lm_head.weight")
    if part not in ("encoder", "transformer"):
        return None
    if part == "transformer":
        ages.add(_OLDEST)
    if match := _LAYER.fullmatch(key):
        return ParameterId(Section.LAYER, int(match[1]), _layer_key(match[2], ages))
    norm, _, leaf = key.partition(".")
    return ParameterId(Section.FINAL_NORM, -1, leaf) if _norm(norm, ages) == "final_layernorm" else None


def _layer_key(key: str, ages: set[str]) -> str:
    module, dot, leaf = key.partition(".")
    if module == "attention":
        ages.add(_OLDEST)
        module = "self_attention"
    return _norm(module, ages) + dot + leaf


def _norm(module: str, ages: set[str]) -> str:
    for dialect in DIALECTS.values():
        if module in dialect.norms.values():
            ages.add(f"names of {dialect.name}")
    return _RENAMED.get(module, module)
