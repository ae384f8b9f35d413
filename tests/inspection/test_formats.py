"""Every other kind of folder: Megatron-LM's, torch_dist, Hugging Face's, universal, ZeRO's, and what is made of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from streamconv import convert
from streamconv.core.dtypes import DTYPES
from streamconv.core.errors import DamagedError
from streamconv.core.lazy import LazyTensor
from streamconv.inspection.torch_dist import by_layer
from tests import oracle
from tests.containers.dcp.test_reader import sharded
from tests.inspection.samples import BLOOM, Attack, cut_off, look, words_of
from tests.places import FIXTURES, FRAMEWORKS, REAL

safetensors = pytest.importorskip("safetensors.torch")


# -- Megatron-LM, legacy -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def legacy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("legacy") / "m"
    convert(REAL[0].folder, path, to="megatron-legacy", tp=2, pp=2)
    return path


def test_a_legacy_checkpoint(legacy: Path) -> None:
    report = look(legacy, check=True, target_tp=1)
    whole = oracle.result_model(oracle.result_files(legacy, 2, 2))
    assert report.what == "Megatron-LM, legacy"
    assert report.path == str(legacy / "iter_0000003")
    model, parallel, target = report.model, report.parallel, report.target
    assert model is not None
    assert (model.family, model.iteration, model.num_layers, model.heads) == ("BLOOM", 3, 5, 4)
    assert model.parameters == sum(tensor.numel() for tensor in whole.values())
    assert model.parameters_per_layer == sum(t.numel() for n, t in whole.items() if n.startswith("layers.3."))
    assert parallel is not None
    assert parallel.stages == ((0, 1, 2), (3, 4))
    cells = {(cell.stage, cell.rank): cell.files for cell in parallel.grid}
    expected = {(s, r): (f"mp_rank_{r:02d}_{s:03d}/model_optim_rng.pt",) for s in (0, 1) for r in (0, 1)}
    assert cells == expected
    assert target is not None
    assert [cell.files for cell in target.grid] == [(*expected[s, 0], *expected[s, 1]) for s in (0, 1)]
    assert not report.findings


def test_a_legacy_checkpoint_that_is_not_whole_names_the_file(legacy: Path, tmp_path: Path) -> None:
    name = "mp_rank_01_001/model_optim_rng.pt"
    lost, short = (Path(shutil.copytree(legacy, tmp_path / word)) for word in ("lost", "short"))
    shutil.rmtree((lost / "iter_0000003" / name).parent)
    cut_off(short / "iter_0000003" / name)
    for root in (lost, short):
        report = look(root)
        assert name in words_of(report)
        assert report.exit_code == 6


def test_the_family_is_named_though_the_number_of_heads_is_not_known(tmp_path: Path) -> None:
    folder = shutil.copytree(FIXTURES / "megatron_core" / "torch_llama_tp2pp2", tmp_path / "m")
    for path in folder.rglob("model_optim_rng.pt"):
        state = oracle.load_stubbed(path)
        torch.save({"checkpoint_version": 3.0, "iteration": 3, "model": state["model"]}, path)
    report = look(folder)
    assert [(fact.what, fact.evidence) for fact in report.evidence if fact.what.startswith("family")] == [
        ("family Llama", "keys word_embeddings.weight, own head")
    ]
    assert "the number of attention heads is unknown" in words_of(report)


# -- torch_dist --------------------------------------------------------------------------------------------------------

LAYERS, HIDDEN = 3, 8


def dist(folder: Path) -> dict[str, torch.Tensor]:
    """Megatron-Core's homogeneous layout: all layers of a parameter in one tensor, cut for TP 2 and PP 3."""
    weight = torch.arange(LAYERS * 16 * HIDDEN, dtype=torch.float32).reshape(LAYERS, 16, HIDDEN)
    norm, words = torch.ones(LAYERS, HIDDEN), torch.full((10, HIDDEN), 0.5)
    boxes = [((layer, 8 * rank, 0), (1, 8, HIDDEN)) for layer in range(LAYERS) for rank in range(2)]
    tree: dict[str, Any] = {
        "decoder.layers.mlp.linear_fc1.weight": (weight, boxes),
        "decoder.layers.input_layernorm.weight": (norm, [((n, 0), (1, HIDDEN)) for n in range(LAYERS)]),
        "embedding.word_embeddings.weight": (words, [((0, 0), (5, HIDDEN)), ((5, 0), (5, HIDDEN))]),
        "optimizer.state.exp_avg.embedding": (words * 2, [((0, 0), (10, HIDDEN))]),
    }
    sharded(folder, tree)
    (folder / "metadata.json").write_text('{"sharded_backend": "torch_dist"}')
    torch.save({"iteration": 12, "checkpoint_version": 3.0}, folder / "common.pt")
    return {name: pair[0] for name, pair in tree.items()}


