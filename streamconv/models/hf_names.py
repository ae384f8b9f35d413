"""How transformers stores a family: names, fused rows, transposed matrices, and the settings of its config.json."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from streamconv.models.config.settings import Setting
from streamconv.models.orders import QkvLayout
from streamconv.models.parameter import Section

__all__ = ["HfTensor", "HuggingFace", "linear", "split"]


@dataclass(frozen=True, slots=True)
class HfTensor:
    """One tensor of a Hugging Face model: all of a parameter, or one part of it.

    ``name`` contains ``{layer}`` if the tensor belongs to a layer. ``transposed`` matrices are stored ``(in, out)``
    [transformers ``pytorch_utils.py:Conv1D``].
    """

    name: str
    section: Section
    key: str
    part: str | None = None
    transposed: bool = False


@dataclass(frozen=True, slots=True)
class HuggingFace:
    """A family in transformers.

    ``tensors`` lists the tensors that every model of the family has, ``widest`` those that any model has; it is empty
    if all models have the same. ``prefix`` is the base model's name, which files of the bare base model leave out.
    ``keeps_padding`` says that published models keep the padded vocabulary.
    """

    model_type: str
    architecture: str
    prefix: str
    tensors: tuple[HfTensor, ...]
    qkv: QkvLayout
    settings: tuple[Setting, ...]
    keeps_padding: bool = False
    widest: tuple[HfTensor, ...] = ()

    def of(self, section: Section, key: str) -> Iterator[HfTensor]:
        """The tensors that a parameter is stored in."""
        return (tensor for tensor in self.tensors if (tensor.section, tensor.key) == (section, key))


def linear(name: str, key: str, *, transposed: bool = False, bias: bool = True) -> Iterator[HfTensor]:
    """The weight, and the bias, of a module of a layer."""
    yield HfTensor(f"{name}.weight", Section.LAYER, f"{key}.weight", transposed=transposed)
    if bias:
        yield HfTensor(f"{name}.bias", Section.LAYER, f"{key}.bias")


def split(names: Mapping[str, str], key: str, *, bias: bool = False) -> Iterator[HfTensor]:
    """The tensors of a fused parameter of a layer that is stored as a module for each part; ``names`` are by part."""
    for part, name in names.items():
        yield HfTensor(f"{name}.weight", Section.LAYER, f"{key}.weight", part)
        if bias:
            yield HfTensor(f"{name}.bias", Section.LAYER, f"{key}.bias", part)
