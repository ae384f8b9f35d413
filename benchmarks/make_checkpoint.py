"""Make a BLOOM-shaped Megatron-DeepSpeed checkpoint folder of any size, written by torch itself.

    python benchmarks/make_checkpoint.py /data/one --preset 1g
    python benchmarks/make_checkpoint.py /data/two --layers 6 --hidden 512 --heads 8 --vocab 1024 --tp 2 --pp 3
    python benchmarks/make_checkpoint.py /data/bloom --preset bloom-176b --sparse

An option beside --preset replaces that value of the preset. The folder holds weights and the ranks' states, as a real
run leaves them. Optimizer files (`*_optim_states.pt`), which what reads weights does not need, come with --optimizer.

Data. The tensors are made of small normal numbers, all finite. Every tensor is a walk around one block of random
numbers whose length is prime, from a place of its own and with sign and mantissa bits flipped by a pattern of its
own. So making data is as fast as copying it, yet no two rows of a tensor are equal, neither in one shard nor in the
shards put together. Replicated tensors are the same on all tensor-parallel ranks. The same options and seed give the
same tensors.

--sparse writes the same files (names, tensors, shapes, sizes) with holes in place of the tensors' data, by
`torch.serialization.skip_data` on fake tensors. Such a file reads as zeros. Its CRCs need care: torch writes CRC 0 for
every record whose data it skipped, both in the record's data descriptor and in the central directory, and nothing
marks it as missing; `data.pkl` and the other small records keep their true CRC. A run of zeros does not have the CRC
0, so `unzip -t` and whatever else checks CRCs finds those records damaged. torch.load checks none.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import sys
import time
from collections import OrderedDict
from collections.abc import Sequence
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

import torch
from bloom_shapes import BloomShape, TensorShape, blocks_per_stage, check, layer_files, payload_nbytes
from bloom_state import DTYPES, megatron_enums, optimizer_state, rank_state
from torch._subclasses.fake_tensor import FakeTensorMode

POOL_LENGTH = 8_388_593  # the largest prime below 2**23: walks of any row length meet no place twice too early
MANTISSA_BITS = {"bf16": 7, "fp16": 10, "fp32": 23}

BLOOM_VOCAB = {"vocab": 250880, "original_vocab": 250680}
PRESETS: dict[str, dict[str, int]] = {
    "bloom-176b": BLOOM_VOCAB
    | {"layers": 70, "hidden": 14336, "heads": 112, "tp": 4, "pp": 12, "dp": 8, "iteration": 95000},
    "bloom-7b": BLOOM_VOCAB | {"layers": 30, "hidden": 4096, "heads": 32, "tp": 4, "pp": 4},
    "8g": BLOOM_VOCAB | {"layers": 15, "hidden": 4096, "heads": 32, "tp": 4, "pp": 4},
    "3g": {"layers": 6, "hidden": 4096, "heads": 32, "vocab": 51200, "original_vocab": 50827, "tp": 4, "pp": 2},
    "1g": {"layers": 8, "hidden": 2048, "heads": 16, "vocab": 51200, "original_vocab": 50827, "tp": 4, "pp": 2},
    "tiny": {"layers": 4, "hidden": 64, "heads": 4, "vocab": 512, "original_vocab": 500, "tp": 2, "pp": 2},
}


class RandomWalks:
    """Tensors cut from one block of random numbers, each from its own place and with its own bits flipped."""

    def __init__(self, dtype: str, seed: int) -> None:
        """Draw the block of `POOL_LENGTH` numbers of `dtype`."""
        numbers = torch.randn(POOL_LENGTH, generator=torch.Generator().manual_seed(seed)) * 0.02
        self.dtype = DTYPES[dtype]
        self.bits = torch.int32 if dtype == "fp32" else torch.int16
        self.pool = numbers.to(self.dtype).view(self.bits)
        self.mantissa = (1 << MANTISSA_BITS[dtype]) - 1
        self.seed = seed

    def tensor(self, layer: int, shape: TensorShape, tp: int) -> torch.Tensor:
        """One rank's tensor. The shards of a tensor are stretches of the same walk, replicas all of it."""
        numel = prod(shape.dims)
        return self.stretch(f"{layer}/{shape.name}", tp * numel if shape.sharded else 0, numel).view(shape.dims)

    def stretch(self, name: str, start: int, numel: int) -> torch.Tensor:
        """So many numbers of the walk of that name, from its number `start` on."""
        digest = hashlib.blake2b(f"{self.seed}/{name}".encode(), digest_size=16).digest()
        result = torch.empty(numel, dtype=self.bits)
        self._walk(result, (int.from_bytes(digest[:8], "little") + start) % POOL_LENGTH)
        result.bitwise_xor_(self._mask(int.from_bytes(digest[8:], "little")))
        return result.view(self.dtype)

    def _walk(self, result: torch.Tensor, place: int) -> None:
        """Fill `result` from the block, from `place` on and around."""
        done = 0
        while done < result.numel():
            count = min(result.numel() - done, POOL_LENGTH - place)
            result[done : done + count] = self.pool[place : place + count]
            done, place = done + count, 0

    def _mask(self, choice: int) -> int:
        """Sign and mantissa bits to flip: the exponent stays, so finite numbers stay finite."""
        sign = -(1 << (torch.iinfo(self.bits).bits - 1)) if choice & 1 else 0
        return sign | (choice >> 1 & self.mantissa)


