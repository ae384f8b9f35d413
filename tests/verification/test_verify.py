"""A right conversion verifies, whatever it is of; each kind of wrong one is seen, and its tensor named.

Wrong ones are made by hand with torch: nothing of the plan that made the right one takes part.
"""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from streamconv import convert, diff, verify
from streamconv.core.errors import DamagedError
from streamconv.report.differences import verification_dict
from streamconv.verification.verify import Verification
from tests import oracle
from tests.damage import cut, flip, mend, records
from tests.places import LABELLED, REAL, Source

SOURCES = [*REAL, *LABELLED]
BLOOM, GPT, BLOCKS, NOPIPE, UNTIED = REAL[1], REAL[2], REAL[4], REAL[5], REAL[6]
QKV, DENSE, UP = "self_attention.query_key_value", "self_attention.dense", "mlp.dense_h_to_4h"
RAM: dict[str, Any] = {"max_ram": "2G"}


def names(found: Verification) -> set[str]:
    """Every tensor that the result names."""
    plain = verification_dict(found)
    sides = plain["comparison"] or {}
    tables = [*(sides.get(key, []) for key in ("values", "shapes")), plain["drift"]]
    named = {row["name"] for table in tables for row in table}
    return named | set(sides.get("only_a", [])) | set(sides.get("only_b", []))


def same(dst: Path, source: Path, **how: Any) -> None:
    found = verify(dst, source, **RAM, **how)
    assert found.comparison is not None
    assert (found.exit_code, names(found)) == (0, set())
    assert found.comparison.compared > 20


def edit(path: Path, change: Callable[[Any], None]) -> None:
    state = oracle.load_plain(path)
    change(state)
    torch.save(state, path)


def rank(root: Path, tp: int = 0, pp: int | None = None) -> Path:
    return root / "iter_0000003" / f"mp_rank_{tp:02d}{'' if pp is None else f'_{pp:03d}'}" / "model_optim_rng.pt"


def encoder(state: Any) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = state["model"]["language_model"]["encoder"]
    return found


# -- right ones ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", ["2021", "2023-09"])
@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_every_conversion_verifies(source: Source, dialect: str, tmp_path: Path) -> None:
    """To a layout in which rows, columns and stages are cut otherwise and the vocabulary is repadded."""
    tp, pp = {1: (4, 2), 2: (4, 1), 12: (3, 2)}[source.tp]
    convert(source.folder, tmp_path / "out", tp=tp, pp=pp, dialect=dialect, **RAM, to="megatron-legacy")
    same(tmp_path / "out", source.folder)


@pytest.mark.parametrize("source", [*REAL[:5], *LABELLED[4:]], ids=lambda source: source.name)
def test_legacy_folders_verify_against_each_other(source: Source, tmp_path: Path) -> None:
    """They do not record the true vocabulary; and of two orders of query_key_value rows, one is left."""
    convert(source.folder, tmp_path / "own", **RAM, to="megatron-legacy")
    convert(
        tmp_path / "own",
        tmp_path / "out",
        tp=1,
        pp=1,
        vocab_size=source.true_vocab,
        dialect="2023-09",
        **RAM,
        to="megatron-legacy",
    )
    same(tmp_path / "out", tmp_path / "own", vocab_size=source.true_vocab)
    same(tmp_path / "own", source.folder)


@pytest.mark.parametrize(
    ("source", "tp", "pp", "dtype"),
    [(BLOOM, 1, 1, "bf16"), (BLOOM, 4, 2, "fp16"), (GPT, 1, 4, "fp32"), (BLOCKS, 2, 3, "bf16"), (UNTIED, 4, 1, None)],
)
def test_casts_verify_exactly(source: Source, tp: int, pp: int, dtype: str | None, tmp_path: Path) -> None:
    """Also without the training arguments, which alone have the number of heads."""
    convert(source.folder, tmp_path / "out", tp=tp, pp=pp, dtype=dtype, keep_args=pp > 1, **RAM, to="megatron-legacy")
    same(tmp_path / "out", source.folder)


