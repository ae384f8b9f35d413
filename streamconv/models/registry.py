"""The model families: one module each in ``models/families``, found by name, whose ``FAMILY`` is the family."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache
from typing import Any

from streamconv.core.errors import UnsupportedError
from streamconv.models import families
from streamconv.models.family import ModelFamily

__all__ = ["family_of", "known_families"]

_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_intermediate_size")
_MODALITIES = ("vision_config", "audio_config", "text_config")


@cache
def known_families() -> tuple[ModelFamily, ...]:
    """Every family, in the order of their modules' names."""
    names = [info.name for info in pkgutil.iter_modules(families.__path__)]
    modules = (importlib.import_module(f"{families.__name__}.{name}") for name in names)
    return tuple(module.FAMILY for module in modules)


def family_of(config: Mapping[str, Any]) -> ModelFamily:
    """The family that ``model_type`` names, or ``architectures`` where it is missing.

    Raises:
        UnsupportedError: the family is not known, or its weights or layers are stored in a way that is not translated.
    """
    kind, architecture = config.get("model_type"), _architecture(config)
    families = ", ".join(family.huggingface.model_type for family in known_families())
    remedy = f"model types so far: {families}"
    for family in known_families():
        names = (family.huggingface.architecture, _stem(family) + "Model")
        if kind != family.huggingface.model_type and (kind is not None or architecture not in names):
            continue
        if architecture not in (None, *names):
            raise UnsupportedError(
                f"the architecture {str(architecture)[:80]}: only {names[0]} is translated",
                remedy="to keep its tensors under their names, --to safetensors",
            )
        _refuse_storage(config)
        return family
    name = kind if kind is not None else architecture or "no model_type and no architectures"
    if any(part in str(name).lower() for part in ("moe", "mixtral", "deepseek")) or any(x in config for x in _EXPERTS):
        raise UnsupportedError(f"{str(name)[:80]}: a mixture of experts", remedy=remedy)
    if modality := [entry for entry in _MODALITIES if entry in config]:
        raise UnsupportedError(f"{str(name)[:80]}: more than a language model ({modality[0]})", remedy=remedy)
    raise UnsupportedError(f"{str(name)[:80]}: no model type that is translated", remedy=remedy)


def _architecture(config: Mapping[str, Any]) -> Any:
    said = config.get("architectures")
    return said[0] if isinstance(said, list) and said else None


def _stem(family: ModelFamily) -> str:
    """``Llama`` of ``LlamaForCausalLM``, ``GPT2`` of ``GPT2LMHeadModel``."""
    return family.huggingface.architecture.removesuffix("ForCausalLM").removesuffix("LMHeadModel")


def _refuse_storage(config: Mapping[str, Any]) -> None:
    if quantized := config.get("quantization_config"):
        method = quantized.get("quant_method") if isinstance(quantized, Mapping) else quantized
        raise UnsupportedError(
            f"quantization_config ({str(method)[:40]}): quantised weights are not translated",
            remedy="convert the model that was not quantised",
        )
    if config.get("per_layer_config"):
        raise UnsupportedError("per_layer_config: layers of different shapes are not translated")
