"""Conversions of real checkpoints, checked against torch alone, element by element."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from streamconv import convert, plan
from streamconv.core.errors import SourceError
from tests import oracle
from tests.places import FRAMEWORKS, LABELLED, REAL, REFUSED, Source

SOURCES = [*REAL, *LABELLED]
RESHARD = [(tp, pp) for tp in (1, 2, 4) for pp in (1, 2, 3)]


def check(source: Source, out: Path, has_tp: int, has_pp: int, **choices: Any) -> oracle.Model:
    convert(source.folder, out, max_ram="2G", **choices, to="megatron-legacy")
    result = oracle.result_model(oracle.result_files(out, has_tp, has_pp), source.heads)
    expected = oracle.model_of(source)
    oracle.assert_same_model(result, expected, source.true_vocab)
    return result


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
@pytest.mark.parametrize("io", ["pread", "direct"])
def test_own_layout_is_kept_bit_for_bit(source: Source, io: str, tmp_path: Path) -> None:
    check(source, tmp_path / "out", source.tp, source.pp, io=io)
    files = oracle.result_files(tmp_path / "out", source.tp, source.pp)
    for (_, stage), state in files.items():
        layers = {key.split(".")[1] for key in state["model"]["language_model"]["encoder"] if key.startswith("layers.")}
        assert len(layers) == source.stages[stage]


@pytest.mark.sweep(5)
@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
@pytest.mark.parametrize(("tp", "pp"), RESHARD)
def test_any_other_layout_merges_to_the_source(source: Source, tp: int, pp: int, tmp_path: Path) -> None:
    if pp > sum(source.stages):
        pytest.skip("fewer layers than stages")
    check(source, tmp_path / "out", tp, pp, tp=tp, pp=pp)


@pytest.mark.parametrize("source", [REAL[0], REAL[4]], ids=lambda source: source.name)
def test_stages_are_as_asked(source: Source, tmp_path: Path) -> None:
    stages = (1, 3) if source.stages == (2, 2) else (1, 4)
    check(source, tmp_path / "out", source.tp, 2, pp_layers=stages)
    files = oracle.result_files(tmp_path / "out", source.tp, 2)
    for stage, count in enumerate(stages):
        encoder = files[0, stage]["model"]["language_model"]["encoder"]
        assert len({key.split(".")[1] for key in encoder if key.startswith("layers.")}) == count


@pytest.mark.parametrize("name", REFUSED)
def test_every_other_checkpoint_is_refused_by_its_name(name: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=REFUSED[name]):
        convert(FRAMEWORKS / name, tmp_path / "out", to="megatron-legacy")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16), ("fp32", torch.float32)]
)
def test_a_cast_rounds_as_torch_does(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    for number, source in enumerate((REAL[1], REAL[3])):
        convert(source.folder, tmp_path / f"{number}", dtype=name, tp=1, pp=1, max_ram="2G", to="megatron-legacy")
        files = oracle.result_files(tmp_path / f"{number}", 1, 1)
        expected = oracle.source_model(source.folder, blocks=source.blocks)
        cast = {key: tensor.to(dtype) for key, tensor in expected.items()}
        oracle.assert_same_model(oracle.result_model(files), cast, source.true_vocab)
        args = files[0, 0]["args"]
        assert (args.params_dtype, args.bf16, args.fp16) == (dtype, name == "bf16", name == "fp16")


def test_the_dialect_of_2023_renames_the_norms_and_copies_the_head_only_over_stages(tmp_path: Path) -> None:
    source = REAL[4]
    for pp in (1, 2):
        check(source, tmp_path / f"{pp}", 2, pp, pp=pp, dialect="2023-09")
        files = oracle.result_files(tmp_path / f"{pp}", 2, pp)
        encoder = files[0, pp - 1]["model"]["language_model"]["encoder"]
        names = {key.split(".", 2)[-1] for key in encoder if "norm" in key}
        assert names == {
            *(f"{norm}.{kind}" for norm in ("input_norm", "post_attention_norm") for kind in ("weight", "bias")),
            ["final_norm", "weight"][-1],
            ["final_norm", "bias"][-1],
        }
        assert ("word_embeddings_for_head" in files[0, pp - 1]["model"]) == (pp > 1)


def test_args_are_a_plain_namespace_with_the_targets_sizes(tmp_path: Path) -> None:
    source = REAL[1]
    convert(source.folder, tmp_path / "out", tp=4, pp=1, for_release=True, max_ram="2G", to="megatron-legacy")
    (folder,) = (source.folder / "global_step3").glob("mp_rank_00_model_states.pt")
    before = vars(oracle.load_stubbed(folder)["args"])
    after = vars(oracle.result_files(tmp_path / "out", 4, 1)[0, 0]["args"])
    changed = {
        "tensor_model_parallel_size": 4,
        "pipeline_model_parallel_size": 1,
        "padded_vocab_size": 128,
        "consumed_train_samples": 0,
        "consumed_valid_samples": 0,
    }
    assert before["consumed_train_samples"] > 0
    assert after == {k: v for k, v in before.items() if k != "position_embedding_type"} | changed
    assert any("position_embedding_type" in choice.what for choice in plan(source.folder, to="megatron-legacy").notes)


def test_without_args_the_result_has_none(tmp_path: Path) -> None:
    convert(REAL[0].folder, tmp_path / "out", keep_args=False, max_ram="2G", to="megatron-legacy")
    state = oracle.result_files(tmp_path / "out", 1, 2)[0, 0]
    assert sorted(state) == ["checkpoint_info", "checkpoint_version", "iteration", "model"]


def test_the_same_conversion_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    for number in (1, 2):
        convert(REAL[4].folder, tmp_path / f"{number}", tp=1, pp=3, max_ram="2G", to="megatron-legacy")
    files = sorted(path.relative_to(tmp_path / "1") for path in (tmp_path / "1").rglob("*") if path.is_file())
    assert len(files) == 5
    for path in files:
        assert (tmp_path / "1" / path).read_bytes() == (tmp_path / "2" / path).read_bytes()
