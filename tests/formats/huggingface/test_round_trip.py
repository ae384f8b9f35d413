"""transformers' own models go to every target that can hold them, at another TP and PP, and back, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from streamconv import convert, stream, verify
from streamconv.core.errors import UnsupportedError
from streamconv.formats.registry import known_targets
from streamconv.planning.capabilities import Capability, capability_table
from tests import hf_models as models

CELLS = [cell for cell in capability_table() if cell.source.name == "huggingface"]
WORKS = [cell for cell in CELLS if cell.refusal is None]
RAM: dict[str, Any] = {"max_ram": "1G"}


def name_of(cell: Capability) -> str:
    return f"{cell.family.name}-{cell.target.name}"


@pytest.mark.slow
@pytest.mark.parametrize("cell", WORKS, ids=name_of)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_there_and_back(cell: Capability, dtype: torch.dtype, tmp_path: Path) -> None:
    family, target = cell.family.name, cell.target
    model = models.make(family, tmp_path / "hf", dtype=dtype)
    parallel: dict[str, Any] = {"tp": 2, "pp": 2} if target.is_sharded else {"max_shard_size": "20KB"}
    convert(tmp_path / "hf", tmp_path / "there", to=target.name, **parallel, **RAM)
    config = tmp_path / "hf" / "config.json"
    convert(tmp_path / "there", tmp_path / "back", to="huggingface", config=config, vocab_padding="strip", **RAM)
    back = models.load(tmp_path / "back", dtype)
    models.assert_same_weights(model, back)
    assert back.config.model_type == cell.family.huggingface.model_type
    if dtype == torch.float32:
        assert torch.equal(models.logits(model), models.logits(back))
    assert verify(tmp_path / "back", tmp_path / "hf", **RAM).exit_code == 0


@pytest.mark.parametrize("cell", [cell for cell in CELLS if cell.refusal is not None], ids=name_of)
def test_what_cannot_go_is_refused_by_name(cell: Capability, tmp_path: Path) -> None:
    models.make(cell.family.name, tmp_path / "hf")
    with pytest.raises(UnsupportedError) as caught:
        convert(tmp_path / "hf", tmp_path / "out", to=cell.target.name, **RAM)
    assert cell.refusal is not None
    assert cell.refusal in str(caught.value)
    assert "huggingface" in str(caught.value.remedy)
    assert not (tmp_path / "out").exists()


def test_every_family_has_a_model_and_every_target_a_cell() -> None:
    assert {cell.family.name for cell in CELLS} == set(models.CONFIGS)
    assert {cell.target.name for cell in CELLS} == {target.name for target in known_targets()}


@pytest.mark.parametrize("family", sorted(models.CONFIGS))
def test_one_file_equals_what_transformers_saved(family: str, tmp_path: Path) -> None:
    model = models.make(family, tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "out", to="huggingface", vocab_padding="strip", **RAM)
    assert [path.name for path in (tmp_path / "out").glob("*.safetensors")] == ["model.safetensors"]
    models.assert_same_weights(model, models.load(tmp_path / "out"))
    mine, theirs = (json.loads((tmp_path / kind / "config.json").read_text()) for kind in ("out", "hf"))
    changed = {name for name in theirs if mine.get(name) != theirs[name]}
    assert changed <= {"transformers_version"}


@pytest.mark.parametrize("family", sorted(models.CONFIGS))
def test_streamed_tensors_are_those_of_the_file(family: str, tmp_path: Path) -> None:
    models.make(family, tmp_path / "hf")
    streamed = stream(tmp_path / "hf", to="huggingface", copy=True, max_ram="4G", vocab_padding="keep")
    state = {name: tensor for _, _, name, tensor in streamed}
    saved = load_file(tmp_path / "hf" / "model.safetensors")
    assert set(state) == set(saved)
    assert all(torch.equal(state[name], saved[name]) for name in saved)