@pytest.mark.parametrize("source", [GPT, BLOCKS, NOPIPE, LABELLED[0]], ids=lambda source: source.name)
def test_a_copy_of_a_deepspeed_folder_verifies(source: Source, tmp_path: Path) -> None:
    shutil.copytree(source.folder, tmp_path / "copy", ignore=shutil.ignore_patterns("*optim_states.pt"))
    same(tmp_path / "copy", source.folder)


def drifted(folder: Path) -> Path:
    """A BLOOM whose norms and biases of rank 1 are not those of rank 0."""
    shutil.copytree(BLOOM.folder, folder)
    for path in (*folder.glob("global_step3/layer_04-model_01*"), *folder.glob("global_step3/layer_08-model_01*")):
        state = torch.load(path)
        for key, tensor in state.items():
            if not key.endswith((*oracle.SPLIT_ON_ROWS, *oracle.ROW_PARALLEL)):
                state[key] = tensor + torch.arange(32) / 1000
        torch.save(state, path)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [None, "bf16"])
def test_means_of_copies_verify_as_such(dtype: str | None, tmp_path: Path) -> None:
    source = drifted(tmp_path / "source")
    for policy in ("first", "mean"):
        convert(source, tmp_path / policy, tp=4, dtype=dtype, replicated=policy, **RAM, to="megatron-legacy")
        same(tmp_path / policy, source, replicated=policy)
    assert f"layers.1.{DENSE}.bias" in names(verify(tmp_path / "mean", source, **RAM))
    found = verify(source, BLOOM.folder, **RAM)
    assert {"layers.1.input_layernorm.weight", "final_layernorm.weight"} <= {drift.name for drift in found.drifts}


def test_options_are_of_the_source_alone(tmp_path: Path) -> None:
    convert(BLOCKS.folder, tmp_path / "out", qkv_layout="blocks", **RAM, to="megatron-legacy")
    same(tmp_path / "out", BLOCKS.folder, tag="global_step3", qkv_layout="blocks")
    found = verify(tmp_path / "out", BLOCKS.folder, qkv_layout="interleaved", **RAM)
    assert (found.exit_code, f"layers.3.{QKV}.weight.key" in names(found)) == (7, True)


# -- wrong ones ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("converted")
    convert(GPT.folder, folder / "tp2pp2", **RAM, to="megatron-legacy")
    convert(GPT.folder, folder / "tp1pp1", tp=1, pp=1, **RAM, to="megatron-legacy")
    return folder


@pytest.fixture
def result(converted: Path, tmp_path: Path) -> Path:
    """GPT at TP 2 x PP 2 and TP 1 x PP 1, to be spoilt."""
    shutil.copytree(converted, tmp_path / "result")
    return tmp_path / "result"


def spoil(result: Path, change: Callable[[Any], None], *place: int) -> Verification:
    root = result / ("tp2pp2" if place else "tp1pp1")
    edit(rank(root, *place), change)
    return verify(root, GPT.folder, **RAM)


def test_query_and_key_of_one_head_swapped(result: Path) -> None:
    def change(state: Any) -> None:
        rows = encoder(state)[f"layers.1.{QKV}.weight"]
        rows[24:40] = torch.cat([rows[32:40], rows[24:32]])

    found = spoil(result, change, 1, 1)
    assert (found.exit_code, names(found)) == (7, {f"layers.3.{QKV}.weight.query", f"layers.3.{QKV}.weight.key"})
    assert found.comparison is not None
    assert {one.first for one in found.comparison.values} == {(3, 0, 0)}


