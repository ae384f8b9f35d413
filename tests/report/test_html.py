"""The page as text: what it holds, and that nothing in the data can leave its block."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from streamconv.report.curves import chart
from streamconv.report.html import html_report
from tests.report.sample import HOSTILE, NOTHING, bloom, hostile, row


class Page(HTMLParser):
    """Elements of a page in order, and the text in its style and script elements."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inside: list[tuple[str, str]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] in ("style", "script") and data.strip():
            self.inside.append((self.tags[-1][0], data))

    @property
    def data(self) -> Any:
        return json.loads(self.inside[1][1])


def test_the_data_block_holds_the_report_as_it_was() -> None:
    report = bloom(layers=4, tp=2, pp=2, hidden=128)
    assert Page(html_report(report)).data["report"] == report


def test_the_page_carries_nothing_that_it_does_not_show() -> None:
    report = bloom(layers=1, hidden=128, pp=1)
    assert html_report(report | {"args": {"data_path": "/home/somebody"}}) == html_report(report)


def test_the_page_is_one_file_whose_policy_admits_its_own_style_and_script_alone() -> None:
    page = Page(html_report(bloom(layers=2, hidden=128)))
    assert [kind for kind, _ in page.inside] == ["style", "script", "script"]
    (policy,) = (str(found["content"]) for _, found in page.tags if found.get("http-equiv"))
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    for kind, text in (page.inside[0], page.inside[2]):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert rules[f"{kind}-src"] == f"'sha256-{digest}'"
    assert not any(key in ("src", "href", "style") or key.startswith("on") for _, found in page.tags for key in found)
    assert "innerHTML" not in page.inside[2][1]


def test_markup_in_names_stays_data() -> None:
    text = html_report(hostile())
    assert [tag for tag, _ in Page(text).tags] == [tag for tag, _ in Page(html_report(NOTHING)).tags]
    assert "onerror" not in re.sub(r'type="application/json">.*', "", text)
    assert "\u2028" not in text
    block = text.split('type="application/json">')[1].split("</script>")[0]
    assert not set("<>&") & set(block)
    assert Page(text).data["report"]["what"] == HOSTILE


@pytest.mark.parametrize(
    "report", [{}, NOTHING, NOTHING | {"model": {}, "parallel": {}, "target": {}, "optimizer": {}}]
)
def test_a_report_may_lack_everything(report: dict[str, Any]) -> None:
    assert Page(html_report(report)).data == {"report": report, "chart": {"by": "tensor", "panels": []}}


def test_what_is_not_a_number_becomes_null_and_odd_text_survives() -> None:
    report = {"path": "a\udc80b", "statistics": [row("w", 0, [2, 2], 1.0) | {"norm": math.inf, "mean": math.nan}]}
    data = Page(html_report(report)).data["report"]
    html_report(report).encode()
    assert (data["statistics"][0]["norm"], data["statistics"][0]["mean"], data["path"]) == (None, None, "a\udc80b")


@pytest.mark.slow
def test_thousands_of_tensors_make_a_page_of_a_megabyte() -> None:
    report = bloom()
    assert len(report["files"]) == 288
    assert len(report["tensors"]) > 3300
    assert len(html_report(report)) < 1.5e6


def test_curves_are_roots_of_mean_squares_by_parameter_kind() -> None:
    drawn = chart(bloom(layers=5, hidden=128, broken=3))
    assert drawn.by == "layer"
    assert [(panel.title, len(panel.curves)) for panel in drawn.panels] == [("Weights", 4), ("Norms and biases", 8)]
    curves = {curve.parameter: curve.points for panel in drawn.panels for curve in panel.curves}
    assert [point.x for point in curves["mlp.dense_h_to_4h.weight"]] == [0, 1, 2, 3, 4]
    assert curves["mlp.dense_h_to_4h.weight"][3].rms is None
    assert [point.flags for point in curves["mlp.dense_h_to_4h.weight"]] == [(), (), (), ("NaN",), ()]
    assert 1.2 < (curves["post_attention_layernorm.weight"][0].rms or 0) < 1.7


def test_shards_of_one_parameter_are_one_point() -> None:
    shards = [row("layers.0.w", 0, [2, 8], 1.0), row("layers.0.w", 0, [2, 8], 3.0)]
    (point,) = chart({"statistics": shards}).panels[0].curves[0].points
    assert point.rms == pytest.approx(math.sqrt(5))


def test_tensors_without_a_layer_come_in_their_order() -> None:
    drawn = chart({"statistics": [row(name, None, [4, 4], 1.0) for name in "abc"]})
    assert drawn.by == "tensor"
    assert [(point.x, point.name) for point in drawn.panels[0].curves[0].points] == [(0, "a"), (1, "b"), (2, "c")]


def test_a_layer_without_a_parameter_goes_by_its_name() -> None:
    rows = [row("w", layer, [4, 4], 1.0) | {"parameter": None} for layer in range(3)]
    assert [curve.parameter for curve in chart({"statistics": rows}).panels[0].curves] == ["layers.*.w"]


@pytest.mark.parametrize(("largest", "log"), [(2.0, False), (100.0, True), (0.0, False), (None, False)])
def test_a_wide_range_asks_for_a_logarithmic_axis(largest: float | None, log: bool) -> None:
    rows = [row("w", 0, [4, 4], 1.0), row("w", 1, [4, 4], largest or 0.0)]
    if largest is None:
        rows[1] |= {"norm": None, "nan": 3}
    panel = chart({"statistics": rows}).panels[0]
    assert panel.log is log
    assert panel.curves[0].points[1].flags == (("3 NaN",) if largest is None else ())
