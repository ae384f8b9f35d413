"""The shapes of a BLOOM model as Megatron-DeepSpeed stores it: layer files, tensors, pipeline stages.

Plain arithmetic, without torch. The list of pipeline layers is that of bigscience-workshop/Megatron-DeepSpeed
(`megatron/model/gpt_model.py`, `GPTModelPipe`): a cast, the embedding, a transpose, the blocks, a transpose, the
final norm, the tied head, and a cast back when training in 16 bits. Only layers with parameters of their own get a
file, which is why the files are numbered 01, 03 .. L+2, L+4.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import inf, prod

EMBEDDING_INDEX = 1
FIRST_BLOCK_INDEX = 3


@dataclass(frozen=True, slots=True)
class BloomShape:
    """One model and how it is cut. `vocab` counts the padded rows, `original_vocab` the tokenizer's."""

    layers: int
    hidden: int
    heads: int
    vocab: int
    original_vocab: int
    tp: int
    pp: int
    dp: int
    dtype: str
    partition: str

    @property
    def norm_index(self) -> int:
        """Number of the layer file that holds the final norm."""
        return self.layers + 4

    @property
    def element_nbytes(self) -> int:
        """Bytes of one number."""
        return 4 if self.dtype == "fp32" else 2


@dataclass(frozen=True, slots=True)
class TensorShape:
    """One tensor of a layer file: `dims` is one tensor-parallel rank's part, `sharded` is False for a replica."""

    name: str
    dims: tuple[int, ...]
    sharded: bool


def check(shape: BloomShape) -> None:
    """Raise ValueError when no real training run could have this shape."""
    for name in ("layers", "hidden", "heads", "vocab", "tp", "pp", "dp"):
        if getattr(shape, name) < 1:
            raise ValueError(f"--{name} is {getattr(shape, name)}: it must be at least 1")
    for name, value, divisor in (
        ("--hidden by --heads", shape.hidden, shape.heads),
        ("--heads by --tp", shape.heads, shape.tp),
        ("--vocab by --tp", shape.vocab, shape.tp),
    ):
        if value % divisor:
            raise ValueError(f"cannot divide {name}: {value} / {divisor} leaves {value % divisor}")
    if not 0 < shape.original_vocab <= shape.vocab:
        raise ValueError(f"--original-vocab {shape.original_vocab} is not within 1..{shape.vocab} (--vocab)")
    empty = [stage for stage, count in enumerate(blocks_per_stage(shape)) if not count]
    if empty:
        raise ValueError(f"pipeline stages {empty} would hold no block: lower --pp or raise --layers")


