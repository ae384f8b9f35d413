"""What Megatron-Core saved answers, converted, as it did there. Needs the fixtures alone, not Megatron-Core."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from streamconv import convert
from tests import hf_models as models
from tests.places import FIXTURES

FOLDERS = sorted(path.parent for path in (FIXTURES / "megatron_core").glob("*/oracle_logits.pt"))


@pytest.mark.slow
@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_to_huggingface(folder: Path, tmp_path: Path) -> None:
    answer = torch.load(folder / "oracle_logits.pt", weights_only=True)
    convert(folder, tmp_path / "hf", to="huggingface", vocab_size=101, max_ram="1G")
    with torch.no_grad():
        logits = models.load(tmp_path / "hf")(answer["tokens"]).logits
    torch.testing.assert_close(logits, answer["logits"][..., : logits.shape[-1]], rtol=1e-5, atol=1e-5)
    assert logits.shape[-1] == 101
