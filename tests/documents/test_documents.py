"""The documents are true: every command in them is run, and what they print is what is printed.

A block of ``console`` has commands after ``$`` and what they print; ``...`` stands for anything, and so do times, rates
and peaks of memory. A block of ``python`` is run as a doctest, or as it stands. They share a folder with small
checkpoints.
"""

from __future__ import annotations

import doctest
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import save_file

import streamconv
from streamconv.api import keywords, looking
from streamconv.api.options import known_options
from streamconv.cli.options import OWN_OPTIONS
from streamconv.cli.program import VERBS
from streamconv.core.options import all_options
from streamconv.execution.options import StreamOptions
from tests import hf_models as models
from tests.places import FIXTURES, FRAMEWORKS, ROOT
from tests.processes import run_main, start

DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAMS = {
    "streamconv": "streamconv.cli.main",
    "deepspeed_to_megatron": "streamconv.bigscience.deepspeed_to_megatron",
    "zero_to_fp32": "streamconv.deepspeed_utils.zero_to_fp32",
    "zero_to_torch": "streamconv.deepspeed_utils.zero_to_torch",
    "inspect_checkpoint": "streamconv.bigscience.inspect_checkpoint",
    "inspect_deepspeed_checkpoint": "streamconv.bigscience.inspect_deepspeed_checkpoint",
}
# A file of its own test: tests/models/test_add_a_family.py.
RUN_ELSEWHERE = {"add-a-family.md"}
# What is written on a terminal while bytes move, and gone at the end.
PROGRESS = re.compile(r"^(converting|verifying|comparing|digesting|reading|extracting): .*\n", re.M)
# Numbers that are not the same twice.
MEASURED = re.compile(
    r"\d+(\.\d+)? (?:[KMGT]i)?B/s|(?<=peak )\d+\.\d+(?= [KMG]iB)|(?<=floor of )\d+\.\d+|(?<=--max-ram )\d+(?=M or)"
    r"|\b\d+(\.\d+)?(?= s\b)|(?<=^        )\d+(?= threads, blocks)"
)


class Block(NamedTuple):
    """A block of a document: its language, the number of its first line, and its lines."""

    language: str
    line: int
    lines: list[str]


def blocks_of(document: Path) -> Iterator[Block]:
    found: Block | None = None
    for number, line in enumerate(document.read_text().splitlines(), start=1):
        if line.startswith("```"):
            if found is None:
                found = Block(line[3:].strip(), number, [])
            else:
                yield found
                found = None
        elif found is not None:
            found.lines.append(line)
    assert found is None, f"{document.name}: a block has no end"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the documents convert: checkpoints by the real frameworks, a model of transformers, a damaged file."""
    root = tmp_path_factory.mktemp("documents")
    bloom = FRAMEWORKS / "bs_bloom_tp2pp2_fp32_z0"
    shutil.copytree(bloom, root / "checkpoints" / "bloom")
    (root / "bloom").symlink_to("checkpoints/bloom")
    shutil.copytree(FRAMEWORKS / "mcore_llama_dist_tp2pp2", root / "checkpoints" / "core")
    models.make("llama", root / "llama")
    shutil.copytree(FRAMEWORKS / "ds_trainer_llama_z3" / "checkpoint-2", root / "checkpoint-2")
    shutil.copytree(FRAMEWORKS / "ds_trainer_lora_z3" / "checkpoint-2", root / "lora")
    base_of(FRAMEWORKS / "ds_trainer_lora_z3", root / "base")
    (root / "tokenizer").mkdir()
    (root / "tokenizer" / "tokenizer.json").write_text("{}")
    layer = bloom / "global_step3" / "layer_03-model_00-model_states.pt"
    (root / "cut-off.pt").write_bytes(layer.read_bytes()[:-100])
    shutil.copytree(bloom, root / "drifted")
    path = root / "drifted" / "global_step3" / "layer_03-model_01-model_states.pt"
    state = torch.load(path, weights_only=True)
    state["input_layernorm.weight"][0] += 1
    torch.save(state, path)
    return root


def base_of(run: Path, folder: Path) -> None:
    """The model that a fixture's adapter was trained on."""
    truth = torch.load(FIXTURES / "zero_truth" / f"{run.name}.pt", weights_only=True)
    names = {
        name: name.removeprefix("base_model.model.").replace(".base_layer.", ".")
        for name in truth
        if ".lora_" not in name
    }
    folder.mkdir()
    save_file({new: truth[name]["lp"].contiguous() for name, new in names.items()}, folder / "model.safetensors")


