"""Take digests of what streamconv writes and says: every file of every conversion, and the JSON of plan and inspect.

Everything goes through the command line, so the digests outlive any rearrangement of the package. Sources are numbered
models: element ``i`` of a parameter is a function of the parameter's name and of ``i``, so no random generator has a
part in them.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from streamconv.cli.main import main
from streamconv.core.work_folder import RECEIPT
from tests import hf_models as models

# (layout of the source, layout of the result, further options of Megatron-Core)
LAYOUTS: tuple[tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]], ...] = (
    (("--tp", "2", "--pp", "2"), ("--tp", "1", "--pp", "4"), ()),
    (("--tp", "1", "--pp", "1"), ("--tp", "2", "--pp", "2"), ("--container", "torch", "--vpp", "2")),
)
_VERSIONED = ("transformers_version",)


def numbered_model(family: str, folder: Path) -> None:
    """A Hugging Face folder of a family of :mod:`tests.hf_models` whose elements are numbered."""
    config = models.CONFIGS[family]
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            first = zlib.crc32(name.encode()) % 60000
            numbers = torch.arange(first, first + parameter.numel()) % 65521
            parameter.copy_((numbers.to(torch.float32) / 4096 - 8).reshape(parameter.shape))
    model.save_pretrained(folder)
    path = folder / "config.json"
    entries = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in entries.items() if k not in _VERSIONED}, indent=2, sort_keys=True))


def take_conversions(work: Path, cells: Sequence[dict[str, str | None]]) -> Iterator[tuple[str, str]]:
    """(name, digest) of the result of each cell of the capability table in each layout; a refusal's digest is its text.

    Args:
        work: an empty folder for sources and results.
        cells: rows of ``streamconv families --json``.
    """
    for cell in cells:
        family, source, target = str(cell["family"]), str(cell["source"]), str(cell["target"])
        hf = work / f"{family}-hf"
        if not hf.exists():
            numbered_model(family, hf)
        for number, (stored, wanted, core) in enumerate(LAYOUTS):
            name = f"{family} {source} {target} {number}"
            src = hf if source == "huggingface" else work / f"{family}-{source}-{number}"
            if not src.exists():
                _said("convert", str(hf), str(src), "--to", source, *stored)
            if not src.exists():
                yield name, "no such source"
                continue
            dst = work / "result"
            shutil.rmtree(dst, ignore_errors=True)
            options = [*(wanted if target != "huggingface" else ("--max-shard-size", "20KB"))]
            options += core if target == "megatron-core" else ()
            options += ["--config", str(hf / "config.json")] if family in ("mistral", "phi3") else []
            code, _, error = _said("convert", str(src), str(dst), "--to", target, *options)
            refusal = error.replace(str(work), "").strip()
            yield name, folder_digest(dst) if code == 0 else _digest(f"{code} {refusal}".encode())


def take_words(fixtures: Path) -> Iterator[tuple[str, str]]:
    """(name, digest) of ``inspect --json`` and ``plan --json`` for each folder up to two levels below ``fixtures``."""
    with _inside(fixtures):
        found = [path for path in sorted([*Path().glob("[!_]*"), *Path().glob("[!_]*/[!_]*")]) if path.is_dir()]
        for path in found:
            for verb in (["inspect", "--tensors", "*"], ["plan"], ["plan", "--to", "huggingface", "--tp", "1"]):
                code, out, error = _said(verb[0], str(path), *verb[1:], "--json")
                yield f"{' '.join(verb)} {path}", _digest(f"{code}\n{_lasting(out)}\n{error}".encode())


def _lasting(text: str) -> str:
    """The JSON without what this process and this machine decide: the memory in use and what is free."""
    if not text.startswith("{"):
        return text
    entries = json.loads(text)
    entries.pop("memory", None)
    return json.dumps(entries)


def folder_digest(folder: Path) -> str:
    """One digest of the path, the size and the bytes of every file of a folder, but for the receipt: it depends on the
    time of change of the sources.
    """
    whole = hashlib.blake2b(digest_size=8)
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != RECEIPT:
            data = path.read_bytes()
            whole.update(f"{path.relative_to(folder)} {len(data)} {_digest(data)}\n".encode())
    return whole.hexdigest()


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def _said(*words: str) -> tuple[int, str, str]:
    out, error = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(error):
        code = main([*words, "--max-ram", "1G"] if words[0] in ("convert", "plan") else [*words])
    return code, out.getvalue(), error.getvalue()


@contextmanager
def _inside(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def cells() -> list[dict[str, str | None]]:
    """The rows of the capability table."""
    rows: list[dict[str, str | None]] = json.loads(_said("families", "--json")[1])
    return rows
