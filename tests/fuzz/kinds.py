"""Every kind of file and folder that is made, each by its name."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import streamconv
from tests.fuzz import grow
from tests.fuzz.cases import CASES
from tests.fuzz.mutate import exchanged, mutated, repickled, rezipped
from tests.places import FIXTURES, FRAMEWORKS, MADE

LARGEST_SEED = 40_000
NAMES_OF_JSON = (
    "config.json",
    "model.safetensors.index.json",
    "metadata.json",
    "adapter_config.json",
    "generation_config.json",
)
TEXTS = (
    b"",
    b"global_step3",
    b"3",
    b"release",
    b"latest",
    b"../x",
    b"9" * 5000,
    b"\x1b[31m",
    b"\xff\xfe",
    b"a\nb",
    b"0003",
    b"-1",
)


@dataclass(frozen=True)
class Seeds:
    """Real files by their container, and real folders."""

    zips: tuple[bytes, ...]
    old: tuple[bytes, ...]
    safetensors: tuple[bytes, ...]
    distcp: tuple[bytes, ...]
    metadata: tuple[bytes, ...]
    jsons: tuple[tuple[str, bytes], ...]
    folders: tuple[Path, ...]


CONVERSIONS = (
    *(("bs_bloom_tp2pp2_fp32_z0", "huggingface"), ("dsp_llama_gqa_tp2pp2_fp32_z0", "huggingface")),
    *(("bs_gpt2_tp2pp2_fp16_z1", "huggingface"), ("dsp_llama_gqa_tp2pp2_fp32_z0", "megatron-core")),
    ("bs_gpt2_tp2pp2_fp16_z1", "megatron-legacy"),
)


def _converted(scratch: Path, name: str, target: str) -> Path:
    """A fixture in a format that the fixtures lack."""
    made = scratch / f"{name}-{target}"
    if not made.is_dir():
        streamconv.convert(FRAMEWORKS / name, made, to=target)
    return made


def seeds(scratch: Path) -> Seeds:
    """The fixtures, conversions of some, and grown files of the formats that they lack."""

    def small(pattern: str) -> tuple[bytes, ...]:
        paths = sorted(path for path in FIXTURES.rglob(pattern) if path.stat().st_size <= LARGEST_SEED)
        return tuple(path.read_bytes() for path in paths)

    rng = random.Random(0)
    headers = tuple(grow.safetensors_file(rng) for _ in range(50))
    jsons = tuple((path.name, path.read_bytes()) for path in sorted(FIXTURES.rglob("*.json")))
    config: dict[str, Any] = {"model_type": "llama", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config |= {"vocab_size": 16, "intermediate_size": 16, "rope_scaling": {"type": "linear", "factor": 2.0}}
    index = {"metadata": {"total_size": 4}, "weight_map": {"a": "model.safetensors"}}
    jsons += (
        ("config.json", json.dumps(config).encode()),
        ("model.safetensors.index.json", json.dumps(index).encode()),
    )
    folders = [
        *(p for p in sorted(FRAMEWORKS.iterdir()) if p.is_dir()),
        *(p for p in sorted(MADE.iterdir()) if p.is_dir()),
    ]
    folders += [path for path in sorted((FIXTURES / "megatron_core").iterdir()) if path.is_dir()]
    folders += [_converted(scratch, *which) for which in CONVERSIONS]
    return Seeds(
        small("*.pt"),
        tuple(grow.old_torch_file(rng) for _ in range(50)),
        headers,
        small("*.distcp"),
        small(".metadata"),
        jsons,
        tuple(path for path in folders if path.name != "__pycache__"),
    )


Make = Callable[[random.Random, Seeds, Path], Path]


def _file(suffix: str, make: Callable[[random.Random, Seeds], bytes]) -> Make:
    def made(rng: random.Random, found: Seeds, where: Path) -> Path:
        path = where / f"f{suffix}"
        path.write_bytes(make(rng, found))
        return path

    return made


def _beside(name: str, make: Callable[[random.Random, Seeds], bytes]) -> Make:
    """A folder of a few files whose one is made."""

    def made(rng: random.Random, found: Seeds, where: Path) -> Path:
        (where / "__0_0.distcp").write_bytes(rng.choice(found.distcp))
        (where / name).write_bytes(make(rng, found))
        return where

    return made


def _metadata(rng: random.Random, found: Seeds) -> bytes:
    data = rng.choice(found.metadata)
    return exchanged(rng, data) if rng.random() < 0.5 else mutated(rng, data, found.metadata)


def _changed_json(rng: random.Random, data: bytes) -> bytes:
    try:
        return grow.json_text(grow.changed_json(rng, json.loads(data)))
    except (ValueError, RecursionError):
        return mutated(rng, data or b"x", [data])  # it has been changed before


def _json_folder(rng: random.Random, found: Seeds, where: Path) -> Path:
    name, data = rng.choice(found.jsons)
    data = _changed_json(rng, data) if rng.random() < 0.7 else mutated(rng, data, [data])
    (where / rng.choice((name, name, *NAMES_OF_JSON))).write_bytes(data)
    (where / "model.safetensors").write_bytes(rng.choice(found.safetensors))
    return where


def _tracker_folder(rng: random.Random, found: Seeds, where: Path) -> Path:
    words = rng.choice(TEXTS) if rng.random() < 0.7 else mutated(rng, b"global_step3\n", [b"iter_0000003"])
    (where / rng.choice(("latest", "latest_checkpointed_iteration.txt"))).write_bytes(words)
    step = where / rng.choice(("global_step3", "iter_0000003", "release"))
    step.mkdir()
    for name in rng.sample(("mp_rank_00_model_states.pt", "layer_01-model_00-model_states.pt", "mp_rank_00"), 2):
        if "." in name:
            (step / name).write_bytes(grow.torch_file(rng))
        else:
            (step / name).mkdir()
            (step / name / "model_optim_rng.pt").write_bytes(grow.torch_file(rng))
    return where


def _case(rng: random.Random, _: Seeds, where: Path) -> Path:
    name = rng.choice([name for name in CASES if "million" not in name and "20,000 records" not in name])
    path = where / name
    path.write_bytes(CASES[name]())
    return path


FILES: dict[str, tuple[int, Make]] = {
    "torch zip, bytes changed": (10, _file(".pt", lambda rng, s: mutated(rng, rng.choice(s.zips), s.zips))),
    "torch zip, a record changed": (25, _file(".pt", lambda rng, s: rezipped(rng, rng.choice(s.zips), s.zips))),
    "torch zip, grown": (25, _file(".pt", lambda rng, _: grow.torch_file(rng))),
    "torch old, changed": (5, _file(".pt", lambda rng, s: mutated(rng, rng.choice(s.old), s.old))),
    "torch old, grown": (8, _file(".pt", lambda rng, _: grow.old_torch_file(rng))),
    "safetensors, changed": (5, _file(".safetensors", lambda rng, s: mutated(rng, rng.choice(s.safetensors), s.zips))),
    "safetensors, grown": (8, _file(".safetensors", lambda rng, _: grow.safetensors_file(rng))),
    "distcp, changed": (5, _file(".distcp", lambda rng, s: mutated(rng, rng.choice(s.distcp), s.distcp))),
    "distcp, grown": (
        4,
        _file(".distcp", lambda rng, _: b"".join(grow.torch_file(rng) for _ in range(rng.randrange(1, 4)))),
    ),
    ".metadata, changed": (6, _beside(".metadata", _metadata)),
    ".metadata, grown": (6, _beside(".metadata", lambda rng, _: grow.metadata(rng))),
    "json": (8, _json_folder),
    "tracker": (6, _tracker_folder),
    "a case by name": (1, _case),
}
"""(how often, how it is made)"""


def folder(rng: random.Random, found: Seeds, where: Path) -> tuple[Path, Path]:
    """(a real folder in which a few files are changed, exchanged, renamed or gone, the folder as it was)."""
    source = rng.choice(found.folders)
    made = Path(shutil.copytree(source, where / source.name))
    for _ in range(rng.choice((1, 1, 2, 4))):
        files = sorted(path for path in made.rglob("*") if path.is_file())
        args = [path for path in files if path.name.startswith(("mp_rank", "model_optim", "common"))]
        if files:
            _change(rng, found, rng.choice(args if args and rng.random() < 0.4 else files), files)
    if rng.random() < 0.4:
        _change_an_argument(rng, made)
    return made, source


def _change_an_argument(rng: random.Random, made: Path) -> None:
    """Give one argument another value, the same in the files of all ranks: they agree, and it is believed."""
    name, value = rng.choice(grow.ARGS), grow.Grower(rng, 50_000).value(rng.choice((3, 5)))
    for path in made.rglob("*.pt"):
        if path.name.startswith(("mp_rank", "model_optim", "common")) and path.is_file():
            path.write_bytes(repickled(path.read_bytes(), name, value))


def _change(rng: random.Random, found: Seeds, path: Path, files: list[Path]) -> None:
    data, act = path.read_bytes(), rng.randrange(10)
    if act == 0:
        path.unlink()
    elif act == 1:
        path.write_bytes(rng.choice(files).read_bytes())
    elif act == 2:
        digits = [place for place, sign in enumerate(path.name) if sign.isdigit()] or [0]
        place = rng.choice(digits)
        path.rename(
            path.with_name(
                path.name[:place] + rng.choice(("9", "99999999", "\x1b", "")) + path.name[place + 1 :] or "x"
            )
        )
    elif path.suffix == ".json" and act < 8:
        path.write_bytes(_changed_json(rng, data))
    elif data.startswith(b"PK\x03\x04") and act < 8:
        path.write_bytes(
            rezipped(rng, data, found.zips) if path.suffix != ".distcp" else mutated(rng, data, found.zips)
        )
    elif path.name == ".metadata" and act < 8:
        path.write_bytes(exchanged(rng, data))
    elif path.suffix == ".pt" and act == 8:
        path.write_bytes(grow.torch_file(rng))
    else:
        path.write_bytes(mutated(rng, data or b"x", found.zips))
