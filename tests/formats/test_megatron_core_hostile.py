"""Arguments of a Megatron-Core checkpoint that no run could have: each is named, none ends in a traceback."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from streamconv import convert, inspect, plan
from streamconv.errors import DamagedError, UnsupportedError
from tests.places import FRAMEWORKS

LLAMA = FRAMEWORKS / "dsp_llama_gqa_tp2pp2_fp32_z0"
TARGETS: tuple[dict[str, Any], ...] = (
    {"to": "megatron-core"},
    {"to": "megatron-core", "container": "torch", "tp": 1, "pp": 1},
    {"to": "megatron-legacy"},
    {"to": "huggingface"},
)


@pytest.fixture
def core(tmp_path: Path) -> Path:
    convert(LLAMA, tmp_path / "core", to="megatron-core", container="torch", max_ram="2G")
    return tmp_path / "core"


def say(root: Path, **entries: Any) -> None:
    for path in root.rglob("model_optim_rng.pt"):
        state = torch.load(path, weights_only=False)
        vars(state["args"]).update(entries)
        torch.save(state, path)


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("num_query_groups", "x", DamagedError),
        ("num_attention_heads", 0, DamagedError),
        ("num_attention_heads", 10**400, DamagedError),
        ("tensor_model_parallel_size", 10**400, DamagedError),
        ("normalization", [], UnsupportedError),
        ("normalization", {"a": 1}, UnsupportedError),
        ("position_embedding_type", "yarn", UnsupportedError),
        ("num_experts", 8, UnsupportedError),
        ("apply_layernorm_1p", True, UnsupportedError),
    ],
)
def test_what_no_target_takes(name: str, value: Any, kind: type[Exception], core: Path) -> None:
    say(core, **{"num_key_value_heads": None, name: value})
    for choices in TARGETS:
        with pytest.raises(kind):
            plan(core, **choices)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rotary_base", b"x"),
        ("rotary_base", float("nan")),
        ("norm_epsilon", "x"),
        ("sliding_window", "x"),
        ("sliding_window", (1, 2, 3)),
        ("rope_scaling", "x"),
        ("rope_scaling", {"rope_type": "linear", "factor": float("inf")}),
        ("rope_scaling", [1]),
        ("rope_scaling_factor", "x"),
        ("attention_dropout", []),
        ("make_vocab_size_divisible_by", -1),
    ],
)
def test_what_megatron_core_cannot_be_told(name: str, value: Any, core: Path) -> None:
    say(core, **{"rope_theta": None, "layernorm_epsilon": None, "use_rope_scaling": True, name: value})
    ours = {"rotary_base": "rope_theta", "norm_epsilon": "layernorm_epsilon"}.get(name, name)
    with pytest.raises(DamagedError, match=ours):
        plan(core, to="megatron-core")
    assert inspect(core).what == "Megatron-Core, torch"