def test_two_ranks_swapped(result: Path) -> None:
    root = result / "tp2pp2"
    folders = [rank(root, tp, 1).parent for tp in (0, 1)]
    folders[0].rename(root / "aside")
    folders[1].rename(folders[0])
    (root / "aside").rename(folders[1])
    found = verify(root, GPT.folder, **RAM)
    split = {f"layers.{n}.{key}" for n in (2, 3) for key in (f"{DENSE}.weight", f"{UP}.bias", f"{QKV}.bias.value")}
    assert split <= names(found)
    assert not any("layernorm" in name or name.startswith(("layers.0", "layers.1")) for name in names(found))


def test_two_layers_swapped(result: Path) -> None:
    def change(state: Any) -> None:
        tensors = encoder(state)
        for key, other in [(key, key.replace(".0.", ".2.")) for key in tensors if key.startswith("layers.0.")]:
            tensors[key], tensors[other] = tensors[other], tensors[key]

    found = spoil(result, change)
    assert found.exit_code == 7
    assert {int(re.findall(r"\d+", name)[0]) for name in names(found)} == {0, 2}


def test_a_square_matrix_transposed(result: Path) -> None:
    def change(state: Any) -> None:
        weight = encoder(state)[f"layers.2.{DENSE}.weight"]
        encoder(state)[f"layers.2.{DENSE}.weight"] = weight.T.contiguous()

    found = spoil(result, change)
    assert (found.exit_code, names(found)) == (7, {f"layers.2.{DENSE}.weight"})


def test_a_bias_from_another_rank(result: Path) -> None:
    other = encoder(oracle.load_plain(rank(result / "tp2pp2", 0, 0)))[f"layers.1.{UP}.bias"]
    found = spoil(result, lambda state: encoder(state)[f"layers.1.{UP}.bias"].copy_(other), 1, 0)
    assert (found.exit_code, names(found)) == (7, {f"layers.1.{UP}.bias"})


def test_a_stale_copy_of_the_head(result: Path) -> None:
    def change(state: Any) -> None:
        state["model"]["word_embeddings_for_head"]["weight"][5, 7] += 1

    found = spoil(result, change, 1, 1)
    assert (found.exit_code, names(found)) == (7, {"word_embeddings_for_head.weight of rank 1"})


def test_an_element_that_is_one_step_off(result: Path) -> None:
    def change(state: Any) -> None:
        encoder(state)["layers.1.mlp.dense_4h_to_h.weight"].view(torch.int16)[9, 63] += 1

    found = spoil(result, change, 1, 0)
    assert found.exit_code == 7
    assert found.comparison is not None
    (one,) = found.comparison.values
    assert (one.name, one.elements, one.first) == ("layers.1.mlp.dense_4h_to_h.weight", 1, (9, 127))


@pytest.mark.parametrize(("value", "largest"), [(9.0, 10.0), (math.inf, math.inf), (math.nan, math.inf)])
def test_a_norm_of_rank_1_that_has_drifted(value: float, largest: float, result: Path) -> None:
    root, key = result / "tp2pp2", "final_layernorm.weight"
    edit(rank(root, 0, 1), lambda state: encoder(state)[key][3:5].fill_(-1.0))
    found = spoil(result, lambda state: encoder(state)[key][3:5].copy_(torch.tensor([value, 1.0])), 1, 1)
    assert (found.exit_code, names(found)) == (7, {key})
    assert [(drift.ranks, drift.elements, drift.largest) for drift in found.drifts] == [((1,), 2, largest)]


def test_values_cut_off_instead_of_rounded(result: Path, tmp_path: Path) -> None:
    convert(BLOOM.folder, tmp_path / "out", tp=1, pp=1, dtype="bf16", **RAM, to="megatron-legacy")
    exact = torch.load(BLOOM.folder / "global_step3/layer_03-model_00-model_states.pt")["mlp.dense_4h_to_h.bias"]
    cut_off = (exact.view(torch.int32) >> 16).to(torch.int16).view(torch.bfloat16)
    edit(rank(tmp_path / "out"), lambda state: encoder(state)["layers.0.mlp.dense_4h_to_h.bias"].copy_(cut_off))
    assert names(verify(tmp_path / "out", BLOOM.folder, **RAM)) == {"layers.0.mlp.dense_4h_to_h.bias"}


