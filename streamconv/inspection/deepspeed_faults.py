"""What is wrong with a DeepSpeed folder's files that are each whole: of different runs, no layer's, too few layers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from streamconv.containers.stored_file import StoredFile
from streamconv.inspection.deepspeed_names import DeepSpeedNames, RecordedSizes, missing_files
from streamconv.inspection.names import count
from streamconv.inspection.report import Finding
from streamconv.models.parameter import Section

__all__ = ["faults_of", "section_of", "unfinished_zips"]

_COPY = "copy it again from the training run's storage"
_SAME_RUN = "the files are of different runs or steps: keep those of one"


def unfinished_zips(folder: Path, names: Collection[str]) -> tuple[list[Finding], list[str]]:
    """The files that begin as a zip and do not end as one: they were cut off, or are still being written.

    Sixty-four bytes of each file are read: that is cheap for hundreds of optimizer files which are not opened.

    Returns:
        findings, and the files that do not begin as a zip.
    """
    cut_off, others = [], []
    for name in names:
        begins, ends = _ends_of(folder / name)
        if not begins:
            others.append(name)
        elif not ends:
            words = "the file begins as a zip and has no end: it was cut off"
            cut_off.append(Finding("damage", words, str(folder / name), _COPY, 6))
    return cut_off, others


def _ends_of(path: Path) -> tuple[bool, bool]:
    """Whether a file begins, and ends, as a zip does."""
    size = path.stat().st_size
    with path.open("rb") as file:
        begins = file.read(4) == b"PK\x03\x04"
        file.seek(max(0, size - 22))
        return begins, file.read(22).startswith(b"PK\x05\x06")


def faults_of(
    folder: Path, names: DeepSpeedNames, opened: Mapping[str, StoredFile], args: Mapping[str, Any] | None
) -> list[Finding]:
    """Files that are missing, that belong to no rank, that are of another iteration, that hold no layer."""
    tp, pp = (count(args or {}, f"{axis}_model_parallel_size") for axis in ("tensor", "pipeline"))
    model_ranks = None if tp is None else tp * (pp or 1) if names.layers else tp
    lost = None if args is None else _lost_layers(names, opened, args)
    ranks = [opened[name] for name in sorted([*names.ranks.values(), *names.zero3.values()]) if name in opened]
    dp = next((size for file in ranks if (size := _recorded_dp(file.state))), None)
    found = list(missing_files(names, RecordedSizes(tp if names.layers else None, model_ranks, dp, lost)))
    found += _mixed(ranks)
    if names.layers:
        found += _layer_faults(names, opened)
    if lost and not found:
        wanted = count(args or {}, "num_layers") or 0
        words = f"files hold {wanted - lost} transformer layers, args.num_layers says {wanted}"
        found.append(Finding("damage", words, str(folder), _COPY, 6))
    return found


def _recorded_dp(state: Any) -> int | None:
    """The data-parallel size that DeepSpeed notes in each rank's file."""
    return count(state, "dp_world_size") if isinstance(state, dict) else None


def _mixed(ranks: Sequence[StoredFile]) -> list[Finding]:
    """Rank files of more than one iteration: which are the odd ones out."""
    by_iteration: dict[int, list[str]] = defaultdict(list)
    for file in ranks:
        value = file.state.get("iteration") if isinstance(file.state, dict) else None
        if isinstance(value, int):
            by_iteration[value].append(str(file.path))
    if len(by_iteration) < 2:
        return []
    usual = max(by_iteration, key=lambda value: len(by_iteration[value]))
    return [
        Finding("damage", f"iteration {value}, where the other ranks have {usual}", path, _SAME_RUN, 6)
        for value, paths in sorted(by_iteration.items())
        for path in paths
        if value != usual
    ]


def _layer_faults(names: DeepSpeedNames, opened: Mapping[str, StoredFile]) -> Iterator[Finding]:
    """Layer files without tensors, or with others than the other ranks' file of the layer; no embedding, no end."""
    sections = set()
    for index in sorted({index for index, _ in names.layers}):
        own = [name for (layer, _), name in sorted(names.layers.items()) if layer == index and name in opened]
        keys = {name: frozenset(opened[name].tensors()) for name in own}
        usual = max((keys[name] for name in own), key=len, default=frozenset())
        sections.add(section_of(usual))
        for name in own:
            if keys[name] != usual or not usual:
                words = "its tensors are not those of the other ranks" if keys[name] else "it has no tensor"
                yield Finding("damage", f"not a layer's file: {words}", str(opened[name].path), _COPY, 6)
    if None in sections or len(opened) < len(names.layers):
        return
    if Section.EMBEDDING not in sections:
        yield Finding("damage", "no file has the word embedding: layer_01-model_*-model_states.pt", None, _COPY, 6)
    if Section.FINAL_NORM not in sections:
        yield Finding("damage", "no file has the final norm, the last of the layer files", None, _COPY, 6)


def _lost_layers(names: DeepSpeedNames, opened: Mapping[str, StoredFile], args: Mapping[str, Any]) -> int | None:
    """How many transformer layers of those that the arguments count have no file; None if that cannot be known."""
    wanted = count(args, "num_layers")
    if wanted is None or not names.layers or any(name not in opened for name in names.layers.values()):
        return None
    by_index = {index: opened[name] for (index, _), name in names.layers.items()}
    return wanted - sum(section_of(file.tensors()) is Section.LAYER for file in by_index.values())


def section_of(keys: Collection[str]) -> Section | None:
    """What part of a model a layer file with such tensors is; None if it has none."""
    if not keys:
        return None
    if "word_embeddings.weight" in keys:
        return Section.EMBEDDING
    if {"lm_head.weight", "final_linear.weight"} & set(keys):
        return Section.HEAD
    return Section.FINAL_NORM if all("norm" in key or key in ("weight", "bias") for key in keys) else Section.LAYER
