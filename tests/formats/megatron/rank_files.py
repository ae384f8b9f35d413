"""Labelled models, and the files that Megatron-LM writes of them by its own rules: no code of the package is used here.

Every element of a model has a value of its own, so a row in a wrong order, a shard in a wrong place or a layer under a
wrong number shows as a wrong value, and :meth:`Labelled.origin` says what stands there instead. A model is held as one
tensor-parallel rank of Megatron has it: rows of ``query_key_value`` are ``[groups, heads / groups + 2, head_dim]``,
gate before up.

The rules are those of Megatron-LM's ``megatron/core/tensor_parallel/layers.py`` (column-parallel layers are cut on axis
0, row-parallel ones on axis 1), ``attention.py`` (a rank has whole groups, or an even slice of all rows), ``mlp.py``
(each rank has its part of the gate, then its part of the up), ``transformer_layer.py:get_transformer_layer_offset``.
"""

from __future__ import annotations

import json
import re
from argparse import Namespace
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, product
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save_file

State = dict[str, Any]
Rank = tuple[int, int]

TRACKER = "latest_checkpointed_iteration.txt"
QKV, GLU = "self_attention.query_key_value.", "mlp.dense_h_to_4h."
WORDS, HEAD = "word_embeddings.weight", "lm_head.weight"
COPY = "output_layer.weight"

# megatron/core/models/gpt/gpt_layer_specs.py
MODULES = {
    "self_attention.query_key_value.": "self_attention.linear_qkv.",
    "self_attention.dense.": "self_attention.linear_proj.",
    "mlp.dense_h_to_4h.": "mlp.linear_fc1.",
    "mlp.dense_4h_to_h.": "mlp.linear_fc2.",
    "self_attention.q_layernorm.": "self_attention.q_layernorm.",
    "self_attention.k_layernorm.": "self_attention.k_layernorm.",
}
NORMS = {
    "te": {
        "input_layernorm.": "self_attention.linear_qkv.layer_norm_",
        "post_attention_layernorm.": "mlp.linear_fc1.layer_norm_",
    },
    "local": {"input_layernorm.": "input_layernorm.", "post_attention_layernorm.": "pre_mlp_layernorm."},
}
LINEARS = ("self_attention.linear_qkv", "self_attention.linear_proj", "mlp.linear_fc1", "mlp.linear_fc2")
COLUMNS = (QKV, GLU, WORDS, HEAD)
ROWS = ("self_attention.dense.weight", "mlp.dense_4h_to_h.weight")


class Row(Protocol):
    """A parameter in a family's table: where it belongs, its key there, the names of its sizes."""

    @property
    def section(self) -> Any: ...
    @property
    def key(self) -> str: ...
    @property
    def shape(self) -> tuple[str, ...]: ...


class Stored(Protocol):
    """A tensor in a family's table of transformers' names."""

    @property
    def name(self) -> str: ...
    @property
    def section(self) -> Any: ...
    @property
    def key(self) -> str: ...
    @property
    def part(self) -> str | None: ...
    @property
    def transposed(self) -> bool: ...


@dataclass(frozen=True)
class Sizes:
    """Sizes of a labelled model; ``vocab`` has no padding."""

    num_layers: int = 12
    hidden: int = 16
    heads: int = 4
    groups: int = 4
    head_dim: int = 4
    ffn: int = 24
    vocab: int = 50
    positions: int = 20
    gated: bool = False

    def shape(self, names: Iterable[str]) -> tuple[int, ...]:
        """The whole shape of a parameter on one rank."""
        fused = {
            "qkv": (self.heads + 2 * self.groups) * self.head_dim,
            "attention": self.heads * self.head_dim,
            "ffn_in": (1 + self.gated) * self.ffn,
        }
        return tuple(fused[name] if name in fused else int(getattr(self, name)) for name in names)


