"""Training arguments may be any values: each is a contradiction or none, never a bug."""

from __future__ import annotations

from typing import Any

import pytest

from streamconv.containers.pickles.reader import Global, Record
from streamconv.models.registry import known_families
from streamconv.planning.contradictions import contradictions

GPT = next(family for family in known_families() if family.title.startswith("GPT"))
ODD: tuple[Any, ...] = (None, True, -1, 1 << 900, float("nan"), "", "\ud800", [], [1, "a"], {}, (1,), b"\xff")


@pytest.mark.parametrize("name", ["num_experts", "swiglu", "normalization", "num_key_value_heads", "rotary_percent"])
@pytest.mark.parametrize("value", ODD, ids=repr)
def test_any_value_of_an_argument_is_judged(name: str, value: Any) -> None:
    assert all(isinstance(words, str) for words in contradictions(GPT, {name: value}))


@pytest.mark.parametrize(("experts", "is_a_mixture"), [([1, "a"], False), ([1, "a", 8], True), (8, True), ([], False)])
def test_a_mixture_is_seen_among_values_of_mixed_types(experts: Any, is_a_mixture: bool) -> None:
    assert ("a mixture of experts (MoE)" in contradictions(GPT, {"num_experts": experts})) is is_a_mixture


@pytest.mark.parametrize("value", [[], {}, (1, []), "learned", 1 << 900, None], ids=repr)
def test_an_enum_may_hold_what_does_not_hash(value: Any) -> None:
    position = Record(Global("megatron.enums", "PositionEmbeddingType"), (value,))
    assert list(contradictions(GPT, {"position_embedding_type": position})) == []
