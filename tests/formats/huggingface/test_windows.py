"""Sliding windows of Qwen, which some layers may have and others not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from streamconv import convert, plan
from streamconv.core.errors import UnsupportedError
from tests import hf_models as models

SLIDING, FULL = "sliding_attention", "full_attention"
SOME: dict[str, dict[str, Any]] = {
    "by number": {"max_window_layers": 2, "layer_types": None},
    "by name": {"layer_types": [FULL, FULL, SLIDING, SLIDING]},
}
ALL: dict[str, dict[str, Any]] = {
    "by number": {"max_window_layers": 0, "layer_types": None},
    "by name": {"layer_types": [SLIDING] * 4, "max_window_layers": 28},
}
WINDOW: dict[str, Any] = {"use_sliding_window": True, "sliding_window": 4}


@pytest.mark.slow
@pytest.mark.parametrize("some", SOME.values(), ids=list(SOME))
@pytest.mark.parametrize(
    ("family", "to"), [("qwen2", "megatron-core"), ("qwen2", "megatron-legacy"), ("qwen3", "megatron-core")]
)
def test_a_window_in_some_of_the_layers_is_refused(family: str, some: dict[str, Any], to: str, tmp_path: Path) -> None:
    models.make(family, tmp_path / "hf", **WINDOW, **some)
    with pytest.raises(UnsupportedError, match=r"sliding_window 4 \(of 64 positions\) in some of the layers"):
        plan(tmp_path / "hf", to=to)
    assert plan(tmp_path / "hf", to=to, config={"use_sliding_window": False})
    convert(tmp_path / "hf", tmp_path / "same", to="huggingface", max_ram="1G")
    models.assert_same_weights(models.load(tmp_path / "hf"), models.load(tmp_path / "same"))
    answers = [models.logits(models.load(tmp_path / place)) for place in ("hf", "same")]
    assert torch.equal(*answers)


@pytest.mark.slow
@pytest.mark.parametrize("every", ALL.values(), ids=list(ALL))
@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_a_window_in_all_layers_comes_back(family: str, every: dict[str, Any], tmp_path: Path) -> None:
    expected = models.logits(models.make(family, tmp_path / "hf", **WINDOW, **every))
    without = models.logits(models.make(family, tmp_path / "full"))
    assert not torch.allclose(expected, without, atol=1e-3)
    convert(tmp_path / "hf", tmp_path / "core", to="megatron-core", max_ram="1G")
    convert(tmp_path / "core", tmp_path / "back", to="huggingface", max_ram="1G")
    assert torch.equal(models.logits(models.load(tmp_path / "back")), expected)
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    assert {name: config[name] for name in WINDOW} == WINDOW
