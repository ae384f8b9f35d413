"""Every cell of the capability table is run: what works is converted and compared, what does not is refused by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from streamconv import convert, plan, verify
from streamconv.cli.main import main
from streamconv.core.errors import UnsupportedError
from streamconv.planning.capabilities import Capability, capability_table
from tests import hf_models as models
from tests.making.zero import Run, write_run
from tests.making.zero_values import Model, Parameter
from tests.places import ROOT

CELLS = list(capability_table())
RAM: dict[str, Any] = {"max_ram": "1G"}
DOCS = ROOT / "docs"


REFUSED = [cell for cell in CELLS if cell.target.refusal(cell.family) and not cell.source.refusal(cell.family)]


def name_of(cell: Capability) -> str:
    return f"{cell.family.name}-{cell.source.name}-{cell.target.name}"


def made(cell: Capability, folder: Path) -> Path:
    """A checkpoint of the cell's family in the cell's source format."""
    models.make(cell.family.name, folder / "hf")
    if cell.source.name == "huggingface":
        return folder / "hf"
    if cell.source.name == "deepspeed-zero":
        return run_of(folder / "hf", folder / "source")
    convert(folder / "hf", folder / "source", to=cell.source.name, tp=2, pp=2, **RAM)
    return folder / "source"


def run_of(model: Path, folder: Path) -> Path:
    """A run of ZeRO stage 3 on three ranks, of a Hugging Face model."""
    tensors = load_file(model / "model.safetensors")
    parameters = tuple(Parameter(name, tuple(tensor.shape)) for name, tensor in tensors.items())
    write_run(folder, Run(stage=3, dp=3, dtype="fp32"), Model(parameters, ()), tensors)
    shutil.copy(model / "config.json", folder)
    return folder


@pytest.mark.parametrize("cell", [cell for cell in CELLS if cell.refusal is None], ids=name_of)
def test_what_works(cell: Capability, tmp_path: Path) -> None:
    source = made(cell, tmp_path)
    parallel: dict[str, Any] = {"tp": 1, "pp": 4} if cell.target.is_sharded else {"vocab_padding": "strip"}
    parallel = {} if cell.target.keeps_names else parallel
    # Only its configuration tells Mistral, or Phi-3, from Llama.
    config = tmp_path / "hf" / "config.json" if cell.family.only_named else None
    report = convert(source, tmp_path / "out", to=cell.target.name, config=config, **parallel, **RAM)
    assert cell.target.keeps_names or report.plan.family == cell.family.title
    assert verify(tmp_path / "out", source, **RAM).exit_code == 0
    # A model whose ranks hold shards keeps canonical names, which are not those of transformers.
    if not cell.target.keeps_names or cell.source.name in ("huggingface", "deepspeed-zero"):
        assert verify(tmp_path / "out", tmp_path / "hf", **RAM).exit_code == 0


@pytest.mark.parametrize("cell", REFUSED, ids=name_of)
def test_what_the_target_cannot_hold(cell: Capability, tmp_path: Path) -> None:
    source = made(cell, tmp_path)
    config = tmp_path / "hf" / "config.json" if cell.family.only_named else None
    with pytest.raises(UnsupportedError) as caught:
        plan(source, to=cell.target.name, config=config)
    assert str(cell.refusal) in caught.value.what


@pytest.mark.parametrize("cell", [cell for cell in CELLS if cell.source.refusal(cell.family)], ids=name_of)
def test_what_the_source_never_holds(cell: Capability, tmp_path: Path) -> None:
    """No such checkpoint exists, and none is written."""
    models.make(cell.family.name, tmp_path / "hf")
    with pytest.raises(UnsupportedError):
        plan(tmp_path / "hf", to=cell.source.name)


def test_the_command_prints_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["families", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == len(CELLS)
    assert {row["family"] for row in rows} == set(models.CONFIGS)
    assert main(["families"]) == 0
    text = capsys.readouterr().out
    for cell in CELLS:
        assert cell.family.title in text
        assert cell.refusal is None or cell.refusal in text


def test_the_documentation_shows_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["families", "--markdown"]) == 0
    assert capsys.readouterr().out.strip() in (DOCS / "families.md").read_text()