def write_layer(path: Path, layer: int, tensors: Sequence[TensorShape], tp: int, walks: RandomWalks) -> None:
    """Write one rank's file of one layer."""
    torch.save(OrderedDict((tensor.name, walks.tensor(layer, tensor, tp)) for tensor in tensors), path)


def write_sparse_layer(path: Path, tensors: Sequence[TensorShape], dtype: torch.dtype) -> None:
    """Write the same file with holes for data; nothing of the tensors' size is allocated."""
    with FakeTensorMode(), torch.serialization.skip_data(materialize_fake_tensors=True):
        torch.save(OrderedDict((tensor.name, torch.empty(tensor.dims, dtype=dtype)) for tensor in tensors), path)


def write_layers(folder: Path, shape: BloomShape, seed: int, sparse: bool) -> None:
    """Write all layer files, one at a time."""
    walks = None if sparse else RandomWalks(shape.dtype, seed)
    for layer, tensors in layer_files(shape):
        for tp in range(shape.tp):
            path = folder / f"layer_{layer:02d}-model_{tp:02d}-model_states.pt"
            if walks is None:
                write_sparse_layer(path, tensors, DTYPES[shape.dtype])
            else:
                write_layer(path, layer, tensors, tp, walks)


def write_ranks(folder: Path, shape: BloomShape, zero: int, iteration: int) -> None:
    """Write the states of all tensor and pipeline ranks; the tensor rank counts fastest."""
    with megatron_enums() as enums:
        alibi = enums.PositionEmbeddingType.alibi
        for stage in range(shape.pp):
            for tp in range(shape.tp):
                state = rank_state(shape, tp, stage, zero, iteration, alibi)
                torch.save(state, folder / f"mp_rank_{stage * shape.tp + tp:02d}_model_states.pt")


def write_optimizer(folder: Path, shape: BloomShape) -> None:
    """Write each data rank's part of each model rank's optimizer state, as BF16_Optimizer has it, with holes."""
    with FakeTensorMode(), torch.serialization.skip_data(materialize_fake_tensors=True):
        for stage in range(shape.pp):
            state = optimizer_state(shape, stage)
            for tp, dp in product(range(shape.tp), range(shape.dp)):
                name = f"bf16_zero_pp_rank_{dp}_mp_rank_{stage * shape.tp + tp:02d}_optim_states.pt"
                torch.save(state, folder / name)


def write_checkpoint(
    out: Path, shape: BloomShape, zero: int, iteration: int, seed: int, *, sparse: bool, optimizer: bool
) -> Path:
    """Write the whole folder, `latest` last, and return the folder of its tag."""
    folder = out / f"global_step{iteration}"
    folder.mkdir(parents=True)
    write_layers(folder, shape, seed, sparse)
    write_ranks(folder, shape, zero, iteration)
    if optimizer:
        write_optimizer(folder, shape)
    (out / "latest").write_text(folder.name)
    return folder


