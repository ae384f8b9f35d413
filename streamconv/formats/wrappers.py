"""Take off the names that wrappers put around a model's own: data parallelism, compilers, checkpointing, trainers.

- ``module.``: ``torch.nn.parallel.DistributedDataParallel``, and DeepSpeed's engine where a trainer saves it whole.
- ``_forward_module.``: Lightning Fabric's wrapper [``lightning/fabric/wrappers.py:_FabricModule``].
- ``_orig_mod.``: ``torch.compile`` [``torch/_dynamo/eval_frame.py:OptimizedModule``].
- ``_fsdp_wrapped_module.``: FSDP1 [``torch/distributed/fsdp/_common_utils.py:FSDP_WRAPPED_MODULE``].
- ``_checkpoint_wrapped_module.``: activation checkpointing [``torch/distributed/algorithms/_checkpoint/
  checkpoint_wrapper.py:_CHECKPOINT_WRAPPED_MODULE``].
- ``base_model.model.``: PEFT's model around a model [``peft/peft_model.py:PeftModel``].
- ``model.`` and ``state_dict.``: a trainer's attribute, and the entry of a file that it saves.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet

from streamconv.formats.named import NamedModel

__all__ = ["bare_names", "without_wrappers"]

# They stand anywhere in a name, and no model has modules of these names.
_INSIDE = ("_forward_module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
# They stand before all names.
_BEFORE = ("module.", "base_model.model.", "state_dict.")
# What a model of transformers begins with: behind an outer `model.` it is the model's own.
_OWN = ("model.", "transformer.", "gpt_neox.", "lm_head.", "bert.", "encoder.", "decoder.", "language_model.", "score.")


def bare_names(names: Iterable[str], own: AbstractSet[str] = frozenset()) -> tuple[dict[str, str], list[str]]:
    """The names without wrappers, by the stored names, and the wrappers that were taken off.

    Args:
        names: the stored names.
        own: the names that the model has by its configuration, if that is known: an outer ``model.`` is a wrapper if
            they fit without it, and only then.
    """
    stored = list(names)
    bare: list[str] = list(stored)
    taken: list[str] = []
    while stored:
        for wrapper in _INSIDE:
            without = [".".join(part for part in name.split(".") if part != wrapper) for name in bare]
            if without != bare and all(without) and len(set(without)) == len(without):
                bare, taken = without, [*taken, f"{wrapper}."]
        prefix = next((each for each in _BEFORE if all(name.startswith(each) for name in bare)), None)
        if prefix is None and _is_around_model(bare, own):
            prefix = "model."
        if prefix is None or any(name == prefix for name in bare):
            break
        bare, taken = [name.removeprefix(prefix) for name in bare], [*taken, prefix]
    return {name: new for name, new in zip(stored, bare, strict=True) if name != new}, list(dict.fromkeys(taken))


def _is_around_model(names: Sequence[str], own: AbstractSet[str]) -> bool:
    """Whether an outer ``model.`` is a wrapper: transformers has a ``model.`` of its own."""
    if not all(name.startswith("model.") for name in names):
        return False
    inner = [name.removeprefix("model.") for name in names]
    if own:
        return len(own & set(inner)) > len(own & set(names))
    return any(name.startswith(("model.", "lm_head.", "transformer.", "gpt_neox.")) for name in inner) and all(
        name.startswith(_OWN) for name in inner
    )


def without_wrappers(model: NamedModel, own: AbstractSet[str] = frozenset()) -> NamedModel:
    """The model without the names of wrappers; a warning says which."""
    names, taken = bare_names(model.tensors, own)
    if not taken:
        return model
    every = "all names" if len(names) == len(model.tensors) else f"{len(names)} names"
    return model.renamed(names).noting(warnings=[f"{every} bear {', '.join(taken)}: taken off"])
