"""Digests of one model are one file whatever its layout, and a copy is held against them when the model is gone.

What a digest is of is shown by hashlib on the tensors that transformers wrote.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import xxhash
from safetensors.torch import load_file, save_file

from streamconv import Digests, convert, digest, verify
from streamconv.core.errors import (
    AmbiguousError,
    DamagedError,
    DifferenceError,
    SourceError,
    UnsupportedError,
    UsageError,
)
from streamconv.verification.verify import Verification
from tests import hf_models as models
from tests import oracle
from tests.damage import cut, flip, records
from tests.making.deepspeed import Tensors
from tests.places import FRAMEWORKS, MADE, REAL
from tests.processes import run_main

RAM: dict[str, Any] = {"max_ram": "2G"}
BLOOM, GPT = REAL[1], REAL[2]
LLAMA = FRAMEWORKS / "dsp_llama_gqa_tp2pp2_fp32_z0"
CORE = MADE.parent / "megatron_core"
UP = "mlp.dense_h_to_4h.weight"
LAYOUTS: dict[str, dict[str, Any]] = {
    "deepspeed": {"to": "deepspeed", "tp": 2, "pp": 2},
    "legacy": {"to": "megatron-legacy", "tp": 4},
    "torch": {"to": "megatron-core", "container": "torch", "tp": 2, "pp": 2, "vpp": 2},
    "torch_dist": {"to": "megatron-core", "tp": 4, "pp": 2},
}


def against(dst: Path, path: Path, **options: Any) -> Verification:
    found = verify(dst, path, **RAM, **options)
    assert found.comparison is None
    assert found.digests is not None or found.broken
    return found


def held(dst: Path, path: Path, **options: Any) -> tuple[int, list[str], list[str], list[str]]:
    """The exit code, and the names that differ, are missing, and are one too many."""
    found = against(dst, path, **options)
    assert found.digests is not None
    return found.exit_code, found.digests.different, found.digests.missing, found.digests.extra


def saved(found: Digests, path: Path) -> Path:
    found.save(path)
    return path


# -- the same for every layout -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "changes"), [("llama", {"num_key_value_heads": 4}), ("gpt", {}), ("llama", {"attention_bias": True})]
)
def test_six_layouts_of_a_model_have_the_same_file(family: str, changes: dict[str, Any], tmp_path: Path) -> None:
    """Grouped heads cannot go to legacy Megatron at TP 4; biases that only some layouts store are zeros in others."""
    models.make(family, tmp_path / "hf", **changes)
    layouts = {name: LAYOUTS[name] | ({"tp": 2} if "attention_bias" in changes else {}) for name in LAYOUTS}
    for name, layout in layouts.items():
        convert(tmp_path / "hf", tmp_path / name, **layout, **RAM)
    convert(tmp_path / "torch_dist", tmp_path / "back", to="huggingface", **RAM)
    files = {
        name: saved(digest(tmp_path / name, **RAM), tmp_path / f"{name}.json") for name in ("hf", *layouts, "back")
    }
    assert len({path.read_bytes() for path in files.values()}) == 1
    for name in files:
        assert held(tmp_path / name, files["hf"]) == (0, [], [], [])
    # Another type is refused by name: of its bytes nothing follows.
    convert(tmp_path / "hf", tmp_path / "half", to="megatron-core", dtype="bf16", **RAM)
    found = against(tmp_path / "half", files["hf"])
    assert found.digests is not None
    assert (found.exit_code, found.digests.compared) == (3, 0)
    assert [each.name for each in found.digests.incomparable] == list(json.loads(files["hf"].read_text())["tensors"])
    assert {each.why for each in found.digests.incomparable} == {
        "bfloat16, and the digest is of the bytes of a float32"
    }


def test_the_real_frameworks_layouts_have_the_same_file() -> None:
    """Megatron-Core wrote these weights twice, at TP 4 with a slice of each group's rows on each rank."""
    found = [digest(CORE / name, vocab_size=101, **RAM) for name in ("torch_llama_tp2pp2", "torch_llama_2groups_tp4")]
    assert found[0].as_json() == found[1].as_json()
    assert (found[0].vocabulary, found[0].heads, len(found[0].tensors)) == (101, 4, 39)


