"""generation_config.json: how a model generates is not lost on the way from Hugging Face to Hugging Face."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from streamconv import convert, plan
from streamconv.core.errors import DamagedError
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


@pytest.mark.parametrize("text", ["[]", "{", " " * (16 << 20) + "{}"])
def test_one_that_is_broken_is_named(text: str, tmp_path: Path) -> None:
    source = with_generation(tmp_path / "hf", text)
    with pytest.raises(DamagedError) as caught:
        plan(source, to="huggingface")
    assert "generation_config.json" in str(caught.value.where)
