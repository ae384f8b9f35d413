"""Tensors of unlike dtypes in one model: a LoRA that was merged by hand, or norms that were kept wide."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from streamconv import convert, plan
from streamconv.core.errors import UnsupportedError
from tests import hf_models as models
from tests.trees import tree

RAM: dict[str, Any] = {"max_ram": "1G"}
WIDE = {
    "queries and values": r"[qv]_proj\.",
    "gates": r"gate_proj\.",
    "one layer": r"layers\.1\.",
    "one query": r"layers\.2\.self_attn\.q_proj",
}
SHARDED = ("megatron-core", "megatron-legacy", "deepspeed")


def unlike(folder: Path, wide: str, family: str = "llama", narrow: torch.dtype = torch.bfloat16) -> Path:
    """A model with the tensors of ``wide`` in float32, and all others in ``narrow``."""
    models.make(family, folder, num_key_value_heads=4)
    stored = load_file(folder / "model.safetensors")
    save_file(
        {name: tensor if re.search(wide, name) else tensor.to(narrow) for name, tensor in stored.items()},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    return folder


def choices(to: str) -> dict[str, Any]:
    return {"to": to, **({} if to == "huggingface" else {"iteration": 1}), **RAM}


def bits(path: Path) -> dict[str, tuple[torch.dtype, torch.Tensor]]:
    return {name: (tensor.dtype, tensor.view(torch.uint8)) for name, tensor in load_file(path).items()}


@pytest.mark.parametrize("wide", WIDE.values(), ids=WIDE)
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_nothing_is_fused_for_transformers_so_each_keeps_its_own(family: str, wide: str, tmp_path: Path) -> None:
    source = unlike(tmp_path / "hf", wide, family)
    convert(source, tmp_path / "out", to="huggingface", **RAM)
    before, after = (bits(folder / "model.safetensors") for folder in (source, tmp_path / "out"))
    assert before.keys() == after.keys()
    for name, (dtype, raw) in before.items():
        assert after[name][0] == dtype
        assert torch.equal(after[name][1], raw), name
    # It is loaded in the dtype that it was loaded in before.
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "float32"
    for dtype in (torch.float32, torch.bfloat16):
        models.assert_same_weights(models.load(source, dtype), models.load(tmp_path / "out", dtype))


@pytest.mark.parametrize("wide", WIDE.values(), ids=WIDE)
@pytest.mark.parametrize("to", ["huggingface", *SHARDED])
def test_with_a_dtype_every_target_has_them_rounded_once(to: str, wide: str, tmp_path: Path) -> None:
    source = unlike(tmp_path / "hf", wide)
    cast = models.make("llama", tmp_path / "cast", num_key_value_heads=4).bfloat16()
    cast.save_pretrained(tmp_path / "cast")
    for name in ("hf", "cast"):
        convert(tmp_path / name, tmp_path / f"{name}-out", dtype="bf16", **choices(to))
    own, other = (tree(tmp_path / f"{name}-out") for name in ("hf", "cast"))
    weights = [name for name in own if name.endswith((".pt", ".distcp", ".safetensors"))]
    assert weights
    assert {name: own[name] for name in weights} == {name: other[name] for name in weights}
    convert(tmp_path / "hf-out", tmp_path / "back", to="huggingface", **RAM, **_said(source, to))
    expected = {name: tensor.bfloat16() for name, tensor in load_file(source / "model.safetensors").items()}
    found = load_file(tmp_path / "back" / "model.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def _said(source: Path, to: str) -> dict[str, Any]:
    return {} if to == "huggingface" else {"config": source / "config.json", "vocab_size": 101}


@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize("to", SHARDED)
@pytest.mark.parametrize(
    ("wide", "words"),
    [
        (WIDE["queries and values"], r"query_key_value\.weight .*\(query float32, key bfloat16, value float32\)"),
        (WIDE["gates"], r"gate float32, up bfloat16|linear_fc1\.weight .* are float32 and bfloat16"),
    ],
)
def test_what_must_be_fused_asks_for_a_dtype(to: str, wide: str, words: str, tp: int, tmp_path: Path) -> None:
    source = unlike(tmp_path / "hf", wide)
    with pytest.raises(UnsupportedError, match=words) as caught:
        plan(source, tp=tp, **choices(to))
    assert 'dtype="bf16"' in str(caught.value.remedy)
    assert plan(source, tp=tp, dtype="bf16", **choices(to))


@pytest.mark.parametrize("pp", [1, 4])
def test_layers_that_are_one_tensor_ask_for_a_dtype(pp: int, tmp_path: Path) -> None:
    source = unlike(tmp_path / "hf", WIDE["one layer"])
    with pytest.raises(UnsupportedError, match="is one tensor in a torch_dist checkpoint"):
        plan(source, pp=pp, **choices("megatron-core"))
    assert plan(source, pp=pp, container="torch", **choices("megatron-core"))
    assert plan(source, pp=pp, **choices("megatron-legacy"))


def test_parts_may_have_types_of_one_size(tmp_path: Path) -> None:
    source = unlike(tmp_path / "hf", WIDE["gates"], narrow=torch.bfloat16)
    stored = load_file(source / "model.safetensors")
    half = {name: tensor.half() if ".q_proj" in name else tensor for name, tensor in stored.items()}
    save_file(half, source / "model.safetensors", {"format": "pt"})
    convert(source, tmp_path / "out", dtype="fp32", **choices("megatron-legacy"))
    convert(tmp_path / "out", tmp_path / "back", to="huggingface", config=source / "config.json", vocab_size=101, **RAM)
    found = load_file(tmp_path / "back" / "model.safetensors")
    assert all(torch.equal(found[name], tensor.float()) for name, tensor in half.items())
