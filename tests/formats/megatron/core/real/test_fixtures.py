"""The oracle itself: it answers for real folders as the model did that saved them, and notices what is wrong in one."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import oracle
from tests.formats.megatron.core.real.gpt_model import checkpoint_of, logits_from_torch, logits_from_torch_dist, te_name
from tests.formats.megatron.core.real.needed import MEGATRON_CORE
from tests.places import FIXTURES

pytestmark = MEGATRON_CORE

FOLDER = FIXTURES / "megatron_core"
LLAMA, GROUPS, GPT, DIST = (
    FOLDER / name
    for name in ("torch_llama_tp2pp2", "torch_llama_2groups_tp4", "torch_gpt_pp2vpp2", "torch_dist_gpt_tp2pp2")
)
SIZES: dict[Path, dict[str, Any]] = {LLAMA: {"tp": 2, "pp": 2}, GROUPS: {"tp": 4}, GPT: {"pp": 2, "vpp": 2}}
State = dict[str, Any]
# The answers are of another machine: the matrix products of another CPU add in another order. What is wrong in a folder
# shows in more than 1e-3.
CLOSE = 5e-5


def answer_of(folder: Path) -> dict[str, torch.Tensor]:
    answer: dict[str, torch.Tensor] = torch.load(folder / "oracle_logits.pt", weights_only=True)
    return answer


def distance(folder: Path, logits: torch.Tensor) -> float:
    expected = answer_of(folder)["logits"]
    assert expected.std() > 0.1
    return float((logits - expected).abs().max())


@pytest.mark.parametrize("folder", SIZES, ids=lambda folder: folder.name)
def test_torch(folder: Path) -> None:
    logits = logits_from_torch(folder, answer_of(folder)["tokens"], **SIZES[folder])
    assert distance(folder, logits) < CLOSE


@pytest.mark.parametrize(("tp", "pp", "vpp"), [(1, 1, 1), (2, 1, 1), (1, 2, 1), (2, 2, 1), (1, 2, 2)])
def test_torch_dist_at_other_sizes(tp: int, pp: int, vpp: int) -> None:
    logits = logits_from_torch_dist(DIST, answer_of(DIST)["tokens"], tp=tp, pp=pp, vpp=vpp)
    assert distance(DIST, logits) < CLOSE


def test_one_model_with_two_groups_of_heads_on_two_and_on_four_ranks() -> None:
    """The weights are equal whatever the sizes, so the answers over the true vocabulary are."""
    two, four = (answer_of(folder)["logits"][..., :101] for folder in (LLAMA, GROUPS))
    torch.testing.assert_close(two, four, rtol=0, atol=1e-5)


def test_fewer_groups_than_ranks_are_slices_of_the_rows() -> None:
    """With 4 heads in 2 groups: rank 0 has the queries of the first group, rank 1 its key and value."""
    name = "decoder.layers.0.self_attention.linear_qkv.weight"
    wide = [load(path)["model"][name] for path in files_of(GROUPS)]
    narrow = [load(path)["model"][name] for path in files_of(LLAMA) if path.parent.name.endswith("_000")]
    assert [tuple(part.shape) for part in wide] == [(16, 32)] * 4
    assert torch.equal(torch.cat(wide), torch.cat(narrow))


def files_of(folder: Path) -> list[Path]:
    return sorted(checkpoint_of(folder).glob("*/model_optim_rng.pt"))


def load(path: Path) -> State:
    state: State = oracle.load_stubbed(path)
    return state


def changed(folder: Path, place: Path, change: Callable[[State], State]) -> Path:
    """A copy of ``folder`` with every rank's ``model`` changed and without ``args``."""
    shutil.copytree(folder, place)
    for path in files_of(place):
        state = load(path)
        models = {key: change(dict(value)) for key, value in state.items() if key.startswith("model")}
        torch.save({"checkpoint_version": 3.0, "iteration": 7, **models}, path)
    return place