def test_a_torch_dist_folder(tmp_path: Path) -> None:
    tree = dist(tmp_path / "iter_0000012")
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("12")
    report = look(tmp_path, check=True, stats=True)
    assert report.what == "Megatron-Core, torch_dist"
    assert report.path == str(tmp_path / "iter_0000012")
    assert {row.name: (row.shape, row.nbytes) for row in report.tensors} == {
        name: (tuple(tensor.shape), tensor.numel() * 4) for name, tensor in tree.items()
    }
    model = report.model
    assert model is not None
    assert (model.iteration, model.num_layers, model.hidden, model.vocabulary.stored) == (12, LAYERS, HIDDEN, 10)
    assert model.parameters == sum(t.numel() for n, t in tree.items() if not n.startswith("optimizer."))
    assert model.parameters_per_layer == 16 * HIDDEN + HIDDEN
    assert report.statistics is not None
    by_name = {row.name: row for row in report.statistics}
    for layer in range(LAYERS):
        row = by_name[f"decoder.layers.{layer}.mlp.linear_fc1.weight"]
        assert row.layer == layer
        assert row.values.mean == pytest.approx(tree["decoder.layers.mlp.linear_fc1.weight"][layer].double().mean())
    assert report.exit_code == 0
    assert {row.path for row in report.files} >= {".metadata", "__0_0.distcp", "__1_0.distcp", "common.pt"}


def test_faults_of_a_torch_dist_folder_name_the_file(tmp_path: Path) -> None:
    trace = tmp_path / "trace"

    def broken(word: str) -> Path:
        dist(tmp_path / word)
        return tmp_path / word

    (broken("lost") / "__1_0.distcp").unlink()
    cut_off(broken("short") / "__1_0.distcp")
    (broken("blind") / ".metadata").unlink()
    cut_off(broken("common") / "common.pt")
    torch.save({"x": Attack(trace)}, broken("attack") / "common.pt")
    for word, name in {
        "lost": "__1_0.distcp",
        "short": "__1_0.distcp",
        "blind": ".metadata",
        "common": "common.pt",
        "attack": "common.pt",
    }.items():
        report = look(tmp_path / word, stats=True, check=True)
        assert name in "\n".join(f"{f.what} {f.where}" for f in report.findings if f.exit_code == 6), word
        assert report.exit_code == 6
        assert report.tensors
    assert not trace.exists()


# -- Hugging Face ------------------------------------------------------------------------------------------------------

INDEX, SHARDS = "model.safetensors.index.json", ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
CONFIG = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 18,
    "max_position_embeddings": 64,
}


def hugging_face(folder: Path) -> dict[str, torch.Tensor]:
    folder.mkdir()
    parts: list[dict[str, torch.Tensor]] = [{"model.embed_tokens.weight": torch.ones(18, 8)}, {}]
    for layer in range(2):
        prefix = f"model.layers.{layer}."
        names: dict[str, tuple[int, ...]] = {f"self_attn.{key}_proj.weight": (8, 8) for key in "qo"}
        names |= {f"self_attn.{key}_proj.weight": (4, 8) for key in "kv"}
        names |= {f"mlp.{key}_proj.weight": (12, 8) for key in ("gate", "up")} | {"mlp.down_proj.weight": (8, 12)}
        names |= {f"{key}_layernorm.weight": (8,) for key in ("input", "post_attention")}
        parts[layer] |= {prefix + name: torch.randn(shape).bfloat16() for name, shape in names.items()}
    parts[1] |= {"model.norm.weight": torch.ones(8), "lm_head.weight": torch.ones(18, 8)}
    for part, name in zip(parts, SHARDS, strict=True):
        safetensors.save_file(part, folder / name)
    weight_map = {key: name for part, name in zip(parts, SHARDS, strict=True) for key in part}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return parts[0] | parts[1]


