"""The tensors of GPT-NeoX's layer files, by their place in the model.

The pipeline is the embedding, a function, L blocks, a function, the final norm, and the head unless it is tied
[gpt-neox ``megatron/model/gpt2_model.py:GPT2ModelPipe.init_specs``]: files 0, 2 .. L+1, L+3 and L+4.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from streamconv.containers.pickles.machine import Global
from streamconv.core.errors import DamagedError, UnsupportedError
from streamconv.core.lazy import LazyTensor
from streamconv.formats.common.faults import COPY_AGAIN, Faults
from streamconv.formats.common.shards import join_ranks
from streamconv.formats.deepspeed.layer_files import keys_of, open_layer_files
from streamconv.formats.deepspeed.layer_roles import is_neox
from streamconv.formats.deepspeed.names import FolderNames
from streamconv.formats.gpt_neox.names import BLOCK_MODULES, FIRST_BLOCK, OUTSIDE_BLOCKS, ROTARY_BUFFER
from streamconv.formats.gpt_neox.refusals import refuse_neox_keys
from streamconv.models.parameter import ParameterId, Section

__all__ = [
    "NeoxLayers",
    "check_neox_numbers",
    "neox_sections",
    "open_neox_layers",
]


@dataclass(frozen=True, slots=True)
class NeoxLayers:
    """The layers of a checkpoint: tensors by place, the number and bytes of buffers, names in the pickles."""

    tp: int
    tensors: dict[ParameterId, tuple[LazyTensor, ...]]
    num_layers: int
    buffers: int
    buffers_nbytes: int
    named: Mapping[Path, Mapping[Global, int]]


def open_neox_layers(folder: Path, names: FolderNames) -> NeoxLayers:
    """Open the layer files and find the place of each tensor.

    Args:
        folder: where they are.
        names: the files there; the grid (layer x rank) must be complete.

    Raises:
        DamagedError: a file is broken, ranks differ, or numbers have a gap.
        UnsupportedError: a key belongs to a mechanism that is refused by name, or is unknown; or no layer is
            GPT-NeoX's.
    """
    if not names.layers:
        raise DamagedError("no layer files (layer_*-model_*-model_states.pt)", where=folder)
    strict = Faults()
    opened = open_layer_files(folder, names, strict)
    keys = keys_of(opened)
    if not is_neox(keys.values()):
        what = "a pipeline of DeepSpeed whose layers are neither GPT-NeoX's nor Megatron's: not translated"
        raise UnsupportedError(what, where=folder)
    for index, files in opened.items():
        refuse_neox_keys(keys[index], files[0].path)
    check_neox_numbers(folder, keys, strict)
    blocks = [index for index, section in neox_sections(keys).items() if section is Section.LAYER]
    tensors: dict[ParameterId, tuple[LazyTensor, ...]] = {}
    buffers: list[LazyTensor] = []
    for index, files in opened.items():
        contents = [file.tensors() for file in files.values()]
        buffers += [stored.pop(ROTARY_BUFFER) for stored in contents if ROTARY_BUFFER in stored]
        number = blocks.index(index) if index in blocks else -1
        ranks = [dict(_placed(stored, number, files[rank].path)) for rank, stored in enumerate(contents)]
        joined = join_ranks(ranks, [file.path.name for file in files.values()], folder)
        if twice := joined.keys() & tensors.keys():
            raise DamagedError(f"{twice.pop().key} is here and in another layer file too", where=files[0].path)
        tensors |= joined
    named = {file.path: file.globals for files in opened.values() for file in files.values()}
    nbytes = sum(buffer.nbytes for buffer in buffers)
    return NeoxLayers(len(opened[0]), tensors, len(blocks), len(buffers), nbytes, named)


def neox_sections(keys: Mapping[int, Collection[str]]) -> dict[int, Section]:
    """The role of each layer by its number: first the embedding, then the blocks, the final norm, and the head."""
    norm = _norm_index(keys)
    ends = {0: Section.EMBEDDING, norm: Section.FINAL_NORM, norm + 1: Section.HEAD}
    return {index: ends.get(index, Section.LAYER) for index in sorted(keys)}


def _norm_index(keys: Mapping[int, Collection[str]]) -> int:
    last = max(keys)
    return last if any(key.startswith("norm.") for key in keys[last]) else last - 1


def check_neox_numbers(folder: Path, keys: Mapping[int, Collection[str]], faults: Faults) -> None:
    """Check the numbers of the layers, which the pipeline determines; the final norm comes two after the last block.

    Raises:
        DamagedError: ``faults`` is strict, and a number is missing or belongs to no layer.
    """
    norm = _norm_index(keys)
    ranges = range(1), range(FIRST_BLOCK, norm - 1), range(norm, max(keys) + 1)
    missing = next((index for index in chain(*ranges) if index not in keys), None)
    if not ranges[1] or missing is not None or sum(map(len, ranges)) != len(keys):
        words = "" if missing is None else f": the first missing is layer_{missing:02d}"
        faults.note(
            DamagedError(
                f"layer files are numbered {_runs(sorted(keys))}; GPT-NeoX's are 0, 2 up to the last block, two more "
                f"the final norm, and the head{words}",
                where=folder,
                remedy=COPY_AGAIN,
            )
        )


def _runs(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:6])) + (f" .. {numbers[-1]}" if len(numbers) > 6 else "")


def _placed(stored: Mapping[str, LazyTensor], number: int, path: Path) -> Iterator[tuple[ParameterId, LazyTensor]]:
    """The tensors of one file by place. ``number`` is the file's block, -1 if it is outside the blocks."""
    refuse_neox_keys(stored, path)
    for key, tensor in stored.items():
        if number < 0 and key in OUTSIDE_BLOCKS:
            section, name = OUTSIDE_BLOCKS[key]
            yield ParameterId(section, -1, name), tensor
            continue
        module, _, leaf = key.rpartition(".")
        if number < 0 or module not in BLOCK_MODULES or leaf not in ("weight", "bias"):
            where = f"block {number}" if number >= 0 else "a layer file outside the blocks"
            raise UnsupportedError(f"{where} of GPT-NeoX has the tensor {key}, of unknown role", where=path)
        yield ParameterId(Section.LAYER, number, f"{BLOCK_MODULES[module]}.{leaf}"), tensor
