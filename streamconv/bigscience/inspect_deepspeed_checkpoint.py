"""``inspect_deepspeed_checkpoint``: the options and lines of bigscience's script of that name."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from streamconv.bigscience.arguments import path
from streamconv.cli.main import guarded
from streamconv.core.text import printable

if TYPE_CHECKING:
    from streamconv.bigscience.degree_files import RankedFolder
    from streamconv.bigscience.degree_maps import DegreeMaps, RankMap

__all__ = ["main"]

_NAME = "inspect_deepspeed_checkpoint"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return guarded(_run, argv)


def _run(words: list[str]) -> int:
    arguments = _arguments(words)
    from streamconv.bigscience.degree_files import open_folder
    from streamconv.bigscience.degree_maps import maps_to
    from streamconv.bigscience.python_text import one_line, text_of

    print("Inspecting DeepSpeed Checkpoint")
    print(
        f"args = Namespace(folder={arguments.folder!r}, target_tp={arguments.target_tp}, "
        f"target_pp={arguments.target_pp})"
    )
    folder = open_folder(arguments.folder)
    maps = maps_to(folder, arguments.target_tp, arguments.target_pp)
    for note in (*folder.notes(), *maps.notes):
        _note(note)
    for file in folder.files:
        if not Path(file).is_file():
            print(f"Error: {one_line(file)} is not existent")
    _show_simple_state(folder, maps)
    _show_files(folder)
    _show_simple_state(folder, maps)
    _show_mappings(folder, maps)
    if folder.keys:
        _show_states(maps)
    else:
        _note("no layer files: the model is whole in each mp_rank file, and inspect_checkpoint lists it")
    print(f"checkpoint args = {text_of(folder.args, str(folder.home))}")
    sys.stdout.flush()
    return 0


def _arguments(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=_NAME,
        description="Print the files of a DeepSpeed checkpoint, its degrees, what ranks of other degrees would join, "
        "and all shapes, with the lines of the script of that name. Only metadata is read. `streamconv inspect` says "
        "more.",
    )
    parser.add_argument("--folder", required=True, type=path, help="DeepSpeed Checkpoint folder")
    parser.add_argument("--target_tp", type=int, help="Target TP degree")
    parser.add_argument("--target_pp", type=int, help="Target PP degree")
    parser.add_argument("-v", "--verbose", action="count", default=0, help="-vv: tracebacks too")
    return parser.parse_args(words)


def _note(text: str) -> None:
    print(f"{_NAME}: {printable(text)}", file=sys.stderr)


def _show_simple_state(folder: RankedFolder, maps: DegreeMaps) -> None:
    source, target = folder.degrees, maps.target
    print(f"layer keys = {folder.keys}")
    print(f"layer count = {len(folder.keys)}")
    print(f"tp_degree_count = {source.tp} ------> {target.tp}")
    print(f"pp_degree_count = {source.pp} ------> {target.pp}")
    print(f"dp_degree_count = {target.dp}")
    _show_ranks("old 2d map ==>", maps.old_ranks)
    _show_ranks("new 2d map ==>", maps.new_ranks)


def _show_ranks(tag: str, ranks: RankMap) -> None:
    print(tag)
    for (stage, rank), numbers in ranks.items():
        print(f"{stage},{rank} = {numbers}")


def _show_files(folder: RankedFolder) -> None:
    from streamconv.bigscience.python_text import one_line

    kinds = {"all": folder.files, "zero": folder.zero, "layer": folder.layers, "mp rank": folder.ranks}
    for tag, files in kinds.items():
        print(f"Listing files: {tag}")
        for number, file in enumerate(files, start=1):
            print(f"{number}: {one_line(file)}")


def _show_mappings(folder: RankedFolder, maps: DegreeMaps) -> None:
    shown: dict[str, Mapping[int, object] | Mapping[tuple[int, int], object]] = {
        "pp_to_transformer_layers": maps.stages,
        "rank_to_transformer_files": maps.layers,
        "tp_to_embedding_layers": maps.embedding,
        "tp_to_final_norm_layers": maps.norm,
    }
    for tag, mapping in shown.items():
        print(f"Dump mapping: {tag}")
        for key, value in mapping.items():
            print(f"{key} = {value}")
    print("reshaped 2d map ---- begin")
    for stage in range(maps.target.pp):
        for rank in range(maps.target.tp):
            print(f"[{stage}, {rank}] = {[folder.ranks[number] for number in maps.new_ranks[stage, rank]]}")
    print("reshaped 2d map ---- end")


def _show_states(maps: DegreeMaps) -> None:
    """Print the shapes that each rank of the target would load, one state dict at a time."""
    doubled: set[str] = set()
    for rank, files in maps.embedding.items():
        _show_summary(f"embedding[{rank}]", files, doubled)
    for rank, files in maps.norm.items():
        _show_summary(f"final_norm[{rank}]", files[:1], doubled)
    for rank in range(maps.target.tp):
        for stage in range(maps.target.pp):
            print(f"tp_pp_rank[{rank},{stage}] = ")
            for number, files in enumerate(maps.layers.get((rank, stage), [])):
                _show_summary(f"      block[{number}]", files, doubled)
                print()
    if doubled:
        _note(f"joined as DeepSpeed joins them, although each rank holds them whole: {', '.join(sorted(doubled))}")


def _show_summary(tag: str, files: list[str], doubled: set[str]) -> None:
    from streamconv.bigscience.degree_maps import merged_shapes, stays_whole
    from streamconv.bigscience.python_text import size_text

    shapes = merged_shapes(files)
    if len(files) > 1:
        doubled.update(filter(stays_whole, shapes))
    print(f"{tag} = {{{', '.join(f'{key!r}: {size_text(shape)}' for key, shape in shapes.items())}}}")
