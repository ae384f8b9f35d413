"""Which parameter a tensor is, as a value."""

from __future__ import annotations

import pytest

from streamconv.models.blocks import block, head, words
from streamconv.models.family import ModelFamily
from streamconv.models.parameter import WORDS, Kind, ParameterId, Section
from streamconv.models.registry import known_families


def test_names_are_canonical() -> None:
    assert ParameterId(Section.LAYER, 3, "mlp.dense_h_to_4h.weight").name == "layers.3.mlp.dense_h_to_4h.weight"
    assert ParameterId(Section.FINAL_NORM, -1, "weight").name == "final_layernorm.weight"
    assert ParameterId(Section.HEAD, -1, "lm_head.weight").name == "lm_head.weight"
    assert WORDS.name == "word_embeddings.weight"


def test_experts_and_kinds_tell_parameters_apart() -> None:
    first = ParameterId(Section.LAYER, 0, "mlp.dense_h_to_4h.weight")
    expert = ParameterId(Section.LAYER, 0, "mlp.dense_h_to_4h.weight", expert=0)
    momentum = ParameterId(Section.LAYER, 0, "mlp.dense_h_to_4h.weight", kind=Kind.EXP_AVG)
    assert len({first, expert, momentum}) == 3
    assert expert.name == "layers.0.experts.0.mlp.dense_h_to_4h.weight"


def test_what_is_beside_a_parameter_is_in_the_same_layer_and_expert() -> None:
    weight = ParameterId(Section.LAYER, 5, "mlp.dense_h_to_4h.weight", expert=2, kind=Kind.MASTER)
    bias = weight.beside("mlp.dense_h_to_4h.bias")
    assert bias == ParameterId(Section.LAYER, 5, "mlp.dense_h_to_4h.bias", 2, Kind.MASTER)


def test_a_row_says_which_parameter_of_a_layer_it_is() -> None:
    row = block(norm_bias=True, qkv_bias=True, bias=True)[0]
    assert row.of(7) == ParameterId(Section.LAYER, 7, row.key)
    assert words().of() == WORDS
    assert head().of() == ParameterId(Section.HEAD, -1, "lm_head.weight")


@pytest.mark.parametrize("family", known_families(), ids=lambda family: family.name)
def test_a_family_finds_its_own_rows(family: ModelFamily) -> None:
    for row in family.parameters:
        layer = 2 if row.section is Section.LAYER else -1
        assert family.parameter(row.of(layer)) is row
