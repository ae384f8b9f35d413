"""Arguments of a Megatron-Core checkpoint that no run could have: each is named, none ends in a traceback."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from streamconv import convert, inspect, plan
from streamconv.core.errors import DamagedError, UnsupportedError
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
        ("tensor_model_parallel_size", 2**31 - 2, DamagedError),
        ("hidden_size", "four", DamagedError),
        ("ffn_hidden_size", [4], DamagedError),
        ("padded_vocab_size", float("inf"), DamagedError),
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
        ("rotary_base", 0),
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


@pytest.mark.parametrize("value", [(3, 5), "four", [4], -1, 0, float("nan")], ids=str)
def test_a_window_that_is_none_of_the_past_is_refused(value: Any, core: Path) -> None:
    say(core, window_size=value)
    for choices in TARGETS[:2]:
        with pytest.raises(UnsupportedError, match=r"args\.window_size is .*: a window that is none of the past"):
            plan(core, **choices)
    with pytest.raises(UnsupportedError, match="window_size"):
        plan(core, to="huggingface")


@pytest.mark.parametrize("value", [(-1, -1), (-1, 0), [-1, 0]], ids=str)
def test_all_of_the_past_is_no_window(value: Any, core: Path) -> None:
    """Transformer Engine's DotProductAttention: -1 is no limit."""
    say(core, window_size=value)
    assert plan(core, to="megatron-core").notes
    assert plan(core, to="huggingface").notes


@pytest.mark.parametrize("name", ["mp_rank_999999_999999", "mp_rank_100000000", "mp_rank_" + "9" * 200])
def test_a_folder_of_an_absurd_rank_is_no_rank_or_a_gap(name: str, core: Path) -> None:
    """What no run can have is passed over; what one could have is a checkpoint with most of its files missing."""
    folder = core / "iter_0000003" / name
    folder.mkdir()
    (folder / "model_optim_rng.pt").write_bytes(b"")
    if name == "mp_rank_999999_999999":
        with pytest.raises(DamagedError, match="999999999995 of 1000000000000 files are missing"):
            plan(core, to="megatron-core")
    else:
        assert plan(core, to="megatron-core").files
    assert inspect(core).what


@pytest.mark.parametrize("name", ["apply_layernorm_1p", "apply_residual_connection_post_layernorm"])
def test_what_a_legacy_model_has_and_no_core_model_is_not_lost(name: str, tmp_path: Path) -> None:
    convert(LLAMA, tmp_path / "legacy", to="megatron-legacy", max_ram="2G")
    say(tmp_path / "legacy", **{name: True})
    with pytest.raises(UnsupportedError, match=rf"args\.{name} is True"):
        plan(tmp_path / "legacy", to="megatron-core")
    assert plan(tmp_path / "legacy", to="megatron-core", config={name: None}).notes
