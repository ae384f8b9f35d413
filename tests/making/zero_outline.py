"""What a DeepSpeed file is made of, without its weights: to set the writer's files beside the engine's own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tests.making.zero import Entries, Run
from tests.making.zero_classes import load
from tests.making.zero_values import DTYPES, Model, Parameter

# Settings of the run and of its optimizer, which are no part of the layout.
FREE = {"ds_config", "ds_version", "clip_grad", "global_steps", "global_samples", "lr_scheduler", "loss_scaler"}


def outline(value: Any) -> Any:
    """Keys in order, types, numbers; of a tensor its dtype, shape, place in its storage and attributes."""
    if isinstance(value, torch.Tensor):
        place = value.storage_offset(), value.untyped_storage().nbytes()
        return str(value.dtype), tuple(value.shape), *place, value.requires_grad, sorted(vars(value))
    if isinstance(value, Mapping):
        kept = {key: type(each) if key in FREE else outline(each) for key, each in value.items()}
        return [type(value), *({"params": kept["params"]} if "lr" in kept else kept).items()]
    if type(value) in (list, tuple):
        return [type(value), *map(outline, value)]
    return type(value), vars(value) if hasattr(value, "numel") and not isinstance(value, torch.Size) else value


def outline_of_folder(root: Path) -> dict[str, Any]:
    """The outline of every file in the tag folder; the entries of ``module`` in any order, buffers by name alone."""
    found = {}
    for path in sorted((root / (root / "latest").read_text()).glob("*_states.pt")):
        state = load(path)
        if "module" in state:
            buffers = set(state["buffer_names"])
            module = {name: "a buffer" if name in buffers else each for name, each in state["module"].items()}
            state = {**state, "module": dict(sorted(module.items())), "buffer_names": sorted(buffers)}
            # What the client added comes after the engine's own.
            state = {key: state[key] for key in list(state)[: 1 + list(state).index("ds_version")]}
        found[path.name] = outline(state)
    return found


def described(root: Path) -> tuple[Run, Model]:
    """The run and the model of a real folder at ZeRO 1 to 3, so that the writer can write it again."""
    folder = root / (root / "latest").read_text()
    models = sorted(folder.glob("*_model_states.pt"))
    state, first = load(models[0]), load(min(folder.glob("*_optim_states.pt")))
    inner, zero = first["optimizer_state_dict"], first["ds_config"]["zero_optimization"]
    stage = int(inner.get("zero_stage", zero["stage"]))
    trained = set().union(*state["param_shapes"])
    dtypes = {str(state["module"][name].dtype) for name in trained if name in state["module"]}
    run = Run(
        stage=stage,
        dp=state["dp_world_size"],
        dtype=next(name for name, dtype in DTYPES.items() if str(dtype) in dtypes),
        aligned=zero.get("parameter_alignment", False),
        round_robin=zero.get("round_robin_gradients", False),
        bf16_optimizer="zero_stage" not in inner,
        sub_group=zero.get("sub_group_size", 10**9),
        exclude_frozen=stage > 1 and state["frozen_param_shapes"] is None,
        tag=folder.name,
    )
    return run, _model(run, state, inner)


def _model(run: Run, state: Entries, inner: Entries) -> Model:
    shapes = [list(group.items()) for group in state["param_shapes"]]
    owners = list(range(len(shapes)))
    if run.stage == 3:
        groups = inner["optimizer_state_dict"]["param_groups"]
        owners = [number for number, group in enumerate(groups) for _ in group["params"]]
    elif run.round_robin:
        shapes = [_as_given(group, run.dp) for group in shapes]
    found = [
        Parameter(name, tuple(shape), owner)
        for owner, group in zip(owners, shapes, strict=True)
        for name, shape in group
    ]
    shared = state["shared_params"]
    frozen = dict(state["frozen_param_shapes"] or {})
    for name, tensor in state["module"].items():
        if name not in {each.name for each in found} | set(shared) | set(frozen) | set(state["buffer_names"]):
            frozen[name] = tensor.shape
    # What is left of these where the frozen are excluded has no elements.
    group = 0 if run.exclude_frozen else None
    order = [name for name in state["module"] if name in frozen]
    found += [Parameter(name, tuple(frozen[name]), group) for name in order]
    found += [Parameter(name, tuple(state["module"][kept].shape), 0, shares=kept) for name, kept in shared.items()]
    return Model(tuple(found), tuple(state["buffer_names"]))


def _as_given(order: list[Any], dp: int) -> list[Any]:
    """A group in the order before round robin."""
    found: list[Any] = [None] * len(order)
    rest = iter(order)
    for first in range(min(dp, len(order))):
        for place in range(first, len(order), dp):
            found[place] = next(rest)
    return found
