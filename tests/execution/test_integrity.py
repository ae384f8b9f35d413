"""A checkpoint alone: any bit that changed in a record, and anything that is missing or cut off, is found and named."""

from __future__ import annotations

import json
import random
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from streamconv import SourceError, convert, verify
from streamconv.inspection.integrity import check_files
from streamconv.values.sweep import SweepSettings
from streamconv.verification.verify import Verification
from tests import oracle
from tests.damage import cut, flip, records
from tests.places import FRAMEWORKS, LABELLED, REAL

GPT, BLOOM = REAL[2], REAL[1]
DISTCP = FRAMEWORKS / "mcore_llama_dist_tp2pp2"
TRACKER = "latest_checkpointed_iteration.txt"
# Their optimizer files are left out of the repository.
PARTIAL = ("bs_gpt2_tp2pp2_fp16_z1", "dsh_gpt_dp2_tp2pp2_bf16_z1")
# Of a Trainer's output the checkpoint.
WRITTEN = {path / "checkpoint-2" if path.name.startswith("ds_trainer_") else path for path in FRAMEWORKS.iterdir()}
FOLDERS = sorted({source.folder for source in (*REAL, *LABELLED)} | WRITTEN)
GOOD = [folder for folder in FOLDERS if folder.is_dir() and folder.name not in PARTIAL]


def looked(path: Path) -> Verification:
    return verify(path, max_ram="1G")


def words(found: Verification) -> str:
    return "\n".join(f"{finding.what} {finding.where}" for finding in found.broken)


def save(path: Path, *shapes: tuple[int, ...]) -> Path:
    generator = torch.Generator().manual_seed(len(shapes))
    torch.save({f"w{n}": torch.randn(shape, generator=generator) for n, shape in enumerate(shapes)}, path)
    return path


@pytest.fixture
def gpt(tmp_path: Path) -> Path:
    convert(GPT.folder, tmp_path / "gpt", max_ram="2G", to="megatron-legacy")
    return tmp_path / "gpt"


# -- whole ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", GOOD, ids=lambda folder: folder.name)
def test_what_a_framework_wrote_is_whole(folder: Path) -> None:
    found = looked(folder)
    assert (found.exit_code, found.broken, found.comparison) == (0, [], None), words(found)
    assert found.report.checked is not None
    assert found.report.checked["records"] > 0
    # safetensors have none.
    assert (found.report.checked["without_crc"] > 0) == any(folder.glob("*.safetensors"))


def test_a_folder_of_checkpoints_gets_no_verdict() -> None:
    with pytest.raises(SourceError, match="a folder of 1 checkpoint, none of which was looked at") as caught:
        looked(FRAMEWORKS / "ds_trainer_llama_z2")
    assert caught.value.remedy == "give one of them: checkpoint-2"


