"""What a conversion must give, computed by torch alone: no code of the package is used here.

Whole models are dicts of canonical names to torch tensors, vocabulary padding included, query_key_value rows as
``(heads, 3, head_dim, ..)``.
"""

from __future__ import annotations

import argparse
import pickle
import re
import types
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch

from tests.places import Source

Model = dict[str, torch.Tensor]

HEADS = 4
ROW_PARALLEL = ("self_attention.dense.weight", "mlp.dense_4h_to_h.weight")
SPLIT_ON_ROWS = (
    "self_attention.query_key_value.weight",
    "self_attention.query_key_value.bias",
    "mlp.dense_h_to_4h.weight",
    "mlp.dense_h_to_4h.bias",
    "word_embeddings.weight",
    "lm_head.weight",
)
GPT2_NAMES = {
    "word_embeddings.weight": "transformer.wte.weight",
    "position_embeddings.weight": "transformer.wpe.weight",
    "final_layernorm": "transformer.ln_f",
    "layers": "transformer.h",
    "input_layernorm": "ln_1",
    "self_attention.query_key_value": "attn.c_attn",
    "self_attention.dense": "attn.c_proj",
    "post_attention_layernorm": "ln_2",
    "mlp.dense_h_to_4h": "mlp.c_fc",
    "mlp.dense_4h_to_h": "mlp.c_proj",
}


class _Stub:
    def __init__(self, *args: Any) -> None:
        self.args = args

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] in ("megatron", "deepspeed"):
            return type(name, (_Stub,), {})
        return super().find_class(module, name)


_STUBS = types.SimpleNamespace(Unpickler=_Unpickler, load=pickle.load, __name__="stubs")


def load_stubbed(path: Path) -> Any:
    """torch.load with the training framework's classes replaced by empty ones."""
    return torch.load(path, map_location="cpu", weights_only=False, pickle_module=_STUBS)


def load_plain(path: Path) -> Any:
    """torch.load as a careful user calls it on a result."""
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, weights_only=True)


def merge(key: str, shards: list[torch.Tensor]) -> torch.Tensor:
    """One parameter's shards as a whole; replicated ones must be equal."""
    if key.endswith(SPLIT_ON_ROWS):
        return torch.cat(shards, 0)
    if key.endswith(ROW_PARALLEL):
        return torch.cat(shards, 1)
    for shard in shards[1:]:
        assert torch.equal(shard, shards[0]), key
    return shards[0]


def by_head(tensor: torch.Tensor, heads: int = HEADS) -> torch.Tensor:
    """Interleaved rows as (heads, 3, head_dim, ..)."""
    return tensor.reshape(heads, 3, -1, *tensor.shape[1:])


def by_head_from_blocks(shards: list[torch.Tensor], heads: int = HEADS) -> torch.Tensor:
    """Per-rank [Q;K;V] blocks as (heads, 3, head_dim, ..)."""
    per_rank = heads // len(shards)
    parts = [shard.reshape(3, per_rank, -1, *shard.shape[1:]).transpose(0, 1) for shard in shards]
    return torch.cat(parts, 0)


def whole_model(ranks: list[Model], heads: int = HEADS, *, blocks: bool = False) -> Model:
    """A model from the tensors of each tensor-parallel rank under canonical names."""
    model: Model = {}
    for key in ranks[0]:
        shards = [rank[key] for rank in ranks]
        if "query_key_value" in key:
            model[key] = by_head_from_blocks(shards, heads) if blocks else by_head(merge(key, shards), heads)
        else:
            model[key] = merge(key, shards)
    return model


def source_model(root: Path, heads: int = HEADS, *, blocks: bool = False) -> Model:
    """The model in a Megatron-DeepSpeed folder."""
    folder = root / (root / "latest").read_text().strip() if (root / "latest").exists() else root
    files = sorted(folder.glob("layer_*-model_*-model_states.pt"))
    if not files:
        modules = [load_stubbed(path)["module"]["language_model"] for path in sorted(folder.glob("mp_rank_*.pt"))]
        return whole_model([_nested(module) for module in modules], heads, blocks=blocks)
    by_layer: dict[int, dict[int, Model]] = {}
    for path in files:
        match = re.fullmatch(r"layer_(\d+)-model_(\d+)-model_states\.pt", path.name)
        assert match
        by_layer.setdefault(int(match[1]), {})[int(match[2])] = torch.load(path, weights_only=True)
    ranks: list[Model] = [{} for _ in next(iter(by_layer.values()))]
    layer = 0
    for index in sorted(by_layer):
        keys = set(by_layer[index][0])
        if "input_layernorm.weight" in keys:
            prefix, layer = f"layers.{layer}.", layer + 1
        else:
            prefix = "final_layernorm." if keys <= {"weight", "bias"} else ""
        for rank, tensors in by_layer[index].items():
            ranks[rank] |= {prefix + key: tensor for key, tensor in tensors.items()}
    return whole_model(ranks, heads, blocks=blocks)