ARGS: dict[str, Any] = {
    "num_layers": 4,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "max_position_embeddings": 16,
    "padded_vocab_size": 112,
    "ffn_hidden_size": 48,
    "group_query_attention": True,
    "num_query_groups": 2,
    "normalization": "RMSNorm",
    "layernorm_epsilon": 1e-6,
    "swiglu": True,
    "add_bias_linear": False,
    "position_embedding_type": "rope",
    "untie_embeddings_and_output_weights": True,
}


def test_transformer_engines_names(tmp_path: Path) -> None:
    tokens = answer_of(LLAMA)["tokens"]
    te = changed(LLAMA, tmp_path / "te", lambda model: {te_name(key): value for key, value in model.items()})
    assert distance(LLAMA, logits_from_torch(te, tokens, spec="te", args=ARGS, **SIZES[LLAMA])) < CLOSE
    with pytest.raises(Exception, match=r"missing.*input_layernorm.*unexpected.*layer_norm_weight"):
        logits_from_torch(te, tokens, args=ARGS, **SIZES[LLAMA])
    with pytest.raises(Exception, match=r"te names: missing.*layer_norm_weight.*unexpected.*input_layernorm"):
        logits_from_torch(LLAMA, tokens, spec="te", **SIZES[LLAMA])


def without_a_norm(model: State) -> State:
    return {key: value for key, value in model.items() if key != "decoder.layers.1.input_layernorm.weight"}


def halves(model: State) -> State:
    return {key: value.bfloat16() if isinstance(value, torch.Tensor) else value for key, value in model.items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [(without_a_norm, "missing.*decoder.layers.1.input_layernorm"), (halves, "bfloat16, and should be.*float32")],
)
def test_a_wrong_folder_is_refused(change: Callable[[State], State], message: str, tmp_path: Path) -> None:
    folder = changed(LLAMA, tmp_path / "wrong", change)
    with pytest.raises(Exception, match=message):
        logits_from_torch(folder, answer_of(LLAMA)["tokens"], args=ARGS, **SIZES[LLAMA])


def up_before_gate(model: State) -> State:
    return {key: torch.cat(value.chunk(2)[::-1]) if "fc1.weight" in key else value for key, value in model.items()}


def rows_in_blocks(model: State) -> State:
    rows = torch.arange(32).view(4, 8)[[2, 0, 1, 3]].flatten()  # key, query, query, value
    return {key: value[rows] if "linear_qkv.weight" in key else value for key, value in model.items()}


@pytest.mark.parametrize("change", [up_before_gate, rows_in_blocks])
def test_wrong_rows_show_in_the_logits(change: Callable[[State], State], tmp_path: Path) -> None:
    folder = changed(LLAMA, tmp_path / "wrong", change)
    logits = logits_from_torch(folder, answer_of(LLAMA)["tokens"], args=ARGS, **SIZES[LLAMA])
    assert distance(LLAMA, logits) > 1e-2


@pytest.mark.parametrize(("name", "value"), [("layernorm_epsilon", 1e-2), ("rotary_base", 500000), ("swiglu", False)])
def test_another_argument_is_another_model(name: str, value: object) -> None:
    if name == "swiglu":
        with pytest.raises(Exception, match="linear_fc1"):
            logits_from_torch(LLAMA, answer_of(LLAMA)["tokens"], args={name: value}, **SIZES[LLAMA])
        return
    logits = logits_from_torch(LLAMA, answer_of(LLAMA)["tokens"], args={name: value}, **SIZES[LLAMA])
    assert distance(LLAMA, logits) > 1e-3


def test_the_fused_gelu_is_another_function() -> None:
    logits = logits_from_torch(GPT, answer_of(GPT)["tokens"], args={"bias_gelu_fusion": False}, **SIZES[GPT])
    assert CLOSE < distance(GPT, logits) < 0.1
