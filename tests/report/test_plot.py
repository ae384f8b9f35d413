"""The picture: a PNG of a known size in which a flagged layer is to be seen."""

from __future__ import annotations

import importlib
import struct
import sys
from pathlib import Path
from typing import Any

import pytest

from streamconv.core.errors import UsageError
from streamconv.report.plot import plot_norms
from tests.report.sample import HOSTILE, NOTHING, bloom, hostile, row

pytestmark = pytest.mark.slow

RED = (0xB3, 0x26, 0x1E)


def draw(report: dict[str, Any], path: Path) -> tuple[int, int]:
    """Width and height of the picture."""
    pytest.importorskip("matplotlib", reason="the plot extra is not installed")
    plot_norms(report, path)
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", head[16:])
    return width, height


def red_columns(path: Path) -> list[int]:
    """Columns with a pixel in the colour of a flagged layer."""
    numpy, image = importlib.import_module("numpy"), importlib.import_module("matplotlib.image")
    pixels = (image.imread(path)[:, :, :3] * 255).round().astype(int)
    close = (abs(pixels - numpy.array(RED)).max(axis=2) < 8).any(axis=0)
    return [int(column) for column in numpy.flatnonzero(close)]


@pytest.mark.parametrize("layers", [1, 70])
def test_a_png_of_a_fixed_size(tmp_path: Path, layers: int) -> None:
    assert draw(bloom(layers=layers, pp=1, hidden=128, broken=None), tmp_path / "norms.png") == (1800, 1080)


def test_a_flagged_layer_is_red_and_a_sound_model_is_not(tmp_path: Path) -> None:
    draw(bloom(layers=20, hidden=128, broken=None), tmp_path / "sound.png")
    draw(bloom(layers=20, hidden=128, broken=4), tmp_path / "early.png")
    draw(bloom(layers=20, hidden=128, broken=15), tmp_path / "late.png")
    assert red_columns(tmp_path / "sound.png") == []
    # The legend's mark, far right, is the same in both.
    early, late = (min(red_columns(tmp_path / name)) for name in ("early.png", "late.png"))
    assert 0 < early < late < 1400


def test_names_are_text_and_no_formula(tmp_path: Path) -> None:
    draw(hostile(), tmp_path / "hostile.png")
    odd = [
        row(name, None, [4], 1.0) | {"layer": 0, "parameter": name} for name in ("_a", "$x^", "\u4e2d\n\x00", "a" * 300)
    ]
    draw({"statistics": odd, "path": "\udc80", "what": HOSTILE}, tmp_path / "odd.png")


def test_values_that_have_no_place_on_the_axis(tmp_path: Path) -> None:
    rows = [row("w", layer, [4, 4], 10.0**layer) for layer in range(5)]
    rows[1] |= {"norm": 0.0, "zeros": 16, "flags": ["all zero"]}
    rows[2] |= {"norm": None, "nan": 16, "flags": ["NaN"]}
    draw({"statistics": rows}, tmp_path / "gaps.png")
    every = [held | {"norm": None, "flags": ["NaN"]} for held in rows]
    draw({"statistics": every}, tmp_path / "nothing_left.png")


def test_tensors_without_layers_and_more_kinds_than_a_legend_holds(tmp_path: Path) -> None:
    draw({"statistics": [row(f"t{n}", None, [4, 4], 1.0 + n) for n in range(300)]}, tmp_path / "flat.png")
    draw({"statistics": [row(f"experts.{n}.w", 0, [4, 4], 1.0 + n) for n in range(64)]}, tmp_path / "many.png")


def test_the_same_report_makes_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one.png", "other.png"):
        draw(bloom(layers=2, pp=1, hidden=128), tmp_path / name)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "other.png").read_bytes()


@pytest.mark.parametrize("report", [{}, NOTHING, NOTHING | {"statistics": []}])
def test_without_statistics_there_is_nothing_to_draw(tmp_path: Path, report: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="needs the statistics") as caught:
        plot_norms(report, tmp_path / "norms.png")
    assert "--stats" in str(caught.value.remedy)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_matplotlib_is_named_with_its_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UsageError, match="matplotlib") as caught:
        plot_norms(bloom(layers=2, pp=1, hidden=128), tmp_path / "norms.png")
    assert caught.value.remedy == 'pip install "streamconv[plot]"'
