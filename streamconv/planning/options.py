"""The options of every conversion, whatever its source and target."""

from __future__ import annotations

from dataclasses import dataclass

from streamconv.core.dtypes import CAST_TYPES, DType
from streamconv.core.kinds import Choice
from streamconv.core.options import option
from streamconv.formats.frameworks import target_names

__all__ = ["NEWEST", "NOWHERE", "ConversionOptions", "ReplicaOptions"]

NEWEST, NOWHERE = "megatron", "null"
_SHORT = {"hf": "huggingface", "transformers": "huggingface", "mcore": "megatron-core", "neox": "gpt-neox"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaOptions:
    """Which copy of a replicated parameter is used."""

    replicated: str = option(
        Choice(("first", "mean", "fail")),
        "which copy of a replicated parameter counts if ranks differ: first (default), mean, or fail: refuse them",
        default="first",
        purpose="which copy of a replicated parameter counts",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversionOptions(ReplicaOptions):
    """The target, and the dtype that floating tensors are cast to; None is as stored."""

    to: str = option(
        Choice(lambda: (NEWEST, *target_names(), NOWHERE), also=_SHORT),
        f"format of the result; {NEWEST} (default) is the newest Megatron layout that can run the model, {NOWHERE} "
        "runs the conversion and writes nothing",
        default=NEWEST,
        purpose="the format of the result",
        main=True,
    )
    dtype: DType | None = option(
        CAST_TYPES,
        "cast floating tensors to this type (default: as stored)",
        purpose="the type of floating tensors in the result",
        main=True,
    )
