"""The source files that each rank of a target with another TP and PP needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from streamconv.core.errors import UsageError
from streamconv.core.layout import ParallelLayout, even_stages
from streamconv.inspection.report import Cell, ParallelFacts

__all__ = ["FIRST", "LAST", "map_target"]

FIRST, LAST = "first", "last"


def map_target(
    tp: int | None,
    pp: int | None,
    source: ParallelFacts,
    num_layers: int,
    widest: int,
    files: Mapping[tuple[int | str, int], Sequence[str]],
) -> ParallelFacts:
    """The map of a target; a size that is None is the source's.

    Args:
        tp: target tensor-parallel size.
        pp: target pipeline-parallel size; if it changes, the layers are spread as evenly as possible.
        source: the source's sizes.
        num_layers: transformer layers.
        widest: the most parts that something in a layer can be cut into.
        files: the files of (layer, source rank); ``"first"`` and ``"last"`` stand for the parts before and after the
            layers.

    Raises:
        UsageError: a size is below 1 or too large, there are more stages than layers, or the source's own size is
            needed and unknown.
    """
    ranks = source.tp or 1
    if tp is not None and tp < 1:
        raise UsageError(f"--target-tp {tp}: must be at least 1")
    if tp is not None and tp > widest:
        raise UsageError(
            f"--target-tp {tp}: nothing in the model can be cut into more than {widest} parts",
            remedy="choose a size that divides its heads",
        )
    if pp is not None and not 1 <= pp <= num_layers:
        raise UsageError(f"--target-pp {pp}: the model has {num_layers} layers", remedy="choose 1 to that many stages")
    wanted = tp or ranks
    if source.stages is not None and pp in (None, len(source.stages)):
        owned = source.stages
    elif pp is None:
        raise UsageError("the source's stages are unknown", remedy="say --target-pp")
    else:
        layout = ParallelLayout(wanted, even_stages(num_layers, pp))
        owned = tuple(tuple(layout.layers_of(stage)) for stage in range(layout.pp))
    cells = []
    for stage, mine in enumerate(owned):
        layers: list[int | str] = [*mine]
        if stage == 0:
            layers.insert(0, FIRST)
        if stage == len(owned) - 1:
            layers.append(LAST)
        for rank in range(wanted):
            # Shards are laid side by side: target rank r of T needs the part from r/T to (r+1)/T of all source shards.
            first, last = rank * ranks // wanted, -(-(rank + 1) * ranks // wanted)
            needed = [name for layer in layers for r in range(first, last) for name in files.get((layer, r), ())]
            cells.append(Cell(stage, rank, tuple(dict.fromkeys(needed))))
    return ParallelFacts(wanted, len(owned), None, owned, tuple(cells))
