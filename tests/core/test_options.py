"""Options that are declared as fields, and what a user gives of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamconv.core.errors import UsageError
from streamconv.core.kinds import Choice, Count, Counts, Flag, InvalidValue, PathTo, Text, ValueKind, nearest
from streamconv.core.options import Given, all_options, option, options_of
from streamconv.memory.options import Budget, SizeText


@dataclass(frozen=True, slots=True, kw_only=True)
class Apples:
    """One owner."""

    count: int | None = option(Count(), "how many", purpose="the number of apples", neutral=1)
    sort: str = option(Choice(("boskoop", "elstar")), "which sort", default="elstar")
    washed: bool = option(Flag(), "wash them", default=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pears:
    """Another, which has a sort too."""

    sort: str | None = option(Choice(("conference", "elstar")), "which sort of pear")
    keep_peel: bool = option(Flag(), "peel them", default=True, flag="--peel")


BOTH = all_options([Apples, Pears])


def given(**keywords: Any) -> Given:
    return Given.keywords(BOTH, keywords)


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (Count(), "3", 3),
        (Count(least=0), "0", 0),
        (Counts(), "10,11,11", (10, 11, 11)),
        (Choice(("bf16", "fp16")), "BF16", "bf16"),
        (Choice(("huggingface",), also={"hf": "huggingface"}), "HF", "huggingface"),
        (Choice({"one": 1, "two": 2}), "two", 2),
        (Flag(), "yes", True),
        (Flag(), "0", False),
        (Text("NAME"), "global_step3", "global_step3"),
        (PathTo("DIR", folder=True), "a/b", Path("a/b")),
        (SizeText(), "8M", "8M"),
        (Budget(), "50%", "50%"),
        (Budget(), "auto", "auto"),
    ],
)
def test_text_is_read_and_a_value_stays_as_it_is(kind: ValueKind, text: str, value: object) -> None:
    assert kind.read(text) == value
    assert kind.check(value) == value


@pytest.mark.parametrize(
    ("kind", "value", "words"),
    [
        (Count(), 0, "must be at least 1"),
        (Count(most=9), 10, "must be at most 9"),
        (Count(), "3", "a str, not a whole number"),
        (Count(), True, "a bool, not a whole number"),
        (Count(), 1.0, "a float, not a whole number"),
        (Count(), None, "None, not a whole number"),
        (Counts(), 4, "an int, not a list of numbers"),
        (Counts(), (), "no numbers"),
        (Counts(), (3, 0), "must be at least 1"),
        (Counts(), b"34", "a bytes, not a list"),
        (Choice(("a", "b")), 5, "an int, not one of the words a, b"),
        (Choice(("a", "b")), "", "no such choice"),
        (Flag(), 1, "an int, neither True nor False"),
        (Text("NAME"), "", "empty"),
        (Text("NAME"), 5, "an int, not text"),
        (PathTo("DIR", folder=True), 5, "an int, not a path"),
        (PathTo("DIR", folder=True), b"a", "a bytes, not a path"),
        (PathTo("DIR", folder=True), "", "an empty path"),
        (PathTo("DIR", folder=True), "a\0b", "a null character"),
        (SizeText(), 1.5, "a float, not a size"),
        (SizeText(), "lots", "not a size"),
        (SizeText(), 0, "not a size"),
        (Budget(), "101%", "more than all of it"),
        (Budget(), 0, "must be more than 0"),
    ],
)
def test_what_an_option_cannot_be_is_said(kind: ValueKind, value: object, words: str) -> None:
    with pytest.raises(InvalidValue, match=words):
        kind.check(value)


@pytest.mark.parametrize(
    ("kind", "text"), [(Count(), "x"), (Count(), "1.5"), (Counts(), "1,x"), (Counts(), ""), (Flag(), "perhaps")]
)
def test_text_that_is_no_value_is_said(kind: ValueKind, text: str) -> None:
    with pytest.raises(InvalidValue):
        kind.read(text)


def test_numbers_of_numpy_and_bytes_as_numbers() -> None:
    assert type(Count().check(np.int64(4))) is int
    assert Counts().check([np.int32(1), 2]) == Counts().check(np.array([1, 2])) == (1, 2)
    assert SizeText().check(2**20) == "1048576"


def test_the_word_that_was_meant() -> None:
    assert nearest("convrt", ["convert", "plan"]) == "convert"
    assert nearest("TP", ["tp", "pp"]) == "tp"
    assert nearest("xyz", ["convert", "plan"]) is None
    with pytest.raises(InvalidValue) as caught:
        Choice(("deepspeed", "huggingface"), also={"hf": "huggingface"}).check("deepspeeed")
    assert caught.value.remedy == "did you mean deepspeed? choose one of deepspeed, huggingface"


def test_a_field_says_all_of_an_option() -> None:
    count, sort, washed = options_of(Apples)
    assert (count.name, count.flag, count.variable) == ("count", "--count", "STREAMCONV_COUNT")
    assert (sort.default, sort.purpose) == ("elstar", "which sort")
    assert washed.is_switch
    assert options_of(Pears)[1].flag == "--peel"
    assert options_of(Pears)[1].variable == "STREAMCONV_PEEL"
    apart = count.prefixed("a")
    assert (apart.name, apart.flag, apart.variable) == ("a_count", "--a-count", "STREAMCONV_A_COUNT")


def test_options_of_one_name_have_the_values_of_all_and_each_owner_checks_its_own() -> None:
    assert BOTH["sort"].kind.words == ("boskoop", "elstar", "conference")
    assert given(sort="Conference").take(Pears).sort == "conference"
    assert given(sort="elstar").take(Apples) == Apples(sort="elstar")
    with pytest.raises(UsageError, match="sort='conference': no such choice"):
        given(sort="conference").take(Apples)
    with pytest.raises(UsageError, match="sort='gala': no such choice"):
        given(sort="gala")
    ambient = Given({"sort": "conference"}, frozenset(["sort"]), {"sort": "STREAMCONV_SORT"})
    assert ambient.take(Apples).sort == "elstar"


def test_what_is_not_given_has_its_default_and_none_is_not_given() -> None:
    assert given(count=None, washed=None).take(Apples) == Apples()
    assert given().take(Pears).keep_peel


def test_an_unknown_keyword_is_answered_with_the_one_that_was_meant() -> None:
    with pytest.raises(UsageError, match="cuont: no such option") as caught:
        given(cuont=3)
    assert caught.value.remedy == "did you mean count=?"
    with pytest.raises(UsageError) as caught:
        given(xyz=3)
    assert caught.value.remedy == "choose among count, sort, washed, keep_peel"


def test_options_without_effect() -> None:
    def useless(taken_by: type, given: Given) -> list[str]:
        return [each.name for each in given.without_effect([taken_by], BOTH)]

    assert useless(Pears, given(count=3, washed=True, keep_peel=False)) == ["count", "washed"]
    assert useless(Apples, given(count=3, washed=True, keep_peel=False)) == ["keep_peel"]
    assert useless(Pears, given(count=1, washed=False)) == []
    assert useless(Pears, Given({"count": 3}, frozenset(["count"]))) == []


def test_options_of_one_side_outweigh_those_of_both() -> None:
    values = Given({"count": 3, "a_count": 4, "sort": "elstar", "b_washed": True})
    names = [each.name for each in options_of(Apples)]
    assert values.side("a", names).take(Apples) == Apples(count=4, sort="elstar")
    assert values.side("b", names).take(Apples) == Apples(count=3, sort="elstar", washed=True)
    assert values.side("b", names, shared=["sort"]).take(Apples) == Apples(sort="elstar", washed=True)
