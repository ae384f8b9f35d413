"""generation_config.json: how a model generates is not lost on the way from Hugging Face to Hugging Face."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import GenerationConfig

from streamconv import convert, plan
from tests import hf_models as models

RAM: dict[str, Any] = {"max_ram": "1G"}
OWN = {"bos_token_id": 1, "eos_token_id": [2, 7, 9], "do_sample": True, "temperature": 0.6, "top_p": 0.9}


def generation(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "generation_config.json").read_text()))


def with_generation(folder: Path, text: str) -> Path:
    models.make("llama", folder, bos_token_id=1, eos_token_id=2)
    (folder / "generation_config.json").write_text(text)
    return folder


def test_the_sources_is_kept(tmp_path: Path) -> None:
    source = with_generation(tmp_path / "hf", json.dumps(OWN))
    convert(source, tmp_path / "out", to="huggingface", **RAM)
    assert generation(tmp_path / "out") == OWN
    loaded = models.load(tmp_path / "out").generation_config
    assert (loaded.eos_token_id, loaded.temperature) == ([2, 7, 9], 0.6)


def test_what_the_user_says_of_tokens_outweighs_it(tmp_path: Path) -> None:
    source = with_generation(tmp_path / "hf", json.dumps(OWN))
    convert(source, tmp_path / "out", to="huggingface", config={"eos_token_id": 5, "bos_token_id": None}, **RAM)
    kept = {name: value for name, value in OWN.items() if name != "bos_token_id"}
    assert generation(tmp_path / "out") == {**kept, "eos_token_id": 5}


def test_without_one_it_is_made_of_the_configuration(tmp_path: Path) -> None:
    source = with_generation(tmp_path / "hf", "")
    (source / "generation_config.json").unlink()
    convert(source, tmp_path / "out", to="huggingface", **RAM)
    assert generation(tmp_path / "out") == {"_from_model_config": True, "bos_token_id": 1, "eos_token_id": 2}


BROKEN = {
    "a list": "[]",
    "null": "null",
    "a number": "3",
    "no JSON": "{",
    "nothing": "",
    "no text": "\x00\xff",
    "too large": " " * (16 << 20) + "{}",
    "deep": "[" * 100_000,
    "a long number": '{"top_k": ' + "1" * 5000 + "}",
}


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN)
def test_one_that_is_broken_stops_nothing(text: str, tmp_path: Path) -> None:
    source = with_generation(tmp_path / "hf", text)
    report = convert(source, tmp_path / "out", to="huggingface", **RAM)
    assert any(words.startswith("generation_config.json: ") for words in report.plan.warnings)
    assert generation(tmp_path / "out") == {"_from_model_config": True, "bos_token_id": 1, "eos_token_id": 2}
    assert models.load(tmp_path / "out").generation_config.eos_token_id == 2
    assert plan(source, to="megatron-core", iteration=1)


def test_one_that_is_no_file_or_cannot_be_read(tmp_path: Path) -> None:
    source = with_generation(tmp_path / "hf", "")
    path = source / "generation_config.json"
    path.unlink()
    path.mkdir()
    assert any("generation_config.json: " in words for words in plan(source, to="huggingface").warnings)
    path.rmdir()
    path.symlink_to("nowhere.json")
    assert any("generation_config.json: " in words for words in plan(source, to="huggingface").warnings)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", "hot"),
        ("temperature", True),
        ("top_k", "5"),
        ("do_sample", "yes"),
        ("do_sample", 1),
        ("eos_token_id", "x"),
        ("eos_token_id", [1, "b"]),
        ("eos_token_id", {"a": 1}),
        ("pad_token_id", 1.5),
        ("bos_token_id", [1]),
        ("max_new_tokens", -5),
        ("num_beams", "a"),
        ("early_stopping", 7),
        ("suppress_tokens", "a"),
        ("stop_strings", 5),
    ],
)
def test_an_entry_of_another_kind_is_left_out(name: str, value: Any, tmp_path: Path) -> None:
    source = with_generation(tmp_path / "hf", json.dumps({**OWN, name: value}))
    report = convert(source, tmp_path / "out", to="huggingface", **RAM)
    assert [words for words in report.plan.warnings if f"generation_config.json: {name} is" in words]
    assert generation(tmp_path / "out") == {key: kept for key, kept in OWN.items() if key != name}
    assert models.load(tmp_path / "out").generate(models.TOKENS, max_new_tokens=2) is not None


def test_what_is_of_the_right_kind_or_not_known_stays(tmp_path: Path) -> None:
    entries = {**OWN, "top_k": 0, "early_stopping": "never", "stop_strings": ["a"], "own": {"a": [1]}, "min_p": None}
    entries |= {"length_penalty": -1.5, "pad_token_id": -1, "suppress_tokens": [], "max_length": 20, "temperature": 1}
    source = with_generation(tmp_path / "hf", json.dumps(entries))
    work = plan(source, to="huggingface")
    assert not [words for words in work.warnings if "generation_config" in words]
    assert json.loads(work.small["generation_config.json"]) == entries


def test_what_transformers_writes_itself_is_valid(tmp_path: Path) -> None:
    """Every entry that it knows, with its own default."""
    models.make("llama", tmp_path / "hf", bos_token_id=1, eos_token_id=2)
    (tmp_path / "hf" / "generation_config.json").write_text(json.dumps(GenerationConfig().to_dict()))
    assert not [words for words in plan(tmp_path / "hf", to="huggingface").warnings if "generation_config" in words]
