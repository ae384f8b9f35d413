"""What the user says with --config of a Hugging Face source, however the source spells it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from streamconv import convert, plan
from streamconv.cli.main import main
from streamconv.core.errors import DamagedError, UnsupportedError, UsageError
from tests import hf_models as models

RAM: dict[str, Any] = {"max_ram": "1G"}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def config_in(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "config.json").read_text()))


def args_in(folder: Path) -> Any:
    found = (*folder.rglob("model_optim_rng.pt"), *folder.rglob("mp_rank_00_model_states.pt"))
    return torch.load(found[0], weights_only=False)["args"]


# -- training arguments -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "rows"), [("make_vocab_size_divisible_by", 8, 112), ("pad_vocab_size_to", 120, 120)]
)
def test_an_argument_that_pads_the_vocabulary_counts(name: str, value: int, rows: int, tmp_path: Path) -> None:
    models.make("llama", tmp_path / "hf")
    said = tmp_path / "said.json"
    said.write_text(json.dumps({name: value}))
    words = [str(tmp_path / "hf"), str(tmp_path / "out"), "--to", "megatron-legacy", "--tp", "2", "--config", str(said)]
    assert main([*words, "--max-ram", "1G"]) == 0
    args = args_in(tmp_path / "out")
    assert args.padded_vocab_size == rows
    assert getattr(args, name) == value
    work = plan(tmp_path / "hf", to="megatron-legacy", tp=2, config={name: value})
    assert any(name in fact.what and fact.evidence == "config" for fact in work.facts)


def test_an_argument_that_the_model_contradicts(tmp_path: Path) -> None:
    models.make("llama", tmp_path / "hf")
    with pytest.raises(UsageError, match=r"num_layers is 7 in config, and 4 as config\.json says"):
        plan(tmp_path / "hf", to="megatron-legacy", config={"num_layers": 7})
    assert plan(tmp_path / "hf", to="megatron-legacy", config={"num_layers": 4})


def test_entries_of_a_config_json_are_no_arguments(tmp_path: Path) -> None:
    models.make("gpt", tmp_path / "hf")
    said = {**config_in(tmp_path / "hf"), "use_cache": False, "own_entry": 5}
    convert(tmp_path / "hf", tmp_path / "out", to="megatron-legacy", config=said, **RAM)
    assert not hasattr(args_in(tmp_path / "out"), "own_entry")
    # One entry alone, in either of its spellings, is said of the source.
    convert(tmp_path / "hf", tmp_path / "eps", to="megatron-legacy", config={"layer_norm_epsilon": 1e-3}, **RAM)
    assert args_in(tmp_path / "eps").layernorm_epsilon == 1e-3
    assert not hasattr(args_in(tmp_path / "eps"), "layer_norm_epsilon")
    convert(tmp_path / "hf", tmp_path / "tie", to="megatron-legacy", config={"tie_word_embeddings": True}, **RAM)
    assert not hasattr(args_in(tmp_path / "tie"), "tie_word_embeddings")


# -- other spellings ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("said", [{"rope_scaling": None}, {"rope_parameters": None}, {"rope_parameters": {}}])
def test_scaling_is_switched_off_in_either_spelling(said: dict[str, Any], tmp_path: Path) -> None:
    models.make("llama", tmp_path / "hf", rope_parameters=LLAMA3, num_key_value_heads=models.HEADS)
    assert "rope_scaling" not in config_in(tmp_path / "hf")
    with pytest.raises(UnsupportedError, match="scaling of rotary positions"):
        plan(tmp_path / "hf", to="deepspeed")
    convert(tmp_path / "hf", tmp_path / "ds", to="deepspeed", config=said, **RAM)
    args = args_in(tmp_path / "ds")
    # The table's base is not its scaling, and stays.
    assert args.rope_theta == 5e5
    assert not hasattr(args, "rope_scaling")
    convert(tmp_path / "hf", tmp_path / "hf2", to="huggingface", config=said, **RAM)
    loaded = models.load(tmp_path / "hf2").config
    assert loaded.rope_parameters["rope_type"] == "default"
    assert loaded.rope_parameters["rope_theta"] == 5e5


@pytest.mark.parametrize(
    "said", [{"rope_theta": 7e5}, {"rope_parameters": {"rope_theta": 7e5}}, {"rope_scaling": {"rope_theta": 7e5}}]
)
def test_the_base_is_replaced_in_every_spelling(said: dict[str, Any], tmp_path: Path) -> None:
    default = {"rope_type": "default", "rope_theta": 5e5}
    models.make("llama", tmp_path / "hf", rope_parameters=default, num_key_value_heads=models.HEADS)
    convert(tmp_path / "hf", tmp_path / "ds", to="deepspeed", config=said, **RAM)
    assert args_in(tmp_path / "ds").rope_theta == 7e5
    convert(tmp_path / "hf", tmp_path / "hf2", to="huggingface", config=said, **RAM)
    assert config_in(tmp_path / "hf2")["rope_theta"] == 7e5
    assert models.load(tmp_path / "hf2").config.rope_parameters["rope_theta"] == 7e5


def test_the_base_alone_leaves_the_scaling(tmp_path: Path) -> None:
    models.make("llama", tmp_path / "hf", rope_parameters=LLAMA3)
    convert(tmp_path / "hf", tmp_path / "out", to="huggingface", config={"rope_theta": 7e5}, **RAM)
    assert models.load(tmp_path / "out").config.rope_parameters == {**LLAMA3, "rope_theta": 7e5}


def test_part_of_a_head_is_replaced(tmp_path: Path) -> None:
    models.make("gpt_neox", tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "out", to="huggingface", config={"rotary_pct": 0.5}, **RAM)
    assert models.load(tmp_path / "out").config.rope_parameters["partial_rotary_factor"] == 0.5


def test_another_name_of_an_entry_replaces_it(tmp_path: Path) -> None:
    models.make("bloom", tmp_path / "hf")
    # BLOOM's own name is n_head; transformers takes this one too.
    heads = {"num_attention_heads": 8}
    convert(tmp_path / "hf", tmp_path / "out", to="megatron-legacy", tp=8, config=heads, **RAM)
    assert args_in(tmp_path / "out").num_attention_heads == 8


@pytest.mark.parametrize("said", [{"rope_theta": "x"}, {"rope_parameters": {"rope_theta": -1}}, {"hidden_size": "32"}])
def test_what_makes_no_sense_is_the_users(said: dict[str, Any], tmp_path: Path) -> None:
    models.make("llama", tmp_path / "hf", rope_parameters=LLAMA3)
    with pytest.raises(UsageError, match="config: "):
        plan(tmp_path / "hf", to="huggingface", config=said)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f'{{"rope_theta": 1{"0" * 400}}}', "rope_theta is 1000"),
        (f'{{"hidden_size": 1{"0" * 400}}}', "hidden_size is 1000"),
        ('{"rope_theta": NaN}', "rope_theta is nan"),
        ('{"rope_theta": "7"}', "rope_theta is '7'"),
        ('{"rope_theta": 0}', "rope_theta is 0, not a number above 0"),
    ],
)
def test_numbers_that_no_model_has(text: str, words: str, tmp_path: Path) -> None:
    models.make("llama", tmp_path / "hf")
    config = tmp_path / "hf" / "config.json"
    config.write_text(json.dumps({**config_in(tmp_path / "hf"), "rope_parameters": None, **json.loads(text)}))
    with pytest.raises(DamagedError) as caught:
        plan(tmp_path / "hf", to="huggingface")
    assert words in str(caught.value)
