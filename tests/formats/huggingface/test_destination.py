"""Where a result may go: not where the source's bytes are, and not beside what would be loaded with it."""

from __future__ import annotations

import os
import shutil
from fnmatch import fnmatchcase
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

from streamconv import convert, plan
from streamconv.core.errors import DestinationError
from streamconv.execution.destination import _CHECKPOINTS
from tests import hf_models as models
from tests.places import REAL
from tests.trees import tree

RAM: dict[str, Any] = {"max_ram": "1G"}
GPT = next(source for source in REAL if source.name == "dsh_gpt_tp2pp2_fp32_z0")


def linked(folder: Path, to: Path) -> Path:
    """A folder of links to each file of another."""
    folder.mkdir()
    for path in to.iterdir():
        (folder / path.name).symlink_to(path)
    return folder


def test_files_that_the_source_links_to_are_not_replaced(tmp_path: Path) -> None:
    models.make("llama", tmp_path / "out")
    source = linked(tmp_path / "hf", tmp_path / "out")
    before = tree(tmp_path / "out")
    with pytest.raises(DestinationError, match="a source is never written"):
        convert(source, tmp_path / "out", to="huggingface", dtype="bf16", overwrite=True, **RAM)
    assert tree(tmp_path / "out") == before
    # One link is enough, also one to a file that is not copied but retired.
    for path in source.iterdir():
        path.unlink()
    for path in (tmp_path / "out").iterdir():
        shutil.copy(path, source / path.name)
    (tmp_path / "out" / "pytorch_model.bin").write_bytes(b"optimizer")
    (source / "more.bin").symlink_to(tmp_path / "out" / "pytorch_model.bin")
    with pytest.raises(DestinationError, match=r"more\.bin is read"):
        convert(source, tmp_path / "out", to="huggingface", overwrite=True, **RAM)


def test_a_folder_of_ranks_that_is_a_link_is_not_replaced(tmp_path: Path) -> None:
    convert(GPT.folder, tmp_path / "out", to="megatron", **RAM)
    (iteration,) = (tmp_path / "out").glob("iter_*")
    source = tmp_path / "src" / iteration.name
    source.mkdir(parents=True)
    for ranks in iteration.iterdir():
        (source / ranks.name).symlink_to(ranks)
    before = tree(tmp_path / "out")
    with pytest.raises(DestinationError, match="a source is never written"):
        convert(source, tmp_path / "out", to="megatron", dtype="bf16", overwrite=True, **RAM)
    assert tree(tmp_path / "out") == before


def test_a_link_in_the_destination_is_replaced_and_what_it_names_stays(tmp_path: Path) -> None:
    models.make("llama", tmp_path / "hf")
    out = linked(tmp_path / "out", tmp_path / "hf")
    before = tree(tmp_path / "hf")
    convert(tmp_path / "hf", out, to="huggingface", dtype="bf16", overwrite=True, **RAM)
    assert tree(tmp_path / "hf") == before
    assert not any(path.is_symlink() for path in out.iterdir())


def test_hard_links_are_not_in_the_way(tmp_path: Path) -> None:
    models.make("llama", tmp_path / "hf")
    shutil.copytree(tmp_path / "hf", tmp_path / "out", copy_function=os.link)
    before = tree(tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "out", to="huggingface", dtype="bf16", overwrite=True, **RAM)
    assert tree(tmp_path / "hf") == before


def test_an_older_tokenizer_and_adapter_go_with_their_model(tmp_path: Path) -> None:
    models.make("llama", tmp_path / "hf")
    out = tmp_path / "out"
    models.make("gpt", out)
    old = ("tokenizer.json", "vocab.json", "merges.txt", "adapter_config.json", "adapter_model.safetensors")
    for name in (*old, "notes.txt"):
        (out / name).write_text("old")
    convert(tmp_path / "hf", out, to="huggingface", overwrite=True, **RAM)
    assert not [name for name in old if (out / name).exists()]
    assert (out / "notes.txt").read_text() == "old"
    # A tokenizer by itself belongs to nobody's model, and stays.
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "tokenizer.json").write_text("mine")
    convert(tmp_path / "hf", tmp_path / "empty", to="huggingface", **RAM)
    assert (tmp_path / "empty" / "tokenizer.json").read_text() == "mine"


def test_a_tokenizer_of_the_destination_itself_stays(tmp_path: Path) -> None:
    models.make("llama", tmp_path / "hf")
    out = tmp_path / "out"
    models.make("llama", out)
    (out / "tokenizer.json").write_text("mine")
    convert(tmp_path / "hf", out, to="huggingface", overwrite=True, tokenizer=out, **RAM)
    assert (out / "tokenizer.json").read_text() == "mine"
    # One of another name there would be lost.
    (out / "vocab.json").write_text("mine")
    (tmp_path / "tokens").mkdir()
    (tmp_path / "tokens" / "tokenizer.json").symlink_to(out / "vocab.json")
    with pytest.raises(DestinationError, match=r"tokenizer\.json is read"):
        convert(tmp_path / "hf", out, to="huggingface", overwrite=True, tokenizer=tmp_path / "tokens", **RAM)


CHECKPOINTS = ("megatron-core", "megatron-legacy", "deepspeed", "gpt-neox", "huggingface")


@pytest.mark.parametrize(("there", "wanted"), list(permutations(CHECKPOINTS, 2)))
def test_another_frameworks_checkpoint_is_not_mixed_in(there: str, wanted: str, tmp_path: Path) -> None:
    models.make("gpt_neox", tmp_path / "neox")
    models.make("gpt", tmp_path / "gpt")
    family = {name: "neox" if name == "gpt-neox" else "gpt" for name in CHECKPOINTS}
    convert(tmp_path / family[there], tmp_path / "out", to=there, **RAM)
    before = tree(tmp_path / "out")
    with pytest.raises(DestinationError, match="holds a checkpoint"):
        convert(tmp_path / family[wanted], tmp_path / "out", to=wanted, **RAM)
    assert tree(tmp_path / "out") == before


def test_every_name_of_every_target_counts(tmp_path: Path) -> None:
    models.make("gpt_neox", tmp_path / "neox")
    models.make("gpt", tmp_path / "gpt")
    for to in CHECKPOINTS:
        work = plan(tmp_path / ("neox" if to == "gpt-neox" else "gpt"), to=to)
        names = {name.split("/", 1)[0] for name in (*work.texts, *work.small, *(file.path for file in work.files))}
        assert all(any(fnmatchcase(name, pattern) for pattern in _CHECKPOINTS) for name in names)
        assert set(work.owned) <= set(_CHECKPOINTS)
