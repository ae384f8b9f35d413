"""Tensors of zeros on one side and nothing on the other are named as that; anything else is a difference."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from streamconv import convert, diff, verify
from streamconv.cli.main import main
from streamconv.report.differences import comparison_dict
from tests.formats.megatron import rank_files as files
from tests.formats.megatron.biased import ATTENTION, MLP, Biased
from tests.formats.megatron.models import MULTIPLE, to_torch
from tests.formats.megatron.rank_files import even

NAMES = {
    "llama-attention_bias": [f"mlp.dense_h_to_4h.bias.{half}" for half in ("gate", "up")] + ["mlp.dense_4h_to_h.bias"],
    "llama-mlp_bias": [
        *(f"self_attention.query_key_value.bias.{part}" for part in ("query", "key", "value")),
        "self_attention.dense.bias",
    ],
    "qwen3-attention_bias": [f"mlp.dense_h_to_4h.bias.{half}" for half in ("gate", "up")] + ["mlp.dense_4h_to_h.bias"],
}
SOME = [Biased("llama", ATTENTION), Biased("llama", MLP), Biased("qwen3", ATTENTION)]


def both(biased: Biased, folder: Path) -> tuple[Path, Path]:
    """A folder of transformers, and what was made of it for Megatron-Core."""
    biased.save(folder / "hf")
    return folder / "hf", to_torch(folder / "hf", folder / "core", even(2, 2), config=MULTIPLE)


def zeros(biased: Biased, there: str, gone: str) -> list[str]:
    return [f"{key}: zero in every element of 12 layers in {there}, not stored in {gone}" for key in NAMES[str(biased)]]


@pytest.mark.slow
@pytest.mark.parametrize("biased", SOME, ids=str)
def test_what_was_written_as_zeros_is_named_both_ways(biased: Biased, tmp_path: Path) -> None:
    hf, core = both(biased, tmp_path)
    for made, source, where in ((core, hf, "ba"), (hf, core, "ab")):
        found = verify(made, source, max_ram="1G")
        assert found.exit_code == 0
        assert found.comparison is not None
        assert [note for note in found.comparison.notes if "zero" in note] == zeros(biased, *where)
        compared = diff(source, made, max_ram="1G")
        assert compared.is_equal
        assert zeros(biased, *where) == [note for note in comparison_dict(compared)["notes"] if "zero" in note]


def test_the_commands_say_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hf, core = both(SOME[0], tmp_path)
    assert main(["verify", str(core), "--against", str(hf)]) == 0
    assert zeros(SOME[0], "b", "a")[0] in capsys.readouterr().out
    assert main(["diff", str(core), str(hf)]) == 0
    assert zeros(SOME[0], "a", "b")[0] in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("value", [-0.0, float("nan"), 2.0])
def test_one_element_that_is_not_zero_is_a_tensor_that_one_side_has_alone(value: float, tmp_path: Path) -> None:
    hf, core = both(SOME[0], tmp_path)
    path = files.checkpoint_of(core) / "mp_rank_01_001" / "model_optim_rng.pt"
    state = torch.load(path, weights_only=False)
    state["model"]["decoder.layers.5.mlp.linear_fc1.bias"][0] = value
    torch.save(state, path)
    found = verify(core, hf, max_ram="1G")
    assert found.exit_code == 7
    assert found.comparison is not None
    assert found.comparison.only_b == ["layers.11.mlp.dense_h_to_4h.bias.gate"]
    assert "mlp.dense_h_to_4h.bias.gate: zero in every element of 11 layers in b, not stored in a" in (
        found.comparison.notes
    )
    assert not diff(hf, core, max_ram="1G").is_equal


def test_zeros_that_the_other_family_cannot_lack_are_a_difference(tmp_path: Path) -> None:
    """Transformers' Qwen 2 has biases always; a model without them is another one."""
    for name, entries in (("one", ATTENTION), ("other", ())):
        Biased("llama", entries).save(tmp_path / name)
    found = diff(tmp_path / "one", tmp_path / "other", max_ram="1G")
    assert len(found.only_a) == 12 * 4
    assert not found.only_b


def test_a_copy_of_zeros_that_has_drifted_is_seen(tmp_path: Path) -> None:
    hf, core = both(SOME[0], tmp_path)
    path = files.checkpoint_of(core) / "mp_rank_01_000" / "model_optim_rng.pt"
    state = torch.load(path, weights_only=False)
    state["model"]["decoder.layers.0.mlp.linear_fc2.bias"][3] = 1.0
    torch.save(state, path)
    found = verify(core, hf, max_ram="1G")
    assert found.exit_code == 7
    assert [drift.name for drift in found.drifts] == ["layers.0.mlp.dense_4h_to_h.bias"]


def test_what_came_back_is_what_was_there(tmp_path: Path) -> None:
    hf, core = both(SOME[0], tmp_path)
    convert(core, tmp_path / "back", to="huggingface", vocab_size=50, max_ram="1G")
    assert verify(tmp_path / "back", hf, max_ram="1G").exit_code == 0
    assert diff(tmp_path / "back", hf, max_ram="1G").notes == []
