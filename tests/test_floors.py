"""Imports go one way: between the folders of the package as docs/design.md draws them, and inside each folder.

An import counts wherever it stands: at the top, inside a function, or for type checking alone. What a registry finds by
name counts as an import too.
"""

from __future__ import annotations

from collections import defaultdict

import pytest

from docs import house
from docs.house import arrows, modules
from streamconv.formats.frameworks import FRAMEWORKS
from tests.places import ROOT

TOP = (
    *("core", "memory", "io", "containers", "models", "formats", "moves", "values", "planning", "execution"),
    *("inspection", "verification", "report", "api", "cli", "bigscience", "deepspeed_utils"),
)
"""The rooms from the lowest floor to the highest: each may import those before it."""
STRANGERS = {frozenset(("containers", "models"))}
# A framework may use another one's modules where it is built on it.
FRAMEWORK_MAY_USE = {("gpt_neox", "deepspeed"), ("names_kept", "huggingface")}


def inside(folder: str) -> dict[str, set[str]]:
    """Which children of a folder import which other children; a sub-folder is one child with all that is in it."""
    prefix = f"{folder}." if folder else ""
    children: dict[str, set[str]] = defaultdict(set)
    for importer, other in arrows():
        if importer.startswith(prefix) and other.startswith(prefix):
            first, second = (name.removeprefix(prefix).split(".")[0] for name in (importer, other))
            if first != second:
                children[first].add(second)
    return children


def circle(graph: dict[str, set[str]]) -> list[str]:
    """The children that lie on a circle or lead only to one: none if imports go one way."""
    left = {name: set(others) for name, others in graph.items()}
    while free := {name for others in left.values() for name in others if not left.get(name)}:
        left = {name: others - free for name, others in left.items() if others - free}
    return sorted(left)


FOLDERS = sorted({name.rpartition(".")[0] for name in modules() if name})


def test_every_room_is_drawn() -> None:
    assert {name.split(".")[0] for name in modules()} - {"", "__main__"} == set(TOP)


def test_rooms_import_only_those_before_them() -> None:
    floor = {room: number for number, room in enumerate(TOP)}
    upward = []
    for importer, other in arrows():
        first, second = importer.split(".")[0], other.split(".")[0]
        if floor[second] > floor[first] or frozenset((first, second)) in STRANGERS:
            upward.append(f"{importer} imports {other}")
    assert upward == []


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_circle_inside_a_folder(folder: str) -> None:
    assert circle(inside(folder)) == []


def test_a_circle_would_be_seen() -> None:
    assert circle({"a": {"b"}, "b": {"c"}}) == []
    assert circle({"a": {"b"}, "b": {"c", "a"}, "d": {"a"}}) == ["a", "b", "d"]


def test_frameworks_are_strangers() -> None:
    frameworks = {name.split(".")[0] for name in FRAMEWORKS}
    crossing = [
        f"{importer} imports {other}"
        for importer, other in arrows()
        if importer.startswith("formats.") and other.startswith("formats.")
        for first, second in [(importer.split(".")[1], other.split(".")[1])]
        if {first, second} <= frameworks and first != second and (first, second) not in FRAMEWORK_MAY_USE
    ]
    assert crossing == []


def test_source_and_target_of_a_framework_are_strangers() -> None:
    crossing = [
        f"{importer} imports {other}"
        for importer, other in arrows()
        if importer.startswith("formats.") and importer.count(".") > 1
        for first, second in [(importer.rpartition("."), other.rpartition("."))]
        if {first[2].removeprefix("dist_"), second[2].removeprefix("dist_")} == {"source", "target"}
        and first[0] == second[0]
    ]
    assert crossing == []


def test_the_design_document_draws_the_same_rooms() -> None:
    text = (ROOT / "docs" / "design.md").read_text()
    table = text.partition("| room |")[2].partition("\n\n")[0]
    drawn = [line.split("`")[1].rstrip("/") for line in table.splitlines() if line.startswith("| `")]
    assert tuple(drawn) == TOP


def test_the_picture_shows_the_rooms_as_they_are() -> None:
    """``python docs/house.py`` draws it anew."""
    assert house.PICTURE.read_text() == house.picture()
    assert house.PLACES.keys() == house.rooms().keys() == set(TOP)
    assert all(house.PLACES[room][1] < house.PLACES[other][1] for room, o in house.rooms().items() for other in o)


def test_modules_stay_short() -> None:
    long = {name: n for name, path in modules().items() if (n := len(path.read_text().splitlines())) > 300}
    assert long == {}
