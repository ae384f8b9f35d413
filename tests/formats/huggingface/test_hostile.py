"""Folders that no framework writes: each is an error of ours with its words, never a traceback or a silent loss."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from streamconv import plan
from streamconv.cli.main import main
from streamconv.core.errors import DamagedError, StorageError, StreamconvError, UnsupportedError, UsageError
from tests import hf_models as models


def edited(folder: Path, family: str, tensors: dict[str, torch.Tensor], **config: Any) -> Path:
    """A model of transformers with tensors and entries put in."""
    models.make(family, folder)
    stored = load_file(folder / "model.safetensors")
    save_file({**stored, **tensors}, folder / "model.safetensors", {"format": "pt"})
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    return folder


TEMPLATE = "model.layers.{layer}.input_layernorm.weight"
LONG = f"model.layers.{'1' * 5000}.input_layernorm.weight"


@pytest.mark.parametrize("to", ["huggingface", "megatron"])
@pytest.mark.parametrize(
    ("family", "tensors", "error", "words"),
    [
        (
            "llama",
            {TEMPLATE: torch.ones(32)},
            UnsupportedError,
            "model.layers.{layer}.input_layernorm.weight: no tensor",
        ),
        ("llama", {TEMPLATE[6:]: torch.ones(32)}, UnsupportedError, "{layer}.input_layernorm.weight: no tensor"),
        ("llama", {LONG: torch.ones(32)}, UnsupportedError, "model.layers.1111"),
        ("gpt", {"transformer.h.1.attn.c_attn.weight": torch.ones(32)}, DamagedError, "c_attn.weight has shape (32,)"),
        ("gpt", {"transformer.h.1.attn.c_attn.weight": torch.ones(())}, DamagedError, "c_attn.weight has shape ()"),
        ("gpt", {"transformer.h.1.mlp.c_fc.weight": torch.ones(1, 2, 3)}, DamagedError, "c_fc.weight has shape (1, 2"),
        ("llama", {"model.embed_tokens.weight": torch.ones(())}, DamagedError, "the word embedding has shape ()"),
        ("llama", {"model.embed_tokens.weight": torch.ones(101)}, DamagedError, "the word embedding has shape (101,)"),
        ("gpt", {"transformer.wpe.weight": torch.ones(())}, DamagedError, "position_embeddings.weight has shape ()"),
        ("gpt", {"transformer.wpe.weight": torch.ones(64)}, DamagedError, "position_embeddings.weight has shape (64,)"),
    ],
)
def test_tensors_that_no_model_has(
    family: str, tensors: dict[str, torch.Tensor], error: type[StreamconvError], words: str, to: str, tmp_path: Path
) -> None:
    folder = edited(tmp_path / "hf", family, tensors)
    with pytest.raises(error) as caught:
        plan(folder, to=to)
    assert words in str(caught.value)
    assert len(str(caught.value)) < 1000
    assert main([str(folder), str(tmp_path / "out"), "--to", to]) == error.exit_code


@pytest.mark.parametrize("head", [{}, {"lm_head.weight": torch.ones(256, 32)}])
def test_a_head_that_the_family_has_not_is_refused(head: dict[str, torch.Tensor], tmp_path: Path) -> None:
    folder = edited(tmp_path / "hf", "bloom", head, tie_word_embeddings=False)
    with pytest.raises(UnsupportedError, match="tie_word_embeddings is false"):
        plan(folder, to="huggingface")
    if not head:
        assert plan(folder, to="huggingface", config={"tie_word_embeddings": True})


def indexed(folder: Path, name: str) -> Path:
    """A model whose index names one file for all tensors."""
    models.make("llama", folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, name)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def test_an_index_that_is_none(tmp_path: Path) -> None:
    folder = indexed(tmp_path / "hf", "x" * 5000)
    with pytest.raises(DamagedError, match="is not the name of a file beside it") as caught:
        plan(folder, to="huggingface")
    assert caught.value.remedy
    path = folder / "model.safetensors.index.json"
    for text in ("[]", "{", '{"weight_map": []}', "{}"):
        path.write_text(text)
        with pytest.raises(DamagedError, match=r"no JSON|JSON list|no index of shards") as caught:
            plan(folder, to="huggingface")
        assert caught.value.remedy
    path.unlink()
    path.mkdir()
    with pytest.raises(DamagedError, match="is not a file"):
        plan(folder, to="huggingface")


def test_what_the_system_refuses_to_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models.make("llama", tmp_path / "hf")
    config = tmp_path / "hf" / "config.json"
    config.unlink()
    # A file that is there and cannot be read, also by root.
    config.symlink_to("/proc/self/mem")
    with pytest.raises(StorageError, match="cannot read"):
        plan(tmp_path / "hf", to="huggingface")
    assert main([str(tmp_path / "hf"), str(tmp_path / "out"), "--to", "huggingface"]) == 5
    assert "config.json" in capsys.readouterr().err
    for length, words in ((200, "no such file"), (5000, "a path of 5000 bytes, and the system takes 4095")):
        with pytest.raises(UsageError, match=words):
            plan(tmp_path / "hf", to="huggingface", config="x" * length)


@pytest.mark.parametrize("config", [123, [1], {5: 1}, b"{}", ["hidden_size", 3]])
def test_a_configuration_of_another_kind(config: Any, tmp_path: Path) -> None:
    models.make("llama", tmp_path / "hf")
    with pytest.raises(UsageError, match="config"):
        plan(tmp_path / "hf", to="huggingface", config=config)


@pytest.mark.parametrize("to", ["megatron-core", "megatron-legacy", "deepspeed"])
def test_float8_goes_nowhere_that_torch_cannot_store_it(to: str, tmp_path: Path) -> None:
    models.make("gpt", tmp_path / "hf")
    path = tmp_path / "hf" / "model.safetensors"
    tensors = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in load_file(path).items()}
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(UnsupportedError, match="float8_e4m3fn") as caught:
        plan(tmp_path / "hf", to=to)
    assert 'dtype="bf16"' in str(caught.value.remedy)
    assert plan(tmp_path / "hf", to=to, dtype="bf16")
    assert plan(tmp_path / "hf", to="huggingface")
