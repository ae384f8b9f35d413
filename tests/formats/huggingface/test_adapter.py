"""An adapter beside a model: from_pretrained lays it over the model, so the weights alone are another model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from streamconv import AmbiguousError, UsageError, convert, diff, inspect, plan, verify
from tests import hf_models as models
from tests.places import FRAMEWORKS
from tests.processes import run_main

LORA = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A Llama with a LoRA adapter of peft's beside it."""
    models.make("llama", tmp_path / "hf")
    (tmp_path / "hf" / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4}))
    save_file({LORA: torch.ones(4, 32)}, tmp_path / "hf" / "adapter_model.safetensors")
    return tmp_path / "hf"


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_model_with_an_adapter_is_refused_by_name(name: str, folder: Path, tmp_path: Path) -> None:
    other = {"adapter_config.json", "adapter_model.safetensors"} - {name}
    (folder / other.pop()).unlink()
    with pytest.raises(AmbiguousError, match=f"an adapter lies beside the model \\({name}\\)") as caught:
        convert(folder, tmp_path / "out", to="megatron-core", max_ram="1G")
    assert str(caught.value.remedy).endswith('go without it: ignore="adapter"')
    assert not (tmp_path / "out").exists()
    for verb in (lambda: verify(folder, folder), lambda: diff(folder, folder)):
        with pytest.raises(AmbiguousError, match="an adapter"):
            verb()


def test_the_adapter_can_be_ignored(folder: Path, tmp_path: Path) -> None:
    convert(folder, tmp_path / "out", to="megatron-core", tp=1, ignore="adapter", max_ram="1G")
    found = verify(tmp_path / "out", folder, ignore="adapter", max_ram="1G")
    assert found.exit_code == 0
    assert found.comparison is not None
    assert found.comparison.compared == 39
    assert LORA not in found.comparison.only_a


def test_inspect_names_it(folder: Path) -> None:
    (finding,) = (finding for finding in inspect(folder).findings if "adapter lies beside" in finding.what)
    assert finding.where == str(folder)
    assert not any("adapter lies" in finding.what for finding in inspect(folder, ignore="adapter").findings)


def test_ignoring_what_is_not_there_is_refused(tmp_path: Path) -> None:
    models.make("llama", tmp_path / "hf")
    with pytest.raises(UsageError, match='ignore="adapter": there is none'):
        plan(tmp_path / "hf", ignore="adapter")
    with pytest.raises(UsageError, match="has no meaning for a Megatron-DeepSpeed source"):
        plan(FRAMEWORKS / "bs_bloom_tp2pp2_fp32_z0", ignore="adapter")


def test_the_environment_does_not_ignore_it(folder: Path) -> None:
    done = run_main("plan", folder, variables={"STREAMCONV_IGNORE": "adapter"})
    assert done.returncode == 3
    assert "STREAMCONV_IGNORE is not read: say --ignore on the command line" in done.stderr
