"""`inspect --html` and `--plot` write what they are asked for, or say why not."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from streamconv.cli.main import main
from tests.places import REAL

FOLDER = str(REAL[1].folder)


@pytest.mark.slow
def test_a_page_and_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    page, picture = tmp_path / "report.html", tmp_path / "norms.png"
    asked = ["inspect", FOLDER, "--stats", "--target-tp", "4", "--html", str(page), "--plot", str(picture), "--json"]
    assert main(asked) == 0
    report = json.loads(capsys.readouterr().out)
    assert picture.read_bytes().startswith(b"\x89PNG\r\n")
    (data,) = re.findall(r'<script[^>]*type="application/json"[^>]*>(.*?)</script>', page.read_text(), re.S)
    shown = json.loads(data)["report"]
    for key in ("path", "model", "parallel", "target", "statistics", "tensors", "findings"):
        assert shown[key] == report[key], key
    assert report["args"] is not None
    assert "args" not in shown


def test_a_picture_without_statistics_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", FOLDER, "--plot", str(tmp_path / "norms.png")]) == 2
    assert "add --stats" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("flag", ["--html", "--plot"])
def test_where_nothing_can_be_written_is_refused_at_once(
    flag: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    assert main(["inspect", FOLDER, "--stats", flag, str(tmp_path / "no folder" / "file")]) == 8
    assert "no folder" in capsys.readouterr().err
