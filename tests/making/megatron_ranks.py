"""Folders of a file for each rank, as Megatron-LM saves them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from tests.making.cuts import Cut, Rank

State = dict[str, Any]

TRACKER = "latest_checkpointed_iteration.txt"


def model_entries(chunks: Sequence[Any]) -> State:
    """``model``, or ``model0``, ``model1`` and on."""
    if len(chunks) == 1:
        return {"model": chunks[0]}
    return {f"model{number}": chunk for number, chunk in enumerate(chunks)}


def rank_folder(rank: int, stage: int, pp: int) -> str:
    """The folder of a rank, in which the stage is named only with several."""
    return f"mp_rank_{rank:02d}" + (f"_{stage:03d}" if pp > 1 else "")


def save_ranks(root: Path, cut: Cut, files: Mapping[Rank, Sequence[Any]], **state: Any) -> Path:
    """The files of all ranks as iteration 7, with the same other state in each."""
    place = started(root)
    for (rank, stage), chunks in files.items():
        folder = place / rank_folder(rank, stage, cut.pp)
        folder.mkdir()
        torch.save({"iteration": 7, **model_entries(chunks), **state}, folder / "model_optim_rng.pt")
    return root


def started(root: Path) -> Path:
    """A root with a tracker; the folder of its iteration."""
    place = root / "iter_0000007"
    place.mkdir(parents=True)
    (root / TRACKER).write_text("7")
    return place


def checkpoint_of(root: Path) -> Path:
    """The iteration's folder, by the tracker."""
    word = (root / TRACKER).read_text().strip()
    return root / (word if word == "release" else f"iter_{int(word):07d}")


def read_ranks(root: Path, cut: Cut) -> dict[Rank, State]:
    """Every rank's file, of which there must be just these."""
    place = checkpoint_of(root)
    names = {(rank, stage): rank_folder(rank, stage, cut.pp) for rank, stage in cut.ranks}
    assert {path.name for path in place.iterdir()} == set(names.values())
    assert all([path.name for path in (place / name).iterdir()] == ["model_optim_rng.pt"] for name in names.values())
    # A quarter of the time of weights_only; that its loader takes these files is tested elsewhere.
    return {rank: torch.load(place / name / "model_optim_rng.pt", weights_only=False) for rank, name in names.items()}


def chunks_of(state: State, vpp: int) -> list[State]:
    """The models of a rank's file, of which there must be just so many."""
    names = list(model_entries(range(vpp)))
    assert sorted(key for key in state if re.match("model", key)) == names
    return [state[name] for name in names]


def tensors_of(chunk: State) -> dict[str, torch.Tensor]:
    """The tensors of a chunk; all else must be the empty extra state of a module."""
    rest = {name: value for name, value in chunk.items() if not isinstance(value, torch.Tensor)}
    assert all(name.endswith("._extra_state") and value is None for name, value in rest.items()), rest
    return {name: value for name, value in chunk.items() if name not in rest}


def all_tensors(files: Mapping[Rank, Sequence[Mapping[str, Any]]]) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
    """Where, and the tensors, of each chunk."""
    for (rank, stage), chunks in files.items():
        for number, chunk in enumerate(chunks):
            yield f"rank {rank}, stage {stage}, chunk {number}", tensors_of(dict(chunk))
