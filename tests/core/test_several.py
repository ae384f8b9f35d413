"""Values that are given several times: what is taken of a flag, of Python, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from streamconv import plan
from streamconv.cli.main import main
from streamconv.core.kinds import InvalidValue
from streamconv.core.several import Renames, Texts
from tests.kept import Tensors, assert_same, written
from tests.stored import counted


@pytest.mark.parametrize(
    ("given", "found"),
    [("a.*", ("a.*",)), (["a", "b"], ("a", "b")), (("a", "b", "a"), ("a", "b", "a")), ([], ()), ("a,b", ("a,b",))],
)
def test_texts_are_one_or_a_list_of_them(given: Any, found: tuple[str, ...]) -> None:
    assert Texts("GLOB").check(given) == found
    assert Texts("GLOB").check(found) == found


@pytest.mark.parametrize("given", [3, None, b"a", ["a", 3], [""], "", {"a": "b"}, {"a"}, [["a"]]])
def test_what_is_no_text_is_refused(given: Any) -> None:
    with pytest.raises(InvalidValue):
        Texts("GLOB").check(given)


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("a=b", (("a", "b"),)),
        ("a=b=c", (("a", "b=c"),)),
        ({"a.*": "b.*", "c": "d"}, (("a.*", "b.*"), ("c", "d"))),
        (["a=b", "c=d"], (("a", "b"), ("c", "d"))),
        ([("a=b", "c")], (("a=b", "c"),)),
        ("*.*=x", (("*.*", "x"),)),
        ({}, ()),
    ],
)
def test_renames_are_pairs_or_a_mapping_in_its_order(given: Any, found: tuple[tuple[str, str], ...]) -> None:
    assert Renames().check(given) == found
    assert Renames().check(found) == found


@pytest.mark.parametrize("given", ["a", "=b", "a=", "", 3, None, b"a=b", {"a": 3}, {3: "a"}, ["a"], [3], {"": "a"}])
def test_what_is_no_rename_is_refused(given: Any) -> None:
    with pytest.raises(InvalidValue):
        Renames().check(given)


def test_a_new_name_has_no_more_stars_than_the_pattern() -> None:
    with pytest.raises(InvalidValue, match=r"b\.\*\.\* has more \* than a\.\*") as caught:
        Renames().check("a.*=b.*.*")
    assert caught.value.remedy == "each * of the name is one of the pattern's, in order"


@pytest.mark.parametrize("given", [[("a",)], [("a", "b", "c")], [{"a": "b", "c": "d"}]])
def test_a_list_of_something_else_than_pairs_is_refused_or_taken_whole(given: Any) -> None:
    try:
        found = Renames().check(given)
    except InvalidValue:
        return
    assert found == (("a", "b"), ("c", "d"))


# -- in use ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def source(tmp_path: Path) -> Path:
    torch.save({f"{outer}.{inner}": counted(3, start=n) for n, (outer, inner) in enumerate(PAIRS)}, tmp_path / "in.pt")
    return tmp_path / "in.pt"


PAIRS = [(outer, inner) for outer in "abc" for inner in "xy"]


def expected(**names: str) -> Tensors:
    return {
        names[outer + inner]: counted(3, start=number)
        for number, (outer, inner) in enumerate(PAIRS)
        if outer + inner in names
    }


def test_flags_are_said_several_times(source: Path, tmp_path: Path) -> None:
    words = ["--tensors", "a.*", "--tensors", "c.*", "--skip", "*.y", "--rename", "a.*=first.*", "--rename=c.x=last"]
    code = main(["convert", str(source), str(tmp_path / "out"), "--to", "safetensors", "--max-ram", "1G", *words])
    assert code == 0
    assert_same(written(tmp_path / "out"), expected(ax="first.x", cx="last"))


def test_a_flag_that_is_none_of_the_kind_is_refused_in_words(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["convert", str(source), str(tmp_path / "out"), "--to", "safetensors", "--rename", "a"])
    assert code == 2
    assert "--rename a: not PATTERN=NAME" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_python_takes_one_text_as_well_as_a_list(source: Path) -> None:
    one, several = (
        plan(source, to="safetensors", max_ram="1G", tensors=given, rename={"a.x": "z"}) for given in ("a.*", ["a.*"])
    )
    assert one.coverage == several.coverage
    assert one.coverage.written == 2
