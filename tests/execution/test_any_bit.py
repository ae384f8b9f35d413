"""One flipped bit anywhere in a parameter's bytes: verify finds the record, diff the element and its place."""

from __future__ import annotations

import random
import shutil
import zipfile
from pathlib import Path

import pytest

import streamconv
from tests import damage
from tests.places import REAL, Source

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("source", REAL[:6], ids=lambda source: source.name)
def test_a_bit_of_any_file_is_found_and_located(source: Source, tmp_path: Path) -> None:
    """Of each file of parameters one bit, seeded: replicas of every rank and padding rows are among them."""
    chosen = random.Random(source.name)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for folder in (whole, broken):
        # Without the optimizer files, of which the repository has a part.
        shutil.copytree(source.folder, folder, ignore=shutil.ignore_patterns("*_optim_states.pt"))
    folder = broken / "global_step3"
    files = sorted(folder.glob("layer_*.pt")) or sorted(folder.glob("mp_rank_*.pt"))
    for path in files:
        before = path.read_bytes()
        tensors = streamconv.open_checkpoint(path)
        name = chosen.choice([n for n in tensors if path.name.startswith("layer_") or n.startswith("module.")])
        view = tensors[name].pieces[0].views[0]
        size = tensors[name].dtype.itemsize
        element = chosen.randrange(tensors[name].numel)
        place = view.storage.offset + (view.offset + element) * size
        damage.flip(path, place + chosen.randrange(size), chosen.randrange(8))
        found = streamconv.verify(broken)
        assert found.exit_code == 6
        (finding,) = found.broken
        assert view.storage.name in finding.what
        assert finding.where is not None
        assert finding.where.startswith(f"{path}, bytes ")
        damage.mend(path)
        assert streamconv.verify(broken).exit_code == 0
        (value,) = streamconv.diff(whole, broken).values
        assert value.elements == 1
        assert (value.b.file, value.b.offset) == (str(path), place), (name, value)
        assert value.a.offset == place
        path.write_bytes(before)
    assert streamconv.diff(whole, broken).is_equal


def test_what_a_conversion_left_is_not_taken_for_a_checkpoint(tmp_path: Path) -> None:
    """A folder with the work of a conversion that ended early: said so, and verify refuses it."""
    out = tmp_path / "out"
    streamconv.convert(REAL[1].folder, out, max_ram="2G", to="megatron-legacy")
    work = out / ".streamconv"
    (work / "new").mkdir(parents=True, exist_ok=True)
    (work / "journal").write_text("{}\n")
    with zipfile.ZipFile(work / "new" / "half.pt", "w") as archive:
        archive.writestr("half/data.pkl", b"N.")
    found = streamconv.verify(out)
    assert found.exit_code == 6
    assert ["has not finished" in finding.what for finding in found.broken] == [True]
    assert not any("half" in name for name in streamconv.open_checkpoint(out).files)
