"""The page in a real browser: what it draws, how it answers, and that hostile names stay text."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from streamconv.report.html import html_report
from tests.report.sample import HOSTILE, NOTHING, bloom, hostile, with_target

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
ROWS = "#parameters tbody tr"

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(importlib.util.find_spec("playwright") is None, reason="the browser extra is not installed"),
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on the PATH"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = importlib.import_module("playwright.sync_api")
    with sync_api.sync_playwright() as running:
        started = running.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        started.close()


class Opened:
    """Reports as open pages, and whatever their consoles said."""

    def __init__(self, browser: Any, folder: Path) -> None:
        self.browser, self.folder = browser, folder
        self.contexts: list[Any] = []
        self.said: list[str] = []

    def __call__(self, report: dict[str, Any], width: int = 1280, scheme: str = "light") -> Any:
        path = self.folder / f"report{len(self.contexts)}.html"
        path.write_text(html_report(report), encoding="utf-8")
        self.contexts.append(
            self.browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
        )
        page = self.contexts[-1].new_page()
        page.on("console", lambda message: self.said.append(message.text))
        page.on("pageerror", lambda error: self.said.append(str(error)))
        page.on("request", lambda request: self.said.append(request.url) if request.url != path.as_uri() else None)
        page.goto(path.as_uri())
        return page


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Iterator[Opened]:
    opened = Opened(browser, tmp_path)
    yield opened
    for context in opened.contexts:
        context.close()
    assert opened.said == []


def column(page: Any, name: str) -> list[str]:
    heads = [text.strip() for text in page.locator("#parameters th").all_text_contents()]
    return [str(text) for text in page.locator(f"{ROWS} td:nth-child({heads.index(name) + 1})").all_text_contents()]


def numbers(texts: list[str]) -> list[float]:
    return [float(text.replace(",", "")) for text in texts if text != "\u2013"]


def small() -> dict[str, Any]:
    return bloom(layers=12, tp=2, pp=3, hidden=128, broken=7)


@pytest.mark.parametrize("name", ["RMS", "L2 norm", "Elements", "Layer"])
def test_a_click_sorts_by_numbers_and_another_the_other_way(opened: Opened, name: str) -> None:
    page = opened(small())
    head = page.locator("#parameters th", has_text=name).first
    for order, reverse in (("ascending", False), ("descending", True)):
        head.locator("button").click()
        assert head.get_attribute("aria-sort") == order
        texts = column(page, name)
        values = numbers(texts)
        assert values == sorted(values, reverse=reverse)
        assert len(set(values)) > 2
        assert texts[: len(values)] == [text for text in texts if text != "\u2013"], "what is unknown comes last"


def test_a_filter_leaves_the_rows_that_hold_all_its_words(opened: Opened) -> None:
    page = opened(small())
    everything = page.locator(ROWS).count()
    page.get_by_label("Filter parameters").fill("7 LAYERNORM weight")
    assert 0 < page.locator(ROWS).count() < everything
    assert all("layernorm.weight" in text for text in column(page, "Parameter"))
    assert f"of {everything} rows" in page.locator("#parameters .count").inner_text()
    page.get_by_label("Filter parameters").fill("")
    page.get_by_label("flagged only").check()
    assert column(page, "Flags") == ["outlier", "NaN"]
    assert page.locator(f"{ROWS}.flagged").count() == 2


def test_many_rows_are_shown_in_part_until_asked_for(opened: Opened) -> None:
    page = opened(bloom())
    assert page.locator(ROWS).count() == 200
    page.locator("#parameters").get_by_role("button", name="Show all").click()
    assert page.locator("#parameters .more").is_hidden()
    assert page.locator(ROWS).count() == 70 * 12 + 2


def test_the_map_has_a_cell_for_each_stage_and_rank_that_lists_its_files(opened: Opened) -> None:
    report = bloom()
    page = opened(report)
    cells = page.locator("#layout .cell")
    assert cells.count() == 4 * 12
    cells.nth(5).click()
    assert cells.nth(5).get_attribute("aria-pressed") == "true"
    (entry,) = (entry for entry in report["parallel"]["grid"] if (entry["stage"], entry["rank"]) == (1, 1))
    assert page.locator("#layout li .name").all_text_contents() == entry["files"]
    cells.nth(6).hover()
    assert page.locator("#layout h3").inner_text() == "Stage 1, rank 1", "a click keeps its cell"
    assert "layers 35\u201340, flagged" in page.locator("#layout tbody th").nth(6).inner_text()
    assert page.locator("#layout .cell.is-damage").count() == 1


def test_the_keyboard_walks_the_map(opened: Opened) -> None:
    page = opened(small())
    page.locator("#layout .cell").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    assert page.locator("#layout h3").inner_text() == "Stage 1, rank 1"


def test_the_new_map_lights_up_what_reads_a_file(opened: Opened) -> None:
    page = opened(with_target(small(), 1, 2))
    assert page.locator("#target .cell").count() == 2
    page.locator("#layout .cell").first.hover()
    assert page.locator("#target .cell.linked").count() == 1


def test_a_line_for_each_parameter_kind_with_the_broken_layer_marked(opened: Opened) -> None:
    page = opened(bloom())
    drawn = page.locator("#norms path.line").evaluate_all("lines => lines.map((line) => line.dataset.parameter)")
    assert len(drawn) == len(set(drawn)) == 12
    assert page.locator("#norms .broken-label").all_text_contents() == ["37", "37"]
    assert page.locator("#norms circle.broken").count() == 1
    broken = page.locator('#norms path[data-parameter="mlp.dense_h_to_4h.weight"]').get_attribute("d")
    assert broken.count("M") == 2, "the line has a gap where its value is not a number"


def test_the_cross_tells_the_values_of_a_layer(opened: Opened) -> None:
    page = opened(bloom())
    assert page.locator("#norms .legend p").first.inner_text().startswith("Layer 37")
    page.locator("#norms svg.chart").first.focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("#norms .legend p").first.inner_text().startswith("Layer 38")
    box = page.locator("#norms svg.chart").nth(1).bounding_box()
    page.mouse.move(box["x"] + 60, box["y"] + 100)
    assert page.locator("#norms .legend p").first.inner_text().startswith("Layer 0")


def test_tensors_without_layers_are_drawn_in_their_order(opened: Opened) -> None:
    report = small()
    rows = [held | {"layer": None, "parameter": None} for held in report["statistics"]]
    page = opened(report | {"statistics": rows})
    assert page.locator("#norms path.line").count() == 2
    page.locator("#norms svg.chart").first.focus()
    page.keyboard.press("Home")
    assert page.locator("#norms .legend p").first.inner_text().startswith("word_embeddings.weight")


def test_hostile_names_are_text(opened: Opened) -> None:
    page = opened(hostile())
    page.locator("#lists summary").first.click()
    page.locator("#lists summary").nth(1).click()
    page.locator("#layout .cell").first.click()
    page.wait_for_function("document.querySelectorAll('#lists table').length === 2")
    assert page.evaluate("typeof window.flag") == "undefined"
    assert page.locator("img").count() == 0
    assert page.locator("#what").text_content() == HOSTILE
    assert page.locator("#layout li .name").first.text_content() == HOSTILE
    assert HOSTILE in column(page, "Parameter")
    assert HOSTILE in column(page, "Flags")


def test_the_policy_stops_what_the_page_did_not_bring(opened: Opened) -> None:
    page = opened(small())
    page.evaluate(
        "() => { const made = document.createElement('div'); document.body.append(made);"
        " made.innerHTML = '<img src=x onerror=\"window.flag=1\">'; }"
    )
    page.wait_for_timeout(200)
    assert page.evaluate("typeof window.flag") == "undefined"
    assert any("Content Security Policy" in said for said in opened.said)
    opened.said.clear()


@pytest.mark.parametrize("report", [{}, NOTHING, {"files": [], "tensors": [], "findings": []}])
def test_a_report_may_lack_everything(opened: Opened, report: dict[str, Any]) -> None:
    page = opened(report)
    assert page.locator("section:visible h2").all_text_contents() == ["Findings"]


def test_without_statistics_the_stored_tensors_are_grouped(opened: Opened) -> None:
    page = opened(small() | {"statistics": None})
    assert page.locator("#norms").is_hidden()
    assert set(column(page, "Tensors")) == {"2"}
    assert page.locator(ROWS).count() == 12 * 12 + 4


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_nothing_is_wider_than_the_window(opened: Opened, width: int, scheme: str) -> None:
    page = opened(with_target(bloom(), 8, 2), width, scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(18, 21, 25)"
    assert dark is (scheme == "dark")
