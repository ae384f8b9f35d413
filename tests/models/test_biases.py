"""Which biases go together, and what a family is that has some of them."""

from __future__ import annotations

from itertools import chain, combinations
from typing import Any

import pytest
import transformers

from streamconv.core.errors import DamagedError
from streamconv.models.biases import BY_ENTRY, QKV_BIAS, entry_of, in_megatron, in_transformers, said_by
from streamconv.models.parameter import Section
from streamconv.models.registry import known_families
from streamconv.models.translate import args_of

FAMILIES = {family.name: family for family in known_families()}
ALL = frozenset(chain.from_iterable(BY_ENTRY.values()))
SUBSETS = [frozenset(some) for size in range(5) for some in combinations(sorted(ALL), size)]


@pytest.mark.parametrize("some", SUBSETS, ids=lambda some: "+".join(sorted(some)) or "none")
def test_megatron_has_none_those_of_queries_keys_and_values_or_all(some: frozenset[str]) -> None:
    assert in_megatron(some) in (frozenset(), {QKV_BIAS}, ALL)
    assert some <= in_megatron(some)
    assert in_megatron(in_megatron(some)) == in_megatron(some)


@pytest.mark.parametrize("some", SUBSETS, ids=lambda some: "+".join(sorted(some)) or "none")
def test_transformers_has_whole_pairs(some: frozenset[str]) -> None:
    wanted = in_transformers(some)
    assert some <= wanted
    assert all(set(pair) <= wanted or wanted.isdisjoint(pair) for pair in BY_ENTRY.values())
    assert said_by({entry_of(key): True for key in some}) == wanted


def test_the_entries_are_those_of_transformers_and_of_no_other_family() -> None:
    has = {
        family.name: {entry for entry in BY_ENTRY if hasattr(config, entry)}
        for family in FAMILIES.values()
        for config in [transformers.AutoConfig.for_model(family.huggingface.model_type)]
        if family.choices
    }
    assert has == {"llama": {"attention_bias", "mlp_bias"}, "qwen3": {"attention_bias"}}


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_a_family_without_choices_made_is_itself(name: str) -> None:
    family = FAMILIES[name]
    assert family.having(()) == family
    assert family.having(ALL).having(()) == family
    assert family.having(()).huggingface == family.huggingface


@pytest.mark.parametrize("some", SUBSETS, ids=lambda some: "+".join(sorted(some)) or "none")
def test_a_model_has_just_the_biases_that_are_chosen(some: frozenset[str]) -> None:
    family = FAMILIES["llama"].having(some)
    assert family.chosen == some
    assert {p.key for p in family.parameters if p.section is Section.LAYER} == family.keys(Section.LAYER)
    assert family.keys(Section.LAYER) - some == FAMILIES["llama"].keys(Section.LAYER)
    assert {row.key for row in family.huggingface.tensors} & ALL == some


@pytest.mark.parametrize("name", ["llama", "qwen3"])
@pytest.mark.parametrize("said", [{}, {"attention_bias": None}, {"attention_bias": False}, {"attention_bias": True}])
def test_the_argument_is_true_where_an_entry_is(name: str, said: dict[str, Any]) -> None:
    config = {**transformers.AutoConfig.for_model(name).to_dict(), **said}
    if not said:
        del config["attention_bias"]
    found = args_of(FAMILIES[name], config)
    assert found.args["add_bias_linear"] is (said.get("attention_bias") is True)
    assert found.refusals == ()


@pytest.mark.parametrize("value", ["yes", 1, []])
def test_an_entry_that_is_no_truth_value_is_named(value: Any) -> None:
    config = {**transformers.AutoConfig.for_model("llama").to_dict(), "mlp_bias": value}
    with pytest.raises(DamagedError, match=r"mlp_bias is .*neither true nor false"):
        args_of(FAMILIES["llama"], config)
