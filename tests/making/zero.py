"""Plain DeepSpeed folders at ZeRO 0 to 3, entry by entry as the engine of deepspeed 0.19.8 writes them.

[``runtime/engine.py`` ``_save_checkpoint`` and ``_save_zero_checkpoint``; ``state_dict`` of ``runtime/zero/``
``stage_1_and_2.py`` and ``stage3.py``, of ``runtime/bf16_optimizer.py`` and ``runtime/fp16/unfused_optimizer.py``.]
Padding is filled with a number that is nowhere else: the engine leaves there what the memory had.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tests.making.zero_classes import LossScaler, ZeroStageEnum, fragment_address, save
from tests.making.zero_values import DTYPES, ODD, Model, Parameter, Tensors, buffers_of, masters_of

POISON = 7.7e34
VERSION = "0.19.8"
Entries = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """How the engine was configured.

    ``bf16_optimizer`` is BF16_Optimizer: fp32 gradients at stage 1, and at stage 0 with pipelines. ``sub_group`` is
    ZeRO-3's ``sub_group_size``. ``masters`` is the dtype of the flat groups, 16 bits with
    ``bf16_master_weights_and_grads``. ``swapped`` has ZeRO-3's masters on NVMe: the file holds none.
    """

    stage: int = 2
    dp: int = 2
    dtype: str = "bf16"
    aligned: bool = False
    round_robin: bool = False
    bf16_optimizer: bool = False
    sub_group: int = 10**9
    masters: str = "fp32"
    swapped: bool = False
    exclude_frozen: bool = False
    tag: str = "global_step3"


@dataclass(frozen=True)
class Truth:
    """What is right: ``trained`` masters, ``module`` 16-bit tensors and buffers, ``shared`` {name: the kept one}.

    At ZeRO-3 the module's values are what gathering would give; the file has no such tensor but the frozen ones.
    """

    trained: Tensors
    module: Tensors
    shared: dict[str, str]

    def master(self) -> Tensors:
        """Whole tensors with the masters where there are any."""
        return self.module | self.trained | {name: self.trained[kept] for name, kept in self.shared.items()}


@dataclass(frozen=True)
class Flat:
    """One group of the optimizer as one vector, ``per_rank`` elements to a rank, and where each parameter begins."""

    order: list[Parameter]
    starts: list[int]
    paddings: list[int]
    end: int
    per_rank: int


def write_run(root: Path, run: Run = Run(), model: Model = ODD, values: Tensors | None = None) -> Truth:
    """Write ``root/latest`` and the tag folder; ``values`` are the masters, by default labels of their own."""
    folder = root / run.tag
    folder.mkdir(parents=True)
    (root / "latest").write_text(run.tag)
    masters = values or masters_of(model, run.dtype)
    rounded = {name: tensor.to(DTYPES[run.dtype], copy=True) for name, tensor in masters.items()}
    shared = {each.name: each.shares for each in model.parameters if each.shares is not None}
    for rank in range(run.dp if run.stage == 3 else 1):
        prefix = f"zero_pp_rank_{rank}_" if run.stage == 3 else ""
        save(model_file(run, model, rank, masters, rounded), folder / f"{prefix}mp_rank_00_model_states.pt")
    for rank in range(run.dp if run.stage or run.bf16_optimizer else 0):
        prefix = "bf16_" if run.dtype == "bf16" else ""
        state = {"optimizer_state_dict": optimizer_state(run, model, rank, masters), **_ending(run)}
        save(state, folder / f"{prefix}zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
    names = [each.name for each in model.parameters if not (run.exclude_frozen and each.group is None)]
    module = {name: rounded[shared.get(name, name)] for name in names}
    stored = DTYPES[run.masters]
    trained = {each.name: masters[each.name].to(stored) for each in model.own if each.flat}
    return Truth(trained, module | buffers_of(model), shared)


def model_file(run: Run, model: Model, rank: int, masters: Tensors, rounded: Tensors) -> Entries:
    """``*_model_states.pt``."""
    zero = run.stage > 0 or run.bf16_optimizer
    # ZeRO-1 keeps no record of what is frozen: only stages that split the gradients do.
    kept = [each for each in model.own if not each.flat] if run.stage >= 2 and not run.exclude_frozen else None
    shared = {each.name: each.shares for each in model.parameters if each.shares is not None}
    storage = _module(run, model, rounded)
    fragments = kept and {each.name: _piece(rounded[each.name], rank, run.dp) for each in kept}
    if run.stage == 2:
        fragments = kept and {each.name: storage[each.name] for each in kept}
    return {
        "module": OrderedDict(_named_as_saved(run, model, storage)),
        "buffer_names": list(model.buffers),
        "optimizer": None if zero else whole_optimizer(run, model, masters),
        "param_shapes": param_shapes(run, model) if zero else None,
        "frozen_param_shapes": None if kept is None else OrderedDict((e.name, torch.Size(e.shape)) for e in kept),
        "shared_params": (shared if rank == 0 else {}) if zero else None,
        "frozen_param_fragments": None if kept is None else OrderedDict(fragments or {}),
        "lr_scheduler": None,
        "data_sampler": None,
        "random_ltd": None,
        "skipped_steps": 0,
        "global_steps": 3,
        "global_samples": 6 * run.dp,
        "dp_world_size": run.dp,
        "mp_world_size": 1,
        "checkpoint_parallel_dimensions": {"pp_degree": 1, "tp_degree": 1},
        **_ending(run),
    }


def param_shapes(run: Run, model: Model) -> list[OrderedDict[str, torch.Size]]:
    """By group in the order of the flat vectors; by sub-group at ZeRO-3."""
    groups = list(sub_groups(run, model)) if run.stage == 3 else [flat(run, group).order for group in model.groups()]
    return [OrderedDict((each.name, torch.Size(each.shape)) for each in group) for group in groups]


def _named_as_saved(run: Run, model: Model, storage: Tensors) -> Iterator[tuple[str, torch.Tensor]]:
    """The entries of ``module``; at ZeRO-3 each parameter is a placeholder, both names of a shared one too."""
    for each in model.parameters:
        if not (run.exclude_frozen and each.group is None):
            whole = storage[each.shares or each.name]
            yield each.name, torch.empty(0, dtype=whole.dtype) if run.stage == 3 else whole
    yield from buffers_of(model).items()


def _module(run: Run, model: Model, rounded: Tensors) -> Tensors:
    """The module's tensors: at ZeRO-1 and 2 those of a group are views of its one flat vector."""
    found = dict(rounded)
    if run.stage in (1, 2) or run.bf16_optimizer:
        for group in (flat(run, group) for group in model.groups()):
            whole = _joined(group, run, found)
            for each, start in zip(group.order, group.starts, strict=True):
                found[each.name] = whole[start : start + each.numel].view(each.shape)
    return found


