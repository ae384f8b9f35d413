"""A file: what the report says is what torch and safetensors load, and where it says so."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from streamconv.core.errors import DamagedError, SourceError
from streamconv.inspection.report import InspectionReport, TensorRow
from tests import oracle
from tests.fuzz.parts import STOP, call, named, table, text, torch_zip
from tests.inspection.samples import GPT, Attack, cut_off, look, pickled, step_of
from tests.places import FRAMEWORKS

safetensors = pytest.importorskip("safetensors.torch")
BASE = torch.arange(60, dtype=torch.float32).reshape(6, 10)
TREE: dict[str, Any] = {
    "model": {
        "a": BASE.clone(),
        "half": torch.full((3, 4), 1.5, dtype=torch.bfloat16),
        "fp16": torch.full((5,), 2.5, dtype=torch.float16),
        "flags": torch.tensor([True, False, True]),
        "tiny": torch.tensor([1.0, -2.0]).to(torch.float8_e4m3fn),
    },
    "step": torch.tensor(7),
    "empty": torch.empty(0, 3),
    "list": [torch.ones(2), {"deep": torch.zeros(3, dtype=torch.int8)}],
    "words": {"lr": 0.5, "names": ["x", "y"], "on": True, "none": None},
    "args": argparse.Namespace(hidden_size=32, num_layers=4, tokenizer="t.json"),
}


def leaves(node: Any, path: str = "") -> dict[str, torch.Tensor]:
    if isinstance(node, torch.Tensor):
        return {path: node}
    items = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list | tuple) else ()
    return {n: t for key, item in items for n, t in leaves(item, f"{path}.{key}" if path else str(key)).items()}


def same_tensors(report: InspectionReport, expected: Mapping[str, torch.Tensor], folder: Path) -> None:
    """Names, shapes, types, sizes; and the bytes of the file at the offset are the tensor's."""
    rows = {row.name: row for row in report.tensors}
    assert rows.keys() == expected.keys()
    for name, tensor in expected.items():
        row = rows[name]
        assert (row.shape, row.dtype) == (tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
        assert row.nbytes == tensor.numel() * tensor.element_size()
        assert_bytes(row, tensor, folder)
    totals: dict[str, dict[str, int]] = {}
    for tensor in expected.values():
        entry = totals.setdefault(str(tensor.dtype)[6:], {"tensors": 0, "elements": 0, "nbytes": 0})
        entry["tensors"] += 1
        entry["elements"] += tensor.numel()
        entry["nbytes"] += tensor.numel() * tensor.element_size()
    assert report.dtypes() == totals


def same_bits(first: torch.Tensor, second: torch.Tensor) -> bool:
    bits = [tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (first, second)]
    return bool(torch.equal(*bits))


def assert_bytes(row: TensorRow, tensor: torch.Tensor, folder: Path) -> None:
    if not tensor.numel():
        assert row.offset is None
        return
    assert row.offset is not None
    size = tensor.element_size()
    extent = 1 + sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
    data = (folder / row.file).read_bytes()[row.offset : row.offset + extent * size]
    flat = torch.frombuffer(bytearray(data), dtype=torch.uint8).view(tensor.dtype)
    again = flat.as_strided(tensor.shape, tensor.stride())
    assert same_bits(again, tensor)


@pytest.mark.parametrize("new", [True, False])
def test_torch_files_of_both_kinds(new: bool, tmp_path: Path) -> None:
    path = tmp_path / "t.pt"
    torch.save(TREE, path, _use_new_zipfile_serialization=new)
    report = look(path)
    same_tensors(report, leaves(TREE), tmp_path)
    assert report.kind == "file"
    assert report.nbytes == path.stat().st_size
    assert report.files[0].kind == ("torch zip" if new else "torch before 1.6")
    assert report.what == ("torch file" if new else "torch file of before 1.6")
    assert report.args == {"hidden_size": 32, "num_layers": 4, "tokenizer": "t.json"}
    assert report.values == {"words.lr": 0.5, "words.names": ["x", "y"], "words.on": True, "words.none": None}
    assert report.storage is not None
    assert report.storage["unused_nbytes"] == 0
    assert not report.findings


def test_a_safetensors_file(tmp_path: Path) -> None:
    tree = {f"model.layers.{n}.{name}": t.clone() for n in range(2) for name, t in leaves(TREE["model"]).items()}
    path = tmp_path / "m.safetensors"
    safetensors.save_file(tree, path, metadata={"format": "pt"})
    report = look(path)
    same_tensors(report, safetensors.load_file(path), tmp_path)
    assert {row.layer for row in report.tensors} == {0, 1}
    assert "pt" in json.dumps(report.values)


def test_a_distcp_file(tmp_path: Path) -> None:
    dcp = pytest.importorskip("torch.distributed.checkpoint")
    tree = {"decoder.w": BASE.clone(), "scalar": torch.tensor(3.0), "n": 5}
    with pytest.warns(UserWarning, match="distributed"):
        dcp.save(dict(tree), storage_writer=dcp.FileSystemWriter(tmp_path / "d"), no_dist=True)
    (path,) = (tmp_path / "d").glob("*.distcp")
    report = look(path, check=True)
    same_tensors(report, {"decoder.w": BASE, "scalar": torch.tensor(3.0)}, tmp_path / "d")
    assert report.values["n"] == 5
    assert report.checked is not None
    assert report.checked["records"] > 0


def test_the_real_distcp_file_has_its_bytes_where_it_says() -> None:
    folder = FRAMEWORKS / "mcore_llama_dist_tp2pp2"
    report = look(folder / "__0_0.distcp", check=True)
    data = (folder / "__0_0.distcp").read_bytes()
    norms = [row for row in report.tensors if "layer_norm_weight" in row.name]
    assert norms
    for row in norms:
        assert row.offset is not None
        assert data[row.offset : row.offset + row.nbytes] == torch.ones(row.shape).numpy().tobytes()
    assert not report.findings


def test_a_deepspeed_optimizer_shard() -> None:
    path = step_of(GPT) / "zero_pp_rank_0_mp_rank_00_optim_states.pt"
    report = look(path, check=True)
    same_tensors(report, leaves(oracle.load_stubbed(path)), path.parent)
    assert report.what == "torch file: DeepSpeed optimizer shard"
    assert report.values["optimizer_state_dict.partition_count"] == [1, 1, 1]
    assert "ZeroStageEnum(1)" in report.values["optimizer_state_dict.zero_stage"]
    assert report.checked is not None
    assert report.checked["without_crc"] == 0
    assert report.checked["nbytes"] > sum(row.nbytes for row in report.tensors)


def test_shared_storage_is_named(tmp_path: Path) -> None:
    torch.save({"embed": BASE, "head": BASE, "part": BASE[2:]}, tmp_path / "t.pt")
    report = look(tmp_path / "t.pt")
    assert [row.shares for row in report.tensors] == [None, "embed", None]
    assert report.storage == {"stored_nbytes": 240, "used_nbytes": 240, "unused_nbytes": 0}
    same_tensors(report, {"embed": BASE, "head": BASE, "part": BASE[2:]}, tmp_path)


def test_a_view_of_a_large_storage_is_bloat(tmp_path: Path) -> None:
    large = torch.zeros(1 << 20)
    torch.save({"w": large[:10], "v": large[5:20], "small": torch.ones(3)}, tmp_path / "t.pt")
    report = look(tmp_path / "t.pt")
    assert report.storage == {"stored_nbytes": (4 << 20) + 12, "used_nbytes": 92, "unused_nbytes": (4 << 20) - 80}
    (finding,) = report.findings
    assert "belong to no tensor" in finding.what
    assert finding.where == "t.pt"


def test_views_that_are_not_contiguous(tmp_path: Path) -> None:
    views = {"t": BASE.t(), "column": BASE[:, 3], "corner": BASE[2:5, 3:7], "flat": BASE[:1].expand(4, 10)}
    torch.save(views, tmp_path / "t.pt")
    same_tensors(look(tmp_path / "t.pt"), views, tmp_path)


def test_a_record_that_has_changed_is_found_only_with_check(tmp_path: Path) -> None:
    path = tmp_path / "t.pt"
    torch.save({"a": BASE, "b": BASE.clone()}, path)
    row = look(path).tensors[1]
    assert row.offset is not None
    data = bytearray(path.read_bytes())
    data[row.offset + 8] ^= 1
    path.write_bytes(data)
    assert look(path).exit_code == 0
    report = look(path, check=True)
    (finding,) = report.findings
    assert "data/1" in finding.what
    assert str(path) in str(finding.where)
    assert str(row.offset) in str(finding.where)
    assert report.exit_code == 6


def test_a_file_without_checksums_says_so(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"a": BASE}, tmp_path / "t.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    (finding,) = look(tmp_path / "t.pt").findings
    assert "CRC-32" in finding.what
    assert finding.severity == "note"


@pytest.mark.parametrize("name", ["mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt"])
def test_globals_are_those_that_torch_finds(name: str) -> None:
    path = step_of(GPT) / name
    report = look(path)
    unsafe = set(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    assert {row.name for row in report.globals if row.verdict != "plain"} == unsafe
    assert {row.files for row in report.globals} == {(name,)}
    assert not report.findings


@pytest.mark.parametrize("new", [True, False])
def test_an_attack_is_shown_and_never_run(new: bool, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    torch.save({"w": BASE, "x": Attack(trace)}, tmp_path / "t.pt", _use_new_zipfile_serialization=new)
    report = look(tmp_path / "t.pt", check=True, stats=True)
    (row,) = [row for row in report.globals if row.verdict == "executes"]
    assert (row.name, row.called) == ("posix.system", 1)
    assert "posix.system" in report.findings[0].what
    assert report.findings[0].where == "t.pt"
    assert report.exit_code == 6
    assert not trace.exists()
    torch.load(tmp_path / "t.pt", weights_only=False)
    assert trace.exists()


def test_what_is_no_checkpoint_is_refused_with_its_name(tmp_path: Path) -> None:
    bare, short = tmp_path / "bare.pt", tmp_path / "short.pt"
    pickled(bare, Attack(tmp_path / "trace"))
    torch.save({"a": BASE}, short)
    cut_off(short)
    for path in (bare, short, tmp_path / "none.pt"):
        with pytest.raises(DamagedError if path == short else SourceError) as caught:
            look(path)
        assert caught.value.where == str(path)
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("module", ["__builtin__", "builtins"])
def test_an_enum_as_python_3_11_pickled_it_is_not_called_unsafe(module: str, tmp_path: Path) -> None:
    """Python 3.11.0 to 3.11.3 pickled it as ``getattr(class, name)``; ``torch.save`` writes ``__builtin__``."""
    kind = named("megatron.core.enums", "ModelType")
    (tmp_path / "a.pt").write_bytes(torch_zip(table(kind=call(module, "getattr", kind, text("encoder")))))
    report = look(tmp_path / "a.pt")
    assert [(finding.severity, finding.exit_code) for finding in report.findings] == [("note", 0)]
    attack = call("os", "system", text("true"))
    (tmp_path / "b.pt").write_bytes(torch_zip(table(kind=call(module, "getattr", kind, text("a")), x=attack)))
    assert {finding.exit_code for finding in look(tmp_path / "b.pt").findings} == {6}


def test_bytes_behind_the_end_of_a_pickle_are_mentioned(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(torch_zip(table(a=text("b")) + STOP + b"cos\nsystem\n"))
    words = [fact.evidence for fact in look(path).evidence]
    assert "12 bytes behind the end of its pickle are not read" in words