def embedding_tensors(shape: BloomShape) -> list[TensorShape]:
    """The embedding's tensors on one rank: vocab/tp rows, and BLOOM's norm behind them."""
    hidden = (shape.hidden,)
    return [
        TensorShape("word_embeddings.weight", (shape.vocab // shape.tp, shape.hidden), True),
        TensorShape("word_embeddings.norm.weight", hidden, False),
        TensorShape("word_embeddings.norm.bias", hidden, False),
    ]


def block_tensors(shape: BloomShape) -> list[TensorShape]:
    """The twelve tensors of one block on one rank, in the order DeepSpeed stores them."""
    hidden, tp = shape.hidden, shape.tp
    return [
        TensorShape("input_layernorm.weight", (hidden,), False),
        TensorShape("input_layernorm.bias", (hidden,), False),
        TensorShape("self_attention.query_key_value.weight", (3 * hidden // tp, hidden), True),
        TensorShape("self_attention.query_key_value.bias", (3 * hidden // tp,), True),
        TensorShape("self_attention.dense.weight", (hidden, hidden // tp), True),
        TensorShape("self_attention.dense.bias", (hidden,), False),
        TensorShape("post_attention_layernorm.weight", (hidden,), False),
        TensorShape("post_attention_layernorm.bias", (hidden,), False),
        TensorShape("mlp.dense_h_to_4h.weight", (4 * hidden // tp, hidden), True),
        TensorShape("mlp.dense_h_to_4h.bias", (4 * hidden // tp,), True),
        TensorShape("mlp.dense_4h_to_h.weight", (hidden, 4 * hidden // tp), True),
        TensorShape("mlp.dense_4h_to_h.bias", (hidden,), False),
    ]


def norm_tensors(shape: BloomShape) -> list[TensorShape]:
    """The final norm, whose names stand bare."""
    return [TensorShape("weight", (shape.hidden,), False), TensorShape("bias", (shape.hidden,), False)]


def layer_files(shape: BloomShape) -> Iterator[tuple[int, list[TensorShape]]]:
    """Every layer file's number and tensors, in the order of the model."""
    yield EMBEDDING_INDEX, embedding_tensors(shape)
    for block in range(shape.layers):
        yield FIRST_BLOCK_INDEX + block, block_tensors(shape)
    yield shape.norm_index, norm_tensors(shape)


def payload_nbytes(shape: BloomShape) -> int:
    """Bytes of all tensors in all layer files, replicas counted once for each rank."""
    elements = sum(prod(tensor.dims) for _, tensors in layer_files(shape) for tensor in tensors)
    return elements * shape.tp * shape.element_nbytes


def pipeline_layers(shape: BloomShape) -> list[str]:
    """Class or function names of the pipeline's layers, which DeepSpeed's partition methods look at."""
    names = ["_to_float16", "EmbeddingPipe", "<lambda>"]
    names += ["ParallelTransformerLayerPipe"] * shape.layers
    names += ["undo", "MixedFusedLayerNorm", "EmbeddingPipe"]
    return names if shape.dtype == "fp32" else [*names, "float16_to_fp32"]


def stage_bounds(shape: BloomShape) -> list[int]:
    """First pipeline layer of each stage, and the end of the last: pp + 1 numbers."""
    names = pipeline_layers(shape)
    if shape.partition == "uniform":
        return uniform_bounds(len(names), shape.pp)
    if not shape.partition.startswith("type:"):
        raise ValueError(f"--partition {shape.partition!r} is not known: use 'uniform' or 'type:<regex>'")
    pattern = re.compile(shape.partition.removeprefix("type:"), re.IGNORECASE)
    return balanced_bounds([int(bool(pattern.search(name))) for name in names], shape.pp)


def uniform_bounds(count: int, stages: int) -> list[int]:
    """Equal stages; the first ones take what is left over."""
    size, rest = divmod(count, stages)
    return [stage * size + min(stage, rest) for stage in range(stages + 1)]


def balanced_bounds(weights: Sequence[int], stages: int) -> list[int]:
    """Cut `weights` into `stages` runs with little between the heaviest and the lightest.

    Each prefix keeps its best cut into 1, 2 .. stages; among equals the one whose last stage begins latest. That is
    the rule of DeepSpeed's `partition_balanced` (deepspeed/runtime/utils.py), so that ties fall where DeepSpeed lets
    them fall. Cuts that cannot be made are absent from the table.
    """
    sums = list(accumulate(weights, initial=0))
    best: dict[tuple[int, int], tuple[float, float, int]] = {(0, 0): (0, inf, 0)}
    for end in range(1, len(sums)):
        for parts in range(1, min(end, stages) + 1):
            cuts = [
                (max(best[start, parts - 1][0], weight), min(best[start, parts - 1][1], weight), start)
                for start, weight in ((start, sums[end] - sums[start]) for start in range(end))
                if (start, parts - 1) in best
            ]
            best[end, parts] = min(cuts, key=lambda cut: (cut[0] - cut[1], -cut[2]))
    bounds = [len(weights)]
    for parts in range(stages, 0, -1):
        bounds.append(best[bounds[-1], parts][2])
    return bounds[::-1]


def blocks_per_stage(shape: BloomShape) -> list[int]:
    """How many blocks each pipeline stage holds."""
    last = FIRST_BLOCK_INDEX + shape.layers
    clipped = [min(max(bound, FIRST_BLOCK_INDEX), last) for bound in stage_bounds(shape)]
    return [end - start for start, end in pairwise(clipped)]


def stage_parameters(shape: BloomShape, stage: int) -> list[tuple[str, tuple[int, ...]]]:
    """Names and dims of one stage's parameters, as the pipeline engine calls them.

    The head's stage lists the tied embedding a second time, though no layer file holds it twice; the embedding norm
    exists only on the first stage.
    """
    start, end = stage_bounds(shape)[stage : stage + 2]
    tied = "tied_modules.embed.{}".format
    parameters: list[tuple[str, tuple[int, ...]]] = []
    embedding = embedding_tensors(shape)
    if start <= EMBEDDING_INDEX < end:
        parameters += [(tied(tensor.name), tensor.dims) for tensor in embedding]
    elif start <= shape.norm_index + 1 < end:
        parameters += [(tied(embedding[0].name), embedding[0].dims)]
    for index, tensors in layer_files(shape):
        if index != EMBEDDING_INDEX and start <= index < end:
            parameters += [(f"{index}.{tensor.name}", tensor.dims) for tensor in tensors]
    return parameters
