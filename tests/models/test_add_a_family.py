"""The family that docs/add-a-family.md adds works as the document says."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import Starcoder2Config, Starcoder2ForCausalLM

from streamconv import convert, verify
from streamconv.models import families
from streamconv.models.family import ModelFamily
from streamconv.models.registry import known_families
from tests import hf_models as models
from tests.places import ROOT

DOCUMENT = ROOT / "docs" / "add-a-family.md"
CONFIG = Starcoder2Config(
    vocab_size=101,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    use_bias=True,
)


@pytest.fixture
def family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelFamily]:
    """The family of the document, found like one that lies in the package."""
    (code,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    folder = tmp_path / "families"
    folder.mkdir()
    (folder / "starcoder2.py").write_text(code)
    monkeypatch.setattr(families, "__path__", [*families.__path__, str(folder)])
    known_families.cache_clear()
    (found,) = [family for family in known_families() if family.name == "starcoder2"]
    yield found
    sys.modules.pop("streamconv.models.families.starcoder2")
    known_families.cache_clear()


@pytest.mark.slow
def test_the_documents_family_goes_to_megatron_and_back(
    family: ModelFamily, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(models.CONFIGS, family.name, CONFIG)
    model = models.make(family.name, tmp_path / "hf")
    assert isinstance(model, Starcoder2ForCausalLM)
    convert(tmp_path / "hf", tmp_path / "ds", to="deepspeed", tp=2, pp=2, max_ram="1G")
    convert(tmp_path / "ds", tmp_path / "back", to="huggingface", config=tmp_path / "hf" / "config.json", max_ram="1G")
    models.assert_same_weights(model, models.load(tmp_path / "back"))
    assert verify(tmp_path / "back", tmp_path / "hf", max_ram="1G").exit_code == 0