def test_the_file_is_the_same_with_any_budget_way_to_read_and_number_of_threads() -> None:
    texts = {
        digest(BLOOM.folder, max_ram=ram, io=io, jobs=jobs).as_json()
        for ram, io, jobs in (("2G", "direct", 4), ("1G", "pread", 1))
    }
    assert len(texts) == 1


# -- what a digest is of -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sha256", [False, True], ids=["xxh3-128", "sha256"])
def test_a_digest_is_of_the_bytes_that_transformers_has(sha256: bool, tmp_path: Path) -> None:
    models.make("llama", tmp_path)
    found = digest(tmp_path, sha256=sha256, **RAM)
    new: Callable[[bytes], Any] = hashlib.sha256 if sha256 else xxhash.xxh3_128
    own = {
        name: new(tensor.numpy().tobytes()).hexdigest()
        for name, tensor in load_file(tmp_path / "model.safetensors").items()
    }
    layer, attention = "model.layers.2", "layers.2.self_attention"
    names = {
        "model.embed_tokens.weight": "word_embeddings.weight",
        f"{layer}.self_attn.q_proj.weight": f"{attention}.query_key_value.weight.query",
        f"{layer}.self_attn.k_proj.weight": f"{attention}.query_key_value.weight.key",
        f"{layer}.self_attn.v_proj.weight": f"{attention}.query_key_value.weight.value",
        f"{layer}.self_attn.o_proj.weight": f"{attention}.dense.weight",
        f"{layer}.mlp.gate_proj.weight": f"layers.2.{UP}.gate",
        f"{layer}.mlp.up_proj.weight": f"layers.2.{UP}.up",
        f"{layer}.mlp.down_proj.weight": "layers.2.mlp.dense_4h_to_h.weight",
        "model.norm.weight": "final_layernorm.weight",
        "lm_head.weight": "lm_head.weight",
    }
    assert {name: found.tensors[canonical].digest for name, canonical in names.items()} == {
        name: own[name] for name in names
    }
    assert found.tensors[f"{attention}.query_key_value.weight.key"].shape == (16, 32)
    assert found.algorithm == ("sha256" if sha256 else "xxh3-128")


def test_a_matrix_that_transformers_stores_transposed_is_digested_as_it_is_used(tmp_path: Path) -> None:
    models.make("gpt", tmp_path)
    weight = load_file(tmp_path / "model.safetensors")["transformer.h.1.mlp.c_fc.weight"]
    expected = xxhash.xxh3_128(weight.T.contiguous().numpy().tobytes()).hexdigest()
    assert digest(tmp_path, **RAM).tensors[f"layers.1.{UP}"].digest == expected


def test_the_data_names_no_path_and_no_layout() -> None:
    data = digest(BLOOM.folder, **RAM).to_dict()
    assert {key: value for key, value in data.items() if key != "tensors"} == {
        "schema": "streamconv.digest/1",
        "algorithm": "xxh3-128",
        "names": "canonical",
        "vocabulary": 100,
        "heads": 4,
    }
    assert list(data["tensors"]) == sorted(data["tensors"])
    assert list(data["tensors"]["word_embeddings.weight"]) == ["dtype", "shape", "digest"]
    assert json.loads(digest(BLOOM.folder, **RAM).as_json()) == data


# -- held against them ---------------------------------------------------------------------------------------------


@pytest.fixture
def gpt(tmp_path: Path) -> tuple[Path, Path]:
    """A conversion of GPT, and the digests of what it was made from."""
    path = saved(digest(GPT.folder, **RAM), tmp_path / "digests.json")
    convert(GPT.folder, tmp_path / "out", tp=1, pp=1, to="megatron-legacy", **RAM)
    return tmp_path / "out", path


def edit(root: Path, change: Callable[[Tensors], None]) -> None:
    path = root / "iter_0000003" / "mp_rank_00" / "model_optim_rng.pt"
    state = oracle.load_plain(path)
    change(state["model"]["language_model"]["encoder"])
    torch.save(state, path)


def test_a_value_that_differs_is_named(gpt: tuple[Path, Path]) -> None:
    edit(gpt[0], lambda tensors: tensors[f"layers.1.{UP}"][3, 4].add_(1))
    assert held(*gpt) == (7, [f"layers.1.{UP}"], [], [])


