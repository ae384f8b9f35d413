"""The layout of a target: as requested, otherwise that of the source."""

from __future__ import annotations

from streamconv.core.errors import AmbiguousError, UsageError
from streamconv.core.layout import ParallelLayout, even_stages
from streamconv.formats.source import StoredModel
from streamconv.formats.target import TargetFormat
from streamconv.planning.request import WantedLayout

__all__ = ["target_layout"]


def target_layout(
    model: StoredModel, target: TargetFormat, wanted: WantedLayout, container: str | None
) -> ParallelLayout:
    """The layout of a sharded target.

    Args:
        model: the source.
        target: the target's format.
        wanted: the requested layout.
        container: Megatron-Core's container, ``torch_dist`` or ``torch``; None is the default.

    Raises:
        UsageError: the request contradicts itself or the model.
        AmbiguousError: the source's stages are to be kept, and are unknown.
    """
    tp = wanted.tp if wanted.tp is not None else model.tp
    stages = _target_stages(model, wanted)
    vpp = wanted.vpp
    if target.is_core and container in (None, "torch_dist") and vpp not in (None, 1):
        raise UsageError(
            "--vpp has no meaning with --container torch_dist: its reader cuts stages as it likes",
            remedy="leave it out, or say --container torch",
        )
    if vpp is None:
        # Virtual stages are kept if the stages are kept and the target has virtual ones.
        has_them = "--vpp" in target.takes and (not target.is_core or container == "torch")
        vpp = model.vpp if has_them and model.layout is not None and stages == model.stages else 1
    return ParallelLayout(tp, stages, vpp)


def _target_stages(model: StoredModel, wanted: WantedLayout) -> tuple[int, ...]:
    """The number of layers on each stage: as requested, otherwise the source's."""
    if wanted.pp_layers is not None:
        if wanted.pp not in (None, len(wanted.pp_layers)):
            raise UsageError(
                f"--pp {wanted.pp} and {len(wanted.pp_layers)} stages in --pp-layers", remedy="say one of them"
            )
        if min(wanted.pp_layers) < 1:
            raise UsageError("--pp-layers: a stage without layers", remedy="each stage needs at least one")
        if sum(wanted.pp_layers) != model.num_layers:
            raise UsageError(
                f"--pp-layers {','.join(map(str, wanted.pp_layers))} adds up to {sum(wanted.pp_layers)} layers",
                remedy=f"the model has {model.num_layers}",
            )
        return wanted.pp_layers
    if wanted.pp is not None and wanted.pp != model.pp:
        if not 1 <= wanted.pp <= model.num_layers:
            raise UsageError(f"--pp {wanted.pp}: the model has {model.num_layers} layers", remedy="choose fewer stages")
        return even_stages(model.num_layers, wanted.pp)
    if model.stages is None:
        raise AmbiguousError(
            f"the source's PP is {model.pp or 'unknown'}, and nothing says which stage owned which layer",
            where=model.path,
            remedy=f"say --pp-layers N,N,.. adding up to {model.num_layers}, or another --pp",
        )
    return model.stages