def check_room(out: Path, nbytes: int) -> None:
    """Raise ValueError when the disk cannot hold `nbytes`."""
    existing = next(parent for parent in (out.resolve(), *out.resolve().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if nbytes * 1.01 > free:
        raise ValueError(f"{nbytes / 1e9:.1f} GB do not fit on the disk of {out}: {free / 1e9:.1f} GB are free")


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder to make; it must not hold this checkpoint yet")
    parser.add_argument("--preset", choices=PRESETS, help="a ready shape; other options replace its values")
    parser.add_argument("--layers", type=int, help="number of transformer blocks")
    parser.add_argument("--hidden", type=int, help="hidden size")
    parser.add_argument("--heads", type=int, help="attention heads")
    parser.add_argument("--vocab", type=int, help="rows of the embedding, padding included")
    parser.add_argument("--original-vocab", type=int, help="rows without padding (default: --vocab)")
    parser.add_argument("--tp", type=int, help="tensor-parallel size (default: 1)")
    parser.add_argument("--pp", type=int, help="pipeline-parallel size (default: 1)")
    parser.add_argument("--dp", type=int, help="data-parallel size (default: 1)")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16", help="of all tensors (default: bf16)")
    parser.add_argument("--zero", type=int, choices=(0, 1), default=1, help="at 0 no parameter shapes are recorded")
    partition = "how DeepSpeed cuts stages: 'uniform' or 'type:<regex>' (default: %(default)s, as BLOOM's)"
    parser.add_argument("--partition", default="type:transformer|embedding", help=partition)
    parser.add_argument("--iteration", type=int, help="training step, part of the folder's name (default: 1000)")
    parser.add_argument("--seed", type=int, default=0, help="of the random numbers (default: 0)")
    parser.add_argument("--sparse", action="store_true", help="holes in place of tensor data: any size, hardly a disk")
    parser.add_argument("--optimizer", action="store_true", help="with --sparse: the optimizer files too, --dp a rank")
    return parser


def resolve(options: argparse.Namespace) -> tuple[BloomShape, int]:
    """The shape and the iteration the options ask for; ValueError when something is missing or wrong."""
    values: dict[str, Any] = {"tp": 1, "pp": 1, "dp": 1, "iteration": 1000} | PRESETS.get(options.preset, {})
    values |= {name: value for name, value in vars(options).items() if value is not None}
    if options.vocab is not None and options.original_vocab is None:
        values["original_vocab"] = options.vocab
    missing = [f"--{name}" for name in ("layers", "hidden", "heads", "vocab") if name not in values]
    if missing:
        raise ValueError(f"give --preset, or {', '.join(missing)}")
    shape = BloomShape(**{name: values[name] for name in BloomShape.__dataclass_fields__})
    check(shape)
    return shape, values["iteration"]


def report(folder: Path, shape: BloomShape, seconds: float) -> None:
    """Print what was made."""
    stats = [path.stat() for path in folder.iterdir()]
    apparent, used = sum(stat.st_size for stat in stats), sum(stat.st_blocks * 512 for stat in stats)
    print(f"{folder}: {len(stats)} files, {apparent / 1e9:.3f} GB, {used / 1e9:.3f} GB on disk, {seconds:.1f} s")
    print(f"tp {shape.tp}, pp {shape.pp}, blocks in each stage: {' '.join(map(str, blocks_per_stage(shape)))}")


def main(argv: Sequence[str] | None = None) -> int:
    """Make the folder; 0 when done, 2 when the options cannot be met."""
    options = build_parser().parse_args(argv)
    start = time.perf_counter()
    try:
        shape, iteration = resolve(options)
        if options.optimizer and not options.sparse:
            raise ValueError("--optimizer writes holes: say --sparse too")
        if not options.sparse:
            check_room(options.out, payload_nbytes(shape))
        folder = write_checkpoint(
            options.out,
            shape,
            options.zero,
            iteration,
            options.seed,
            sparse=options.sparse,
            optimizer=options.optimizer,
        )
    except (ValueError, FileExistsError) as error:
        print(f"make_checkpoint: {error}", file=sys.stderr)
        return 2
    report(folder, shape, time.perf_counter() - start)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