def test_a_layer_too_few_and_one_too_many_are_named(gpt: tuple[Path, Path], tmp_path: Path) -> None:
    whole = json.loads(gpt[1].read_text())
    fewer = {name: each for name, each in whole["tensors"].items() if not name.startswith("layers.3.mlp")}
    gpt[1].write_text(json.dumps({**whole, "tensors": fewer}))
    gone = sorted(set(whole["tensors"]) - set(fewer))
    code, different, missing, extra = held(*gpt)
    assert (code, different, missing, sorted(extra)) == (7, [], [], gone)
    more = {**whole["tensors"], "layers.4.input_layernorm.weight": whole["tensors"]["layers.3.input_layernorm.weight"]}
    gpt[1].write_text(json.dumps({**whole, "tensors": more}))
    assert held(*gpt) == (7, [], ["layers.4.input_layernorm.weight"], [])


def test_another_shape_is_a_difference(gpt: tuple[Path, Path]) -> None:
    whole = json.loads(gpt[1].read_text())
    whole["tensors"][f"layers.0.{UP}"]["shape"] = [64, 64]
    gpt[1].write_text(json.dumps(whole))
    found = against(*gpt)
    assert found.digests is not None
    assert (found.exit_code, found.digests.different) == (7, [f"layers.0.{UP}"])
    assert "shape [128, 32], the digest is of [64, 64]" in found.digests.notes[0]


def test_copies_that_have_drifted_are_a_difference(tmp_path: Path) -> None:
    path = saved(digest(BLOOM.folder, **RAM), tmp_path / "digests.json")
    shutil.copytree(BLOOM.folder, tmp_path / "copy")
    (file,) = tmp_path.glob("copy/global_step3/layer_03-model_01*")
    state = torch.load(file)
    state["input_layernorm.weight"][0] += 1
    torch.save(state, file)
    found = against(tmp_path / "copy", path)
    assert (found.exit_code, [drift.name for drift in found.drifts]) == (7, ["layers.0.input_layernorm.weight"])
    with pytest.raises(DifferenceError, match="differ from their first copy"):
        digest(tmp_path / "copy", replicated="fail", **RAM)
    first, average = (digest(tmp_path / "copy", replicated=policy, **RAM) for policy in ("first", "mean"))
    assert [drift.name for drift in first.drifts] == ["layers.0.input_layernorm.weight"]
    assert [name for name in first.tensors if first.tensors[name] != average.tensors[name]] == [
        "layers.0.input_layernorm.weight"
    ]
    convert(tmp_path / "copy", tmp_path / "mean", to="huggingface", replicated="mean", **RAM)
    assert held(tmp_path / "mean", saved(average, path)) == (0, [], [], [])


def test_a_broken_checkpoint_is_not_compared(gpt: tuple[Path, Path]) -> None:
    path = gpt[0] / "iter_0000003" / "mp_rank_00" / "model_optim_rng.pt"
    start, _ = records(path)["data/4"]
    flip(path, start, 1)
    found = against(*gpt)
    assert (found.exit_code, found.digests) == (6, None)
    with pytest.raises(DamagedError, match="CRC-32"):
        digest(gpt[0], **RAM)


# -- the vocabulary ------------------------------------------------------------------------------------------------


def test_an_unknown_vocabulary_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(AmbiguousError, match="112 rows are stored, and padding is no part of a digest"):
        digest(CORE / "torch_llama_tp2pp2", **RAM)
    with pytest.raises(UsageError, match="a vocabulary of 1000 true rows: 112 rows are stored"):
        digest(CORE / "torch_llama_tp2pp2", vocab_size=1000, **RAM)
    path = saved(digest(CORE / "torch_llama_2groups_tp4", vocab_size=101, **RAM), tmp_path / "digests.json")
    # The digests say how many rows are true.
    assert held(CORE / "torch_llama_tp2pp2", path) == (0, [], [], [])