def pattern(line: str) -> str:
    """A regular expression for a line that is printed."""
    parts = [re.escape(part) for part in re.split(r"\.\.\.", line)]
    quoted = [part.replace("\0", r"[\d.]+(?: (?:[KMGT]i)?B/s)?") for part in parts]
    return ".*".join(quoted)


def matches(expected: list[str], printed: list[str]) -> bool:
    """Whether what was printed is what is expected, where a line of ``...`` is any number of lines."""
    if not expected:
        return not printed
    if expected[0].strip() == "...":
        return any(matches(expected[1:], printed[skipped:]) for skipped in range(len(printed) + 1))
    first = MEASURED.sub("\0", expected[0])
    same = bool(printed) and re.fullmatch(pattern(first), printed[0].rstrip()) is not None
    return same and matches(expected[1:], printed[1:])


def test_a_line_that_is_not_printed_would_be_seen() -> None:
    assert matches(["a 3.00 s", "...", "d ... f"], ["a 4.51 s", "b", "c", "d e f"])
    assert matches(["..."], [])
    assert matches(["peak 47.80 MiB of 1.00 GiB"], ["peak 50.10 MiB of 1.00 GiB"])
    for expected, printed in (
        (["a"], ["b"]),
        (["a"], []),
        ([], ["a"]),
        (["a", "..."], ["b"]),
        (["3 files"], ["4 files"]),
    ):
        assert not matches(expected, printed)


def sessions(block: Block) -> Iterator[tuple[str, list[str]]]:
    """(command, what it prints) of a block."""
    command, printed = "", list[str]()
    for line in block.lines:
        if line.startswith("$ "):
            if command:
                yield command, printed
            command, printed = line[2:], []
        else:
            printed.append(line)
    yield command, printed


CONSOLE = [(document, block) for document in DOCUMENTS for block in blocks_of(document) if block.language == "console"]
PYTHON = [
    document
    for document in DOCUMENTS
    if document.name not in RUN_ELSEWHERE and any(block.language == "python" for block in blocks_of(document))
]


