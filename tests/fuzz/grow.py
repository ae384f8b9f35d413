"""Files grown from the grammar of each format, with the values that readers trip over."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable, Mapping
from typing import Any

from tests.fuzz.parts import (
    again,
    call,
    entries,
    kept,
    named,
    namespace,
    number,
    pair,
    row,
    safetensors,
    storage,
    table,
    tensor,
    text,
    torch_old,
    torch_zip,
)

SIZES = (0, 1, 2, 3, 4, 8, 16, 64, -1, 1 << 20, 1 << 31, 1 << 40, (1 << 63) - 1, 1 << 63, 1 << 64, 1 << 200)
NUMBERS = (*SIZES, -7, 255, 65536, 1 << 900, 1 << 8000)
WORDS = (
    *(
        "",
        "a",
        "weight",
        "w\x1b[31m",
        "a\nb",
        "\udc80",
        "\ud800x",
        "../../x",
        "n" * 300,
        "0",
        "1.0",
        "nan",
        "/",
        "..",
        "é",
    ),
    *("fp32", "gelu", "rope", "module", "model", "args", "state", "optimizer", "language_model", "None", "\x00"),
)
CLASSES = (
    *(
        ("collections", "OrderedDict"),
        ("argparse", "Namespace"),
        ("torch", "Size"),
        ("torch", "device"),
        ("torch", "float32"),
    ),
    *(
        ("__builtin__", "getattr"),
        ("os", "system"),
        ("builtins", "eval"),
        ("streamconv_canary", "run"),
        ("a\x1b[0m", "b"),
    ),
    *(
        ("numpy", "dtype"),
        ("numpy.core.multiarray", "scalar"),
        ("numpy.core.multiarray", "_reconstruct"),
        ("builtins", "set"),
    ),
    *(("_codecs", "encode"), ("megatron.enums", "PositionEmbeddingType"), ("torch._utils", "_rebuild_parameter")),
    *(
        ("torch._utils", "_rebuild_tensor_v2"),
        ("torch._utils", "_rebuild_tensor_v3"),
        ("torch._tensor", "_rebuild_from_type_v2"),
    ),
    *(("torch.serialization", "_get_layout"), ("deepspeed.utils.tensor_fragment", "fragment_address"), ("", "")),
)
STORAGES = (
    "FloatStorage",
    "HalfStorage",
    "BFloat16Storage",
    "LongStorage",
    "BoolStorage",
    "UntypedStorage",
    "NoStorage\x07",
)
ARGS = (
    *(
        "num_layers",
        "hidden_size",
        "num_attention_heads",
        "ffn_hidden_size",
        "tensor_model_parallel_size",
        "num_experts",
    ),
    *(
        "pipeline_model_parallel_size",
        "padded_vocab_size",
        "max_position_embeddings",
        "position_embedding_type",
        "swiglu",
    ),
    *(
        "num_query_groups",
        "make_vocab_size_divisible_by",
        "params_dtype",
        "iteration",
        "rotary_percent",
        "add_bias_linear",
    ),
    *(
        "embed_layernorm",
        "consumed_train_samples",
        "untie_embeddings_and_output_weights",
        "normalization",
        "seq_length",
    ),
)
KEYS = (
    *(
        "module",
        "model",
        "model0",
        "args",
        "iteration",
        "checkpoint_version",
        "optimizer_state_dict",
        "param_shapes",
        "ds_config",
    ),
    *(
        "ds_version",
        "buffer_names",
        "mp_world_size",
        "dp_world_size",
        "global_steps",
        "zero_stage",
        "state_dict",
        "num_experts",
    ),
    *(
        "word_embeddings.weight",
        "layers.0.weight",
        "layers.1.weight",
        "input_layernorm.weight",
        "checkpoint_parallel_dimensions",
    ),
    *(
        "mlp.dense_h_to_4h.weight",
        "self_attention.query_key_value.weight",
        "weight",
        "bias",
        "experts.0.weight",
        "lr_scheduler",
    ),
)
DTYPES = ("F64", "F32", "F16", "BF16", "F8_E4M3", "I64", "U8", "BOOL", "C64", "F4", "F\x1b32", "")


_LONGEST = 100_000


class Grower:
    """Grows the parts of pickles; what is kept may be recalled later."""

    def __init__(self, rng: random.Random, first: int = 0) -> None:
        self.rng, self.first, self.memo = rng, first, first

    def value(self, depth: int = 0) -> bytes:
        """Any value."""
        grown = self._value(depth)
        if len(grown) > _LONGEST:
            return b"N"
        if self.rng.random() < 0.1 and self.memo < self.first + 1000:
            grown += kept(self.memo)
            self.memo += 1
        return grown

    def _value(self, depth: int) -> bytes:
        rng = self.rng
        kinds: list[Callable[[], bytes]] = [
            lambda: number(rng.choice(NUMBERS)),
            lambda: text(rng.choice(WORDS)),
            lambda: rng.choice((b"N", b"\x88", b"\x89", b")", b"]", b"}", b"\x8f")),
            lambda: b"G" + struct.pack(">d", rng.choice((0.0, -0.0, 1e308, float("nan"), float("inf"), 0.5))),
            lambda: named(*rng.choice(CLASSES)),
            lambda: again(rng.randrange(self.first, self.memo)) if self.memo > self.first else b"N",
            lambda: b"C\x03a\x1b\xff",
            self.tensor,
        ]
        if depth < 5:
            below = depth + 1
            kinds += [
                lambda: self.mapping(below),
                lambda: self.mapping(below),
                lambda: row(*self.several(below)),
                lambda: pair(*self.several(below)),
                lambda: call(*rng.choice(CLASSES), *self.several(below)),
                lambda: call(*rng.choice(CLASSES)) + self.value(below) + b"b",
                lambda: self.args(below),
                lambda: row(*[self.value(below)] * rng.choice((2, 17, 100))),
            ]
        return rng.choice(kinds)()

    def several(self, depth: int) -> list[bytes]:
        """A few values."""
        return [self.value(depth) for _ in range(self.rng.choice((0, 1, 2, 3, 7)))]

    def mapping(self, depth: int) -> bytes:
        """A dictionary, mostly with names that checkpoints have."""
        rng, pairs = self.rng, []
        for _ in range(rng.choice((0, 1, 2, 5, 12))):
            key = text(rng.choice(KEYS)) if rng.random() < 0.8 else self.value(4)
            value = self.tensor() if rng.random() < 0.3 else self.value(depth)
            pairs.append((key, self.args(depth) if key == text("args") else value))
        return entries(pairs)

    def args(self, depth: int) -> bytes:
        """Training arguments, or what stands in their place."""
        rng = self.rng
        if rng.random() < 0.1:
            return self.value(depth + 2)
        names = rng.sample(ARGS, rng.randrange(len(ARGS)))
        return namespace(
            **{name: number(rng.choice((1, 2, 4, 8))) if rng.random() < 0.7 else self.value(5) for name in names}
        )

    def tensor(self) -> bytes:
        """A tensor, or nearly one."""
        rng = self.rng
        axes = rng.choice((0, 1, 2, 2, 2, 3, 64, 65, 100)) if rng.random() < 0.3 else 2
        sizes = [rng.choice((1, 2, 4)) if rng.random() < 0.8 else rng.choice(SIZES) for _ in range(axes)]
        strides = [rng.choice((0, 1, 4)) if rng.random() < 0.8 else rng.choice(SIZES) for _ in range(axes)]
        cls = rng.choice(STORAGES) if rng.random() < 0.3 else "FloatStorage"
        whole = tensor(
            sizes, strides, offset=rng.choice((0, 0, 0, 3, -1, 1 << 40)), key=rng.choice("0011\x1b"), cls=cls
        )
        return (
            whole
            if rng.random() < 0.95
            else storage()
            if rng.random() < 0.5
            else call("torch._utils", "_rebuild_tensor_v2")
        )

    def state(self) -> bytes:
        """What the file of a rank or a layer holds."""
        return self.mapping(0) if self.rng.random() < 0.9 else self.value()


def torch_file(rng: random.Random) -> bytes:
    """A zip of ``torch.save``."""
    storages = {"0": bytes(64), "1": rng.randbytes(64)}
    return torch_zip(Grower(rng).state() + rng.choice((b"", b"", b"", b".junk")), storages)


def old_torch_file(rng: random.Random) -> bytes:
    """A file of torch before 1.6."""
    return torch_old(Grower(rng).state(), rng.choice(((), ("0",), ("0", "1"))), 16)


def metadata(rng: random.Random) -> bytes:
    """A ``.metadata`` of ``torch.distributed.checkpoint``."""
    grower, module = Grower(rng), "torch.distributed.checkpoint.metadata"

    def some(value: bytes) -> bytes:
        return value if rng.random() < 0.9 else grower.value(3)

    def sizes(*values: int) -> bytes:
        given = [number(value if rng.random() < 0.9 else rng.choice(SIZES)) for value in values]
        return call("torch", "Size", pair(*given))

    def made(name: str, **state: bytes) -> bytes:
        return (
            named(*name.rsplit(".", 1)) + b")\x81" + table(**{key: some(value) for key, value in state.items()}) + b"b"
        )

    described, places = [], []
    for name in rng.sample(WORDS, rng.randrange(1, 5)):
        chunks = [made(f"{module}.ChunkStorageMetadata", offsets=sizes(0, 0), sizes=sizes(4, 4))]
        properties = named(module, "TensorProperties") + b")\x81" + pair(some(named("torch", "float32"))) + b"b"
        fields = {"properties": properties, "size": sizes(4, 4), "chunks": row(*chunks * rng.choice((1, 1, 2)))}
        described.append((text(name), some(made(f"{module}.TensorStorageMetadata", **fields))))
        index = made(f"{module}.MetadataIndex", fqn=text(name), offset=sizes(0, 0), index=number(0))
        where = {"relative_path": text("__0_0.distcp"), "offset": number(0), "length": number(600)}
        places.append((index, made("torch.distributed.checkpoint.filesystem._StorageInfo", **where)))
    state = {
        "state_dict_metadata": entries(described),
        "storage_data": entries(places),
        "planner_data": grower.value(2),
    }
    return b"\x80\x02" + made(f"{module}.Metadata", **state) + b"."


def safetensors_file(rng: random.Random) -> bytes:
    """A file of safetensors."""
    header: dict[str, Any] = {}
    place = 0
    for name in rng.sample((*KEYS, *WORDS), rng.randrange(6)):
        shape = [rng.choice((1, 2, 4, 0)) if rng.random() < 0.9 else rng.choice(SIZES) for _ in range(rng.randrange(4))]
        nbytes = 4
        for size in shape:
            nbytes *= size
        nbytes = nbytes if 0 <= nbytes < 1 << 16 and rng.random() < 0.9 else rng.choice(SIZES)
        dtype = "F32" if rng.random() < 0.9 else rng.choice(DTYPES)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [place, place + nbytes]}
        place += nbytes if nbytes < 1 << 16 else 0
        if rng.random() < 0.05:
            header[name] = json_value(rng)
    if rng.random() < 0.3:
        header["__metadata__"] = {"format": rng.choice(WORDS)} if rng.random() < 0.7 else json_value(rng)
    return safetensors(header, bytes(max(0, min(place, 1 << 16))))


def json_value(rng: random.Random, depth: int = 0) -> Any:
    """Any value that JSON has."""
    if depth > 3 or rng.random() < 0.6:
        return rng.choice((None, True, 1.5, float("inf"), float("nan"), 10**400, *NUMBERS, *WORDS))
    if rng.random() < 0.5:
        return [json_value(rng, depth + 1) for _ in range(rng.randrange(4))]
    return {rng.choice(WORDS): json_value(rng, depth + 1) for _ in range(rng.randrange(4))}


def changed_json(rng: random.Random, value: Any) -> Any:
    """A value of JSON with one or a few of its parts exchanged."""
    if isinstance(value, Mapping) and value and rng.random() < 0.9:
        key = rng.choice(list(value))
        if rng.random() < 0.1:
            return {name: item for name, item in value.items() if name != key}
        return {**value, key: changed_json(rng, value[key])}
    if isinstance(value, list) and value and rng.random() < 0.7:
        place = rng.randrange(len(value))
        return [*value[:place], changed_json(rng, value[place]), *value[place + 1 :]]
    return json_value(rng)


def json_text(value: Any) -> bytes:
    """JSON as it is written, lone surrogates escaped."""
    try:
        return json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return json.dumps(value).encode()
