"""The names of a Hugging Face model, both ways: the place of a stored tensor, and the name of a slot."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streamconv.core.errors import DamagedError, UnsupportedError
from streamconv.core.lazy import LazyTensor, concat
from streamconv.formats.common.adapter_files import ADAPTER_CONFIG
from streamconv.formats.huggingface.passed_over import is_buffer
from streamconv.formats.target import Slot
from streamconv.models.biases import entry_of
from streamconv.models.family import ModelFamily
from streamconv.models.hf_names import HfTensor
from streamconv.models.parameter import WORDS, ParameterId, Section

__all__ = ["ADAPTER", "CONFIG", "GENERATION", "INDEX_SUFFIX", "TIED_HEAD", "WEIGHTS", "HfNames", "HfTensors"]

CONFIG = "config.json"
GENERATION = "generation_config.json"
ADAPTER = (ADAPTER_CONFIG, "adapter_model.")
"""How the names of an adapter's files begin."""

INDEX_SUFFIX = ".index.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""The names of a model in one file; the first that exists is used. The index of shards adds :data:`INDEX_SUFFIX`."""

TIED_HEAD = "lm_head.weight"


@dataclass(frozen=True, slots=True)
class HfTensors:
    """The tensors of a folder: whole parameters, fused where Megatron fuses them, a tied head's copy, and buffers."""

    tensors: dict[ParameterId, LazyTensor]
    num_layers: int
    head_name: str
    head_copy: LazyTensor | None
    buffers: dict[str, LazyTensor]


