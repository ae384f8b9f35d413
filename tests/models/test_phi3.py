"""Phi-3's fused rows, its partly turned heads and its long contexts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from streamconv import convert, inspect, plan, verify
from streamconv.core.errors import DamagedError, UnsupportedError
from tests import hf_models as models
from tests import oracle

RAM: dict[str, Any] = {"max_ram": "1G"}
MEGATRON = ("megatron-core", "megatron-legacy", "deepspeed")
# A head of 8 has 4 frequencies.
LONG: dict[str, Any] = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [1.0, 2.0, 4.0, 8.0],
}
LONGER: dict[str, Any] = {"max_position_embeddings": 256, "original_max_position_embeddings": 64}


def edit(folder: Path, **entries: Any) -> dict[str, Any]:
    path = folder / "config.json"
    whole = {**json.loads(path.read_text()), **entries}
    path.write_text(json.dumps({name: value for name, value in whole.items() if value != "gone"}))
    return whole


def family_shown(folder: Path) -> str | None:
    model = inspect(folder).model
    assert model is not None
    return model.family


def part(share: float) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": share}}


@pytest.mark.parametrize("target", MEGATRON)
@pytest.mark.parametrize("changes", [part(0.5), {**part(0.75), "tie_word_embeddings": True}, {"head_dim": 16}], ids=str)
def test_what_a_model_may_have_comes_back(changes: dict[str, Any], target: str, tmp_path: Path) -> None:
    model = models.make("phi3", tmp_path / "hf", **changes)
    config = tmp_path / "hf" / "config.json"
    convert(tmp_path / "hf", tmp_path / "there", to=target, tp=2, pp=2, **RAM)
    convert(tmp_path / "there", tmp_path / "back", to="huggingface", config=config, vocab_padding="strip", **RAM)
    back = models.load(tmp_path / "back")
    models.assert_same_weights(model, back)
    assert torch.equal(models.logits(model), models.logits(back))


@pytest.mark.parametrize("target", MEGATRON)
def test_a_partly_turned_head_is_no_llamas(target: str, tmp_path: Path) -> None:
    """Without a configuration the keys name Llama, and the arguments say otherwise; a name is enough."""
    models.make("phi3", tmp_path / "hf", **part(0.5))
    convert(tmp_path / "hf", tmp_path / "there", to=target, tp=1, **RAM)
    words = r"rotary positions in a part of each head \(args.rotary_percent is 0.5\): not translated for .* Llama"
    with pytest.raises(UnsupportedError, match=words):
        plan(tmp_path / "there", to="huggingface")
    with pytest.raises(UnsupportedError) as caught:
        plan(tmp_path / "there")
    assert '{"model_type": "phi3"} in config' in str(caught.value.remedy)
    work = plan(tmp_path / "there", to="huggingface", config={"model_type": "phi3"})
    config = json.loads(next(text for name, text in work.texts.items() if name == "config.json"))
    assert (work.family, config["partial_rotary_factor"]) == ("Phi-3", 0.5)


@pytest.mark.parametrize("target", MEGATRON)
def test_a_partly_turned_head_is_verified_and_named_without_a_configuration(target: str, tmp_path: Path) -> None:
    """Where values lie is the same for Llama and Phi-3; the arguments deny Llama alone."""
    model = models.make("phi3", tmp_path / "hf", **part(0.75))
    convert(tmp_path / "hf", tmp_path / "there", to=target, tp=2, **RAM)
    found = verify(tmp_path / "there", tmp_path / "hf", **RAM)
    assert (found.exit_code, found.comparison and found.comparison.compared) == (0, 39)
    family = "Llama-like (RMSNorm, no biases)" if target == "megatron-core" else "Phi-3"
    assert family_shown(tmp_path / "there") == family
    with torch.no_grad():
        model.model.layers[2].self_attn.qkv_proj.weight[40, 3] += 1
    model.save_pretrained(tmp_path / "other")
    wrong = verify(tmp_path / "there", tmp_path / "other", **RAM)
    assert wrong.exit_code == 7
    assert wrong.comparison is not None
    assert [one.name for one in wrong.comparison.values] == ["layers.2.self_attention.query_key_value.weight.key"]


def test_a_partly_turned_head_is_no_llama_with_biases(tmp_path: Path) -> None:
    """Phi-3 has none, so nothing is there to be named instead."""
    models.make("llama", tmp_path / "hf", attention_bias=True, mlp_bias=True)
    convert(tmp_path / "hf", tmp_path / "there", to="megatron-core", container="torch", **RAM)
    path = tmp_path / "there" / "release" / "mp_rank_00" / "model_optim_rng.pt"
    state = oracle.load_plain(path)
    state["args"].rotary_percent = 0.5
    torch.save(state, path)
    assert family_shown(tmp_path / "there") is None
    with pytest.raises(UnsupportedError, match="for the family Llama") as caught:
        plan(tmp_path / "there", to="huggingface")
    assert "model_type" not in str(caught.value.remedy)


@pytest.mark.parametrize("target", ["megatron-core", "huggingface"])
def test_no_more_than_a_whole_head_is_turned(target: str, tmp_path: Path) -> None:
    models.make("phi3", tmp_path / "hf")
    edit(tmp_path / "hf", **part(1.5))
    with pytest.raises(DamagedError, match=r"partial_rotary_factor is 1\.5, above 1"):
        plan(tmp_path / "hf", to=target)


def test_flags_say_the_part_where_args_do_not(tmp_path: Path) -> None:
    models.make("phi3", tmp_path / "hf", **part(0.5))
    notes = plan(tmp_path / "hf", to="megatron-core", keep_args=False).notes
    (flags,) = [note.what for note in notes if note.what.startswith("flags for Megatron-LM: ")]
    assert " --rotary-percent 0.5 " in flags


@pytest.mark.parametrize("spelling", ["rope_parameters", "rope_scaling"])
def test_long_contexts_stay_in_transformers(spelling: str, tmp_path: Path) -> None:
    """As transformers 5 says them, and as it did before."""
    model = models.make("phi3", tmp_path / "hf", rope_parameters=LONG, **LONGER)
    if spelling != "rope_parameters":
        old = {name: value for name, value in LONG.items() if name.endswith("_factor")}
        edit(tmp_path / "hf", rope_parameters="gone", rope_theta=10000.0, rope_scaling={"type": "longrope", **old})
    convert(tmp_path / "hf", tmp_path / "out", to="huggingface", max_shard_size="20KB", **RAM)
    back = models.load(tmp_path / "out")
    models.assert_same_weights(model, back)
    assert torch.equal(models.logits(model), models.logits(back))
    assert verify(tmp_path / "out", tmp_path / "hf", **RAM).exit_code == 0


@pytest.mark.parametrize("target", MEGATRON)
def test_long_contexts_are_refused_by_name(target: str, tmp_path: Path) -> None:
    models.make("phi3", tmp_path / "hf", rope_parameters=LONG, **LONGER)
    with pytest.raises(UnsupportedError, match=r"rope_type 'longrope'.*") as caught:
        plan(tmp_path / "hf", to=target)
    assert "scaling of rotary positions" in caught.value.what
    assert "long_factor [1.0, 2.0, 4.0, 8.0]" in caught.value.what
    assert 'to="huggingface"' in str(caught.value.remedy)


def test_factors_of_a_whole_head_do_not_fill_a_message(tmp_path: Path) -> None:
    models.make("phi3", tmp_path / "hf", rope_parameters=LONG, **LONGER)
    edit(tmp_path / "hf", rope_parameters={**LONG, "long_factor": [1.25] * 48})
    for target in MEGATRON:
        with pytest.raises(UnsupportedError) as caught:
            plan(tmp_path / "hf", to=target)
        assert len(caught.value.what) < 400


def test_a_window_goes_where_there_is_one(tmp_path: Path) -> None:
    """Phi-3-mini has 4096 positions and looks at 2047 of them."""
    models.make("phi3", tmp_path / "hf", sliding_window=31)
    notes = plan(tmp_path / "hf", to="megatron-core").notes
    assert any("--window-size 30,0" in note.what for note in notes)
    for target in MEGATRON[1:]:
        with pytest.raises(UnsupportedError, match=r"no sliding_window 31 \(of 64 positions\)"):
            plan(tmp_path / "hf", to=target)
