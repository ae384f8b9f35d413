"""Files that cost far more than their size, by name: each once took minutes, gigabytes, or ended in a traceback."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import replace

from tests.fuzz.parts import (
    Entry,
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
    shared,
    storage,
    table,
    tensor,
    text,
    torch_old,
    torch_zip,
)

ESCAPE = "\x1b]0;owned\x07\x1b[31m"
W = tensor()


def _record(*values: bytes) -> bytes:
    return call("x", "Y", *values)


def _beside(**values: bytes) -> bytes:
    return torch_zip(table(w=W, **values))


def _overlapping() -> bytes:
    """20,000 records that are all the same 21 MB."""
    data = bytes(21 << 20)
    whole = Entry(b"a/data/big", data, zlib.crc32(data))
    place = torch_zip(table(w=W), more=[whole]).index(whole.name) - 30
    same = [replace(whole, name=f"a/data/{n}x".encode(), place=place) for n in range(20_000)]
    return torch_zip(table(w=W), more=[whole, *same])


def _tensors_of_many_axes() -> bytes:
    """The same 20,000 sizes for each of 2,000 tensors, in 128 KB."""
    numbers = pair(*[number(1)] * 20_000)
    args = (storage(), number(0), again(1), again(1), b"\x89", b"}")
    one = named("torch._utils", "_rebuild_tensor_v2") + kept(2)
    rest = again(2) + pair(*args) + b"R"
    return torch_zip(row(numbers + kept(1), one, *[rest] * 800))


def _long_names() -> bytes:
    """A name of 500 KB before each of 20,000 tensors that are one."""
    return torch_zip(table(**{"n" * 500_000: row(W + kept(1), *[again(1)] * 20_000)}))


def _copied_arguments() -> bytes:
    """A tuple of 200,000 values that 100,000 calls unpack."""
    args = pair(*[b"N"] * 200_000) + kept(1)
    function = named("torch._utils", "_rebuild_parameter") + kept(2)
    return torch_zip(row(args, function, *[again(2) + again(1) + b"R"] * 100_000))


def _copied_pairs() -> bytes:
    """A list of 50,000 pairs of which 20,000 dictionaries are made."""
    pairs = row(*[pair(number(1), number(2))] * 50_000) + kept(1)
    return torch_zip(row(pairs, *[named("collections", "OrderedDict") + pair(again(1)) + b"R"] * 20_000))


def _colliding_keys() -> bytes:
    """40,000 numbers that hash alike."""
    return _beside(x=entries([(number(((1 << 61) - 1) * n), b"N") for n in range(1, 40_000)]))


CASES: dict[str, Callable[[], bytes]] = {
    "a list held 16^10 times.pt": lambda: _beside(x=shared(row, number(1), 16, 10)),
    "a tuple held 16^10 times.pt": lambda: _beside(x=shared(pair, number(1), 16, 10)),
    "an object held 4^30 times.pt": lambda: _beside(x=shared(_record, number(1), 4, 30)),
    "an object held 4^30 times as a key.pt": lambda: torch_zip(entries([(shared(_record, number(1), 4, 30), W)])),
    "arguments held 16^10 times.pt": lambda: torch_zip(
        table(model=table(w=W), args=namespace(a=shared(row, number(1), 16, 10), hidden_size=number(8)))
    ),
    "a dictionary held 16^10 times.pt": lambda: _beside(
        x=shared(lambda *v: entries([(number(n), item) for n, item in enumerate(v)]), b"N", 16, 10)
    ),
    "a tensor held 2^40 times.pt": lambda: torch_zip(table(x=shared(row, W, 2, 40))),
    "a tensor held 200,000 times.pt": lambda: torch_zip(row(W + kept(1), *[again(1)] * 200_000)),
    "text held 300,000 times.pt": lambda: _beside(x=row(text("t" * 100_000) + kept(1), *[again(1)] * 300_000)),
    "torch before 1.6, a list held 16^10 times.pt": lambda: torch_old(table(x=shared(row, number(1), 16, 10))),
    "2^40 elements of one.pt": lambda: torch_zip(table(w=tensor((1 << 40,), (0,)))),
    "2^40 elements in 64 axes.pt": lambda: torch_zip(table(w=tensor((2,) * 40 + (1,) * 24, (0,) * 64))),
    "100 axes.pt": lambda: torch_zip(table(w=tensor((1,) * 100, (0,) * 100))),
    "sizes of 2^900.pt": lambda: torch_zip(table(w=tensor((1 << 900, 1 << 900), (0, 0)))),
    "a size of 2^8000.pt": lambda: torch_zip(table(w=tensor((1 << 8000, 1 << 8000), (0, 0)))),
    "sizes of 2^64 and 0.pt": lambda: torch_zip(table(w=tensor((1 << 64, 0), (1, 1)))),
    "20,000 sizes for each of 800 tensors.pt": _tensors_of_many_axes,
    "a million empty sets.pt": lambda: torch_zip(row(*[b"\x8f"] * 1_000_000)),
    "a million empty lists.pt": lambda: torch_zip(row(*[b"]"] * 1_000_000)),
    "a million memo entries.pt": lambda: torch_zip(b"N" + b"\x94" * 1_000_000),
    "a long name before 20,000 tensors.pt": _long_names,
    "arguments copied by 100,000 calls.pt": _copied_arguments,
    "pairs copied by 20,000 calls.pt": _copied_pairs,
    "keys that hash alike.pt": _colliding_keys,
    "20,000 records of the same bytes.pt": _overlapping,
    "a list nested 5,000 deep.pt": lambda: _beside(x=b"]" * 5000 + b"a" * 4999),
    "calls nested 5,000 deep.pt": lambda: _beside(x=named("a", "b") * 5000 + b")" + b"R\x85" * 4999 + b"R"),
    "a list in itself 16 times.pt": lambda: _beside(x=b"]" + kept(1) + b"(" + again(1) * 16 + b"e"),
    "a tuple in itself.pt": lambda: _beside(x=b"]" + kept(1) + again(1) + b"\x85a"),
    "nested lists in a header.safetensors": lambda: safetensors(b'{"x":[' + b"[]," * 10_000_000 + b"[]]}"),
    "a deep header.safetensors": lambda: safetensors(b'{"x":' + b"[" * 900 + b"]" * 900 + b"}"),
    "control characters in a storage's name.pt": lambda: torch_zip(table(w=W, x=tensor(key=f"k{ESCAPE}"))),
    "control characters in a class.pt": lambda: torch_zip(table(w=tensor(cls=f"Float{ESCAPE}Storage"))),
    "control characters in a tensor's name.safetensors": lambda: safetensors(
        {f"a{ESCAPE}": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, bytes(4)
    ),
    "control characters in a dtype.safetensors": lambda: safetensors(
        {"a": {"dtype": f"F32{ESCAPE}", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)
    ),
    "a long name beside 20,000 short ones.pt": lambda: torch_zip(
        table(**{"n" * 1_000_000: W + kept(1)}, **{f"{n}": again(1) for n in range(20_000)})
    ),
    "names that a pattern tries again and again.pt": lambda: torch_zip(
        table(**{"layers.1." * 100_000 + "\n": W, "h." + "9" * 100_000 + ".w": W, "layers." * 100_000 + "\n": W})
    ),
    "half of a surrogate pair as a name.pt": lambda: torch_zip(table(**{"\udc80": W, "x": text("\ud800")})),
}