def test_a_hugging_face_folder(tmp_path: Path) -> None:
    tree = hugging_face(tmp_path / "hf")
    report = look(tmp_path / "hf", stats=True)
    assert report.what == "Hugging Face"
    assert {row.name: row.shape for row in report.tensors} == {name: tuple(t.shape) for name, t in tree.items()}
    model = report.model
    assert model is not None
    assert (model.family, model.num_layers, model.hidden, model.ffn) == ("Llama", 2, 8, 12)
    assert (model.heads, model.kv_groups, model.positions) == (4, 2, 64)
    assert (model.vocabulary.stored, model.vocabulary.true, model.vocabulary.padding) == (18, 18, 0)
    assert model.parameters == sum(tensor.numel() for tensor in tree.values())
    assert model.parameters_per_layer == 2 * 64 + 2 * 32 + 3 * 96 + 2 * 8
    assert not report.findings


def test_the_index_and_the_shards_must_agree(tmp_path: Path) -> None:
    folder = tmp_path / "hf"
    hugging_face(folder)
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"].pop("model.layers.0.mlp.gate_proj.weight")
    index["weight_map"]["model.layers.0.self_attn.v_proj.weight"] = SHARDS[1]
    (folder / INDEX).write_text(json.dumps(index))
    report = look(folder)
    words = (
        "1 tensors are in another file than the index says, and are read there: model.layers.0.self_attn.v_proj.weight"
    )
    assert words in words_of(report)
    words = "1 tensors are not in the index, and are read, as by transformers: model.layers.0.mlp.gate_proj.weight"
    assert words in words_of(report)
    assert report.exit_code == 0
    index["weight_map"]["lm_head.weight"] = SHARDS[1]
    index["weight_map"]["model.norm.bias"] = SHARDS[1]
    (folder / INDEX).write_text(json.dumps(index))
    assert "in the index, and in no file: model.norm.bias, and the model has none of them" in words_of(look(folder))
    (folder / SHARDS[1]).unlink()
    report = look(folder)
    assert f"the shard {SHARDS[1]} is missing" in words_of(report)
    (folder / SHARDS[0]).write_bytes((folder / SHARDS[0]).read_bytes()[:-3])
    assert str(folder / SHARDS[0]) in words_of(look(folder))
    (folder / INDEX).write_text("[" * 100_000)
    assert str(folder / INDEX) in words_of(look(folder))
    assert report.exit_code == 6


def test_a_file_beside_the_shards_is_no_damage(tmp_path: Path) -> None:
    """transformers reads what the index names: an adapter, or a trainer's state, may be there too."""
    hugging_face(tmp_path / "hf")
    torch.save({"logits": torch.ones(2, 3)}, tmp_path / "hf" / "ref.pt")
    report = look(tmp_path / "hf")
    assert report.exit_code == 0
    (finding,) = report.findings
    assert (finding.severity, "the index does not name ref.pt" in finding.what) == ("note", True)


def test_an_index_of_nonsense_is_no_traceback(tmp_path: Path) -> None:
    hugging_face(tmp_path / "hf")
    for text in ("[]", "null", '{"weight_map": 3}', '{"weight_map": {"a": ["b"]}}', "\x00", '{"weight_map": {}}'):
        (tmp_path / "hf" / INDEX).write_text(text)
        (tmp_path / "hf" / "config.json").write_text(text)
        assert look(tmp_path / "hf").tensors


# -- DeepSpeed without Megatron ----------------------------------------------------------------------------------------


def test_experts_count_as_parameters() -> None:
    folder = FRAMEWORKS / "ds_moe_z1_ep2" / "global_step2"
    report = look(folder.parent, check=True)
    states = [oracle.load_stubbed(path) for path in sorted(folder.glob("layer_*_expert_*_model_states.pt"))]
    experts = {name: tensor for state in states for name, tensor in state.items()}
    module = oracle.load_stubbed(folder / "mp_rank_00_model_states.pt")["module"]
    assert report.model is not None
    # Two experts and four, of two linear layers with biases; the rest of the model is in the rank's file.
    assert report.model.parameters == 6 * (8 * 16 + 16 + 16 * 8 + 8) + sum(tensor.numel() for tensor in module.values())
    assert {row.name for row in report.tensors} == {*experts, *module}
    assert report.exit_code == 0


