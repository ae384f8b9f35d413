"""Imports only point down, as docs/design.md draws the floors."""

from __future__ import annotations

import ast
from pathlib import Path

import streamconv

PACKAGE = Path(streamconv.__file__).parent
FLOORS = (
    {"errors", "dtypes", "boxes"},
    {"lazy", "parallel", "memory", "checksums"},
    {"files", "families"},
    {"formats", "capabilities", "configuration", "vocabulary", "recognise", "generation"},
    {"coverage", "tiles", "jobs", "lower", "ledger", "plans", "assembly", "filling"}
    | {"layouts", "planner", "tokenizers", "idle"},
    {"engines", "destination", "distance", "journal", "publish", "reading", "replicas"}
    | {"sweep", "statistics", "measuring"},
    {"api", "budget", "conversion", "streaming", "disk", "checkpoint", "describe"}
    | {"inspection", "sides", "comparison", "verification", "rendering", "originals"},
    {"cli", "__main__"},
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
STRANGERS = {("files", "families"), ("families", "files"), ("engines", "families"), ("engines", "formats")}


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """The rooms of the package that a module imports, those for type checking alone left out."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = [ast.Pass()]
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("streamconv"):
            tail = node.module.split(".")[1:]
            names |= {tail[0]} if tail else {alias.name for alias in node.names}
    return names - {"__version__"}


def test_every_module_stands_on_a_floor() -> None:
    rooms = {room_of(path) for path in PACKAGE.rglob("*.py")} - {"__init__"}
    assert rooms == set(FLOOR)


def test_imports_only_point_down() -> None:
    upward = [
        f"{path.relative_to(PACKAGE)} imports {other}"
        for path in PACKAGE.rglob("*.py")
        if room_of(path) != "__init__"
        for other in imports(path)
        if FLOOR[other] > FLOOR[room_of(path)] or (room_of(path), other) in STRANGERS
    ]
    assert upward == []


def test_the_design_document_draws_the_same_floors() -> None:
    text = (PACKAGE.parent / "docs" / "design.md").read_text()
    drawn = [line.split("|")[2] for line in text.splitlines() if line.startswith("| ") and line[2].isdigit()]
    for rooms, words in zip(FLOORS, drawn, strict=True):
        assert rooms - {"__main__"} == {word.strip("/") for word in words.split("`")[1::2]}


def test_modules_stay_short() -> None:
    long = {
        str(path.relative_to(PACKAGE)): n
        for path in PACKAGE.rglob("*.py")
        if (n := len(path.read_text().splitlines())) > 300
    }
    assert long == {}