@pytest.mark.parametrize("keeps_args", [True, False])
@pytest.mark.parametrize("count", [3, 5])
def test_a_layer_too_few_or_too_many(count: int, keeps_args: bool, result: Path) -> None:
    def change(state: Any) -> None:
        tensors = encoder(state)
        for key in [key for key in tensors if key.startswith("layers.3.")]:
            tensors |= {key.replace("layers.3.", "layers.4."): tensors[key].clone()} if count == 5 else {}
            if count == 3:
                del tensors[key]
        if not keeps_args:
            del state["args"]

    found = spoil(result, change)
    if keeps_args:
        assert found.exit_code == 6
        assert any(f"args say 4 layers, {count} are there" in finding.what for finding in found.broken)
        return
    assert found.exit_code == 7
    assert {name.partition(".mlp")[0] for name in names(found) if ".mlp" in name} == {f"layers.{max(3, count - 1)}"}


def test_true_rows_of_the_vocabulary_lost_or_changed(result: Path) -> None:
    def keep(rows: int) -> Callable[[Any], None]:
        def change(state: Any) -> None:
            words = state["model"]["language_model"]["embedding"]["word_embeddings"]
            words["weight"] = words["weight"][:rows].clone()
            state["model"].pop("word_embeddings_for_head", None)
            state["args"].padded_vocab_size = rows

        return change

    name = {"word_embeddings.weight"}
    found = spoil(result, keep(100))
    assert found.exit_code == 0
    assert found.comparison is not None
    assert "compared 100 true rows" in found.comparison.notes[0]
    found = spoil(result, lambda s: s["model"]["language_model"]["embedding"]["word_embeddings"]["weight"][99].neg_())
    assert (found.exit_code, names(found)) == (7, name)
    assert (spoil(result, keep(99)).exit_code, names(verify(result / "tp1pp1", GPT.folder, **RAM))) == (7, name)


def test_padding_that_differs_is_no_difference(result: Path) -> None:
    def fill(words: torch.Tensor) -> None:
        assert len(words) == 56  # of 112, 100 of them true
        words[44:] = 7.0

    root = result / "tp2pp2"
    edit(rank(root, 1, 0), lambda s: fill(s["model"]["language_model"]["embedding"]["word_embeddings"]["weight"]))
    edit(rank(root, 1, 1), lambda s: fill(s["model"]["word_embeddings_for_head"]["weight"]))
    found = verify(root, GPT.folder, **RAM)
    assert found.exit_code == 0, names(found)
    assert found.comparison is not None
    assert found.comparison.notes == [
        "word_embeddings.weight: 112 rows on both sides, 12 of them padding; compared 100 true rows"
    ]
    # Whoever asks for every difference is told of this one.
    assert diff(root, GPT.folder, **RAM).values


# -- the source ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [f"{QKV}.weight", f"{DENSE}.weight", "mlp.dense_4h_to_h.bias"])
def test_a_flipped_bit_of_the_source_is_the_source_s_fault(key: str, result: Path, tmp_path: Path) -> None:
    shutil.copytree(GPT.folder, tmp_path / "source")
    path = next(tmp_path.glob("source/global_step3/layer_04-model_00*"))
    start, nbytes = records(path)[f"data/{list(torch.load(path)).index(key)}"]
    flip(path, start + nbytes // 2, 2)
    with pytest.raises(DamagedError, match="CRC-32") as caught:
        verify(result / "tp2pp2", tmp_path / "source", **RAM)
    assert str(path) in str(caught.value.where)
    mend(path)
    assert verify(result / "tp2pp2", tmp_path / "source", **RAM).exit_code == 7
    cut(path, start)
    with pytest.raises(DamagedError) as caught:
        verify(result / "tp2pp2", tmp_path / "source", **RAM)
    assert str(path) in str(caught.value.where)