def test_padding_that_a_published_model_keeps_is_cut_off(tmp_path: Path) -> None:
    convert(BLOOM.folder, tmp_path / "hf", to="huggingface", **RAM)
    own = saved(digest(BLOOM.folder, **RAM), tmp_path / "own.json")
    assert held(tmp_path / "hf", own) == (0, [], [], [])
    assert saved(digest(tmp_path / "hf", vocab_size=100, **RAM), tmp_path / "hf.json").read_bytes() == own.read_bytes()
    # Digests of 112 rows say nothing of a checkpoint whose other rows are padding of its own.
    with_padding = saved(digest(tmp_path / "hf", **RAM), tmp_path / "padded.json")
    assert json.loads(with_padding.read_text())["vocabulary"] == 112
    assert held(BLOOM.folder, with_padding) == (0, [], [], [])
    why = "100 true rows, and the digest is of 112: take it with vocab_size=100"
    for tp, rows in ((1, 104), (4, 128)):
        convert(BLOOM.folder, tmp_path / f"tp{tp}", to="megatron-legacy", tp=tp, **RAM)
        found = against(tmp_path / f"tp{tp}", with_padding)
        assert found.digests is not None
        assert found.digests.side.tensors["word_embeddings.weight"].shape[0] == rows
        assert (found.exit_code, found.digests.compared) == (3, 68)
        assert [(each.name, each.why) for each in found.digests.incomparable] == [("word_embeddings.weight", why)]
    printed = run_main("verify", tmp_path / "tp4", "--against", with_padding, "--max-ram", "2G").stdout
    assert "100 true rows, and the digest is of 112: take it with --vocab-size 100" in printed


# -- heads and biases ----------------------------------------------------------------------------------------------


def test_an_unknown_number_of_heads_is_asked_for(tmp_path: Path) -> None:
    convert(GPT.folder, tmp_path / "bare", to="megatron-legacy", keep_args=False, **RAM)
    with pytest.raises(AmbiguousError, match="the number of attention heads is unknown"):
        digest(tmp_path / "bare", vocab_size=100, **RAM)
    path = saved(digest(GPT.folder, **RAM), tmp_path / "digests.json")
    assert digest(tmp_path / "bare", vocab_size=100, num_heads=4, **RAM).as_json() + "\n" == path.read_text()
    assert held(tmp_path / "bare", path) == (0, [], [], [])


def test_a_bias_that_is_zero_everywhere_is_as_if_it_were_not_stored(tmp_path: Path) -> None:
    models.make("llama", tmp_path / "bare")
    models.make("llama", tmp_path / "biased", mlp_bias=True)
    path = saved(digest(tmp_path / "bare", **RAM), tmp_path / "digests.json")
    file = tmp_path / "biased" / "model.safetensors"
    bare, tensors = load_file(tmp_path / "bare" / "model.safetensors"), load_file(file)
    zeros = {name: torch.zeros_like(tensor) for name, tensor in tensors.items() if name not in bare}
    save_file(bare | zeros, file)
    found = digest(tmp_path / "biased", **RAM)
    assert found.left_out == ["mlp.dense_4h_to_h.bias", "mlp.dense_h_to_4h.bias"]
    assert f"{found.as_json()}\n" == path.read_text()
    result = against(tmp_path / "biased", path)
    assert result.digests is not None
    assert (result.exit_code, result.digests.extra) == (0, [])
    assert [note.partition(":")[0] for note in result.digests.notes] == found.left_out
    zeros["model.layers.2.mlp.down_proj.bias"][5] = 1
    save_file(bare | zeros, file)
    down = [f"layers.{layer}.mlp.dense_4h_to_h.bias" for layer in range(4)]
    assert held(tmp_path / "biased", path) == (7, [], [], down)
    biased = saved(digest(tmp_path / "biased", **RAM), tmp_path / "biased.json")
    assert held(tmp_path / "bare", biased) == (7, [], down, [])


# -- stored names --------------------------------------------------------------------------------------------------


def test_where_no_family_is_known_names_are_those_that_are_stored(tmp_path: Path) -> None:
    folder = FRAMEWORKS / "z1_bf16.fp32"
    path = saved(digest(folder, **RAM), tmp_path / "digests.json")
    data = json.loads(path.read_text())
    assert (data["names"], data["vocabulary"], data["heads"]) == ("stored", None, None)
    assert held(folder, path) == (0, [], [], [])
    with pytest.raises(SourceError, match="nothing"):
        digest(tmp_path / "nothing", **RAM)


