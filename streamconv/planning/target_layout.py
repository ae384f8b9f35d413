"""The layout of a target: as requested, otherwise that of the source."""

from __future__ import annotations

from streamconv.core.errors import AmbiguousError, UsageError
from streamconv.core.layout import ParallelLayout, even_stages
from streamconv.formats.options import TrainingOptions
from streamconv.formats.source import StoredModel

__all__ = ["target_layout"]


def target_layout(model: StoredModel, options: TrainingOptions) -> ParallelLayout:
    """The layout of a sharded target.

    Raises:
        UsageError: the request contradicts itself or the model.
        AmbiguousError: the source's stages are to be kept, and are unknown.
    """
    tp = options.tp if options.tp is not None else model.tp
    stages = _target_stages(model, options)
    vpp = options.virtual_stages
    if vpp is None:
        # Virtual stages are kept if the stages are kept and the target has virtual ones.
        keeps = options.has_virtual_stages and model.layout is not None and stages == model.stages
        vpp = model.vpp if keeps else 1
    return ParallelLayout(tp, stages, vpp)


def _target_stages(model: StoredModel, wanted: TrainingOptions) -> tuple[int, ...]:
    """The number of layers on each stage: as requested, otherwise the source's."""
    if wanted.pp_layers is not None:
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
