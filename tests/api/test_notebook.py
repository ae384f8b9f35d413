"""Every verb in a Jupyter notebook that a kernel runs: what a cell shows, and what a cell that fails says."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tests.places import FRAMEWORKS, ROOT

nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")
kernelspec = pytest.importorskip("ipykernel.kernelspec")

pytestmark = pytest.mark.slow

KERNEL = "streamconv-tests"
HOSTILE = "<script>alert(1)</script>"
SRC, OUT, FILE = "<b>bloom & co", "<i>out", "<img src=x onerror=alert(1)>.pt"
TAGS = {"table", "tr", "th", "td", "p", "b", "span", "br", "pre"}
"""What a table is made of. Any other tag would come from a name or a path."""

CELLS = {
    "start": f"import json, torch, streamconv\nSRC, OUT, FILE, HOSTILE = {SRC!r}, {OUT!r}, {FILE!r}, {HOSTILE!r}",
    "save": "torch.save({HOSTILE: torch.zeros(2, 3), 'note': HOSTILE}, FILE)",
    "plan": "streamconv.plan(SRC, tp=1, pp=3, max_ram='1G')",
    "printed": "print(streamconv.plan(SRC, tp=1, pp=3, max_ram='1G'))",
    "watched": "seen = []\nstreamconv.convert(SRC, OUT, tp=1, pp=3, progress=lambda *both: seen.append(both))",
    "seen": "print(json.dumps(seen))",
    "convert": "streamconv.convert(SRC, OUT, tp=1, pp=3, overwrite=True, progress=True)",
    "stream": "tensors = streamconv.stream(SRC, tp=1, pp=3)\nnext(tensors)",
    "streamed": "print(1 + sum(1 for _ in tensors))",
    "inspect": "streamconv.inspect(OUT)",
    "file": "streamconv.inspect(FILE)",
    "values": "streamconv.inspect(OUT, stats=True, progress=True)",
    "verify": "streamconv.verify(OUT, against=SRC)",
    "diff": "streamconv.diff(SRC, OUT)",
    "bench": "streamconv.bench('.', src=SRC, size='4M')",
    "families": "streamconv.families()",
    "open": "tensors = streamconv.open_checkpoint(SRC)\ntensors",
    "tensor": "tensors['layer_03-model_00-model_states.pt:self_attention.dense.weight']",
    "help": "help(streamconv.convert)",
    "nowhere": "streamconv.plan('no/such/<folder>')",
    "budget": "streamconv.convert(SRC, None, max_ram='8M')",
    "twice": "streamconv.convert(SRC, OUT, tp=2, pp=3)",
    "stages": "streamconv.plan(SRC, pp=3, pp_layers=(1, 3))",
    "number": "streamconv.plan(SRC, tp='2')",
    "mistyped": "streamconv.plan(SRC, max_rem='1G')",
    "stopped": "def stop(*_):\n    raise RuntimeError('enough')\nstreamconv.convert(SRC, 'never', progress=stop)",
    "after": "streamconv.plan(SRC)",
}

SAID = {
    "plan": (SRC, "megatron-legacy", "BLOOM", "TP 1 x PP 3 (stages of 2,1,1 layers): as asked", "1.00 GiB"),
    "watched": (SRC, OUT, "megatron-legacy", "BLOOM", "3 files"),
    "convert": (SRC, OUT, "megatron-legacy", "BLOOM", "3 files"),
    "inspect": (OUT, "Megatron-LM, legacy", "BLOOM", "ranks and stages: TP 1 x PP 3", "float32"),
    "file": (FILE, HOSTILE, "torch file", "[2, 3]"),
    "values": (OUT, "values", "final_layernorm.bias", "rms"),
    "verify": (SRC, OUT, "container: whole", "the values are the same", "69 tensors"),
    "diff": (SRC, OUT, "69 tensors"),
    "bench": ("disk", "read", "write", "copy", "4.00 MiB three times", "predict"),
    "families": ("BLOOM (bloom)", "to deepspeed, huggingface, megatron-legacy", "Megatron-Core has no ALiBi"),
}
"""What the table of each result must have in it."""

FAILED = {
    "nowhere": ("SourceError", ("no such folder", "where: no/such/<folder>")),
    "budget": ("MemoryBudgetError", ('(max_ram="8M") is below the workable floor', 'remedy: say max_ram="')),
    "twice": ("DestinationError", (f"where: {OUT}", "remedy: choose another folder, or overwrite=True to replace")),
    "stages": ("UsageError", ("pp=3 and 2 stages in pp_layers", "remedy: say one of them")),
    "number": ("UsageError", ("tp='2': a str, not a whole number",)),
    "mistyped": ("UsageError", ("max_rem: no such option", "remedy: did you mean max_ram=?")),
    "stopped": ("RuntimeError", ("enough",)),
}
"""The error of each cell that fails, and what it says."""

Outputs = Mapping[str, list[Any]]


class Fragment(HTMLParser):
    """The tags, the attributes and the text of some HTML."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.text += "\n"

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Outputs:
    """What each cell put out, in a notebook that runs once: whoever comes second among pytest's workers reads it."""
    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    written = folder / "notebook.ipynb"
    with (folder / "notebook.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not written.exists():
            nbformat.write(executed(tmp_path_factory.mktemp("notebook")), written)
    cells = nbformat.read(written, nbformat.NO_CONVERT).cells
    return {name: cell.outputs for name, cell in zip(CELLS, cells, strict=True)}


def executed(folder: Path) -> Any:
    """The notebook, run by a kernel of this interpreter. Jupyter finds and leaves all of its files in the folder, which
    is removed.
    """
    work = folder / "work"
    shutil.copytree(FRAMEWORKS / "bs_bloom_tp2pp2_fp32_z0", work / SRC)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in CELLS.values()])
    client = nbclient.NotebookClient(
        notebook, kernel_name=KERNEL, allow_errors=True, timeout=120, resources={"metadata": {"path": str(work)}}
    )
    # Sockets of files: a port of TCP could be taken by another process before the kernel has it.
    client.config.KernelManager.transport = "ipc"
    client.config.KernelManager.connection_file = str(folder / "k.json")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
            patch.setenv(name, str(folder / name.lower()))
        kernelspec.install(kernel_name=KERNEL, prefix=str(folder))
        patch.setenv("JUPYTER_PATH", str(folder / "share" / "jupyter"))
        patch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
        client.execute()
    shutil.rmtree(folder, ignore_errors=True)
    return notebook