def test_a_lone_file_has_stored_names(tmp_path: Path) -> None:
    tensors = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.tensor(True), "none": torch.zeros(0, 4)}
    torch.save(tensors, tmp_path / "x.pt")
    save_file(tensors, tmp_path / "x.safetensors")
    found = digest(tmp_path / "x.pt", **RAM)
    assert found.as_json() == digest(tmp_path / "x.safetensors", **RAM).as_json()
    assert found.tensors["b"].digest == xxhash.xxh3_128(tensors["b"].numpy().tobytes()).hexdigest()
    assert (found.tensors["a"].dtype, found.tensors["a"].shape) == ("bool", ())
    assert found.tensors["none"].digest == xxhash.xxh3_128(b"").hexdigest()
    path = saved(found, tmp_path / "digests.json")
    torch.save({**tensors, "b": tensors["b"].T.contiguous().T + 1, "more": tensors["b"]}, tmp_path / "x.pt")
    assert held(tmp_path / "x.pt", path) == (7, ["b"], [], ["more"])


def test_canonical_digests_want_a_model(tmp_path: Path) -> None:
    path = saved(digest(BLOOM.folder, **RAM), tmp_path / "digests.json")
    with pytest.raises(UnsupportedError, match="by canonical names, and this checkpoint has none"):
        verify(BLOOM.folder / "global_step3" / "layer_03-model_00-model_states.pt", path, **RAM)


def test_a_folder_of_stored_names_with_a_broken_file_is_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        torch.save({"w": torch.ones(9)}, tmp_path / f"{name}.pt")
    cut(tmp_path / "b.pt", 300)
    with pytest.raises(DamagedError) as caught:
        digest(tmp_path, **RAM)
    assert caught.value.where == str(tmp_path / "b.pt")


# -- the file ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"schema": "streamconv.digest/9"}, UnsupportedError, "streamconv.digest/9, not streamconv.digest/1"),
        ({"schema": None}, UnsupportedError, "of the schema None"),
        ({"algorithm": "md5"}, UnsupportedError, "digests by md5"),
        ({"algorithm": ["sha256"]}, UnsupportedError, "digests by"),
        ({"names": "pet"}, DamagedError, "which names"),
        ({"tensors": []}, DamagedError, "has no tensors"),
        ({"vocabulary": -1}, DamagedError, "vocabulary is -1"),
        ({"heads": True}, DamagedError, "heads is True"),
        ({"tensors": {"w": 1}}, DamagedError, "w has no dtype"),
        ({"tensors": {"w": {"dtype": "pet", "shape": [], "digest": "0" * 32}}}, DamagedError, "of the type pet"),
        ({"tensors": {"w": {"dtype": "int8", "shape": [-1], "digest": "0" * 32}}}, DamagedError, "no valid shape"),
        ({"tensors": {"w": {"dtype": "int8", "shape": [1], "digest": "0" * 64}}}, DamagedError, "not 32 digits"),
    ],
)
def test_a_file_that_is_no_digests_is_refused(
    change: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    torch.save({"w": torch.ones(1, dtype=torch.int8)}, tmp_path / "x.pt")
    data = digest(tmp_path / "x.pt", **RAM).to_dict()
    (tmp_path / "digests").write_text(json.dumps({**data, **change}))
    with pytest.raises(error, match=message):
        verify(tmp_path / "x.pt", tmp_path / "digests", **RAM)


def test_a_file_that_is_cut_off_is_damaged(gpt: tuple[Path, Path]) -> None:
    cut(gpt[1], 400)
    with pytest.raises(DamagedError, match="no JSON"):
        verify(*gpt, **RAM)


def test_options_about_the_model_that_is_gone_are_refused(gpt: tuple[Path, Path]) -> None:
    with pytest.raises(UsageError, match="has no meaning with"):
        verify(*gpt, replicated="mean", **RAM)
    with pytest.raises(UsageError, match="qkv_layout"):
        verify(LLAMA.parent / "mcore_llama_dist_tp2pp2", gpt[1], qkv_layout="blocks", num_heads=4, **RAM)