@pytest.mark.slow
@pytest.mark.parametrize("document", dict.fromkeys(document for document, _ in CONSOLE), ids=lambda path: path.name)
def test_every_command_prints_what_the_document_shows(
    document: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(folder, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    for _, block in ((owner, block) for owner, block in CONSOLE if owner == document):
        for command, expected in sessions(block):
            name, *words = shlex.split(command, comments=True)
            if name == "cp":
                shutil.rmtree(words[2])
                shutil.copytree(ROOT / words[1], words[2])
                continue
            done = run_main(*words, module=PROGRAMS[name])
            printed = (PROGRESS.sub("", done.stderr) + done.stdout).splitlines()
            assert "unexpected" not in done.stderr
            fails = any(line.startswith("error: ") for line in expected)
            assert (done.returncode != 0) is fails, f"{document.name}, {command}: {done.stderr}"
            text = "\n".join(printed)
            assert matches(expected, printed), f"{document.name}:{block.line}: {command} prints\n{text}"


@pytest.mark.slow
def test_every_command_in_a_table_of_the_readme_runs(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(folder, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    rows = re.findall(r"^\|.* \| `(streamconv [^`]+)` \|$", (ROOT / "README.md").read_text(), re.M)
    assert len(rows) == 8
    for command in rows:
        done = run_main(*shlex.split(command)[1:])
        assert done.returncode == 0, f"{command}: {done.stderr}"


@pytest.mark.parametrize("document", PYTHON, ids=lambda path: path.name)
def test_every_example_in_python_gives_what_the_document_shows(
    document: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(folder, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    names: dict[str, object] = {}
    for block in blocks_of(document):
        if block.language == "python":
            text = "\n".join(block.lines) + "\n"
            if ">>>" in text:
                assert_examples(text, names, f"{document.name}:{block.line}")
            else:
                exec(compile(text, document.name, "exec"), names)  # noqa: S102 - our own document


def assert_examples(text: str, names: dict[str, object], where: str) -> None:
    example = doctest.DocTestParser().get_doctest(text, names, where, where, 0)
    names |= example.globs
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    said: list[str] = []
    example.globs = names
    assert runner.run(example, out=said.append, clear_globs=False).failed == 0, "".join(said)


@pytest.mark.parametrize("verb", [*keywords.__all__, *looking.__all__])
def test_the_example_in_a_docstring_gives_what_it_shows(
    verb: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(folder / "checkpoints", tmp_path / "checkpoints")
    monkeypatch.chdir(tmp_path)
    text = getattr(streamconv, verb).__doc__
    assert ">>> " in text
    if verb in ("verify", "diff"):
        streamconv.convert("checkpoints/bloom", "out", tp=1, pp=3)
    assert_examples(text, {"streamconv": streamconv}, verb)


def test_every_public_name_has_an_example() -> None:
    blocks = [block for block in blocks_of(ROOT / "docs" / "python.md") if block.language == "python"]
    text = "\n".join(line for block in blocks for line in block.lines)
    assert [name for name in streamconv.__all__ if not re.search(rf"streamconv\.{name}\b", text)] == []


def test_every_command_is_in_the_documents_and_is_run() -> None:
    commands = [command for _, block in CONSOLE for command, _ in sessions(block)]
    commands += re.findall(r"^\|.* \| `(streamconv [^`]+)` \|$", (ROOT / "README.md").read_text(), re.M)
    words = {tuple(shlex.split(command)[:2]) for command in commands}
    assert {verb for verb in VERBS if ("streamconv", verb) not in words} == set()
    assert {program for program in PROGRAMS if program not in {first for first, *_ in words}} == set()


def test_every_flag_keyword_and_variable_is_in_the_table() -> None:
    text = (ROOT / "docs" / "options.md").read_text()
    for each in (*known_options().values(), *all_options(OWN_OPTIONS).values()):
        if each.name.startswith(("a_", "b_", "dst_")):
            continue
        assert f"`{each.name}`" in text or each in all_options(OWN_OPTIONS).values()
        assert f"`{each.flag}" in text or each in all_options([StreamOptions]).values()
        assert each.variable is None or f"`{each.variable}`" in text or each in all_options([StreamOptions]).values()


@pytest.mark.slow
def test_the_commands_that_are_not_run_here_are_there() -> None:
    """make's targets, scripts, and what a shell reads at its start, which tests/cli/test_completion.py does."""
    known = ("make ", "python benchmarks/", "eval ", "_STREAMCONV_COMPLETE=", "pip install")
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    for document in DOCUMENTS:
        for block in blocks_of(document):
            if block.language or document.name == "formats.md":
                continue
            for line in block.lines:
                assert line.startswith(known), f"{document.name}:{block.line}: {line}"
                if line.startswith("make "):
                    assert line.split()[1] in targets
                if line.startswith("python benchmarks/"):
                    script = ROOT / line.split()[1]
                    done = start([sys.executable, str(script), "--help"])
                    flags = re.findall(r"(?<= )--[a-z-]+", line.partition("#")[0])
                    assert all(flag in done.stdout for flag in flags)


def test_the_picture_and_the_table_show_what_was_measured() -> None:
    """``python docs/picture.py`` draws and writes them."""
    from docs import picture

    assert picture.PICTURE.read_text() == picture.picture()
    text = (ROOT / "README.md").read_text()
    assert text == picture.readme(text)
    assert picture.table() in text
