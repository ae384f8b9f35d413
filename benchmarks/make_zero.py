"""Make a plain DeepSpeed ZeRO checkpoint of any size, of a Llama-like model, as Hugging Face's Trainer leaves it.

    python benchmarks/make_zero.py /data/zero2 --stage 2 --nbytes 8G
    python benchmarks/make_zero.py /data/zero3 --stage 3 --nbytes 1G --dp 8

The folder `checkpoint-1000` has `latest`, `global_step1000` with the states of all data ranks, the model's config.json
and a tokenizer of three words, DeepSpeed's own zero_to_fp32.py, and, at stage 2, model.safetensors. Trainer's pickles
(scheduler.pt, training_args.bin, random states) are left out: nobody reads them to get at the weights. --nbytes counts
all that is on the disk, the optimizer's state included:

  stage 2   16-bit module, fp32 masters, two moments, model.safetensors: 16 bytes for each parameter
  stage 3   fp32 masters and two moments: 12 bytes; the 16-bit parameters are empty there

Entries are those that the engine of DeepSpeed 0.19.8 writes with AdamW and bf16. There are two groups of parameters, as
Trainer makes them: matrices, and norms, which do not decay. At stage 2 a group is flat, padded to a multiple of twice
the ranks and cut in equal parts; at stage 3 each parameter is cut in as many parts as there are ranks.

Numbers are those of make_checkpoint.py. The 16-bit ones are the masters rounded. DeepSpeed is imported for the classes
that the pickles name. Memory holds one rank's file at a time: masters and moments over the number of ranks, or the
16-bit module.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from pathlib import Path
from typing import Any, cast

import torch
from llama_shapes import LlamaShape, Shapes, write_beside
from make_checkpoint import RandomWalks, check_room
from options import positive, size

STEP = 1000
NBYTES_OF_PARAMETER = {2: 16, 3: 12}
State = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of a parameter in a rank's partition: `count` numbers from `first` on, at `place`."""

    name: str
    first: int
    count: int
    place: int


@dataclass(frozen=True, slots=True)
class Partition:
    """One rank's part of a group: what is in it, and its length with padding."""

    pieces: list[Piece]
    numel: int
    padding: int
    """Numbers at the end that belong to no parameter. Stage 3 has padding within, which does not count here."""


def groups(shapes: Shapes) -> list[Shapes]:
    """The groups of parameters: matrices, then norms."""
    return [{name: dims for name, dims in shapes.items() if (len(dims) > 1) is matrices} for matrices in (True, False)]


