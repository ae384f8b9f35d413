"""Which layer a set of layer files lacks, told by their numbers and by the training arguments."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from streamconv.core.errors import DamagedError, UnsupportedError
from streamconv.formats.common.faults import COPY_AGAIN, REMOVE_OTHERS, Collected
from streamconv.formats.deepspeed.layer_roles import check_roles, is_megatron, role_of
from streamconv.models.parameter import Section

BLOCK = frozenset({"input_layernorm.weight", "self_attention.dense.weight"})
WORDS, NORM, HEAD = frozenset({"word_embeddings.weight"}), frozenset({"weight", "bias"}), frozenset({"lm_head.weight"})


def found(blocks: Iterable[int], norm: int | None, num_layers: int | None, *, embedding: int | None = 1) -> Collected:
    """The faults of a folder with such layer files."""
    keys = dict.fromkeys(blocks, BLOCK)
    keys |= {} if embedding is None else {embedding: WORDS}
    keys |= {} if norm is None else {norm: NORM}
    ordered = {index: keys[index] for index in sorted(keys)}
    faults = Collected()
    layers = {index: (Path(f"layer_{index:02d}"), names) for index, names in ordered.items()}
    check_roles(Path("folder"), layers, {index: role_of(names) for index, names in ordered.items()}, num_layers, faults)
    return faults


# (first block, last block, final norm) of whole models of four layers, as both forks and MoE number them.
WHOLE = {"bigscience": (3, 6, 8), "deepspeedai": (2, 5, 6), "with experts": (2, 5, 7)}


@pytest.mark.parametrize("fork", WHOLE)
@pytest.mark.parametrize("num_layers", [4, None])
def test_a_whole_model_has_no_fault(fork: str, num_layers: int | None) -> None:
    first, last, norm = WHOLE[fork]
    assert not found(range(first, last + 1), norm, num_layers)


@pytest.mark.parametrize("fork", ["bigscience", "deepspeedai"])
@pytest.mark.parametrize("place", [0, 1, 2, 3])
def test_the_layer_that_is_missing_is_named(fork: str, place: int) -> None:
    first, last, norm = WHOLE[fork]
    lost = first + place
    faults = found([index for index in range(first, last + 1) if index != lost], norm, 4)
    (fault,) = faults.found
    assert f"args say 4 layers, 3 are there; layer_{lost:02d} is missing" in fault.what
    assert fault.remedy == COPY_AGAIN


def test_more_layers_than_args_say_are_another_runs() -> None:
    (fault,) = found(range(3, 7), 8, 3).found
    assert fault.what.startswith("args say 3 layers, 4 are there; there are more than args say")
    assert fault.remedy == REMOVE_OTHERS


def test_another_numbering_is_confirmed_by_args_alone() -> None:
    assert not found(range(5, 9), 12, 4)
    assert len(found(range(5, 9), 12, None).found) == 1


def test_ends_that_are_missing_are_named() -> None:
    faults = found(range(3, 7), None, 4, embedding=None)
    assert [fault.what for fault in faults.found] == [
        "no file has a word embedding: layer_01-model_*-model_states.pt",
        "no file has a final norm, the last of the layer files but for a head",
    ]


@pytest.mark.parametrize(("keys", "error"), [(set(), DamagedError), ({"pooler.weight"}, UnsupportedError)])
def test_a_layer_of_no_role_is_empty_or_anothers(keys: set[str], error: type[Exception]) -> None:
    assert role_of(keys) is None
    faults = Collected()
    layers = {1: (Path("a"), WORDS), 2: (Path("b"), BLOCK), 3: (Path("c"), keys), 4: (Path("d"), NORM)}
    check_roles(Path("folder"), layers, {index: role_of(names) for index, (_, names) in layers.items()}, None, faults)
    assert [type(fault) for fault in faults.found if fault.where == "c"] == [error]


def test_roles_are_told_by_keys() -> None:
    assert [role_of(keys) for keys in (WORDS, BLOCK, NORM, HEAD)] == [
        Section.EMBEDDING,
        Section.LAYER,
        Section.FINAL_NORM,
        Section.HEAD,
    ]
    # transformers' Llama has the norm, and other names for the rest.
    assert role_of({"input_layernorm.weight", "self_attn.q_proj.weight"}) is None
    assert is_megatron([WORDS, BLOCK])
    assert not is_megatron([WORDS, NORM])