@pytest.mark.parametrize(
    ("name", "what", "stage"),
    [
        ("z1_bf16", "DeepSpeed, ZeRO stage 1 or 2, or the BF16 optimizer", 1),
        ("z3_bf16_frozen", "DeepSpeed, ZeRO stage 3", 3),
    ],
)
def test_zero_folders(name: str, what: str, stage: int) -> None:
    report = look(FRAMEWORKS / name, check=True)
    folder = FRAMEWORKS / name / "global_step3"
    assert report.what == what
    assert report.optimizer is not None
    assert f"ZeRO stage {stage}, fp32 master weights, Adam moments" in report.optimizer.what
    assert report.optimizer.nbytes == sum(path.stat().st_size for path in folder.glob("*optim_states.pt"))
    assert report.parallel is not None
    assert report.parallel.dp == 2
    assert report.model is not None
    state = oracle.load_stubbed(next(folder.glob("*rank_00_model_states.pt")))
    frozen = state["frozen_param_shapes"] or {}
    shapes = [*(shape for group in state["param_shapes"] for shape in group.values()), *frozen.values()]
    assert report.model.parameters == sum(shape.numel() for shape in shapes)
    assert report.model.iteration == state["global_steps"]
    assert report.exit_code == 0
    for row in report.tensors:
        places = [(part.file, part.rank) for part in row.parts] or [(row.file, row.rank)]
        for file, rank in places:
            assert (folder / file).is_file()
            assert rank in ("0", *(f"data {number}" for number in range(2) if f"_rank_{number}_" in file))


@pytest.mark.parametrize(
    ("name", "what"), [("z1_bf16.universal", "DeepSpeed universal checkpoint"), ("z1_bf16.fp32", "zero_to_fp32")]
)
def test_what_is_made_of_zero_folders(name: str, what: str) -> None:
    report = look(FRAMEWORKS / name, stats=True, check=True)
    assert what in report.what
    paths = {str(path.relative_to(FRAMEWORKS / name)) for path in (FRAMEWORKS / name).rglob("*.*") if path.is_file()}
    assert {row.path for row in report.files} == paths
    assert report.exit_code == 0
    if name.endswith("fp32"):
        state = torch.load(FRAMEWORKS / name / "pytorch_model.bin", weights_only=True)
        assert {row.name.split(":")[-1] for row in report.tensors} == set(state)


def test_a_folder_of_any_files(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(3)}, tmp_path / "x.pt")
    (tmp_path / "sub").mkdir()
    torch.save({"b": torch.ones(4)}, tmp_path / "sub" / "y.bin")
    report = look(tmp_path)
    assert [row.name for row in report.tensors] == ["sub/y.bin:b", "x.pt:a"]
    assert report.exit_code == 0
    cut_off(tmp_path / "x.pt")
    assert str(tmp_path / "x.pt") in words_of(look(tmp_path))
    with pytest.raises(DamagedError):
        look(tmp_path / "x.pt")
    assert look(BLOOM / "global_step3" / "layer_04-model_00-model_states.pt").kind == "file"


@pytest.mark.parametrize(("kind", "family"), [("gpt_neox", "GPT-NeoX"), ("gpt2", "GPT"), ("unheard_of", "unheard_of")])
def test_a_family_has_one_name_in_every_listing(kind: str, family: str, tmp_path: Path) -> None:
    safetensors.save_file({"model.norm.weight": torch.ones(2)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(f'{{"model_type": "{kind}"}}')
    model = look(tmp_path).model
    assert model is not None
    assert model.family == family


def test_a_stack_of_more_layers_than_any_model_has_is_one_tensor() -> None:
    name, few, many = "decoder.layers.mlp.linear_fc1.weight", (3, 2), (1_000_000, 2)
    assert len(dict(by_layer({name: LazyTensor.zeros(few, DTYPES["uint8"])}))) == 3
    assert list(dict(by_layer({name: LazyTensor.zeros(many, DTYPES["uint8"])}))) == [name]