@cache
def model_of(source: Source) -> Model:
    """The model in a checkpoint of the repository, read once; nobody changes it."""
    return source_model(source.folder, source.heads, blocks=source.blocks)


def _nested(module: Mapping[str, Any]) -> Model:
    flat: Model = {
        f"{outer}.{inner}": tensor
        for outer, tensors in module["embedding"].items()
        for inner, tensor in tensors.items()
    }
    flat |= module["encoder"]
    if "output_layer" in module:
        flat["lm_head.weight"] = module["output_layer"]["weight"]
    return flat


_OLD_NORMS = {"input_norm": "input_layernorm", "post_attention_norm": "post_attention_layernorm"}


def _old_name(key: str) -> str:
    key = re.sub(r"\b(input_norm|post_attention_norm)\b", lambda match: _OLD_NORMS[match[1]], key)
    return re.sub(r"^final_norm\b", "final_layernorm", key)


def _shifted(key: str, offset: int) -> str:
    return re.sub(r"^layers\.(\d+)\.", lambda match: f"layers.{int(match[1]) + offset}.", key)


def result_files(root: Path, tp: int, pp: int) -> dict[tuple[int, int], Any]:
    """Every rank's state dict of a legacy Megatron-LM checkpoint, which must have just these files."""
    folder = root / f"iter_{int((root / 'latest_checkpointed_iteration.txt').read_text()):07d}"
    suffixes = [f"_{stage:03d}" for stage in range(pp)] if pp > 1 else [""]
    names = {(rank, stage): f"mp_rank_{rank:02d}{suffixes[stage]}" for rank in range(tp) for stage in range(pp)}
    assert sorted(path.name for path in folder.iterdir()) == sorted(names.values())
    return {place: load_plain(folder / name / "model_optim_rng.pt") for place, name in names.items()}


def result_model(files: Mapping[tuple[int, int], Any], heads: int = HEADS) -> Model:
    """The model in a legacy Megatron-LM checkpoint; the tied head's copy must be the embedding itself."""
    tp, pp = (1 + max(place[axis] for place in files) for axis in (0, 1))
    ranks: list[Model] = []
    for rank in range(tp):
        flat: Model = {}
        offset = 0
        for stage in range(pp):
            model = files[rank, stage]["model"]
            part = _nested(model["language_model"])
            layers = {int(m[1]) for key in part if (m := re.match(r"layers\.(\d+)\.", key))}
            assert layers == set(range(len(layers)))
            for key, tensor in part.items():
                name = _shifted(_old_name(key), offset)
                assert name not in flat
                flat[name] = tensor
            offset += len(layers)
            if "word_embeddings_for_head" in model:
                assert stage == pp - 1
                assert list(model["word_embeddings_for_head"]) == ["weight"]
                assert torch.equal(model["word_embeddings_for_head"]["weight"], flat["word_embeddings.weight"])
        ranks.append(flat)
    return whole_model(ranks, heads)


def as_gpt2(model: Model) -> Model:
    """The whole GPT by transformers' names, which keeps all queries, then all keys, then all values, and matrices
    transposed [``models/gpt2/modeling_gpt2.py``, whose linear layers are ``Conv1D``].
    """
    found: Model = {}
    for key, tensor in model.items():
        if "query_key_value" in key:
            tensor = tensor.transpose(0, 1).reshape(-1, *tensor.shape[3:])
        if key.startswith("layers.") and tensor.dim() == 2:
            tensor = tensor.t()
        for ours, theirs in GPT2_NAMES.items():
            key = key.replace(ours, theirs)
        found[key] = tensor
    return found


def assert_same_model(result: Model, source: Model, true_vocab: int | None = None) -> None:
    """Bit for bit the same, except for vocabulary padding, which repeats the last true row where it was refilled."""
    assert set(result) == set(source)
    for name, expected in source.items():
        actual = result[name]
        if name in ("word_embeddings.weight", "lm_head.weight") and actual.shape != expected.shape:
            assert true_vocab is not None
            assert torch.equal(actual[true_vocab:], actual[true_vocab - 1].expand_as(actual[true_vocab:]))
            actual, expected = actual[:true_vocab], expected[:true_vocab]
        assert actual.dtype == expected.dtype
        assert torch.equal(actual.view(torch.uint8), expected.view(torch.uint8)), name
