"""Draw docs/picture.svg, the picture of the README: what streamconv does, and what was measured beside other ways.

    python docs/picture.py

The numbers are read from a report of ``benchmarks/compare.py`` in ``benchmarks/results``; so is the README's table.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "picture.svg"
README = ROOT / "README.md"
RESULT = ROOT / "benchmarks" / "results" / "8g-alternatives.json"

INK, SOFT, OURS, OTHERS, PAPER = "#1c2733", "#667788", "#1b6ca8", "#a9b4bf", "#f4f7fa"
NAMES = {
    "streamconv": "streamconv",
    "cp": "cp -r, which converts nothing",
    "original": "bigscience's deepspeed_to_megatron.py",
    "torch": "a script with torch.load",
    "torch-mmap": "such a script, files mapped",
}
_BEGIN, _END = "<!-- alternatives begin -->", "<!-- alternatives end -->"


class Measured(NamedTuple):
    """The medians of one contender: seconds, and bytes of its peak resident set."""

    name: str
    seconds: float
    nbytes: int


def measured() -> list[Measured]:
    """Every contender that finished, the fastest first."""
    summary = _report()["summary"]
    rows = [
        Measured(name, runs["wall_seconds"], runs["peak_rss_nbytes"])
        for name, runs in summary.items()
        if runs["outcome"] == "done"
    ]
    return sorted(rows, key=lambda row: row.seconds)


def _report() -> dict[str, Any]:
    report: dict[str, Any] = json.loads(RESULT.read_text())
    return report


def picture() -> str:
    """The text of docs/picture.svg."""
    return "\n".join(_picture()) + "\n"


def _picture() -> Iterator[str]:
    yield (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 820 430" font-family="system-ui, sans-serif" '
        f'font-size="13" fill="{INK}">'
    )
    yield f'<rect width="820" height="430" fill="{PAPER}" rx="8"/>'
    yield from _conversion()
    yield from _bars()
    yield "</svg>"


def _conversion() -> Iterator[str]:
    yield _text(30, 34, "Megatron-DeepSpeed, Megatron-LM,", size=13)
    yield _text(30, 52, "GPT-NeoX, Hugging Face", size=13)
    yield from _files(30, 66, columns=4, rows=2)
    yield _text(30, 160, "TP 4 x PP 2, say", size=12, colour=SOFT)
    yield _arrow(196, 96, 268)
    yield f'<rect x="276" y="58" width="268" height="76" rx="6" fill="white" stroke="{OURS}" stroke-width="2"/>'
    yield _text(410, 84, "a proved plan of byte moves", anchor="middle", weight="bold")
    yield _text(410, 104, "blocks of 16 MiB, checksums, a journal", anchor="middle", size=12)
    yield _text(410, 122, "--max-ram is kept, whatever the size", anchor="middle", size=12)
    yield _text(410, 160, "killed? the same command goes on", anchor="middle", size=12, colour=SOFT)
    yield _arrow(552, 96, 610)
    yield _text(620, 34, "another of them, or", size=13)
    yield _text(620, 52, "the same at another TP, PP", size=13)
    yield from _files(620, 66, columns=2, rows=2)
    yield _text(620, 160, "published whole or not at all", size=12, colour=SOFT)


def _files(x: int, y: int, columns: int, rows: int) -> Iterator[str]:
    for row in range(rows):
        for column in range(columns):
            place = f'x="{x + 40 * column}" y="{y + 38 * row}"'
            yield f'<rect {place} width="34" height="32" rx="3" fill="white" stroke="{SOFT}"/>'


def _bars() -> Iterator[str]:
    report, rows = _report(), measured()
    job = report["job"]
    title = f"{job['source_nbytes'] / 1e9:.1f} GB of BLOOM's shapes, TP 4 x PP 4 to TP {job['tp']} x PP {job['pp']}"
    yield f'<line x1="30" y1="186" x2="790" y2="186" stroke="{OTHERS}"/>'
    yield _text(30, 212, title, weight="bold")
    yield _text(300, 236, "seconds, sync included", size=12, colour=SOFT)
    yield _text(560, 236, "peak memory of the process", size=12, colour=SOFT)
    longest, largest = max(row.seconds for row in rows), max(row.nbytes for row in rows)
    for number, row in enumerate(rows):
        y = 250 + 34 * number
        colour = OURS if row.name == "streamconv" else OTHERS
        weight = "bold" if row.name == "streamconv" else "normal"
        yield _text(30, y + 16, NAMES[row.name], weight=weight)
        yield _bar(300, y, 180 * row.seconds / longest, colour)
        yield _text(308 + 180 * row.seconds / longest, y + 16, f"{row.seconds:.0f} s", size=12)
        yield _bar(560, y, 150 * row.nbytes / largest, colour)
        yield _text(568 + 150 * row.nbytes / largest, y + 16, _size(row.nbytes), size=12)


def _bar(x: float, y: float, width: float, colour: str) -> str:
    return f'<rect x="{x}" y="{y}" width="{max(width, 1.5):.1f}" height="22" fill="{colour}"/>'


def _arrow(x: int, y: int, end: int) -> str:
    head = f"M{end - 8} {y - 5}L{end} {y}L{end - 8} {y + 5}"
    return f'<path d="M{x} {y}H{end}{head}" fill="none" stroke="{OURS}" stroke-width="2"/>'


def _text(
    x: float, y: float, words: str, *, size: int = 13, colour: str = INK, weight: str = "normal", anchor: str = "start"
) -> str:
    style = f'font-size="{size}" fill="{colour}" font-weight="{weight}" text-anchor="{anchor}"'
    return f'<text x="{x:.1f}" y="{y}" {style}>{words}</text>'


def _size(nbytes: int) -> str:
    return f"{nbytes / 1e9:.1f} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:.0f} MB"


def table() -> str:
    """The README's table: what is measured, and what is in the others' code."""
    report, rows = _report(), {row.name: row for row in measured()}
    job, machine = report["job"], report["machine"]
    columns = [rows["streamconv"], rows["original"], rows["torch"]]
    what = f"{job['source_nbytes'] / 1e9:.1f} GB, TP 4 PP 4 to TP {job['tp']} PP {job['pp']}"
    time = " | ".join(f"{row.seconds:.0f} s" for row in columns)
    memory = " | ".join(_size(row.nbytes) for row in columns)
    least, most = report["summary"]["cp"]["wall_seconds_range"]
    others = "bigscience's `deepspeed_to_megatron.py` | a script with `torch.load` | Megatron-LM's `convert.py`"
    lines = [
        f"| | streamconv | {others} |",
        "|---|---|---|---|---|",
        "| needs | no training framework | Megatron-DeepSpeed | torch | Megatron-LM |",
        "| from and to | five formats, [by model](docs/families.md) | DeepSpeed to legacy Megatron-LM | yours to write "
        "| Megatron-LM, Llama, Mistral, Qwen 2.5 |",
        "| TP and PP | any, stages of any length | a TP that divides | yours to write | any |",
        "| executes what a pickle names | never | yes | yes, unless `weights_only` | yes |",
        "| in memory | a budget that is kept | a rank of the result | the same | the model, all ranks of it |",
        f"| time: {what} | {time} | not measured |",
        f"| peak memory: the same | {memory} | not measured |",
        "| after a kill | resumes | starts over | starts over | starts over |",
        "| proof of the result | every element, across layouts | none | yours to write | none |",
        "",
        f"Medians of {job['rounds']} rounds in turn, cold cache, sync included, {machine['cores']} cores; `cp -r` of "
        f"it takes {rows['cp'].seconds:.0f} s ({least:.0f} to {most:.0f}). [docs/benchmarks.md](docs/benchmarks.md) "
        "says how; bigscience's script runs with six repairs. What the others do is in their code: "
        "bigscience-workshop/Megatron-DeepSpeed 8387ae1 `tools/convert_checkpoint`, NVIDIA/Megatron-LM 00caa53 "
        "`tools/checkpoint`.",
    ]
    return "\n".join(lines)


def readme(text: str) -> str:
    """The README with the table in its place."""
    return re.sub(f"{_BEGIN}.*{_END}", lambda _: f"{_BEGIN}\n{table()}\n{_END}", text, flags=re.S)


if __name__ == "__main__":
    PICTURE.write_text(picture())
    README.write_text(readme(README.read_text()))
