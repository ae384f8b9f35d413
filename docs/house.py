"""Draw docs/house.svg: the rooms of the package, and which of them imports which, read off the code.

    python docs/house.py

Where a room stands is chosen by hand, so that no arrow runs behind a box; the arrows are the code's. An arrow that
follows from others is left out: where ``planning`` imports ``formats`` and ``formats`` imports ``core``, no arrow is
drawn from ``planning`` to ``core``.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

from streamconv.formats.frameworks import FRAMEWORKS

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "streamconv"
PICTURE = ROOT / "docs" / "house.svg"
FRONT_DOOR = ("", "__main__")
"""``streamconv/__init__.py`` and ``python -m streamconv``, which only hand on."""

PLACES: dict[str, tuple[float, int]] = {
    "bigscience": (0.6, 0),
    "deepspeed_utils": (1.8, 0),
    "cli": (1.2, 1),
    "api": (1.2, 2),
    "report": (2, 3),
    "verification": (2, 4),
    "inspection": (2, 5),
    "execution": (1.2, 6),
    "planning": (0.9, 7),
    "values": (2.7, 8),
    "formats": (0.5, 8),
    "moves": (1.6, 8),
    "containers": (0, 9),
    "models": (0.9, 9),
    "memory": (3.4, 9),
    "io": (2, 10),
    "core": (2, 12),
}
"""Column and row of each room; arrows point down."""

_WIDTH, _HEIGHT, _COLUMN, _ROW, _MARGIN = 120, 36, 144, 76, 24


def module_name(path: Path) -> str:
    """``formats.registry`` of ``streamconv/formats/registry.py``; a package is called as its folder."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def modules() -> dict[str, Path]:
    """Every module of the package by its name below ``streamconv``."""
    return {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def found_by_name() -> dict[str, set[str]]:
    """What the registries import without an import statement."""
    families = {name for name in modules() if name.startswith("models.families.")}
    halves = {f"formats.{name}.{half}" for name in FRAMEWORKS for half in ("source", "target")}
    engines = {name for name in modules() if name.startswith("execution.engines.")}
    return {"execution.registry": engines, "formats.registry": halves, "models.registry": families}


def imports_of(path: Path) -> set[str]:
    """The modules of the package that a module names in an import: at the top, in a function, or for type checking."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "streamconv":
            base = node.module.partition(".")[2]
            for alias in node.names:
                inside = f"{base}.{alias.name}" if base else alias.name
                found.add(inside if inside in modules() else base)
        elif isinstance(node, ast.Import):
            found |= {a.name.partition(".")[2] for a in node.names if a.name.startswith("streamconv.")}
    return found - {""}


@cache
def arrows() -> tuple[tuple[str, str], ...]:
    """(module, module that it imports), the front door's own imports left out."""
    named = {name: imports_of(path) | found_by_name().get(name, set()) for name, path in modules().items()}
    return tuple((name, other) for name, others in named.items() if name not in FRONT_DOOR for other in sorted(others))


def rooms() -> dict[str, set[str]]:
    """The rooms, and which other rooms each imports."""
    graph: dict[str, set[str]] = {name.split(".")[0]: set() for name in modules() if name not in FRONT_DOOR}
    for importer, other in arrows():
        first, second = importer.split(".")[0], other.split(".")[0]
        graph[first] |= {second} - {first}
    return graph


def _reachable(graph: Mapping[str, set[str]], start: str) -> set[str]:
    found: set[str] = set()
    todo = [start]
    while todo:
        new = graph[todo.pop()] - found
        found |= new
        todo += new
    return found


def needed(graph: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """The arrows that do not follow from others."""
    return {
        room: {other for other in others if not any(other in _reachable(graph, o) for o in others - {other})}
        for room, others in graph.items()
    }


def _corner(room: str) -> tuple[int, int]:
    column, row = PLACES[room]
    return _MARGIN + round(column * _COLUMN), _MARGIN + row * _ROW


def _parts() -> Iterator[str]:
    width = 2 * _MARGIN + round(max(column for column, _ in PLACES.values()) * _COLUMN) + _WIDTH
    height = 2 * _MARGIN + max(row for _, row in PLACES.values()) * _ROW + _HEIGHT
    yield f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    yield ' font-family="sans-serif" font-size="14">'
    yield '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    yield '<path d="M0 0L8 4L0 8z" fill="#667"/></marker></defs>'
    yield f'<rect width="{width}" height="{height}" fill="#fff"/>'
    for room, others in needed(rooms()).items():
        x, y = _corner(room)[0] + _WIDTH // 2, _corner(room)[1] + _HEIGHT
        for other in sorted(others):
            to_x, to_y = _corner(other)[0] + _WIDTH // 2, _corner(other)[1]
            bend = (to_y - y) // 2
            line = f"M{x} {y}C{x} {y + bend} {to_x} {to_y - bend} {to_x} {to_y}"
            yield f'<path d="{line}" fill="none" stroke="#667" stroke-width="1.2" marker-end="url(#tip)"/>'
    for room in PLACES:
        left, top = _corner(room)
        middle = left + _WIDTH // 2
        yield f'<rect x="{left}" y="{top}" width="{_WIDTH}" height="{_HEIGHT}" rx="6" fill="#eef3fa" stroke="#347"/>'
        yield f'<text x="{middle}" y="{top + 23}" text-anchor="middle">{room}</text>'
    yield "</svg>\n"


def picture() -> str:
    """The SVG."""
    return "\n".join(_parts())


if __name__ == "__main__":
    PICTURE.write_text(picture())
