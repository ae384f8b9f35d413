"""Rotary positions that a config.json says twice and differently: what transformers takes is taken, with a warning."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch

from streamconv import convert, plan
from streamconv.core.errors import DamagedError
from streamconv.models.registry import family_of
from streamconv.models.translate import args_of
from tests import hf_models as models

RAM: dict[str, Any] = {"max_ram": "1G"}
DEFAULT = {"rope_type": "default"}
LINEAR = {"rope_type": "linear", "factor": 4.0}
OLD = {"type": "linear", "factor": 2.0}

CASES: dict[str, dict[str, Any]] = {
    "theta in the table": {"rope_parameters": {**DEFAULT, "rope_theta": 2e4}, "rope_theta": 5e5},
    "theta beside the table": {"rope_parameters": DEFAULT, "rope_theta": 5e5},
    "two tables and a theta": {
        "rope_scaling": OLD,
        "rope_parameters": {**LINEAR, "rope_theta": 2e4},
        "rope_theta": 5e5,
    },
    "two tables": {"rope_scaling": OLD, "rope_parameters": {**LINEAR, "rope_theta": 2e4}},
    "a table that switches scaling off": {"rope_scaling": DEFAULT, "rope_parameters": {**LINEAR, "rope_theta": 2e4}},
    "theta in both tables": {"rope_scaling": {**OLD, "rope_theta": 7e4}, "rope_parameters": {**OLD, "rope_theta": 2e4}},
    "an empty table": {"rope_scaling": {}, "rope_parameters": {**LINEAR, "rope_theta": 2e4}, "rope_theta": 5e5},
    "a table that is null": {"rope_scaling": None, "rope_parameters": {**LINEAR, "rope_theta": 2e4}},
    "two names of a kind": {"rope_parameters": {**LINEAR, "type": "dynamic", "rope_theta": 2e4}},
}
PARTS: dict[str, dict[str, Any]] = {
    "part in the table": {"rope_parameters": {**DEFAULT, "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
    "part beside": {"rope_parameters": {**DEFAULT, "rope_theta": 1e4}},
}
NAMES = {"llama": ("rope_theta", None), "phi3": ("rope_theta", "partial_rotary_factor")}
NAMES |= {"qwen2": ("rope_theta", None), "gpt_neox": ("rotary_emb_base", "rotary_pct")}
QUIET = ("theta beside the table", "a table that is null", "two names of a kind")


def saved(folder: Path, family: str, entries: dict[str, Any]) -> Path:
    """A real model whose config.json has these entries for rotary positions, and no others."""
    models.make(family, folder)
    path = folder / "config.json"
    names = ("rope_parameters", "rope_scaling", "rope_theta", "rotary_emb_base", "rotary_pct", "partial_rotary_factor")
    config = {name: value for name, value in json.loads(path.read_text()).items() if name not in names}
    path.write_text(json.dumps({**config, **deepcopy(entries)}))
    return folder


def spelled(family: str, entries: dict[str, Any]) -> dict[str, Any]:
    base = NAMES[family][0]
    return {base if name == "rope_theta" else name: value for name, value in entries.items()}


def taken(family: str, config: dict[str, Any]) -> tuple[Any, ...]:
    """(base, scaling, part) as this package reads a configuration."""
    known = args_of(family_of(config), config).known
    part = NAMES[family][1]
    return known["rope_theta"], known["rope_scaling"], known[part] if part else 1.0


def truth(family: str, entries: dict[str, Any]) -> tuple[Any, ...]:
    """The same, as transformers' own class reads it."""
    kind = type(models.CONFIGS[family])
    table = dict(kind.from_dict({"hidden_size": 32, "num_attention_heads": 4, **deepcopy(entries)}).rope_parameters)
    theta, part = table.pop("rope_theta"), table.pop("partial_rotary_factor", 1.0)
    table.pop("type", None)
    return theta, None if table["rope_type"] == "default" else table, part


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt_neox"])
def test_what_transformers_takes_is_taken(family: str, case: str) -> None:
    entries = spelled(family, CASES[case])
    config = {**models.CONFIGS[family].to_dict()}
    for name in ("rope_parameters", "rope_scaling", "rope_theta", "rotary_emb_base", "rotary_pct"):
        config.pop(name, None)
    config |= entries
    assert taken(family, config) == truth(family, entries)
    assert bool(args_of(family_of(config), config).warnings) == (case not in QUIET)


@pytest.mark.parametrize("case", PARTS)
@pytest.mark.parametrize("family", ["phi3", "gpt_neox"])
def test_the_part_of_a_head_too(family: str, case: str) -> None:
    entries = {**PARTS[case], NAMES[family][1] or "": 0.25}
    config = {**models.CONFIGS[family].to_dict(), **entries}
    assert taken(family, config) == truth(family, entries)
    words = [text for text in args_of(family_of(config), config).warnings if "0.25" in text]
    assert len(words) == (case == "part in the table")


@pytest.mark.parametrize("case", ["theta in the table", "two tables and a theta", "a table that switches scaling off"])
@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_the_result_says_it_once(family: str, case: str, tmp_path: Path) -> None:
    source = saved(tmp_path / "hf", family, spelled(family, CASES[case]))
    report = convert(source, tmp_path / "out", to="huggingface", **RAM)
    assert any("as by transformers" in words or "as in transformers" in words for words in report.plan.warnings)
    assert torch.equal(models.logits(models.load(source)), models.logits(models.load(tmp_path / "out")))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert args_of(family_of(config), config).warnings == ()
    # Releases before transformers 5 read these.
    theta, scaling, _ = truth(family, spelled(family, CASES[case]))
    assert (config["rope_theta"], config.get("rope_scaling")) == (theta, scaling)


def test_megatron_has_what_transformers_takes(tmp_path: Path) -> None:
    source = saved(tmp_path / "hf", "llama", CASES["theta in the table"])
    convert(source, tmp_path / "out", to="megatron-core", iteration=1, **RAM)
    convert(tmp_path / "out", tmp_path / "back", to="huggingface", config={"vocab_size": 101}, vocab_size=101, **RAM)
    assert json.loads((tmp_path / "back" / "config.json").read_text())["rope_theta"] == 2e4
    assert torch.equal(models.logits(models.load(source)), models.logits(models.load(tmp_path / "back")))


def test_the_user_says_what_counts(tmp_path: Path) -> None:
    source = saved(tmp_path / "hf", "llama", CASES["theta in the table"])
    work = plan(source, to="huggingface", config={"rope_theta": 5e5})
    assert json.loads(work.texts["config.json"])["rope_parameters"]["rope_theta"] == 5e5
    assert not any("transformers" in words for words in work.warnings)
    work = plan(source, to="huggingface", config=CASES["theta in the table"])
    assert any("config: rope_theta is 500000.0" in words for words in work.warnings)


def test_two_names_of_one_size_that_differ_have_a_remedy(tmp_path: Path) -> None:
    models.make("gpt", tmp_path / "hf")
    path = tmp_path / "hf" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_hidden_layers": 9}))
    with pytest.raises(DamagedError, match="they mean the same") as caught:
        plan(tmp_path / "hf", to="huggingface")
    assert "config" in str(caught.value.remedy)
    assert plan(tmp_path / "hf", to="huggingface", config={"n_layer": models.LAYERS})
