"""``--tensors``, ``--skip`` and ``--rename``: what is taken, how it is called, and what is said of wrong patterns."""

from __future__ import annotations

import re

import pytest

from streamconv import UsageError
from streamconv.planning.selection import Selection, select

NAMES = ["embed.weight", "layers.0.up.weight", "layers.0.up.bias", "layers.10.up.weight", "norm.weight"]


def chosen(*, tensors: tuple[str, ...] = (), skip: tuple[str, ...] = ()) -> Selection:
    return select(NAMES, tensors, skip, ())


def test_without_patterns_all_is_taken_under_its_own_name_and_in_order() -> None:
    assert chosen() == Selection({name: name for name in NAMES}, {})
    assert list(chosen().taken) == NAMES


def test_several_patterns_take_what_any_of_them_matches() -> None:
    found = chosen(tensors=("norm.*", "embed.*"))
    assert list(found.taken) == ["embed.weight", "norm.weight"]
    assert found.left == dict.fromkeys(NAMES[1:4], "--tensors")


def test_what_is_skipped_is_left_out_of_what_is_taken_and_says_by_which_flag() -> None:
    found = chosen(tensors=("layers.*",), skip=("*.bias", "norm.*"))
    assert list(found.taken) == ["layers.0.up.weight", "layers.10.up.weight"]
    # The first flag that leaves a name out counts.
    assert found.left == {"embed.weight": "--tensors", "layers.0.up.bias": "--skip", "norm.weight": "--tensors"}


def test_a_question_mark_is_one_sign_and_brackets_are_a_choice_of_signs() -> None:
    assert list(chosen(tensors=("layers.?.up.weight",)).taken) == ["layers.0.up.weight"]
    assert list(chosen(tensors=("layers.[!0]*",)).taken) == ["layers.10.up.weight"]


def test_upper_and_lower_case_differ() -> None:
    with pytest.raises(UsageError, match=re.escape("--tensors EMBED.WEIGHT: none of 5 tensors has such a name")):
        chosen(tensors=("EMBED.WEIGHT",))


@pytest.mark.parametrize(
    ("pattern", "new", "of", "found"),
    [
        ("layers.*.up.*", "h.*.fc.*", "layers.10.up.weight", "h.10.fc.weight"),
        ("*.weight", "*.kernel", "norm.weight", "norm.kernel"),
        ("*.up.*", "*", "layers.0.up.bias", "layers.0"),
        ("norm.weight", "the.last", "norm.weight", "the.last"),
        ("*", "model.*", "embed.weight", "model.embed.weight"),
    ],
)
def test_each_star_of_a_new_name_is_what_the_patterns_star_stands_for(
    pattern: str, new: str, of: str, found: str
) -> None:
    assert select([of], (), (), [(pattern, new)]).taken == {of: found}


def test_the_first_pattern_that_matches_renames_and_what_none_matches_keeps_its_name() -> None:
    found = select(NAMES, (), (), [("layers.0.*", "first.*"), ("layers.*", "h.*")])
    assert list(found.taken.values()) == [
        "embed.weight",
        "first.up.weight",
        "first.up.bias",
        "h.10.up.weight",
        NAMES[4],
    ]


def test_signs_of_regular_expressions_mean_themselves_in_a_rename() -> None:
    names = ["a.weight", "aXweight", "a+(b)|c"]
    assert select(names, (), (), [("a.weight", "b")]).taken == {names[0]: "b", names[1]: names[1], names[2]: names[2]}
    assert select(names, (), (), [("a+(b)|*", "d.*")]).taken[names[2]] == "d.c"


@pytest.mark.parametrize("flag", ["tensors", "skip", "rename"])
def test_a_pattern_that_matches_nothing_is_refused_with_a_name_that_is_near(flag: str) -> None:
    wrong = "norm.wieght"
    tensors, skip = ([wrong] if flag == each else [] for each in ("tensors", "skip"))
    rename = [(wrong, "x")] if flag == "rename" else []
    with pytest.raises(UsageError, match=re.escape(f"--{flag} {wrong}: none of 5 tensors")) as caught:
        select(NAMES, tensors, skip, rename)
    assert caught.value.remedy == "did you mean norm.weight?"


def test_where_no_name_is_near_the_list_of_all_is_named() -> None:
    with pytest.raises(UsageError) as caught:
        chosen(skip=("quite-something-else",))
    assert caught.value.remedy == "streamconv inspect lists them"


def test_one_pattern_of_several_that_matches_nothing_is_refused_too() -> None:
    with pytest.raises(UsageError, match=re.escape("--skip decoder.*")):
        chosen(skip=("norm.*", "decoder.*"))


def test_nothing_left_is_refused() -> None:
    with pytest.raises(UsageError, match="no tensor is left by --tensors and --skip"):
        chosen(tensors=("norm.*",), skip=("*",))


def test_two_tensors_of_one_new_name_are_refused_with_both() -> None:
    with pytest.raises(UsageError, match=re.escape("both layers.0.up.weight and layers.10.up.weight up.weight")):
        select(NAMES, (), (), [("layers.*.up.weight", "up.weight")])


def test_a_new_name_that_another_tensor_keeps_is_refused_unless_that_one_is_left_out() -> None:
    rename = [("embed.weight", "norm.weight")]
    with pytest.raises(UsageError, match=r"both embed\.weight and norm\.weight"):
        select(NAMES, (), (), rename)
    assert select(NAMES, (), ("norm.weight",), rename).taken["embed.weight"] == "norm.weight"


def test_two_names_can_be_exchanged() -> None:
    assert select(["a", "b"], (), (), [("a", "b"), ("b", "a")]).taken == {"a": "b", "b": "a"}


@pytest.mark.parametrize("pattern", ["layers.?.up.bias", "layers.[0].up.bias"])
def test_a_rename_by_other_wildcards_than_a_star_renames_or_is_refused(pattern: str) -> None:
    try:
        found = select(NAMES, (), (), [(pattern, "b")])
    except UsageError:
        return
    assert found.taken["layers.0.up.bias"] == "b"