def test_all_records_of_all_files_are_counted(gpt: Path) -> None:
    archives = [zipfile.ZipFile(path) for path in gpt.rglob("*.pt")]
    infos = [info for archive in archives for info in archive.infolist() if info.file_size]
    found = looked(gpt)
    nbytes = sum(info.file_size for info in infos)
    assert found.report.checked == {"records": len(infos), "without_crc": 0, "nbytes": nbytes}
    for archive in archives:
        archive.close()


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("block", [1000, 4096, 1 << 20])
def test_parts_of_any_size_give_the_same_verdict(block: int, threads: int, tmp_path: Path) -> None:
    path = save(tmp_path / "w.pt", (300, 100), (1,), (17,))
    start, nbytes = records(path)["data/0"]
    for byte in (start, start + nbytes // 2, start + nbytes - 1):
        verdict = check_files([path], SweepSettings(threads, block, "direct"))
        assert (verdict.findings, verdict.without_crc) == ([], 0)
        assert verdict.nbytes == sum(size for _, size in records(path).values())
        flip(path, byte, 3)
        (finding,) = check_files([path], SweepSettings(threads, block, "pread")).findings
        assert finding.what.startswith("record data/0: its CRC-32 is ")
        assert finding.where == f"{path}, bytes {start} to {start + nbytes}"
        flip(path, byte, 3)


# -- flipped bits --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_any_flipped_bit_of_any_record_is_found_in_its_file_and_record(gpt: Path) -> None:
    chosen = random.Random(3)
    paths = sorted(gpt.rglob("*.pt"))
    places = [(path, name) for path in paths for name, (_, size) in records(path).items() if size]
    for path, name in (*chosen.sample(places, 25), *((paths[0], name) for name in ("data.pkl", "version"))):
        start, nbytes = records(path)[name]
        byte, bit = start + chosen.randrange(nbytes), chosen.randrange(8)
        flip(path, byte, bit)
        found = looked(gpt)
        assert found.exit_code == 6
        assert str(path) in words(found)
        assert f"record {name}: " in words(found)
        flip(path, byte, bit)
    assert looked(gpt).exit_code == 0


def test_a_flipped_bit_of_an_optimizer_file_is_found(tmp_path: Path) -> None:
    shutil.copytree(GPT.folder, tmp_path / "copy")
    (path,) = tmp_path.rglob("*optim_states.pt")
    start, nbytes = records(path)["data/1"]
    flip(path, start + nbytes // 2, 0)
    found = looked(tmp_path / "copy")
    assert f"{path}, bytes {start} to {start + nbytes}" in words(found)


@pytest.mark.slow
def test_a_flipped_bit_of_a_distcp_is_found(tmp_path: Path) -> None:
    chosen = random.Random(1)
    shutil.copytree(DISTCP, tmp_path / "dist")
    path = tmp_path / "dist" / "__2_1.distcp"
    whole = path.read_bytes()
    data = [m.start() for m in re.finditer(rb"archive/data/0FB", whole)]
    assert len(data) > 5
    for header in chosen.sample(data, 5):
        # Torch pads a record's start to 64 bytes from its zip's start; its middle is tensor data.
        middle = header + 120
        flip(path, middle, chosen.randrange(8))
        found = looked(tmp_path / "dist")
        assert found.exit_code == 6
        assert str(path) in words(found)
        path.write_bytes(whole)


# -- containers without checksums ----------------------------------------------------------------------------------


def test_records_without_a_checksum_are_counted(tmp_path: Path) -> None:
    enabled = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        save(tmp_path / "none.pt", (5, 5), (3,))
    finally:
        torch.serialization.set_crc32_options(enabled)
    save_file({"a": torch.ones(4), "b": torch.ones(2, 2)}, tmp_path / "a.safetensors")
    torch.save({"x": torch.ones(3)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    with zipfile.ZipFile(tmp_path / "none.pt") as archive:
        disabled = [info.CRC for info in archive.infolist()]
    assert not any(disabled)
    for name, count in (("none.pt", len(disabled)), ("a.safetensors", 2), ("old.pt", 1)):
        found = looked(tmp_path / name)
        assert found.report.checked is not None
        assert (found.exit_code, found.report.checked["without_crc"]) == (0, count), name


def header_of(tensors: dict[str, tuple[int, int]], size: int) -> bytes:
    entries = {n: {"dtype": "F32", "shape": [(e - s) // 4], "data_offsets": [s, e]} for n, (s, e) in tensors.items()}
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text + bytes(size)


@pytest.mark.parametrize(
    ("tensors", "size", "message"),
    [
        ({"a": (0, 8), "b": (12, 16)}, 16, "hole"),
        ({"a": (0, 8), "b": (4, 16)}, 16, "overlap"),
        ({"a": (0, 8), "b": (8, 16)}, 12, "overlap"),
        ({"a": (0, 8), "b": (8, 16)}, 20, "hole"),
    ],
)
def test_safetensors_that_do_not_tile_their_file_are_named(
    tensors: dict[str, tuple[int, int]], size: int, message: str, tmp_path: Path
) -> None:
    save_file({"c": torch.ones(3)}, tmp_path / "model-00001-of-00002.safetensors")
    path = tmp_path / "model-00002-of-00002.safetensors"
    path.write_bytes(header_of(tensors, size))
    found = looked(tmp_path)
    assert (found.exit_code, message in words(found), str(path) in words(found)) == (6, True, True)


def test_an_index_that_names_what_is_not_there(tmp_path: Path) -> None:
    save_file({"c": torch.ones(3)}, tmp_path / "model-00001-of-00002.safetensors")
    index: dict[str, Any] = {"weight_map": {"c": "model-00001-of-00002.safetensors"}}
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps(index))
    assert looked(tmp_path).exit_code == 0
    index["weight_map"]["d"] = "model-00001-of-00002.safetensors"
    path.write_text(json.dumps(index))
    assert "in the index, and in no file, the first is d " in words(looked(tmp_path))
    index["weight_map"]["d"] = "model-00002-of-00002.safetensors"
    path.write_text(json.dumps(index))
    assert "the shard model-00002-of-00002.safetensors is missing" in words(looked(tmp_path))


# -- cut short -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["torch", "old", "safetensors"])
def test_a_file_cut_short_anywhere_is_found(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    save(folder / "other.pt", (4,))
    path = folder / ("model.safetensors" if kind == "safetensors" else "pytorch_model.bin")
    tensors = {"a": torch.arange(300.0), "b": torch.arange(7.0)}
    if kind == "safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path, _use_new_zipfile_serialization=kind == "torch")
    size = path.stat().st_size
    for nbytes in (*random.Random(0).sample(range(size), 20), 0, size - 1):
        shutil.copytree(folder, tmp_path / "cut")
        cut(tmp_path / "cut" / path.name, nbytes)
        found = looked(tmp_path / "cut")
        assert found.exit_code == 6, nbytes
        assert path.name in words(found)
        shutil.rmtree(tmp_path / "cut")


# -- missing and mixed ---------------------------------------------------------------------------------------------


def drop(pattern: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        (path,) = root.glob(pattern)
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return change


def cut_half(pattern: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        (path,) = root.glob(pattern)
        cut(path, path.stat().st_size // 2)

    return change


def other_iteration(pattern: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        (path,) = root.glob(pattern)
        state = oracle.load_plain(path)
        state["iteration"] += 1
        torch.save(state, path)

    return change


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (drop("iter_0000003/mp_rank_01_000"), "mp_rank_01_000"),
        (drop("iter_0000003/mp_rank_01_001/*.pt"), "mp_rank_01_001"),
        (drop("iter_0000003/mp_rank_00_000"), "mp_rank_00_000"),
        (drop(TRACKER), TRACKER),
        (lambda root: (root / TRACKER).write_text("4"), "iter_0000004"),
        (lambda root: (root / TRACKER).write_text("x"), TRACKER),
        (cut_half("iter_0000003/mp_rank_01_000/*.pt"), "mp_rank_01_000"),
        (other_iteration("iter_0000003/mp_rank_01_000/*.pt"), "mp_rank_01_000"),
    ],
)
def test_a_legacy_folder_that_is_not_whole(change: Callable[[Path], None], name: str, gpt: Path) -> None:
    change(gpt)
    found = looked(gpt)
    assert (found.exit_code, name in words(found)) == (6, True), words(found)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (drop("global_step3/layer_04-model_01*"), "layer_04-model_01"),
        (drop("global_step3/layer_04*model_00*"), "layer_04-model_00"),
        (drop("global_step3/mp_rank_02*"), "mp_rank_02"),
        (drop("latest"), "latest"),
        (cut_half("global_step3/layer_04-model_01*"), "layer_04-model_01"),
        (cut_half("global_step3/mp_rank_02*"), "mp_rank_02"),
    ],
)
def test_a_deepspeed_folder_that_is_not_whole(change: Callable[[Path], None], name: str, tmp_path: Path) -> None:
    shutil.copytree(BLOOM.folder, tmp_path / "copy")
    change(tmp_path / "copy")
    found = looked(tmp_path / "copy")
    assert (found.exit_code, name in words(found)) == (6, True), words(found)


@pytest.mark.parametrize("name", [".metadata", "__1_0.distcp", "__3_1.distcp"])
def test_a_torch_dist_folder_that_is_not_whole(name: str, tmp_path: Path) -> None:
    for number, change in enumerate((drop(name), cut_half(name))):
        shutil.copytree(DISTCP, tmp_path / f"{number}")
        change(tmp_path / f"{number}")
        found = looked(tmp_path / f"{number}")
        assert (found.exit_code, name in words(found)) == (6, True), words(found)


def test_an_iteration_s_own_folder_needs_no_tracker(gpt: Path) -> None:
    (gpt / TRACKER).unlink()
    assert looked(gpt / "iter_0000003").exit_code == 0