class HfNames:
    """The names of a family that is narrowed to one model."""

    words: ParameterId = WORDS

    def __init__(self, family: ModelFamily, architectures: object = None) -> None:
        """``architectures`` is that entry of ``config.json``, for messages."""
        self.architectures = architectures
        self.family, self.table = family, family.huggingface
        self._by_name = {row.name: row for row in self.table.tensors}
        # Tensors that only other models of the family have.
        self._others = {row.name: row for row in self.table.widest if row.name not in self._by_name}
        # A name has at most one layer number, between dots.
        self._number = re.compile(r"(?<=\.)[0-9]{1,9}(?=\.)")
        heads = [row.name for row in self.table.tensors if row.section is Section.HEAD]
        self._head = heads[0] if heads else TIED_HEAD

    def read(self, stored: Mapping[str, LazyTensor], args: Mapping[str, Any], where: Path) -> HfTensors:
        """All stored tensors, each at its place in the model.

        Args:
            stored: tensors by name; those of a bare base model lack the prefix.
            args: the training arguments of the configuration, complete.
            where: for messages.

        Raises:
            DamagedError: a tensor is missing or misshaped, or layers are not numbered from 0 without a gap.
            UnsupportedError: a tensor is not one of the family's, or quantised.
        """
        is_tied = not args["untie_embeddings_and_output_weights"]
        rows, head, buffers = self._sort(stored, where, is_tied=is_tied)
        layers = {layer for _, layer in rows if layer >= 0}
        if not layers or layers != set(range(len(layers))):
            words = f"layers are numbered {sorted(layers)[:8]}, not from 0 without a gap" if layers else "no layers"
            raise DamagedError(words, where=where, remedy="fetch the model again")
        if head is not None and (words_row := self._row_of(self.words)) and (words_row.name, -1) not in rows:
            # The head alone is stored: transformers ties the other way round [``modeling_utils.py:tie_weights``].
            rows[words_row.name, -1], head = head, None
        self._check_parts(rows, args, where)
        if not is_tied and (self._head, -1) not in rows:
            raise self._no_head(rows, stored, where)
        tensors = dict(self._places(rows, len(layers), where, is_tied=is_tied))
        head = self._check_words(tensors[self.words], head, where)
        return HfTensors(tensors, len(layers), self._head, head, buffers)

    def _sort(
        self, stored: Mapping[str, LazyTensor], where: Path, *, is_tied: bool
    ) -> tuple[dict[tuple[str, int], LazyTensor], LazyTensor | None, dict[str, LazyTensor]]:
        """Tensors by (name of their row in the table, layer), a tied head's copy, and buffers by name."""
        if not is_tied and self._head not in self._by_name:
            raise UnsupportedError(
                f"tie_word_embeddings is false: a {self.family.title} model with a head apart from the word embedding",
                where=where,
                remedy='if its head is the embedding, say {"tie_word_embeddings": true} in --config FILE',
            )
        rows: dict[tuple[str, int], LazyTensor] = {}
        buffers: dict[str, LazyTensor] = {}
        head: LazyTensor | None = None
        for name, tensor in stored.items():
            known = self._row(name, self._by_name)
            if name == self._head and is_tied:
                head = tensor
            elif known is not None:
                row, layer = known
                if not tensor.dtype.is_floating:
                    raise UnsupportedError(
                        f"{name} is {tensor.dtype}: quantised weights are not translated", where=where
                    )
                if (row.name, layer) in rows:
                    raise DamagedError(
                        f"{name} is stored twice, with the prefix {self.table.prefix} and without", where=where
                    )
                rows[row.name, layer] = tensor
            elif (other := self._row(name, self._others)) is not None:
                raise self._not_said(name, other[0], where)
            elif is_buffer(name, tensor):
                buffers[name] = tensor
            else:
                raise UnsupportedError(
                    f"{name[:200]}: no tensor of {self.family.title} as transformers stores it "
                    f"({self.table.architecture})",
                    where=where,
                    remedy="transformers passes over it: to go without, load the model with it and save it again; "
                    "--to safetensors keeps all tensors under their names",
                )
        return rows, head, buffers

    def _check_words(self, words: LazyTensor, head: LazyTensor | None, where: Path) -> LazyTensor | None:
        """The copy of a tied head, None if it shares the embedding's bytes or is not stored."""
        if len(words.shape) != 2:
            raise DamagedError(f"the word embedding has shape {words.shape}, not two axes", where=where)
        if head is None or head.pieces == words.pieces:
            return None
        if head.shape != words.shape or not head.dtype.is_floating:
            remedy = 'if they are two, say {"tie_word_embeddings": false} in --config FILE'
            raise DamagedError(
                f"{self._head} is {head.shape} {head.dtype}, the embedding that it is tied to is {words.shape} "
                f"{words.dtype}",
                where=where,
                remedy=remedy if self._head in self._by_name else None,
            )
        return head

    def _row_of(self, parameter: ParameterId) -> HfTensor | None:
        """The first stored tensor of a parameter, None if the family has none."""
        return next(iter(self.table.of(parameter.section, parameter.key)), None)

    def _row(self, name: str, rows: Mapping[str, HfTensor]) -> tuple[HfTensor, int] | None:
        """The row of a stored name and its layer's number, -1 outside the layers; the prefix may be missing."""
        for full in (name, self.table.prefix + name):
            whole = rows.get(full)
            if whole is not None and whole.section is not Section.LAYER:
                return whole, -1
            match = self._number.search(full)
            if match:
                row = rows.get(f"{full[: match.start()]}{{layer}}{full[match.end() :]}")
                if row is not None and str(int(match[0])) == match[0]:
                    return row, int(match[0])
        return None

    def _check_parts(self, rows: Mapping[tuple[str, int], LazyTensor], args: Mapping[str, Any], where: Path) -> None:
        """Check the rows of each part now: once parts are joined, their borders are lost."""
        groups, heads = (args[name] * args["kv_channels"] for name in ("num_key_value_heads", "num_attention_heads"))
        heights = {"query": heads, "key": groups, "value": groups}
        heights |= dict.fromkeys(("gate", "up"), args["ffn_hidden_size"])
        first: dict[tuple[str, int], LazyTensor] = {}
        by_name = {row.name: row for row in self.table.tensors if row.part is not None}
        for (name, layer), tensor in rows.items():
            row = by_name.get(name)
            if row is None:
                continue
            other = first.setdefault((row.key, layer), tensor)
            words = f"{name.format(layer=layer)} is {tensor.shape} {tensor.dtype}"
            if tensor.shape[:1] != (heights[row.part or ""],) or tensor.shape[1:] != other.shape[1:]:
                raise DamagedError(f"{words}: it should have {heights[row.part or '']} rows", where=where)

    def _places(
        self, rows: Mapping[tuple[str, int], LazyTensor], num_layers: int, where: Path, *, is_tied: bool
    ) -> Iterator[tuple[ParameterId, LazyTensor]]:
        left = dict(rows)
        for parameter in self.family.parameters:
            if parameter.section is Section.HEAD and is_tied:
                continue
            for layer in range(num_layers) if parameter.section is Section.LAYER else (-1,):
                parts = []
                for row in self.table.of(parameter.section, parameter.key):
                    tensor = left.pop((row.name, layer), None)
                    if tensor is None:
                        raise self._missing(row, layer, where)
                    parts.append((row, tensor))
                if len(parts) > 1:
                    parts.sort(key=lambda pair: parameter.parts.index(pair[0].part or ""))
                whole = [_upright(row, layer, tensor, where) for row, tensor in parts]
                # Parts of unlike dtypes keep them: the dtype of the whole is only a name until something fuses them.
                widest = max((tensor.dtype for tensor in whole), key=lambda dtype: dtype.itemsize)
                yield parameter.of(layer), whole[0] if len(whole) == 1 else concat(whole, 0, widest)
        for name, layer in left:
            raise UnsupportedError(f"{name.format(layer=layer)}: it is part of no parameter", where=where)

    def _no_head(
        self, rows: Collection[tuple[str, int]], stored: Collection[str], where: Path
    ) -> DamagedError | UnsupportedError:
        """The error for a model whose head is neither stored nor the embedding: base models have none."""
        tied = 'if its head is the embedding, say {"tie_word_embeddings": true} in --config FILE'
        what = f"{self._head} is not stored, and tie_word_embeddings is false"
        said = self.architectures[0] if isinstance(self.architectures, list) and self.architectures else None
        if any(name in stored for name, _ in rows) and not str(said).endswith("Model"):
            return DamagedError(what, where=where, remedy=f"fetch the model again; or, {tied}")
        words = f"architectures says {str(said)[:80]}" if said else f"its names lack the prefix {self.table.prefix}"
        return UnsupportedError(
            f"{what}: a base model, which has no head ({words})",
            where=where,
            remedy=f"{tied}; to keep it as it is, --to safetensors",
        )

    def _missing(self, row: HfTensor, layer: int, where: Path) -> DamagedError:
        what = f"{row.name.format(layer=layer)} is missing"
        if row.key not in self.family.choices:
            return DamagedError(what, where=where, remedy="fetch the model again")
        entry = entry_of(row.key)
        return DamagedError(
            f"{what}, and config.json says {entry} true",
            where=where,
            remedy=f'fetch the model again; or, if no layer has it, say {{"{entry}": false}} in --config FILE',
        )

    def _not_said(self, name: str, row: HfTensor, where: Path) -> DamagedError:
        entry = entry_of(row.key)
        return DamagedError(
            f"{name} is stored, and config.json does not say {entry} true",
            where=where,
            remedy=f'transformers passes over it; if the model has it, say {{"{entry}": true}} in --config FILE',
        )

    def stored_name(self, parameter: ParameterId) -> str:
        """The stored name of a parameter, or the names of its parts, separated by commas."""
        rows = self.table.of(parameter.section, parameter.key)
        return ", ".join(row.name.format(layer=parameter.layer) for row in rows)

    def slots(self, num_layers: int, *, has_head: bool) -> Iterator[tuple[str, Slot]]:
        """(name, slot) of every stored tensor, in the order of the model."""
        sections = [[row for row in self.table.tensors if row.section is section] for section in Section]
        embedding, layer, norm, head = sections
        for row in embedding:
            yield row.name, _slot(row, -1)
        for number in range(num_layers):
            for row in layer:
                yield row.name.format(layer=number), _slot(row, number)
        for row in (*norm, *(head if has_head else ())):
            yield row.name, _slot(row, -1)


def _upright(row: HfTensor, layer: int, tensor: LazyTensor, where: Path) -> LazyTensor:
    """A stored tensor with its axes as in Megatron."""
    if not row.transposed:
        return tensor
    if len(tensor.shape) != 2:
        raise DamagedError(f"{row.name.format(layer=layer)} has shape {tensor.shape}, not two axes", where=where)
    return tensor.permute(1, 0)


def _slot(row: HfTensor, layer: int) -> Slot:
    return Slot(ParameterId(row.section, layer, row.key), row.part, row.transposed)
