"""Megatron-LM's own ``load_checkpoint``, told nothing but the flags that a conversion prints.

The tests want a checkout of Megatron-LM, of core_v0.13 or newer, and the packages that its imports ask for::

    PYTHONPATH=MEGATRON_LM make test-megatron
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from streamconv import convert, plan
from tests import hf_models as models
from tests.formats.megatron.core.real.gpt_model import Sizes
from tests.formats.megatron.core.real.megatron_lm import logits_of_run
from tests.places import LLAMA, REAL, Source

HERE = find_spec("megatron") is not None and find_spec("megatron.training") is not None
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not HERE, reason="no checkout of Megatron-LM is in PYTHONPATH")]

RUNS = [source for source in (*REAL, LLAMA) if "fp32" in source.name and "bloom" not in source.name]
FAMILIES = ("gpt", "llama", "mistral", "phi3", "qwen2", "qwen3")
LLAMA_3 = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def printed_flags(source: Path, **choices: Any) -> list[str]:
    """What the plan says to start Megatron-LM with."""
    (said,) = [note.what for note in plan(source, **choices).notes if note.what.startswith("flags for Megatron-LM: ")]
    return said.removeprefix("flags for Megatron-LM: ").replace("'", "").split()


def check(found: torch.Tensor, expected: torch.Tensor, vocab: int) -> None:
    assert expected.std() > 0.1
    torch.testing.assert_close(found[..., :vocab], expected[..., :vocab].float(), rtol=1e-5, atol=1e-5)


def answer(source: Path, place: Path, tokens: torch.Tensor, sizes: Sizes, **choices: Any) -> torch.Tensor:
    """Convert to ``torch`` at these sizes, start Megatron-LM as printed."""
    choices = {"to": "megatron-core", "container": "torch", "spec": "local", **choices}
    convert(source, place, max_ram="1G", **choices)
    return logits_of_run(place, tokens, printed_flags(source, **choices), sizes)


def resharded(source: Path, place: Path, tokens: torch.Tensor, sizes: Sizes) -> torch.Tensor:
    """Convert to ``torch_dist`` with the chunks of TP 2 x PP 2, start Megatron-LM as printed, at these sizes."""
    choices: dict[str, Any] = {"to": "megatron-core", "tp": 2, "pp": 2}
    convert(source, place, max_ram="1G", **choices)
    other = ("--tensor-model-parallel-size", str(sizes.tp), "--pipeline-model-parallel-size", str(sizes.pp))
    return logits_of_run(place, tokens, [*printed_flags(source, **choices), *other], sizes)


@pytest.mark.sweep(3)
@pytest.mark.parametrize("sizes", [Sizes(), Sizes(2, 1), Sizes(1, 2), Sizes(2, 2)], ids=str)
@pytest.mark.parametrize("source", RUNS, ids=lambda source: source.name)
def test_a_run_goes_on_as_it_was(source: Source, sizes: Sizes, tmp_path: Path) -> None:
    run = torch.load(source.folder / "oracle_logits.pt", weights_only=True)
    found = answer(source.folder, tmp_path / "torch", run["tokens"], sizes, tp=sizes.tp, pp=sizes.pp)
    check(found, run["logits"], source.true_vocab)
    check(resharded(source.folder, tmp_path / "dist", run["tokens"], sizes), run["logits"], source.true_vocab)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_of_transformers(family: str, tmp_path: Path) -> None:
    expected = models.logits(models.make(family, tmp_path / "hf"))
    found = answer(tmp_path / "hf", tmp_path / "torch", models.TOKENS, Sizes(2, 1), tp=2, pp=1)
    check(found, expected, 101)
    check(resharded(tmp_path / "hf", tmp_path / "dist", models.TOKENS, Sizes(1, 2)), expected, 101)


@pytest.mark.parametrize(
    ("sizes", "stages"),
    [
        (Sizes(1, 2, 2), {"vpp": 2}),
        (Sizes(1, 2), {"pp_layers": (3, 1)}),
        (Sizes(1, 3), {"pp_layers": (1, 1, 2)}),
        (Sizes(1, 4), {"pp_layers": (1, 2, 1, 1)}),
    ],
    ids=str,
)
def test_stages(sizes: Sizes, stages: dict[str, Any], tmp_path: Path) -> None:
    layers = sum(stages.get("pp_layers", (4,)))
    expected = models.logits(models.make("gpt", tmp_path / "hf", n_layer=layers))
    found = answer(tmp_path / "hf", tmp_path / "out", models.TOKENS, sizes, **{"pp": sizes.pp, **stages})
    check(found, expected, 101)


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("gpt", {"activation_function": "gelu"}),
        ("gpt", {"layer_norm_epsilon": 1e-2}),
        ("llama", {"tie_word_embeddings": True}),
        ("llama", {"head_dim": 16}),
        ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0}}),
        ("llama", {"rope_parameters": {**LLAMA_3, "original_max_position_embeddings": 8192}}),
        ("mistral", {"sliding_window": 4}),
    ],
    ids=str,
)
def test_what_only_flags_say(family: str, changes: dict[str, Any], tmp_path: Path) -> None:
    expected = models.logits(models.make(family, tmp_path / "hf", **changes))
    check(answer(tmp_path / "hf", tmp_path / "out", models.TOKENS, Sizes(), tp=1), expected, 101)
