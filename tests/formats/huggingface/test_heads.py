"""A head that is missing, that is stored in another dtype than the embedding it is tied to, or that no index names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM

from streamconv import convert, plan, verify
from streamconv.core.errors import DamagedError, DifferenceError, UnsupportedError
from tests import hf_models as models
from tests.trees import tree

RAM: dict[str, Any] = {"max_ram": "1G"}
HEADS = {"llama": "lm_head.weight", "gpt": "lm_head.weight", "gpt_neox": "embed_out.weight", "bloom": "lm_head.weight"}
WORDS = {
    "llama": "model.embed_tokens.weight",
    "gpt": "transformer.wte.weight",
    "gpt_neox": "gpt_neox.embed_in.weight",
    "bloom": "transformer.word_embeddings.weight",
}


def edited(folder: Path, change: Any) -> Path:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})
    return folder


def configured(folder: Path, **entries: Any) -> Path:
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **entries}
    path.write_text(json.dumps({name: value for name, value in config.items() if value is not ...}))
    return folder


# -- no head ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("said", [True, False])
@pytest.mark.parametrize("to", ["huggingface", "megatron-core"])
def test_a_base_model_is_said_to_be_one(to: str, said: bool, tmp_path: Path) -> None:
    models.make("llama", tmp_path / "whole")
    AutoModel.from_pretrained(tmp_path / "whole").save_pretrained(tmp_path / "hf")
    if not said:
        configured(tmp_path / "hf", architectures=...)
    with pytest.raises(
        UnsupportedError, match=r"lm_head\.weight is not stored, .* base model, which has no head"
    ) as caught:
        plan(tmp_path / "hf", to=to)
    assert ("architectures says LlamaModel" if said else "its names lack the prefix model.") in str(caught.value)
    assert '{"tie_word_embeddings": true}' in str(caught.value.remedy)
    assert "fetch" not in str(caught.value.remedy)
    config = {"tie_word_embeddings": True}
    convert(tmp_path / "hf", tmp_path / "out", to="huggingface", config=config, **RAM)
    models.assert_same_weights(AutoModel.from_pretrained(tmp_path / "out"), AutoModel.from_pretrained(tmp_path / "hf"))


def test_a_base_model_with_prefixes(tmp_path: Path) -> None:
    models.make("qwen2", tmp_path / "hf")
    edited(configured(tmp_path / "hf", architectures=["Qwen2Model"]), lambda tensors: tensors.pop("lm_head.weight"))
    with pytest.raises(UnsupportedError, match="a base model, which has no head"):
        plan(tmp_path / "hf", to="huggingface")


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_a_head_that_should_be_there(family: str, tmp_path: Path) -> None:
    models.make(family, tmp_path / "hf", tie_word_embeddings=False)
    edited(tmp_path / "hf", lambda tensors: tensors.pop(HEADS[family]))
    with pytest.raises(DamagedError, match=f"{HEADS[family]} is not stored") as caught:
        plan(tmp_path / "hf", to="huggingface")
    assert str(caught.value.remedy).startswith("fetch the model again; or, if its head is the embedding, say")
    assert plan(tmp_path / "hf", to="huggingface", config={"tie_word_embeddings": True})


def test_a_model_with_another_head_says_so(tmp_path: Path) -> None:
    models.make("llama", tmp_path / "hf")
    configured(tmp_path / "hf", architectures=["LlamaForSequenceClassification"])
    with pytest.raises(UnsupportedError, match="LlamaForSequenceClassification: only LlamaForCausalLM is") as caught:
        plan(tmp_path / "hf", to="huggingface")
    assert "safetensors" in str(caught.value.remedy)


@pytest.mark.parametrize("family", ["llama", "gpt", "bloom"])
def test_the_head_alone_is_the_embedding_too(family: str, tmp_path: Path) -> None:
    models.make(family, tmp_path / "hf", tie_word_embeddings=True)
    edited(tmp_path / "hf", lambda tensors: tensors.update({HEADS[family]: tensors.pop(WORDS[family])}))
    convert(tmp_path / "hf", tmp_path / "out", to="huggingface", **RAM)
    models.assert_same_weights(AutoModelForCausalLM.from_pretrained(tmp_path / "hf"), models.load(tmp_path / "out"))


# -- a head in another dtype --------------------------------------------------------------------------------------


def tied(folder: Path, family: str, head: torch.dtype, words: torch.dtype, change: Any = None) -> Path:
    models.make(family, folder, tie_word_embeddings=True)

    def put(tensors: Any) -> None:
        for name in tensors:
            tensors[name] = tensors[name].to(words)
        tensors[HEADS[family]] = tensors[WORDS[family]].to(head).clone()
        if change is not None:
            change(tensors[HEADS[family]])

    return edited(folder, put)


@pytest.mark.parametrize("family", ["llama", "gpt", "gpt_neox", "bloom"])
@pytest.mark.parametrize(
    ("head", "words"),
    [
        (torch.float32, torch.bfloat16),
        (torch.float32, torch.float16),
        (torch.float64, torch.float32),
    ],
)
def test_a_tied_head_is_compared_by_value(family: str, head: torch.dtype, words: torch.dtype, tmp_path: Path) -> None:
    source = tied(tmp_path / "hf", family, head, words)
    report = convert(source, tmp_path / "out", to="huggingface", **RAM)
    assert any(HEADS[family] in dropped.name for dropped in report.plan.dropped)
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert HEADS[family] not in stored
    assert stored[WORDS[family]].dtype == words
    assert verify(tmp_path / "out", source, **RAM).exit_code == 0


def test_a_wide_embedding_of_rounded_values_and_a_narrow_head(tmp_path: Path) -> None:
    source = tied(tmp_path / "hf", "llama", torch.bfloat16, torch.float32)
    with pytest.raises(DifferenceError, match=r"lm_head\.weight differs from the word embedding"):
        convert(source, tmp_path / "none", to="huggingface", **RAM)
    edited(source, lambda tensors: tensors.update({WORDS["llama"]: tensors["lm_head.weight"].float()}))
    convert(source, tmp_path / "out", to="huggingface", **RAM)


def one_bit(head: torch.Tensor) -> None:
    """The next number in float32, which bfloat16 does not have."""
    head[50, 7] = torch.nextafter(head[50, 7], torch.tensor(10.0, dtype=head.dtype))


def not_a_number(head: torch.Tensor) -> None:
    head[0, 0] = torch.nan


@pytest.mark.parametrize("change", [one_bit, not_a_number])
@pytest.mark.parametrize("to", ["huggingface", "megatron-core"])
def test_another_value_is_refused(to: str, change: Any, tmp_path: Path) -> None:
    source = tied(tmp_path / "hf", "llama", torch.float32, torch.bfloat16, change)
    choices = {"to": to, **({} if to == "huggingface" else {"iteration": 1}), **RAM}
    with pytest.raises(DifferenceError, match=r"differs from the word embedding in 1 elements") as caught:
        convert(source, tmp_path / "out", **choices)
    assert not (tmp_path / "out").exists()
    assert '{"tie_word_embeddings": false}' in str(caught.value.remedy)
    config = {"tie_word_embeddings": False}
    convert(source, tmp_path / "both", config=config, **choices)
    if to == "huggingface":
        assert load_file(tmp_path / "both" / "model.safetensors")["lm_head.weight"].dtype == torch.float32


def test_a_family_without_another_head_has_another_remedy(tmp_path: Path) -> None:
    source = tied(tmp_path / "hf", "bloom", torch.float32, torch.float32, one_bit)
    with pytest.raises(DifferenceError) as caught:
        convert(source, tmp_path / "out", to="huggingface", **RAM)
    assert "a BLOOM model has no other head than its embedding" in str(caught.value.remedy)
    assert "false" not in str(caught.value.remedy)


def test_many_small_parts_are_compared(tmp_path: Path) -> None:
    """With little memory the head is compared in parts: the last row counts too."""

    def change(head: torch.Tensor) -> None:
        head[-1, -1] += 1

    models.make("llama", tmp_path / "hf", tie_word_embeddings=True, vocab_size=20_000)

    def put(tensors: Any) -> None:
        tensors["lm_head.weight"] = tensors[WORDS["llama"]].double()
        change(tensors["lm_head.weight"])

    edited(tmp_path / "hf", put)
    with pytest.raises(DifferenceError, match=r"differs from the word embedding in 1 elements, by at most 1,"):
        convert(tmp_path / "hf", tmp_path / "out", to="huggingface", max_ram="1G", block_size="64K")


# -- a head that the index does not name --------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("equal", [True, False])
def test_a_tied_head_outside_the_index(equal: bool, dtype: torch.dtype, tmp_path: Path) -> None:
    folder = tmp_path / "hf"
    model = models.make("llama", folder, tie_word_embeddings=True)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="20KB")
    shard = max(folder.glob("model-*.safetensors"))
    words = model.get_input_embeddings().weight.detach().to(dtype) + (0 if equal else 1)
    save_file({**load_file(shard), "lm_head.weight": words.clone()}, shard, {"format": "pt"})
    before = tree(folder)
    if not equal:
        with pytest.raises(DifferenceError, match=r"lm_head\.weight differs"):
            convert(folder, tmp_path / "out", to="huggingface", **RAM)
        return
    report = convert(folder, tmp_path / "out", to="huggingface", **RAM)
    assert any("not in the index, and are read, as by transformers: lm_head.weight" in w for w in report.plan.warnings)
    assert any("lm_head.weight" in dropped.name for dropped in report.plan.dropped)
    models.assert_same_weights(model, models.load(tmp_path / "out"))
    assert tree(folder) == before


def test_a_head_outside_the_index_is_read_as_transformers_reads_it(tmp_path: Path) -> None:
    folder = tmp_path / "hf"
    model = models.make("llama", folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="20KB")
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    del content["weight_map"]["lm_head.weight"]
    # Its shard is named only by what else is in it.
    shard = min(folder.glob("model-*.safetensors"))
    home = next(path for path in folder.glob("model-*.safetensors") if "lm_head.weight" in load_file(path))
    if home != shard:
        tensors = load_file(home)
        save_file({**load_file(shard), "lm_head.weight": tensors.pop("lm_head.weight")}, shard, {"format": "pt"})
        save_file(tensors, home, {"format": "pt"}) if tensors else home.unlink()
    index.write_text(json.dumps(content))
    convert(folder, tmp_path / "out", to="huggingface", **RAM)
    models.assert_same_weights(models.load(folder), models.load(tmp_path / "out"))