def flat(run: Run, group: Sequence[Parameter]) -> Flat:
    """How ZeRO-1 and 2 lay a group out: aligned between parameters if asked for, then to twice the ranks."""
    order = [each for first in range(run.dp) for each in group[first :: run.dp]] if run.round_robin else list(group)
    step = (16 // DTYPES[run.dtype].itemsize) if run.aligned else 1
    starts, paddings, end = [], [], 0
    for each in order:
        starts.append(end)
        end += each.numel
        paddings.append(0 if each is order[-1] else -end % step)
        end += paddings[-1]
    return Flat(order, starts, paddings, end, (end + -end % (2 * run.dp)) // run.dp)


def _joined(group: Flat, run: Run, values: Tensors) -> torch.Tensor:
    whole = torch.full((group.per_rank * run.dp,), POISON).to(values[group.order[0].name].dtype)
    for each, start in zip(group.order, group.starts, strict=True):
        whole[start : start + each.numel] = values[each.name].flatten()
    return whole


def optimizer_state(run: Run, model: Model, rank: int, masters: Tensors) -> Entries:
    """``optimizer_state_dict`` of one rank."""
    if run.stage == 3:
        return stage_3(run, model, rank, masters)
    groups = [flat(run, group) for group in model.groups()]
    wholes = [_joined(group, run, masters).to(DTYPES[run.masters]) for group in groups]
    parts = [whole.view(run.dp, -1)[rank].clone().requires_grad_() for whole in wholes]
    moments = {"base_optimizer_state": _adam(parts, list(range(len(parts))))}
    counts = {"partition_count": [run.dp] * len(groups), "ds_version": VERSION}
    mappings = {"param_slice_mappings": [_slices(run, group, rank) for group in model.groups()]}
    if run.bf16_optimizer:
        last = rank == run.dp - 1
        paddings = [group.per_rank * run.dp - group.end if last else 0 for group in groups]
        whole = {"single_partition_of_fp32_groups": parts, "group_paddings": paddings}
        return {"clip_grad": 0.0, **moments, **whole, **counts, **mappings}
    over = [min(each.per_rank, max(0, each.per_rank * (rank + 1) - each.end)) for each in groups]
    return {
        **_scaler(run),
        "clip_grad": 0.0,
        **moments,
        "single_partition_of_fp32_groups": [part[: len(part) - cut] for part, cut in zip(parts, over, strict=True)],
        "zero_stage": ZeroStageEnum(run.stage),
        "group_paddings": over,
        "param_alignment_paddings": [group.paddings for group in groups],
        **counts,
        **mappings,
    }


def _slices(run: Run, group: Sequence[Parameter], rank: int) -> OrderedDict[str, fragment_address]:
    """What of the group's parameters a partition has; with round robin wrong as the engine's are, in another order."""
    laid, found = flat(run, group), OrderedDict()
    begin = laid.per_rank * rank
    starts = dict(zip((each.name for each in laid.order), laid.starts, strict=True))
    for number, each in enumerate(group):
        unaligned = sum(other.numel for other in group[:number])
        start = starts[each.name] if any(laid.paddings) else unaligned
        first, last = max(start, begin), min(start + each.numel, begin + laid.per_rank)
        if first < last:
            found[each.name] = fragment_address(numel=last - first, start=first - begin)
    return found


def sub_groups(run: Run, model: Model) -> Iterator[list[Parameter]]:
    """ZeRO-3's: a new one begins after ``sub_group`` elements of a rank, and with each group."""
    for group in model.groups():
        found: list[Parameter] = []
        for each in group:
            found.append(each)
            if sum(-(-other.numel // run.dp) for other in found) >= run.sub_group:
                yield found
                found = []
        if found:
            yield found


def _piece(tensor: torch.Tensor, rank: int, dp: int) -> torch.Tensor:
    """One rank's ceil(numel / DP) elements of a parameter."""
    length = -(-tensor.numel() // dp)
    whole = torch.full((length * dp,), POISON).to(tensor.dtype)
    whole[: tensor.numel()] = tensor.flatten()
    return whole[length * rank :][:length].clone()


def stage_3(run: Run, model: Model, rank: int, masters: Tensors) -> Entries:
    parts = []
    for number, group in enumerate(sub_groups(run, model)):
        part = torch.cat([_piece(masters[each.name], rank, run.dp) for each in group]).to(DTYPES[run.masters])
        parts.append((torch.empty(0) if run.swapped else part).requires_grad_())
        parts[-1].ds_id = f"{number}_{number + len(group) - 1}"
    owners = [number for number, group in enumerate(model.groups()) for _ in sub_groups(run, Model(tuple(group)))]
    return {
        "zero_stage": ZeroStageEnum.weights,
        **_scaler(run),
        "partition_count": run.dp,
        "optimizer_state_dict": _adam([part.detach() for part in parts], owners),
        "fp32_flat_groups": parts,
    }


def whole_optimizer(run: Run, model: Model, masters: Tensors) -> Entries:
    """ZeRO-0: torch's own in fp32, else the masters too, whole and without names."""
    # No flat vector, so what has no elements is trained as anything else.
    groups = [
        [masters[each.name].clone().requires_grad_() for each in model.own if each.group == number]
        for number in range(len(model.groups()))
    ]
    state = _adam([each for group in groups for each in group], [n for n, group in enumerate(groups) for _ in group])
    if run.dtype == "fp32":
        return state
    scale: Entries = {"dynamic_loss_scale": False, "cur_scale": 1.0, "cur_iter": 3}
    return {**scale, "optimizer_state_dict": state, "fp32_groups": groups}


def _adam(parts: Sequence[torch.Tensor], owners: Sequence[int]) -> Entries:
    """AdamW's state dict; the moments are other numbers than the weights."""
    flags: Entries = dict.fromkeys(("amsgrad", "maximize", "foreach", "capturable", "differentiable"), False)
    flags |= {"foreach": None, "fused": None, "decoupled_weight_decay": True}
    state = {
        number: {"step": torch.tensor(3.0), "exp_avg": part.detach() * 3, "exp_avg_sq": part.detach().abs() * 5}
        for number, part in enumerate(parts)
    }
    rates = {"lr": 0.01, "betas": (0.9, 0.999), "eps": 1e-08, "weight_decay": 0.01}
    held = [[number for number, owner in enumerate(owners) if owner == group] for group in sorted(set(owners))]
    return {"state": state, "param_groups": [{**rates, **flags, "params": numbers} for numbers in held]}


def _scaler(run: Run) -> Entries:
    scaler = LossScaler(128 if run.dtype == "fp16" else 1.0)
    return {"loss_scaler": scaler, "dynamic_loss_scale": False, "overflow": False}


def _ending(run: Run) -> Entries:
    zero: Entries = {"stage": run.stage, "parameter_alignment": run.aligned, "round_robin_gradients": run.round_robin}
    enabled = {} if run.dtype == "fp32" else {run.dtype: {"enabled": True}}
    config = {"train_micro_batch_size_per_gpu": 2, "zero_optimization": zero, **enabled}
    return {"ds_config": config, "ds_version": VERSION}
