"""GPT-NeoX's tensors by their place in the model, from the files of its pipeline's layers.

The pipeline is the embedding, a function, L blocks, a function, the final norm, and the head unless it is tied
[gpt-neox ``megatron/model/gpt2_model.py:GPT2ModelPipe.init_specs``]: files 0, 2 .. L+1, L+3 and L+4.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from streamconv.containers.pickles.machine import Global
from streamconv.containers.torch_save.open import open_torch
from streamconv.core.errors import DamagedError, UnsupportedError
from streamconv.core.lazy import LazyTensor
from streamconv.formats.common.shards import join_ranks
from streamconv.models.parameter import ParameterId, Section

__all__ = ["FIRST_BLOCK", "NeoxLayers", "names_of_block", "open_neox_layers"]

FIRST_BLOCK = 2

# Module of a block -> Megatron's. ``linear1`` and ``linear2`` since 0d4bdb96 (2024-09).
_MODULES = {
    "input_layernorm": "input_layernorm",
    "attention.query_key_value": "self_attention.query_key_value",
    "attention.dense": "self_attention.dense",
    "post_attention_layernorm": "post_attention_layernorm",
    "mlp.dense_h_to_4h": "mlp.dense_h_to_4h",
    "mlp.dense_4h_to_h": "mlp.dense_4h_to_h",
    "mlp.linear1": "mlp.dense_h_to_4h",
    "mlp.linear2": "mlp.dense_4h_to_h",
}
_OTHERS = {
    "word_embeddings.weight": (Section.EMBEDDING, "word_embeddings.weight"),
    "norm.weight": (Section.FINAL_NORM, "weight"),
    "norm.bias": (Section.FINAL_NORM, "bias"),
    "final_linear.weight": (Section.HEAD, "lm_head.weight"),
}
# Kept by runs before persistent=False, and since by those with rotary_save_freqs_buffer.
_BUFFER = "attention.rotary_emb.inv_freq"
_REFUSED = (
    (r".*norm\.scale", "RMSNorm"),
    (r".*norm\.g", "ScaleNorm"),
    (r"position_embeddings\..*", "learned positions"),
    (r"mlp\.w[123]\..*", "a gated linear unit (GLU: mlp.w1, mlp.w3)"),
    (r"mlp\.(router|experts)\..*|.*\.experts\..*|.*deepspeed_moe.*", "a mixture of experts (MoE)"),
    (r"attention\.(qkv|proj)\..*|mlp\.(fc[12]|layer_norm)_.*", "Transformer Engine's modules"),
    (r"attention\.qk_layernorm\..*", "norms of queries and keys"),
    (r".*\brpe\b.*", "relative positions"),
    (r"rm_linear\..*", "a reward model's head"),
    (r"mixer\..*|.*mamba.*|(att|ffn)\..*", "blocks that are no transformer layers (Mamba, RWKV)"),
)


def names_of_block(*, before_2024_09: bool) -> dict[str, str]:
    """GPT-NeoX's names of a block's modules by Megatron's, as one of its versions has them."""
    left_out = ("mlp.linear1", "mlp.linear2") if before_2024_09 else ("mlp.dense_h_to_4h", "mlp.dense_4h_to_h")
    return {ours: name for name, ours in _MODULES.items() if name not in left_out}


@dataclass(frozen=True, slots=True)
class NeoxLayers:
    """The layers of a checkpoint: tensors by place, bytes of buffers that are no parameters, what the pickles name."""

    tp: int
    tensors: dict[ParameterId, tuple[LazyTensor, ...]]
    num_layers: int
    buffers: int
    buffers_nbytes: int
    named: Mapping[Path, Mapping[Global, int]]


