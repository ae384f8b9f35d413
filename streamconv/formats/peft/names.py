"""The names of an adapter's tensors: in a live model, in its own file, and the weight of the base that each is about.

In a live model the adapter's own name stands behind the kind (``q_proj.lora_A.default.weight``), the weights of the
base have ``base_layer.`` in their names, and whole modules that are trained stand as ``modules_to_save.default.``
beside their ``original_module.``. A file leaves the adapter's name out [``peft/utils/save_and_load.py:
get_peft_model_state_dict``, ``peft/utils/other.py:ModulesToSaveWrapper``].
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["WRAPPER", "AdapterName", "adapter_names", "base_name", "is_adapter", "parse_adapter_name"]

WRAPPER = "base_model.model."
"""What all names of a PEFT model begin with [``peft/peft_model.py``, ``peft/tuners/tuners_utils.py:BaseTuner``]."""

_LORA = re.compile(
    r"(?P<module>.+)\.(?P<kind>lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)"
    r"(?:\.(?!weight$|bias$)(?P<adapter>[^.]+))?(?P<end>\.weight|\.bias)?"
)
_SAVED = re.compile(r"(?P<module>.+)\.modules_to_save\.(?P<adapter>[^.]+)\.(?P<end>.+)")


@dataclass(frozen=True, slots=True)
class AdapterName:
    """The name of an adapter's tensor: the module of the base that it is about, without :data:`WRAPPER`; the kind,
    which is that of LoRA or ``modules_to_save``; the adapter's own name, None in a file; and what follows.
    """

    module: str
    kind: str
    adapter: str | None
    end: str

    @property
    def in_file(self) -> str:
        """The name in an adapter's own file."""
        kind = "" if self.kind == "modules_to_save" else f".{self.kind}"
        return f"{WRAPPER}{self.module}{kind}{self.end}"


def parse_adapter_name(name: str) -> AdapterName | None:
    """The parts of an adapter's name; None if it is none: a weight of the base, or one that only a file tells apart."""
    bare = name.removeprefix(WRAPPER)
    if match := _LORA.fullmatch(bare):
        return AdapterName(match["module"], match["kind"], match["adapter"], match["end"] or "")
    if match := _SAVED.fullmatch(bare):
        return AdapterName(match["module"], "modules_to_save", match["adapter"], f".{match['end']}")
    return None


def is_adapter(names: Iterable[str]) -> bool:
    """Whether names are those of an adapter, or of a model with one."""
    return any(parse_adapter_name(name) is not None for name in names)


def adapter_names(names: Iterable[str]) -> dict[str, AdapterName]:
    """The names of an adapter's tensors, parsed."""
    return {name: parsed for name in names if (parsed := parse_adapter_name(name)) is not None}


def base_name(name: str) -> str:
    """The name that a weight of the base has without the adapter around it."""
    bare = name.removeprefix(WRAPPER)
    return bare.replace(".base_layer.", ".").replace(".original_module.", ".")
