"""What was converted to Megatron-Core answers in the real ``GPTModel`` as its source does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from streamconv import convert
from tests import hf_models as models
from tests.formats.megatron.core.real.gpt_model import logits_from_torch, logits_from_torch_dist
from tests.formats.megatron.core.real.needed import MEGATRON_CORE
from tests.places import FIXTURES, FRAMEWORKS, LLAMA, REAL, Source

pytestmark = MEGATRON_CORE

CORE: dict[str, Any] = {"to": "megatron-core", "max_ram": "1G"}
RUNS = [source for source in (*REAL, LLAMA) if "fp32" in source.name and "bloom" not in source.name]
SAVED = sorted(path.parent for path in (FIXTURES / "megatron_core").glob("*/oracle_logits.pt"))
FAMILIES = ("gpt", "llama", "mistral", "phi3", "qwen2", "qwen3")
CUTS: list[dict[str, Any]] = [{}, {"tp": 2}, {"pp": 2}, {"tp": 2, "pp": 2}, {"pp": 2, "vpp": 2}]


def torch_folder(source: Path, place: Path, spec: str = "local", **how: Any) -> None:
    convert(source, place, container="torch", spec=spec, **CORE, **how)


def torch_dist_folder(source: Path, place: Path, **how: Any) -> None:
    convert(source, place, container="torch_dist", **CORE, **how)


def cut_id(cut: dict[str, Any]) -> str:
    return "-".join(f"{name}{size}" for name, size in cut.items()) or "one rank"


def whole(cut: dict[str, Any]) -> dict[str, Any]:
    return {"tp": 1, "pp": 1, **cut}


def check(found: torch.Tensor, expected: torch.Tensor, vocab: int) -> None:
    assert expected.std() > 0.1
    torch.testing.assert_close(found[..., :vocab], expected[..., :vocab].float(), rtol=1e-5, atol=1e-5)


def run_of(source: Source) -> tuple[torch.Tensor, torch.Tensor]:
    answer = torch.load(source.folder / "oracle_logits.pt", weights_only=True)
    return answer["tokens"], answer["logits"]


@pytest.mark.sweep(3)
@pytest.mark.parametrize("cut", CUTS, ids=cut_id)
@pytest.mark.parametrize("source", RUNS, ids=lambda source: source.name)
def test_torch_answers_as_the_live_run_did(source: Source, cut: dict[str, Any], tmp_path: Path) -> None:
    tokens, expected = run_of(source)
    torch_folder(source.folder, tmp_path / "out", **whole(cut))
    check(logits_from_torch(tmp_path / "out", tokens, **cut), expected, source.true_vocab)


@pytest.mark.sweep(3)
@pytest.mark.parametrize("cut", CUTS, ids=cut_id)
@pytest.mark.parametrize("source", RUNS, ids=lambda source: source.name)
def test_torch_dist_answers_as_the_live_run_did(source: Source, cut: dict[str, Any], tmp_path: Path) -> None:
    """Written for TP 2 and PP 2, loaded at any size."""
    tokens, expected = run_of(source)
    torch_dist_folder(source.folder, tmp_path / "out", tp=2, pp=2)
    check(logits_from_torch_dist(tmp_path / "out", tokens, **cut), expected, source.true_vocab)


@pytest.mark.sweep(3)
@pytest.mark.parametrize("cut", CUTS, ids=cut_id)
@pytest.mark.parametrize("family", FAMILIES)
def test_torch_answers_as_transformers(family: str, cut: dict[str, Any], tmp_path: Path) -> None:
    model = models.make(family, tmp_path / "hf")
    torch_folder(tmp_path / "hf", tmp_path / "out", **whole(cut))
    check(logits_from_torch(tmp_path / "out", models.TOKENS, **cut), models.exact_logits(model), 101)


@pytest.mark.sweep(3)
@pytest.mark.parametrize("cut", CUTS, ids=cut_id)
@pytest.mark.parametrize("family", FAMILIES)
def test_torch_dist_answers_as_transformers(family: str, cut: dict[str, Any], tmp_path: Path) -> None:
    model = models.make(family, tmp_path / "hf")
    torch_dist_folder(tmp_path / "hf", tmp_path / "out", tp=2, pp=2)
    check(logits_from_torch_dist(tmp_path / "out", models.TOKENS, **cut), models.exact_logits(model), 101)


@pytest.mark.parametrize("folder", SAVED, ids=lambda folder: folder.name)
def test_what_megatron_saved_for_other_sizes(folder: Path, tmp_path: Path) -> None:
    answer = torch.load(folder / "oracle_logits.pt", weights_only=True)
    torch_folder(folder, tmp_path / "torch", tp=2, pp=2, vpp=2, vocab_size=101)
    check(logits_from_torch(tmp_path / "torch", answer["tokens"], tp=2, pp=2, vpp=2), answer["logits"], 101)
    torch_dist_folder(folder, tmp_path / "dist", tp=1, pp=1, vocab_size=101)
    check(logits_from_torch_dist(tmp_path / "dist", answer["tokens"], tp=2), answer["logits"], 101)


@pytest.mark.parametrize("family", FAMILIES)
def test_transformer_engines_names(family: str, tmp_path: Path) -> None:
    model = models.make(family, tmp_path / "hf")
    torch_folder(tmp_path / "hf", tmp_path / "out", spec="te", tp=2, pp=2)
    logits = logits_from_torch(tmp_path / "out", models.TOKENS, tp=2, pp=2, spec="te")
    check(logits, models.exact_logits(model), 101)


@pytest.mark.parametrize("family", ["llama", "phi3", "qwen2", "qwen3"])
def test_more_ranks_than_groups_of_heads(family: str, tmp_path: Path) -> None:
    model = models.make(family, tmp_path / "hf")
    torch_folder(tmp_path / "hf", tmp_path / "torch", tp=4, pp=1)
    check(logits_from_torch(tmp_path / "torch", models.TOKENS, tp=4), models.exact_logits(model), 101)
    torch_dist_folder(tmp_path / "hf", tmp_path / "dist", tp=4, pp=1)
    check(logits_from_torch_dist(tmp_path / "dist", models.TOKENS, tp=4), models.exact_logits(model), 101)
    check(logits_from_torch_dist(tmp_path / "dist", models.TOKENS, tp=2), models.exact_logits(model), 101)


@pytest.mark.parametrize("stages", [(1, 3), (3, 1)])
def test_uneven_stages(stages: tuple[int, ...], tmp_path: Path) -> None:
    model = models.make("llama", tmp_path / "hf")
    torch_folder(tmp_path / "hf", tmp_path / "out", tp=1, pp_layers=stages)
    check(logits_from_torch(tmp_path / "out", models.TOKENS, pp=2), models.exact_logits(model), 101)


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("gpt", {"activation_function": "gelu"}),
        ("gpt", {"layer_norm_epsilon": 1e-2}),
        ("llama", {"tie_word_embeddings": True}),
        ("llama", {"num_key_value_heads": 4}),
        ("llama", {"num_key_value_heads": 1}),
        ("llama", {"head_dim": 16}),
        ("llama", {"rope_theta": 100.0}),
        ("llama", {"rms_norm_eps": 1e-2}),
        ("mistral", {"sliding_window": 4}),
        ("phi3", {"sliding_window": 4}),
        ("phi3", {"tie_word_embeddings": True}),
        ("phi3", {"partial_rotary_factor": 0.5}),
        ("phi3", {"partial_rotary_factor": 0.75, "rope_theta": 100.0}),
    ],
    ids=lambda value: ",".join(f"{name}={one}" for name, one in value.items()) if isinstance(value, dict) else value,
)
def test_variants(family: str, changes: dict[str, Any], tmp_path: Path) -> None:
    rope = {name: value for name, value in changes.items() if name in ("rope_theta", "partial_rotary_factor")}
    if rope:
        others = {name: value for name, value in changes.items() if name not in rope}
        changes = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, **rope}, **others}
    model = models.make(family, tmp_path / "hf", **changes)
    torch_folder(tmp_path / "hf", tmp_path / "torch", tp=1, pp=2)
    check(logits_from_torch(tmp_path / "torch", models.TOKENS, pp=2), models.exact_logits(model), 101)
    torch_dist_folder(tmp_path / "hf", tmp_path / "dist", tp=1, pp=2)
    check(logits_from_torch_dist(tmp_path / "dist", models.TOKENS, pp=2), models.exact_logits(model), 101)


def test_in_bfloat16(tmp_path: Path) -> None:
    """The same rounded weights, at work in float32 on both sides."""
    model = models.make("llama", tmp_path / "hf")
    torch_folder(tmp_path / "hf", tmp_path / "out", tp=2, pp=1, dtype="bf16")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())
    check(logits_from_torch(tmp_path / "out", models.TOKENS, tp=2), models.exact_logits(model), 101)


@pytest.mark.parametrize("container", ["torch", "torch_dist"])
@pytest.mark.parametrize(("stage", "weights"), [(2, "model"), (2, "master"), (3, "master")])
def test_a_trainers_checkpoint_answers_as_the_live_engine(
    stage: int, weights: str, container: str, tmp_path: Path
) -> None:
    """A Llama of the HF Trainer under ZeRO, straight to TP 2 and PP 2."""
    name = f"ds_trainer_llama_z{stage}"
    source = FRAMEWORKS / name / "checkpoint-2"
    live = torch.load(FIXTURES / "zero_truth" / f"{name}.pt", weights_only=True)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(source), dtype=torch.float32).eval()
    model.load_state_dict({key: pair["fp32" if weights == "master" else "lp"].float() for key, pair in live.items()})
    make, load = {
        "torch": (torch_folder, logits_from_torch), "torch_dist": (torch_dist_folder, logits_from_torch_dist)
    }[container]  # fmt: skip
    make(source, tmp_path / "out", tp=2, pp=2, weights=weights, dtype="fp32")
    logits = load(tmp_path / "out", models.TOKENS, tp=2, pp=2)
    check(logits, models.exact_logits(model), model.config.vocab_size)