def open_neox_layers(folder: Path, names: Mapping[tuple[int, int], str]) -> NeoxLayers:
    """Open the layer files and find each tensor's place.

    Args:
        folder: where they are.
        names: from :func:`streamconv.formats.deepspeed.layer_files.layer_file_names`.

    Raises:
        DamagedError: a file of the grid (layer x rank) is missing, ranks differ, or numbers have a gap.
        UnsupportedError: a key is of a mechanism that is refused by name, or of none that is known.
    """
    if not names:
        raise DamagedError("no layer files (layer_*-model_*-model_states.pt)", where=folder)
    tp = 1 + max(rank for _, rank in names)
    indices = sorted({index for index, _ in names})
    blocks = [index for index in indices if FIRST_BLOCK <= index < _norm_index(folder, names, indices)]
    tensors: dict[ParameterId, tuple[LazyTensor, ...]] = {}
    named: dict[Path, Mapping[Global, int]] = {}
    buffers: list[LazyTensor] = []
    for index in indices:
        files = [open_torch(folder / _present(folder, names, index, rank)) for rank in range(tp)]
        named |= {file.path: file.globals for file in files}
        contents = [file.tensors() for file in files]
        buffers += [stored.pop(_BUFFER) for stored in contents if _BUFFER in stored]
        number = blocks.index(index) if index in blocks else -1
        ranks = [dict(_placed(stored, number, file.path)) for stored, file in zip(contents, files, strict=True)]
        joined = join_ranks(ranks, [file.path.name for file in files], folder)
        if twice := joined.keys() & tensors.keys():
            raise DamagedError(f"{twice.pop().key} is here and in another layer file too", where=files[0].path)
        tensors |= joined
    return NeoxLayers(tp, tensors, len(blocks), len(buffers), sum(buffer.nbytes for buffer in buffers), named)


def _present(folder: Path, names: Mapping[tuple[int, int], str], index: int, rank: int) -> str:
    if (index, rank) not in names:
        raise DamagedError(
            f"layer_{index:02d}-model_{rank:02d}-model_states.pt is missing",
            where=folder,
            remedy="copy the missing files from the training run's storage",
        )
    return names[index, rank]


def _norm_index(folder: Path, names: Mapping[tuple[int, int], str], indices: Sequence[int]) -> int:
    """The index of the final norm, two behind the last block; all numbers must be as the pipeline gives them."""
    last = indices[-1]
    keys = open_torch(folder / _present(folder, names, last, 0)).tensors()
    norm = last if "norm.weight" in keys else last - 1
    ranges = range(1), range(FIRST_BLOCK, norm - 1), range(norm, last + 1)
    missing = next((index for index in chain(*ranges) if index not in indices), None)
    if not ranges[1] or missing is not None or sum(map(len, ranges)) != len(indices):
        raise DamagedError(
            f"layer files are numbered {_runs(indices)}; GPT-NeoX's are 0, 2 up to the last block, two more the final "
            "norm, and the head" + ("" if missing is None else f": the first missing is {missing}"),
            where=folder,
            remedy="copy the missing files from the training run's storage",
        )
    return norm


def _runs(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:6])) + (f" .. {numbers[-1]}" if len(numbers) > 6 else "")


def _placed(stored: Mapping[str, LazyTensor], number: int, path: Path) -> Iterator[tuple[ParameterId, LazyTensor]]:
    """The tensors of one file by place; those of block ``number``, or -1."""
    _refuse(stored, path)
    for key, tensor in stored.items():
        if number < 0 and key in _OTHERS:
            section, name = _OTHERS[key]
            yield ParameterId(section, -1, name), tensor
            continue
        module, _, leaf = key.rpartition(".")
        if number < 0 or module not in _MODULES or leaf not in ("weight", "bias"):
            where = f"block {number}" if number >= 0 else "a layer file outside the blocks"
            raise UnsupportedError(f"{where} of GPT-NeoX has the tensor {key}, of unknown role", where=path)
        yield ParameterId(Section.LAYER, number, f"{_MODULES[module]}.{leaf}"), tensor


def _refuse(keys: Collection[str], path: Path) -> None:
    for pattern, words in _REFUSED:
        if any(re.fullmatch(pattern, key) for key in keys):
            raise UnsupportedError(f"GPT-NeoX with {words}: not translated", where=path)
