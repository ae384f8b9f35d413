"""The real DeepSpeed engine loads a folder that was written: every parameter bit for bit, and a model that answers.

The pipeline is that of the forks' ``GPTModelPipe`` [``megatron/model/gpt_model.py``]: the same layers in the same
places under the same names, with arithmetic where TP is 1. Needs deepspeed, on a CPU; nothing of the package runs in
its processes.
"""

# mypy: disable-error-code="no-untyped-call,no-any-return,unused-ignore,misc"

from __future__ import annotations

import enum
import os
import socket
import sys
import types
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.multiprocessing.spawn import spawn
from torch.nn import functional

from streamconv import convert
from tests import oracle
from tests.places import REAL, Source

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("deepspeed") is None, reason="deepspeed is not installed"),
]

DS_GPT, BLOOM, BS_GPT, UNTIED = REAL[4], REAL[1], REAL[2], REAL[6]
HIDDEN, HEADS, FFN, POSITIONS, LAYERS = 32, 4, 128, 16, 4
Facts = dict[str, Any]


class Embedding(nn.Module):
    """Words and learned positions, or words and BLOOM's norm on the first stage."""

    def __init__(self, facts: Facts, *, first: bool) -> None:
        super().__init__()
        self.word_embeddings: nn.Module = nn.Embedding(facts["vocab"] // facts["tp"], HIDDEN)
        if facts["alibi"]:
            if first:
                self.word_embeddings.norm = nn.LayerNorm(HIDDEN)
        else:
            self.position_embeddings = nn.Embedding(POSITIONS, HIDDEN)

    @property
    def word_embeddings_weight(self) -> Any:
        return self.word_embeddings.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.word_embeddings(tokens) + self.position_embeddings(torch.arange(tokens.shape[1]))


class Attention(nn.Module):
    def __init__(self, facts: Facts) -> None:
        super().__init__()
        self.blocks = facts["blocks"]
        self.query_key_value = nn.Linear(HIDDEN, 3 * HIDDEN // facts["tp"])
        self.dense = nn.Linear(HIDDEN // facts["tp"], HIDDEN)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        batch, length, _ = states.shape
        fused = self.query_key_value(states)
        if self.blocks:
            parts = fused.view(batch, length, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        else:
            parts = fused.view(batch, length, HEADS, 3, -1).permute(3, 0, 2, 1, 4)
        answer = functional.scaled_dot_product_attention(*parts, is_causal=True)
        return self.dense(answer.transpose(1, 2).reshape(batch, length, HIDDEN))


class Mlp(nn.Module):
    def __init__(self, facts: Facts) -> None:
        super().__init__()
        self.dense_h_to_4h = nn.Linear(HIDDEN, FFN // facts["tp"])
        self.dense_4h_to_h = nn.Linear(FFN // facts["tp"], HIDDEN)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.dense_4h_to_h(functional.gelu(self.dense_h_to_4h(states)))


class ParallelTransformerLayerPipe(nn.Module):
    def __init__(self, facts: Facts) -> None:
        super().__init__()
        self.input_layernorm = nn.LayerNorm(HIDDEN)
        self.self_attention = Attention(facts)
        self.post_attention_layernorm = nn.LayerNorm(HIDDEN)
        self.mlp = Mlp(facts)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        states = states + self.self_attention(self.input_layernorm(states))
        return states + self.mlp(self.post_attention_layernorm(states))


class PositionEmbeddingType(enum.Enum):
    """bigscience's, which its arguments name [``megatron/enums.py``]."""

    rotary, absolute, alibi = 1, 2, 3


class LMHeadPipe(nn.Module):
    def __init__(self, facts: Facts) -> None:
        super().__init__()
        self.lm_head = nn.Linear(HIDDEN, facts["vocab"] // facts["tp"], bias=False)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.lm_head(states)


def unchanged(states: Any) -> Any:
    """Stands where the forks cast or transpose."""
    return states


def logits(embedding: Embedding, states: torch.Tensor) -> torch.Tensor:
    return functional.linear(states, embedding.word_embeddings_weight)


def layers_of(facts: Facts, *, first: bool) -> list[Any]:
    """The list that ``GPTModelPipe`` builds; a place in it is the number of a layer file."""
    from deepspeed.pipe import LayerSpec, TiedLayerSpec

    tied: Facts = {"tied_weight_attr": "word_embeddings_weight", "first": first}
    blocks = [LayerSpec(ParallelTransformerLayerPipe, facts) for _ in range(LAYERS)]
    norm = LayerSpec(nn.LayerNorm, HIDDEN)
    if facts["untied"]:
        return [unchanged, LayerSpec(Embedding, facts, first=True), *blocks, norm, LayerSpec(LMHeadPipe, facts)]
    embedding = TiedLayerSpec("embed", Embedding, facts, **tied)
    head = TiedLayerSpec("embed", Embedding, facts, forward_fn=logits, **tied)
    around = [unchanged] if facts["fork"] == "bigscience" else []
    return [unchanged, embedding, *around, *blocks, *around, norm, head]


def load_rank(rank: int, facts: Facts, port: int) -> None:
    """One process: build this rank's part with random weights, load, and write down what is there."""
    torch.set_num_threads(1)
    world = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": facts["tp"] * facts["pp"], "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in world.items()}, MASTER_ADDR="127.0.0.1")
    os.environ["DS_ACCELERATOR"] = "cpu"
    if facts["fork"] == "bigscience":
        enums = types.ModuleType("megatron.enums")
        enums.PositionEmbeddingType = PositionEmbeddingType  # type: ignore[attr-defined]
        sys.modules |= {"megatron": types.ModuleType("megatron"), "megatron.enums": enums}
    import deepspeed
    from deepspeed.pipe import PipelineModule
    from deepspeed.runtime.pipe.topology import PipeModelDataParallelTopology

    deepspeed.init_distributed(dist_backend="gloo")
    topology = PipeModelDataParallelTopology(num_pp=facts["pp"], num_mp=facts["tp"], num_dp=1)
    coordinates = topology.get_coord(rank)
    layers = layers_of(facts, first=coordinates.pipe == 0)
    module = PipelineModule(layers, topology=topology, partition_method="type:transformer")
    config: Facts = {
        "train_micro_batch_size_per_gpu": 1,
        "train_batch_size": 1,
        "zero_optimization": {"stage": facts["zero"]},
        "zero_allow_untested_optimizer": True,
        **({"bf16": {"enabled": True}} if facts["bf16"] else {}),
    }
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=config)
    path, client = engine.load_checkpoint(facts["folder"], load_lr_scheduler_states=False, **facts["how"])
    found = {name: parameter.detach().clone() for name, parameter in engine.module.named_parameters()}
    told = {name: client.get(name) for name in ("iteration", "checkpoint_version", "tokens", "param_shapes")}
    told["loaded"] = path is not None
    told["positions"] = str(getattr(client["args"], "position_embedding_type", None))
    if facts["zero"]:
        # The masters that the first step would write back.
        told["masters"] = torch.cat([group.flatten() for group in engine.optimizer.single_partition_of_fp32_groups])
    if facts["tokens"] is not None:
        with torch.no_grad():
            told["logits"] = engine.module(facts["tokens"])
    names = {"tp_rank": coordinates.model, "stage": coordinates.pipe, "parts": [int(part) for part in module.parts]}
    torch.save({**names, **told, "parameters": found}, Path(facts["out"]) / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def load(folder: Path, out: Path, **facts: Any) -> list[Facts]:
    """What each rank of the engine has after loading."""
    out.mkdir()
    defaults: Facts = {"alibi": False, "untied": False, "bf16": False, "zero": 0, "tokens": None, "blocks": False}
    how = {"load_module_only": True, "load_optimizer_states": False}
    known = {**defaults, "how": how, **facts, "folder": str(folder), "out": str(out)}
    spawn(load_rank, (known, free_port()), known["tp"] * known["pp"])
    paths = sorted(out.glob("*.pt"), key=lambda path: int(path.stem))
    return [oracle.load_stubbed(path) for path in paths]


def shards_of(folder: Path, fork: str) -> list[dict[str, torch.Tensor]]:
    """Each rank's tensors by the names of the pipeline engine, out of layer files that a fork wrote."""
    tag = (folder / "latest").read_text()
    ranks: dict[int, dict[str, torch.Tensor]] = {}
    for path in (folder / tag).glob("layer_*"):
        number, rank = int(path.name[6:8]), int(path.name.split("model_")[1][:2])
        for key, tensor in torch.load(path, weights_only=True).items():
            prefix = "tied_modules.embed" if "embeddings" in key and fork != "untied" else str(number)
            ranks.setdefault(rank, {})[f"{prefix}.{key}"] = tensor
    return [ranks[rank] for rank in sorted(ranks)]


def assert_loaded(ranks: list[Facts], expected: Sequence[Mapping[str, torch.Tensor]]) -> None:
    """Every parameter of every rank is the expected one, and none of the expected is missing."""
    seen: dict[int, set[str]] = {}
    for rank in ranks:
        mine = expected[rank["tp_rank"]]
        assert rank["loaded"]
        assert {name: tuple(shape) for name, shape in rank["param_shapes"][0].items()} == {
            name: tuple(parameter.shape) for name, parameter in rank["parameters"].items()
        }
        for name, parameter in rank["parameters"].items():
            seen.setdefault(rank["tp_rank"], set()).add(name)
            # Only the word embedding is kept equal on the last stage; the rest of its copy is never used.
            if "position_embeddings" in name and rank["stage"] > 0:
                continue
            assert parameter.dtype == mine[name].dtype
            assert torch.equal(parameter, mine[name]), name
    assert all(seen[rank] == set(mine) for rank, mine in enumerate(expected))


@pytest.mark.parametrize(("source", "zero"), [(DS_GPT, 0), (REAL[3], 1)], ids=("fp32-zero0", "bf16-zero1"))
def test_the_sources_own_layout(source: Source, zero: int, tmp_path: Path) -> None:
    convert(source.folder, tmp_path / "folder", to="deepspeed", max_ram="1G")
    facts: Facts = {"fork": "deepspeedai", "tp": 2, "pp": 2, "zero": zero, "bf16": bool(zero), "vocab": 112}
    ranks = load(tmp_path / "folder", tmp_path / "out", **facts)
    assert_loaded(ranks, shards_of(source.folder, "deepspeedai"))
    for rank in ranks:
        assert (rank["iteration"], rank["checkpoint_version"]) == (3, 3.0)
        if zero:
            values = torch.cat([parameter.flatten().float() for parameter in rank["parameters"].values()])
            masters = rank["masters"]
            assert torch.equal(masters[masters != 0].sort().values, values[values != 0].sort().values)


def test_bloom_as_bigscience_trains_it(tmp_path: Path) -> None:
    """bigscience's loader passes ``load_optimizer_states=False`` alone [``megatron/checkpointing.py``]."""
    convert(BLOOM.folder, tmp_path / "folder", to="deepspeed", max_ram="1G")
    facts: Facts = {"fork": "bigscience", "tp": 2, "pp": 2, "alibi": True, "vocab": 112}
    how = {"load_optimizer_states": False}
    ranks = load(tmp_path / "folder", tmp_path / "out", how=how, **facts)
    assert_loaded(ranks, shards_of(BLOOM.folder, "bigscience"))
    assert [rank["parts"] for rank in ranks] == [[0, 5, 10]] * 4
    assert {rank["positions"] for rank in ranks} == {"PositionEmbeddingType.alibi"}


def test_a_head_of_its_own(tmp_path: Path) -> None:
    convert(UNTIED.folder, tmp_path / "folder", to="deepspeed", pp=2, max_ram="1G")
    facts: Facts = {"fork": "deepspeedai-2024-11", "tp": 2, "pp": 2, "untied": True, "vocab": 112}
    assert_loaded(load(tmp_path / "folder", tmp_path / "out", **facts), shards_of(UNTIED.folder, "untied"))


@pytest.mark.parametrize("fork", ["deepspeedai", "deepspeedai-2024-11", "bigscience"])
def test_the_model_answers_as_the_live_one_did(fork: str, tmp_path: Path) -> None:
    """From TP 2 x PP 2 to one rank, in each fork's rows: the logits of the training run's own code."""
    convert(DS_GPT.folder, tmp_path / "folder", to="deepspeed", fork=fork, tp=1, pp=1, max_ram="1G")
    answer = torch.load(DS_GPT.folder / "oracle_logits.pt", weights_only=False)
    facts: Facts = {"fork": fork, "tp": 1, "pp": 1, "blocks": fork == "deepspeedai", "vocab": 104}
    (rank,) = load(tmp_path / "folder", tmp_path / "out", tokens=answer["tokens"], **facts)
    true = DS_GPT.true_vocab
    torch.testing.assert_close(rank["logits"][..., :true], answer["logits"][..., :true], rtol=1e-4, atol=1e-5)


def test_a_folder_of_another_size_is_not_loaded_silently(tmp_path: Path) -> None:
    """``mp_world_size`` must count the rank files: with one missing the engine stops."""
    convert(DS_GPT.folder, tmp_path / "folder", to="deepspeed", max_ram="1G")
    (tmp_path / "folder" / "global_step3" / "mp_rank_03_model_states.pt").unlink()
    with pytest.raises(Exception, match="mp_world_size"):
        load(tmp_path / "folder", tmp_path / "out", fork="deepspeedai", tp=2, pp=2, vocab=112)
