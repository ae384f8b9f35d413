"""Llama and Qwen 3 with biases on linear layers: what they are called, and that every stored parameter is counted."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from streamconv import inspect
from tests.formats.megatron import rank_files as files
from tests.formats.megatron.biased import BIASED, Biased
from tests.formats.megatron.models import MULTIPLE, to_torch
from tests.formats.megatron.rank_files import even


@pytest.mark.parametrize("biased", BIASED, ids=str)
def test_a_folder_has_its_family_and_all_of_its_parameters(biased: Biased, tmp_path: Path) -> None:
    """Of a training checkpoint the zeros too: they are stored there."""
    case = biased.save(tmp_path / "hf")
    core = to_torch(tmp_path / "hf", tmp_path / "core", even(2, 2), config=MULTIPLE)
    model = biased.in_megatron()
    padding = 2 * (-model.sizes.vocab % 8) * model.sizes.hidden
    for folder, tensors, more in ((tmp_path / "hf", case.tensors(), 0), (core, model.tensors, padding)):
        report = inspect(folder)
        assert report.model is not None
        assert report.model.family == case.family.title
        assert report.model.parameters == sum(tensor.numel() for tensor in tensors.values()) + more
        assert not [finding for finding in report.findings if finding.exit_code]


@pytest.mark.parametrize("biased", [b for b in BIASED if b.name == "llama"], ids=str)
def test_a_lone_file_of_llama_is_not_called_qwen_2(biased: Biased, tmp_path: Path) -> None:
    biased.save(tmp_path / "hf")
    report = inspect(tmp_path / "hf" / "model.safetensors")
    assert report.model is not None
    assert report.model.family == "Llama"


def test_a_lone_rank_with_biases_is_not_called_a_model_without(tmp_path: Path) -> None:
    chunk = files.core_files(Biased("llama", ("mlp_bias",)).in_megatron(), even(1, 1))[0, 0][0]
    torch.save({"model": chunk}, tmp_path / "model_optim_rng.pt")
    report = inspect(tmp_path / "model_optim_rng.pt")
    assert report.model is not None
    assert report.model.family == "Llama-like (RMSNorm)"