def partition(shapes: Shapes, stage: int, dp: int, rank: int) -> Partition:
    """What a rank has of a group."""
    numels = [prod(dims) for dims in shapes.values()]
    if stage == 2:
        total, step = sum(numels), 2 * dp
        length = -(-total // step) * step // dp
        start, stop = rank * length, min((rank + 1) * length, total)
        ends = accumulate(numels)
        spans = ((name, end - numel, end) for name, numel, end in zip(shapes, numels, ends, strict=True))
        cuts = ((name, begin, max(begin, start), min(end, stop)) for name, begin, end in spans)
        pieces = [Piece(name, low - begin, high - low, low - start) for name, begin, low, high in cuts if low < high]
        return Partition(pieces, length, length - max(0, stop - start))
    parts = [-(-numel // dp) for numel in numels]
    places = accumulate(parts, initial=0)
    counts = [max(0, min(part, numel - rank * part)) for part, numel in zip(parts, numels, strict=True)]
    # places has one more, the end of all
    found = zip(shapes, parts, counts, places, strict=False)
    return Partition([Piece(name, rank * part, count, place) for name, part, count, place in found], sum(parts), 0)


class Maker:
    """Writes the files of one checkpoint."""

    def __init__(self, folder: Path, shape: LlamaShape, stage: int, dp: int, seed: int) -> None:
        """Make numbers ready; nothing is written yet."""
        import deepspeed
        from deepspeed.runtime.fp16.loss_scaler import LossScaler
        from deepspeed.runtime.zero.config import ZeroStageEnum
        from deepspeed.utils.tensor_fragment import fragment_address

        self.version = cast(str, deepspeed.__version__)
        self.scripts = Path(cast(str, deepspeed.__file__)).parent / "utils"
        self.stage_member, self.scaler, self.fragment = ZeroStageEnum(stage), LossScaler(1.0), fragment_address
        self.folder, self.stage, self.dp = folder, stage, dp
        self.shapes = shape.parameters()
        self.groups = groups(self.shapes)
        self.walks = RandomWalks("fp32", seed)

    def masters(self, name: str) -> torch.Tensor:
        """The numbers of a whole parameter, 16 bits each."""
        dims = self.shapes[name]
        return self.walks.stretch(f"master/{name}", 0, prod(dims)).view(dims).to(torch.bfloat16)

    def flat(self, kind: str, part: Partition) -> torch.Tensor:
        """The numbers of a partition, zeros where it is padded."""
        result = torch.zeros(part.numel)
        for piece in part.pieces:
            numbers = self.walks.stretch(f"{kind}/{piece.name}", piece.first, piece.count)
            result[piece.place : piece.place + piece.count] = numbers.abs_() if kind == "exp_avg_sq" else numbers
        return result

    def adam(self, parts: Sequence[Partition]) -> State:
        """The state of torch's AdamW, one flat parameter for each group."""
        moments = ("exp_avg", "exp_avg_sq")
        state = {
            group: {"step": torch.tensor(float(STEP)), **{kind: self.flat(kind, part) for kind in moments}}
            for group, part in enumerate(parts)
        }
        options = {"lr": 1e-5, "betas": (0.9, 0.999), "eps": 1e-8, "amsgrad": False, "maximize": False}
        options |= {"foreach": None, "capturable": False, "differentiable": False, "fused": None}
        options |= {"decoupled_weight_decay": True, "initial_lr": 1e-5}
        decays = (0.01, 0.0)
        return {
            "state": state,
            "param_groups": [{"weight_decay": decays[group], **options, "params": [group]} for group in state],
        }

    def optimizer_state(self, rank: int) -> State:
        """What a rank's optimizer says of itself."""
        parts = [partition(group, self.stage, self.dp, rank) for group in self.groups]
        flat = [self.flat("master", part)[: part.numel - part.padding].requires_grad_() for part in parts]
        common = {"loss_scaler": self.scaler, "dynamic_loss_scale": False, "overflow": False}
        if self.stage == 3:
            head = {"zero_stage": self.stage_member, **common, "partition_count": self.dp}
            return {**head, "optimizer_state_dict": self.adam(parts), "fp32_flat_groups": flat}
        mappings = [
            OrderedDict((piece.name, self.fragment(piece.count, piece.place)) for piece in part.pieces)
            for part in parts
        ]
        return {
            **common,
            "clip_grad": 1.0,
            "base_optimizer_state": self.adam(parts),
            "single_partition_of_fp32_groups": flat,
            "zero_stage": self.stage_member,
            "group_paddings": [part.padding for part in parts],
            "param_alignment_paddings": [[0] * len(group) for group in self.groups],
            "partition_count": [self.dp] * len(self.groups),
            "ds_version": self.version,
            "param_slice_mappings": mappings,
        }

    def module(self) -> OrderedDict[str, torch.Tensor]:
        """The 16-bit parameters: at stage 2 views of one flat tensor for each group, at stage 3 empty."""
        if self.stage == 3:
            return OrderedDict((name, torch.empty(0, dtype=torch.bfloat16)) for name in self.shapes)
        views: dict[str, torch.Tensor] = {}
        for group in self.groups:
            flat = torch.zeros(self.dp * partition(group, 2, self.dp, 0).numel, dtype=torch.bfloat16)
            start = 0
            for name, dims in group.items():
                views[name] = flat[start : start + prod(dims)].view(dims)
                views[name].copy_(self.masters(name))
                start += prod(dims)
        return OrderedDict((name, views[name]) for name in self.shapes)

    def config(self) -> State:
        """DeepSpeed's configuration."""
        gather = {"stage3_gather_16bit_weights_on_model_save": False} if self.stage == 3 else {}
        return {
            "zero_optimization": {"stage": self.stage, **gather},
            "train_micro_batch_size_per_gpu": 2,
            "gradient_accumulation_steps": 1,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "bf16": {"enabled": True},
            "steps_per_print": float("inf"),
            "fp16": {"enabled": False},
        }

    def model_state(self) -> State:
        """What a rank's engine says of the model and of itself."""
        empty: State = dict.fromkeys(("lr_scheduler", "data_sampler", "random_ltd"))
        return {
            "module": self.module(),
            "buffer_names": [],
            "optimizer": None,
            "param_shapes": [OrderedDict((name, torch.Size(dims)) for name, dims in g.items()) for g in self.groups],
            "frozen_param_shapes": OrderedDict(),
            "shared_params": {},
            "frozen_param_fragments": OrderedDict(),
            **empty,
            "skipped_steps": 0,
            "global_steps": STEP,
            "global_samples": STEP * 2 * self.dp,
            "dp_world_size": self.dp,
            "mp_world_size": 1,
            "checkpoint_parallel_dimensions": {"pp_degree": 1, "tp_degree": 1},
            "ds_config": self.config(),
            "ds_version": self.version,
        }

    def write(self) -> None:
        """Write the states of all ranks, DeepSpeed's script, and `latest` last."""
        tag = self.folder / f"global_step{STEP}"
        tag.mkdir()
        if self.stage == 2:
            torch.save(self.model_state(), tag / "mp_rank_00_model_states.pt")
            write_safetensors(self.folder / "model.safetensors", self)
        for rank in range(self.dp):
            if self.stage == 3:
                torch.save(self.model_state(), tag / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt")
            state: State = {"optimizer_state_dict": self.optimizer_state(rank), "ds_config": self.config()}
            state |= {"ds_version": self.version}
            torch.save(state, tag / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
            del state  # before the next rank's is made
        shutil.copy(self.scripts / "zero_to_fp32.py", self.folder)
        (self.folder / "latest").write_text(tag.name)


def write_safetensors(path: Path, maker: Maker) -> None:
    """Write the 16-bit parameters as transformers saves them, one at a time."""
    ends = list(accumulate(2 * prod(dims) for dims in maker.shapes.values()))
    places = zip(maker.shapes.items(), [0, *ends], ends, strict=False)
    header: State = {"__metadata__": {"format": "pt"}}
    header |= {
        name: {"dtype": "BF16", "shape": dims, "data_offsets": [begin, end]} for (name, dims), begin, end in places
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in maker.shapes:
            file.write(maker.masters(name).view(torch.int16).numpy().data)


def disk_use(folder: Path) -> Iterator[int]:
    """Bytes of each file."""
    return (path.stat().st_size for path in folder.rglob("*") if path.is_file())


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder in which checkpoint-1000 is made")
    parser.add_argument("--stage", type=int, choices=(2, 3), required=True, help="of ZeRO")
    parser.add_argument("--nbytes", type=size, default="8G", help="about so many on the disk (default: 8G)")
    parser.add_argument("--dp", type=positive, default=4, help="data ranks (default: 4)")
    parser.add_argument("--seed", type=int, default=0, help="of the random numbers (default: 0)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Make the folder; 0 when done, 2 when the options cannot be met."""
    options = build_parser().parse_args(argv)
    start = time.perf_counter()
    try:
        shape = LlamaShape.of_numel(options.nbytes // NBYTES_OF_PARAMETER[options.stage])
        check_room(options.out, shape.numel * NBYTES_OF_PARAMETER[options.stage])
        folder = options.out / f"checkpoint-{STEP}"
        folder.mkdir(parents=True)
        write_beside(folder, shape, STEP)
        Maker(folder, shape, options.stage, options.dp, options.seed).write()
    except (ValueError, FileExistsError, ImportError) as error:
        print(f"make_zero: {error}", file=sys.stderr)
        return 2
    nbytes, seconds = sum(disk_use(folder)), time.perf_counter() - start
    what = f"{shape.layers} layers of {shape.hidden}, {shape.numel / 1e6:.0f} M parameters"
    print(f"{folder}: ZeRO-{options.stage}, {options.dp} ranks, {what}, {nbytes / 1e9:.3f} GB, {seconds:.1f} s")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
