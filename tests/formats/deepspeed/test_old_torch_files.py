"""A source whose files torch before 1.6 wrote is converted as one of today's is."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

import streamconv
from streamconv.core.work_folder import RECEIPT
from tests.places import FRAMEWORKS


def test_layer_files_of_before_torch_1_6_give_the_same_result(tmp_path: Path) -> None:
    new = FRAMEWORKS / "bs_bloom_tp2pp2_fp32_z0"
    old = tmp_path / "old"
    shutil.copytree(new, old)
    for path in (old / "global_step3").glob("layer_*.pt"):
        torch.save(torch.load(path, weights_only=True), path, _use_new_zipfile_serialization=False)
        assert path.read_bytes()[:2] != b"PK"
    options = {"tp": 1, "pp": 3, "max_ram": "2G"}
    report = streamconv.convert(old, tmp_path / "from-old", **options, to="megatron-legacy")  # type: ignore[arg-type]
    streamconv.convert(new, tmp_path / "from-new", **options, to="megatron-legacy")  # type: ignore[arg-type]
    assert (report.records_checked, report.records_without_crc) == (0, 106)
    results = sorted(path.relative_to(tmp_path / "from-new") for path in (tmp_path / "from-new").rglob("*.*"))
    assert len(results) == 5
    for name in results:
        if name.name == RECEIPT:
            continue  # it is of another source
        assert (tmp_path / "from-old" / name).read_bytes() == (tmp_path / "from-new" / name).read_bytes()