@dataclass(frozen=True)
class Cut:
    """How a model is cut: ``stages`` are the layers of each stage, ``multiple`` is what the vocabulary is padded to.

    ``chunks`` are the layers of each chunk in the order of the layers, where those of one stage are not as many.
    """

    tp: int = 1
    stages: tuple[int, ...] = (12,)
    vpp: int = 1
    multiple: int = 4
    chunks: tuple[int, ...] = ()

    @property
    def pp(self) -> int:
        return len(self.stages)

    @property
    def ranks(self) -> list[Rank]:
        return list(product(range(self.tp), range(self.pp)))

    def layers(self, stage: int, chunk: int) -> range:
        """The layers of a chunk: chunk 0 of all stages comes before chunk 1 of all stages."""
        each = self.chunks or tuple(layers // self.vpp for layers in self.stages) * self.vpp
        number = chunk * self.pp + stage
        end = list(accumulate(each))[number]
        return range(end - each[number], end)

    def __str__(self) -> str:
        stages = "-".join(map(str, self.stages))
        return f"tp{self.tp}pp{stages}" + (f"vpp{self.vpp}" if self.vpp > 1 else "")


def even(tp: int, pp: int, vpp: int = 1, num_layers: int = 12) -> Cut:
    """Stages of as many layers each."""
    return Cut(tp, (num_layers // pp,) * pp, vpp)


@dataclass(frozen=True)
class Labelled:
    """A model by canonical names (``layers.3.mlp.dense_h_to_4h.weight``), its own head among them if it has one."""

    sizes: Sizes
    tensors: Mapping[str, torch.Tensor]
    starts: Mapping[str, int] = field(repr=False)

    @property
    def has_head(self) -> bool:
        return HEAD in self.tensors

    @property
    def has_positions(self) -> bool:
        return "position_embeddings.weight" in self.tensors

    def of_layer(self, layer: int) -> dict[str, torch.Tensor]:
        """A layer's parameters by their keys."""
        start = f"layers.{layer}."
        return {name.removeprefix(start): tensor for name, tensor in self.tensors.items() if name.startswith(start)}

    def origin(self, value: float) -> str:
        """Which element of which parameter a value is."""
        for name, start in self.starts.items():
            if start <= value < start + self.tensors[name].numel():
                return f"{name}[{int(value) - start}]"
        return f"{value}, which no element has"


def labelled(rows: Iterable[Row], sizes: Sizes, *, head: bool) -> Labelled:
    """A model with the parameters of a family's table, its elements counted from 1."""
    tensors: dict[str, torch.Tensor] = {}
    starts: dict[str, int] = {}
    first = 1
    for row in rows:
        if row.section.value == "head" and not head:
            continue
        shape = sizes.shape(row.shape)
        for name in _names(row, sizes.num_layers):
            count = torch.Size(shape).numel()
            starts[name] = first
            tensors[name] = torch.arange(first, first + count, dtype=torch.float32).reshape(shape)
            first += count
    assert first < 1 << 24, "not every label is exact in float32"
    return Labelled(sizes, tensors, starts)


def _names(row: Row, num_layers: int) -> list[str]:
    if row.section.value == "layer":
        return [f"layers.{layer}.{row.key}" for layer in range(num_layers)]
    return [f"final_layernorm.{row.key}" if row.section.value == "final_norm" else row.key]


def assert_same(found: Mapping[str, Any], expected: Mapping[str, Any], model: Labelled, where: str = "") -> None:
    """The same names, types, shapes and bits; else what stands where."""
    assert set(found) == set(expected), f"{where}: {sorted(set(found) ^ set(expected))}"
    for name, tensor in expected.items():
        mine = found[name]
        assert (mine.dtype, mine.shape) == (tensor.dtype, tensor.shape), f"{where} {name}: {mine.dtype} {mine.shape}"
        if not torch.equal(mine, tensor):
            at = (mine != tensor).reshape(-1).nonzero()[0, 0]
            stands, due = (model.origin(float(one.reshape(-1)[at])) for one in (mine, tensor))
            raise AssertionError(f"{where} {name}: element {at} is {stands}, not {due}")


# -- what transformers stores ------------------------------------------------------------------------------------------


def part_of(model: Labelled, name: str, part: str) -> torch.Tensor:
    """The queries, the keys, the values, the gate or the up of a fused parameter, heads in their order."""
    tensor, sizes = model.tensors[name], model.sizes
    if part in ("gate", "up"):
        return tensor.chunk(2)[part == "up"].contiguous()
    return _heads(tensor, sizes)[part].flatten(0, 2).contiguous()


def _heads(tensor: torch.Tensor, sizes: Sizes) -> dict[str, torch.Tensor]:
    """Each part as (groups, heads of a group, head_dim, ..)."""
    rows = tensor.unflatten(0, (sizes.groups, -1, sizes.head_dim))
    return {"query": rows[:, :-2], "key": rows[:, -2:-1], "value": rows[:, -1:]}


def hugging_face_tensors(model: Labelled, table: Iterable[Stored], *, blocks: bool) -> dict[str, torch.Tensor]:
    """The model as transformers stores it; ``blocks`` says that a fused c_attn is all queries, all keys, all values."""
    found: dict[str, torch.Tensor] = {}
    for row in table:
        if row.section.value == "head" and not model.has_head:
            continue
        layers = range(model.sizes.num_layers) if row.section.value == "layer" else (0,)
        for layer in layers:
            name = _names_at(row, layer)
            if row.part is not None:
                tensor = part_of(model, name, row.part)
            elif QKV in name and blocks:
                tensor = torch.cat([part_of(model, name, part) for part in ("query", "key", "value")])
            else:
                tensor = model.tensors[name]
            found[row.name.format(layer=layer)] = (tensor.T if row.transposed else tensor).contiguous().clone()
    return found


def _names_at(row: Stored, layer: int) -> str:
    if row.section.value == "layer":
        return f"layers.{layer}.{row.key}"
    return f"final_layernorm.{row.key}" if row.section.value == "final_norm" else row.key


def save_hugging_face(folder: Path, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> None:
    """A folder of one file."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file(dict(tensors), folder / "model.safetensors", metadata={"format": "pt"})


def load_hugging_face(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of a folder of one file."""
    return load_file(folder / "model.safetensors")


# -- what Megatron-Core stores -----------------------------------------------------------------------------------------


def padded(tensor: torch.Tensor, multiple: int) -> torch.Tensor:
    """A vocabulary with copies of its last row up to a multiple."""
    return torch.cat([tensor, tensor[-1:].expand(-len(tensor) % multiple, -1)])


def shard(name: str, tensor: torch.Tensor, cut: Cut, rank: int, *, gated: bool) -> torch.Tensor:
    """What a rank has of a parameter."""
    if name in (WORDS, HEAD):
        tensor = padded(tensor, cut.multiple * cut.tp)
    if gated and GLU in name:
        mine = torch.cat([half.chunk(cut.tp)[rank] for half in tensor.chunk(2)])
    elif any(part in name for part in COLUMNS):
        mine = tensor.chunk(cut.tp)[rank]
    elif name.endswith(ROWS):
        mine = tensor.chunk(cut.tp, 1)[rank]
    else:
        mine = tensor
    return mine.clone().contiguous()


def core_key(key: str, spec: str) -> str:
    """A layer's key in Megatron-Core."""
    for old, new in (MODULES | NORMS[spec]).items():
        if key.startswith(old):
            return new + key.removeprefix(old)
    raise KeyError(key)


def core_chunk(model: Labelled, cut: Cut, rank: int, stage: int, chunk: int, spec: str) -> dict[str, torch.Tensor]:
    """The tensors of one chunk of a rank's model."""
    last = (stage, chunk) == (cut.pp - 1, cut.vpp - 1)
    found: dict[str, torch.Tensor] = {}

    def add(new: str, name: str) -> None:
        if name in model.tensors:
            found[new] = shard(name, model.tensors[name], cut, rank, gated=model.sizes.gated)

    if (stage, chunk) == (0, 0):
        add(f"embedding.{WORDS}", WORDS)
        add("embedding.position_embeddings.weight", "position_embeddings.weight")
    for local, layer in enumerate(cut.layers(stage, chunk)):
        for key in model.of_layer(layer):
            add(f"decoder.layers.{local}.{core_key(key, spec)}", f"layers.{layer}.{key}")
    if last:
        for leaf in ("weight", "bias"):
            add(f"decoder.final_layernorm.{leaf}", f"final_layernorm.{leaf}")
        if model.has_head or cut.pp > 1:
            add(COPY, HEAD if model.has_head else WORDS)
    return found


def core_files(model: Labelled, cut: Cut, spec: str = "te") -> dict[Rank, list[dict[str, torch.Tensor]]]:
    """The tensors of every chunk of every rank."""
    return {
        (rank, stage): [core_chunk(model, cut, rank, stage, chunk, spec) for chunk in range(cut.vpp)]
        for rank, stage in cut.ranks
    }


def model_entries(chunks: Sequence[Any]) -> State:
    """``model``, or ``model0``, ``model1`` and on."""
    if len(chunks) == 1:
        return {"model": chunks[0]}
    return {f"model{number}": chunk for number, chunk in enumerate(chunks)}


def rank_folder(rank: int, stage: int, pp: int) -> str:
    """The folder of a rank, in which the stage is named only with several."""
    return f"mp_rank_{rank:02d}" + (f"_{stage:03d}" if pp > 1 else "")


def save_ranks(root: Path, cut: Cut, files: Mapping[Rank, Sequence[Any]], **state: Any) -> Path:
    """The files of all ranks as iteration 7, with the same other state in each."""
    place = started(root)
    for (rank, stage), chunks in files.items():
        folder = place / rank_folder(rank, stage, cut.pp)
        folder.mkdir()
        torch.save({"iteration": 7, **model_entries(chunks), **state}, folder / "model_optim_rng.pt")
    return root


def started(root: Path) -> Path:
    """A root with a tracker; the folder of its iteration."""
    place = root / "iter_0000007"
    place.mkdir(parents=True)
    (root / TRACKER).write_text("7")
    return place


def checkpoint_of(root: Path) -> Path:
    """The iteration's folder, by the tracker."""
    word = (root / TRACKER).read_text().strip()
    return root / (word if word == "release" else f"iter_{int(word):07d}")


def read_ranks(root: Path, cut: Cut) -> dict[Rank, State]:
    """Every rank's file, of which there must be just these."""
    place = checkpoint_of(root)
    names = {(rank, stage): rank_folder(rank, stage, cut.pp) for rank, stage in cut.ranks}
    assert {path.name for path in place.iterdir()} == set(names.values())
    assert all([path.name for path in (place / name).iterdir()] == ["model_optim_rng.pt"] for name in names.values())
    # A quarter of the time of weights_only; that its loader takes these files is tested elsewhere.
    return {rank: torch.load(place / name / "model_optim_rng.pt", weights_only=False) for rank, name in names.items()}


def chunks_of(state: State, vpp: int) -> list[State]:
    """The models of a rank's file, of which there must be just so many."""
    names = list(model_entries(range(vpp)))
    assert sorted(key for key in state if re.match("model", key)) == names
    return [state[name] for name in names]


def tensors_of(chunk: State) -> dict[str, torch.Tensor]:
    """The tensors of a chunk; all else must be the empty extra state of a module."""
    rest = {name: value for name, value in chunk.items() if not isinstance(value, torch.Tensor)}
    assert all(name.endswith("._extra_state") and value is None for name, value in rest.items()), rest
    return {name: value for name, value in chunk.items() if name not in rest}


def core_args(model: Labelled, cut: Cut, **more: Any) -> Namespace:
    """Arguments as Megatron-LM keeps them, those that say what the model is."""
    sizes, keys = model.sizes, set(model.of_layer(0))
    return Namespace(
        **{
            "num_layers": sizes.num_layers,
            "hidden_size": sizes.hidden,
            "ffn_hidden_size": sizes.ffn,
            "num_attention_heads": sizes.heads,
            "kv_channels": sizes.head_dim,
            "group_query_attention": sizes.groups != sizes.heads,
            "num_query_groups": sizes.groups if sizes.groups != sizes.heads else 1,
            "max_position_embeddings": sizes.positions,
            "seq_length": sizes.positions,
            "padded_vocab_size": sizes.vocab + -sizes.vocab % (cut.multiple * cut.tp),
            "make_vocab_size_divisible_by": cut.multiple,
            "tensor_model_parallel_size": cut.tp,
            "pipeline_model_parallel_size": cut.pp,
            "virtual_pipeline_model_parallel_size": cut.vpp if cut.vpp > 1 else None,
            "normalization": "LayerNorm" if "input_layernorm.bias" in keys else "RMSNorm",
            "norm_epsilon": 1e-5,
            "swiglu": sizes.gated,
            "add_bias_linear": "self_attention.dense.bias" in keys,
            "add_qkv_bias": f"{QKV}bias" in keys,
            "qk_layernorm": "self_attention.q_layernorm.weight" in keys,
            "bias_gelu_fusion": not sizes.gated,
            "position_embedding_type": "learned_absolute" if model.has_positions else "rope",
            "rotary_base": 10000,
            "rotary_percent": 1.0,
            "untie_embeddings_and_output_weights": model.has_head,
            "num_experts": None,
            **more,
        }
    )


def check_ranks(root: Path, model: Labelled, cut: Cut, spec: str) -> None:
    """Each rank has the tensors that Megatron's model has there, and no others; layers of Transformer Engine have an
    entry for their extra state too.
    """
    expected = dict(all_tensors(core_files(model, cut, spec)))
    found = {place: chunks_of(state, cut.vpp) for place, state in read_ranks(root, cut).items()}
    for where, tensors in all_tensors(found):
        assert_same(tensors, expected[where], model, f"{cut} {where}")
    for (_, stage), chunks in found.items():
        for number, chunk in enumerate(chunks):
            extra = set(chunk) - set(tensors_of(chunk))
            assert extra >= extra_states(len(cut.layers(stage, number))) if spec == "te" else not extra


def extra_states(layers: int) -> set[str]:
    """What Transformer Engine's linear layers ask for besides their parameters."""
    return {f"decoder.layers.{layer}.{linear}._extra_state" for layer in range(layers) for linear in LINEARS}


# -- torch_dist --------------------------------------------------------------------------------------------------------


def whole_tensors(model: Labelled, multiple: int) -> dict[str, torch.Tensor]:
    """The tensors that ``torch_dist`` stores: the layers of a parameter in one, as Transformer Engine names it."""
    found: dict[str, torch.Tensor] = {
        f"embedding.{name}": tensor for name, tensor in model.tensors.items() if "_embeddings" in name
    }
    found |= {f"decoder.{name}": tensor for name, tensor in model.tensors.items() if name.startswith("final_layernorm")}
    found |= {COPY: model.tensors[HEAD]} if model.has_head else {}
    for key in model.of_layer(0):
        layers = [model.of_layer(layer)[key] for layer in range(model.sizes.num_layers)]
        found[f"decoder.layers.{core_key(key, 'te')}"] = torch.stack(layers)
    for name in (f"embedding.{WORDS}", COPY):
        found |= {name: padded(found[name], multiple)} if name in found else {}
    return found


def by_layer(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same with a name for each layer."""
    found: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if name.startswith("decoder.layers."):
            key = name.removeprefix("decoder.layers.")
            found |= {f"decoder.layers.{layer}.{key}": one.clone() for layer, one in enumerate(tensor)}
        else:
            found[name] = tensor
    return found


def in_halves(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same with names of their own for gate and up."""
    found: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if name.endswith("linear_fc1.weight"):
            found |= {f"{name}_{half}": one for half, one in zip("wv", tensor.chunk(2, tensor.dim() - 2), strict=True)}
        else:
            found[name] = tensor
    return {name: tensor.contiguous() for name, tensor in found.items()}


def save_dist(root: Path, tree: Mapping[str, Any], common: State | None) -> Path:
    """What torch itself writes of tensors and objects, with the other state in ``common.pt``."""
    import torch.distributed.checkpoint as dcp

    place = started(root)
    planner = dcp.DefaultSavePlanner(flatten_state_dict=False)
    dcp.save(dict(tree), storage_writer=dcp.FileSystemWriter(place), planner=planner, no_dist=True)
    (place / "metadata.json").write_text(json.dumps({"sharded_backend": "torch_dist", "sharded_backend_version": 1}))
    if common is not None:
        torch.save(common, place / "common.pt")
    return root


def read_dist(place: Path) -> tuple[dict[str, torch.Tensor], set[str]]:
    """The tensors as torch itself reads them, and the names of the objects."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    reader = dcp.FileSystemReader(place)
    known = reader.read_metadata().state_dict_metadata
    found = {
        name: torch.full(entry.size, torch.nan, dtype=entry.properties.dtype)
        for name, entry in known.items()
        if isinstance(entry, TensorStorageMetadata)
    }
    dcp.load(found, storage_reader=reader, no_dist=True)
    return found, set(known) - set(found)


def read_object(place: Path, name: str) -> Any:
    """An object as torch itself reads it."""
    import torch.distributed.checkpoint as dcp

    state = {name: None}
    planner = dcp.DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    dcp.load(state, storage_reader=dcp.FileSystemReader(place), planner=planner, no_dist=True)
    return state[name]


# -- what Megatron-LM's legacy model stores ----------------------------------------------------------------------------


def in_version(tensor: torch.Tensor, sizes: Sizes, version: int) -> torch.Tensor:
    """A rank's rows of query_key_value as a checkpoint_version orders them; in 0 and 1 heads have keys of their own."""
    if version >= 2:
        return tensor
    rows = tensor.unflatten(0, (-1, 3, sizes.head_dim))
    return (rows.transpose(0, 1) if version == 0 else rows.transpose(1, 2)).flatten(0, 2).contiguous()


def legacy_chunk(model: Labelled, cut: Cut, place: tuple[int, int, int], version: int) -> State:
    """One chunk, (rank, stage, chunk), of Megatron-LM's legacy model with the names of 2021."""
    rank, stage, chunk = place
    last = (stage, chunk) == (cut.pp - 1, cut.vpp - 1)

    def mine(name: str) -> torch.Tensor:
        tensor = shard(name, model.tensors[name], cut, rank, gated=model.sizes.gated)
        return in_version(tensor, model.sizes, version) if QKV in name else tensor

    encoder = {
        f"layers.{local}.{key}": mine(f"layers.{layer}.{key}")
        for local, layer in enumerate(cut.layers(stage, chunk))
        for key in model.of_layer(layer)
    }
    encoder |= {name: mine(name) for name in model.tensors if last and name.startswith("final_layernorm")}
    language_model: State = {"encoder": encoder}
    state: State = {"language_model": language_model}
    if (stage, chunk) == (0, 0):
        embedding: State = {}
        for name in (name for name in model.tensors if "_embeddings." in name):
            module, _, leaf = name.partition(".")
            embedding.setdefault(module, {})[leaf] = mine(name)
        language_model["embedding"] = embedding
    if last and model.has_head:
        language_model["output_layer"] = {"weight": mine(HEAD)}
    elif last and cut.pp > 1:
        state["word_embeddings_for_head"] = {"weight": mine(WORDS)}
    return state


def legacy_files(model: Labelled, cut: Cut, version: int = 3) -> dict[Rank, list[State]]:
    """Every chunk of every rank."""
    return {
        (rank, stage): [legacy_chunk(model, cut, (rank, stage, chunk), version) for chunk in range(cut.vpp)]
        for rank, stage in cut.ranks
    }


def all_tensors(files: Mapping[Rank, Sequence[Mapping[str, Any]]]) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
    """Where, and the tensors, of each chunk."""
    for (rank, stage), chunks in files.items():
        for number, chunk in enumerate(chunks):
            yield f"rank {rank}, stage {stage}, chunk {number}", tensors_of(dict(chunk))
