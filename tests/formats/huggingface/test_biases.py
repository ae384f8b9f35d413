"""Folders of transformers with biases on linear layers: answers, and folders that contradict themselves."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from streamconv import convert, plan
from streamconv.core.errors import DamagedError, UnsupportedError
from tests import hf_models as models
from tests.formats.megatron import rank_files as files
from tests.formats.megatron.biased import (
    ATTENTION,
    BOTH,
    MLP,
    WHOLE,
    Biased,
    entries_of,
)
from tests.formats.megatron.models import case_of


def written(folder: Path, change: Callable[[dict[str, torch.Tensor]], None], **config: Any) -> Path:
    """A folder of transformers whose tensors and configuration are changed."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})
    known = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**known, **config}))
    return folder


O_PROJ = "model.layers.3.self_attn.o_proj.bias"


@pytest.mark.parametrize("to", ["huggingface", "megatron-core"])
@pytest.mark.parametrize(
    ("entries", "change", "config", "words"),
    [
        (ATTENTION, lambda t: t.pop(O_PROJ), {}, rf"{O_PROJ} is missing, and config.json says attention_bias true"),
        (BOTH, lambda t: t.pop("model.layers.0.mlp.up_proj.bias"), {}, r"model\.layers\.0\.mlp\.up_proj\.bias is miss"),
        ((), lambda t: t.update({O_PROJ: torch.ones(16)}), {}, rf"{O_PROJ} is stored, .* not say attention_bias true"),
        (
            MLP,
            lambda t: None,
            {"mlp_bias": False},
            r"mlp\..*bias is stored, and config.json does not say mlp_bias true",
        ),
        ((), lambda t: None, {"mlp_bias": True}, r"model\.layers\.0\.mlp\.gate_proj\.bias is missing"),
        (
            ATTENTION,
            lambda t: t.update({O_PROJ: torch.ones(15)}),
            {},
            rf"is \(15,\), expected \(16,\).*stored as {O_PROJ}",
        ),
        (
            ATTENTION,
            lambda t: t.update({O_PROJ: torch.ones(1, 16)}),
            {},
            rf"has shape \(1, 16\), 1 axes were due; stored as {O_PROJ}",
        ),
        (
            ATTENTION,
            lambda t: t.update({"model.layers.3.self_attn.k_proj.bias": torch.ones(9)}),
            {},
            r"model\.layers\.3\.self_attn\.k_proj\.bias is \(9,\) float32: it should have 16 rows",
        ),
    ],
)
def test_folders_of_transformers_that_contradict_themselves(
    entries: tuple[str, ...], change: Any, config: dict[str, Any], words: str, to: str, tmp_path: Path
) -> None:
    Biased("llama", entries).save(tmp_path / "hf")
    with pytest.raises(DamagedError, match=words):
        plan(written(tmp_path / "hf", change, **config), to=to)


def test_what_the_user_says_of_biases_counts(tmp_path: Path) -> None:
    """A configuration that leaves out what the tensors are."""
    case = Biased("llama", BOTH).save(tmp_path / "hf")
    source = written(tmp_path / "hf", lambda tensors: None, attention_bias=None, mlp_bias=False)
    convert(source, tmp_path / "out", config={"attention_bias": True, "mlp_bias": True}, **WHOLE)
    files.assert_same(files.load_hugging_face(tmp_path / "out"), case.tensors(), case.model())
    assert entries_of(tmp_path / "out") == {"attention_bias": True, "mlp_bias": True}


@pytest.mark.parametrize(("name", "stored"), [("mistral", O_PROJ), ("qwen2", O_PROJ)])
def test_families_without_the_entries_have_no_such_tensor(name: str, stored: str, tmp_path: Path) -> None:
    case_of(name, head=True).save(tmp_path / "hf", attention_bias=True)
    source = written(tmp_path / "hf", lambda tensors: tensors.update({stored: torch.ones(16)}))
    with pytest.raises(UnsupportedError, match=f"{stored}: no tensor of"):
        plan(source, to="huggingface")


def test_an_mlp_bias_of_qwen_3_is_no_tensor_of_transformers(tmp_path: Path) -> None:
    Biased("qwen3", ATTENTION).save(tmp_path / "hf")
    name = "model.layers.0.mlp.down_proj.bias"
    source = written(tmp_path / "hf", lambda tensors: tensors.update({name: torch.ones(16)}), mlp_bias=True)
    with pytest.raises(UnsupportedError, match=f"{name}: no tensor of Qwen 3"):
        plan(source, to="huggingface")


@pytest.mark.slow
@pytest.mark.parametrize("mlp", [False, True])
@pytest.mark.parametrize("attention", [False, True])
@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_transformers_answers_the_same(name: str, attention: bool, mlp: bool, tmp_path: Path) -> None:
    """Written again, and from Megatron-Core at TP 2 and PP 2: bit for bit, with the same entries."""
    entries = {"attention_bias": attention, **({"mlp_bias": mlp} if name == "llama" else {})}
    model = models.make(name, tmp_path / "hf", **entries)
    convert(tmp_path / "hf", tmp_path / "again", to="huggingface", max_ram="1G")
    convert(tmp_path / "hf", tmp_path / "core", to="megatron-core", tp=2, pp=2, max_ram="1G")
    convert(tmp_path / "core", tmp_path / "back", to="huggingface", max_ram="1G")
    for folder in ("again", "back"):
        found = models.load(tmp_path / folder)
        models.assert_same_weights(model, found)
        assert torch.equal(models.logits(found), models.logits(model))
        assert {entry: getattr(found.config, entry) for entry in entries} == entries