def shown(outputs: list[Any]) -> dict[str, str]:
    """The result of a cell, by its types of content."""
    (data,) = (output.data for output in outputs if output.output_type == "execute_result")
    return dict(data)


def printed(outputs: list[Any], name: str = "stdout") -> str:
    """What a cell wrote on stdout, or on stderr."""
    return "".join(output.text for output in outputs if output.output_type == "stream" and output.name == name)


@pytest.mark.parametrize("name", SAID)
def test_a_result_is_a_line_and_a_table(outputs: Outputs, name: str) -> None:
    data = shown(outputs[name])
    assert re.fullmatch(r"<[A-Z][A-Za-z]+: .+>", data["text/plain"])
    assert len(data["text/plain"]) <= 200
    html = Fragment(data["text/html"])
    for words in SAID[name]:
        assert words in html.text
    assert html.tags <= TAGS
    assert html.attributes <= {"style"}


def test_a_hostile_name_is_text_and_no_markup(outputs: Outputs) -> None:
    html = shown(outputs["file"])["text/html"]
    assert "<script" not in html
    assert "<img" not in html
    assert html.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 2
    assert "&lt;img src=x onerror=alert(1)&gt;.pt" in html


def test_what_is_no_report_is_a_line(outputs: Outputs) -> None:
    tensor = "StreamedTensor(tp=0, pp=0, 'language_model.embedding.word_embeddings.weight', shape=(104, 32), "
    assert shown(outputs["stream"])["text/plain"] == f"{tensor}dtype=torch.float32)"
    assert printed(outputs["streamed"]) == "54\n"
    assert shown(outputs["open"])["text/plain"] == f"Checkpoint('{SRC}/global_step3', 16 files)"
    assert shown(outputs["tensor"])["text/plain"] == "LazyTensor(shape=(32, 16), dtype=float32, 1 piece)"


def test_a_callback_sees_every_byte(outputs: Outputs) -> None:
    seen = json.loads(printed(outputs["seen"]))
    # The rest of records that are read in part is added at the end.
    assert sorted({total for _, total in seen})[0] == 225 * 1024
    assert max(seen) == [seen[-1][1], seen[-1][1]]
    assert len(seen) > 10
    assert printed(outputs["watched"], "stderr") == ""


def test_the_bar_is_a_line_in_the_cell(outputs: Outputs) -> None:
    assert printed(outputs["convert"], "stderr").startswith("converting: 225.00 KiB of 225.00 KiB (100%)")
    assert printed(outputs["values"], "stderr").startswith("reading: ")
    assert printed(outputs["convert"]) == ""


def test_print_shows_the_text_of_the_command_line(outputs: Outputs) -> None:
    text = printed(outputs["printed"])
    assert text.startswith("to      megatron-legacy: ")
    assert f"\nsource  {SRC}/global_step3\n" in text


def test_help_lists_the_keywords_of_the_verb(outputs: Outputs) -> None:
    text = printed(outputs["help"])
    assert "tp: tensor-parallel size (default: the source's)." in text
    assert re.search(r"convert\(\s*src: .*,\s*dst: .*,\s*\*,\s*progress: ", text)
    assert "max_ram: str | int | None = 'auto'" in text


@pytest.mark.parametrize("name", FAILED)
def test_a_cell_that_fails_says_what_and_where_and_what_to_do(outputs: Outputs, name: str) -> None:
    (error,) = (output for output in outputs[name] if output.output_type == "error")
    kind, words = FAILED[name]
    traceback = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error.traceback))
    message = traceback.rpartition(f"{kind}: ")[2]
    assert error.ename == kind
    assert message == error.evalue
    for part in words:
        assert part in message
    assert "--" not in message
    assert CELLS[name].splitlines()[-1] in traceback


def test_the_kernel_goes_on_after_a_failure(outputs: Outputs) -> None:
    assert shown(outputs["after"])["text/plain"].startswith("<Plan: BLOOM, ")


def test_nothing_else_is_put_out(outputs: Outputs) -> None:
    """No cell but those that draw a bar writes on stderr, and no cell fails that should not."""
    assert {name for name in CELLS if printed(outputs[name], "stderr")} == {"convert", "values"}
    assert {name for name in CELLS for output in outputs[name] if output.output_type == "error"} == set(FAILED)
