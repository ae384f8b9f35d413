"""Our pickle machine: equal to ``pickle`` on plain data, inert on everything else, and hard to break."""

from __future__ import annotations

import argparse
import collections
import copyreg
import datetime
import enum
import os
import pickle
import random
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamconv.containers.pickles.reader import MAX_PICKLE_NBYTES, Global, Record, leaves_of, loads, walk
from streamconv.core.errors import DamagedError, StreamconvError, UnsafeError
from tests.places import FRAMEWORKS, MADE, ROOT

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)
# Protocols 0 to 2 have no bytes: pickle writes them as a call.
BYTES = {
    "_codecs.encode": lambda text, encoding: text.encode(encoding),
    "__builtin__.bytes": lambda *args: bytes(*args),
}

text = st.text(st.characters(exclude_categories=()))
scalars = st.none() | st.booleans() | st.integers() | st.floats() | text | st.binary()
big = st.integers(-(1 << 900), 1 << 900)
keys = (
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats(allow_nan=False) | text | st.binary()
)
plain = st.recursive(
    scalars | big,
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(keys | st.tuples(keys, keys), inner)
        | st.tuples(inner)
    ),
    max_leaves=20,
)


def read(data: bytes, **options: Any) -> Any:
    return loads(data, "a.pkl", **options)


def refused_or_harmless(data: bytes) -> Any:
    """The value, or None if it was refused with one of our own errors."""
    try:
        return read(data, persistent=lambda identifier: identifier)
    except StreamconvError:
        return None


def real_pickle(path: Path) -> bytes:
    with zipfile.ZipFile(path) as file:
        (name,) = (name for name in file.namelist() if name.endswith("/data.pkl"))
        return file.read(name)


LAYER = MADE / "bloom_L12_tp1pp3_type_z1/global_step7/layer_03-model_00-model_states.pt"
STATES = FRAMEWORKS / "bs_bloom_tp2pp2_fp32_z0/global_step3/mp_rank_00_model_states.pt"


# -- plain data --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@given(value=plain, protocol=st.sampled_from(PROTOCOLS))
@settings(max_examples=200, deadline=None)
def test_plain_data_reads_as_pickle_reads_it(value: Any, protocol: int) -> None:
    data = pickle.dumps(value, protocol)
    # repr tells types, the order of dicts, -0.0 and NaN apart, which == does not.
    assert repr(read(data, builders=BYTES)) == repr(pickle.loads(data))


@pytest.mark.parametrize("value", ["é", "\x80", "\xff\n\\", "a\\u0041", "€\r\n", "😀", "\ud800", "\0\x1a"], ids=ascii)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_text_outside_ascii_reads_as_pickle_reads_it(value: str, protocol: int) -> None:
    assert read(pickle.dumps(value, protocol)) == value


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_object_that_is_there_twice_is_one_object(protocol: int) -> None:
    shared = {"a": [1]}
    first, second = read(pickle.dumps([shared, shared], protocol))
    assert first is second


@pytest.mark.parametrize("data", [b"S'a\\x41\\n'\n.", b'S"b"\n.', b"T\x02\x00\x00\x00\xe9c.", b"U\x01a.", b"I01\n."])
def test_the_strings_and_bools_of_python_2_read(data: bytes) -> None:
    assert read(data) == pickle.loads(data, encoding="latin1")


def test_an_int_as_text_of_too_many_digits_is_damaged() -> None:
    with pytest.raises(DamagedError):
        read(b"L" + b"9" * 100_000 + b"L\n.")


def test_a_bytearray_reads_as_pickle_reads_it() -> None:
    assert read(pickle.dumps(bytearray(b"abc"), 5)) == bytearray(b"abc")


# -- classes are inert -------------------------------------------------------------------------------------------------


class Color(enum.Enum):
    RED = 3


class Slotted:
    __slots__ = ("a",)

    def __init__(self) -> None:
        self.a = 7


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_an_instance_becomes_a_record_with_its_state(protocol: int) -> None:
    record = read(pickle.dumps(argparse.Namespace(lr=1e-3, name="x"), protocol))
    assert isinstance(record, Record)
    assert (record.cls, record.args) == (Global("argparse", "Namespace"), ())
    assert record.attributes == {"lr": 1e-3, "name": "x"}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_enum_becomes_a_record_of_its_value(protocol: int) -> None:
    record = read(pickle.dumps(Color.RED, protocol))
    if sys.version_info[:2] == (3, 11) and sys.version_info < (3, 11, 4):  # these pickle it by its name
        module = "__builtin__" if protocol < 3 else "builtins"
        assert (str(record.cls), record.args) == (f"{module}.getattr", (Global(__name__, "Color"), "RED"))
    else:
        assert (str(record.cls), record.args) == (f"{__name__}.Color", (3,))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_call_becomes_a_record_of_its_arguments(protocol: int) -> None:
    record = read(pickle.dumps(datetime.timedelta(2, 3, 4), protocol))
    assert (str(record.cls), record.args) == ("datetime.timedelta", (2, 3, 4))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_the_state_of_slots_is_kept_as_it_is_stored(protocol: int) -> None:
    record = read(pickle.dumps(Slotted(), protocol))
    assert record.state == (None, {"a": 7})
    assert record.attributes == {}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_items_of_unknown_containers_are_kept(protocol: int) -> None:
    assert read(pickle.dumps(collections.OrderedDict(a=1, b=2), protocol)).items == [("a", 1), ("b", 2)]
    assert read(pickle.dumps(collections.deque([1, 2]), protocol)).items == [1, 2]


@pytest.mark.parametrize(("value", "items"), [({1}, [1]), (frozenset((2,)), [2])], ids=["set", "frozenset"])
def test_a_set_becomes_a_record_of_its_items(value: object, items: list[int]) -> None:
    assert read(pickle.dumps(value, 4)).items == items


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_class_itself_becomes_a_global(protocol: int) -> None:
    assert read(pickle.dumps(argparse.Namespace, protocol)) == Global("argparse", "Namespace")


def test_a_builder_of_the_caller_stands_in_for_its_global_only() -> None:
    data = pickle.dumps([collections.OrderedDict(a=1), datetime.timedelta(1)], 2)
    first, second = read(data, builders={"collections.OrderedDict": dict})
    assert first == {"a": 1}
    assert isinstance(second, Record)


# -- nothing is imported or called -------------------------------------------------------------------------------------


def _unicode(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def _touch(path: Path) -> bytes:
    return _unicode(f"touch '{path}'")


def _write(path: Path) -> bytes:
    return _unicode(f"open({str(path)!r}, 'w').close()")


class _Trap:
    """Leaves a file when its state is set, or when it is called with a path."""

    def __setstate__(self, state: dict[str, str]) -> None:
        Path(state["path"]).touch()

    def __new__(cls, path: str | None = None) -> _Trap:
        if path is not None:
            Path(path).touch()
        return super().__new__(cls)


HERE = __name__.encode()
ATTACKS: dict[str, Callable[[Path], bytes]] = {
    "GLOBAL REDUCE os.system": lambda path: b"cos\nsystem\n(" + _touch(path) + b"tR.",
    "GLOBAL REDUCE builtins.eval": lambda path: b"c__builtin__\neval\n" + _write(path) + b"\x85R.",
    "GLOBAL REDUCE builtins.exec": lambda path: b"\x80\x04cbuiltins\nexec\n" + _write(path) + b"\x85R.",
    "STACK_GLOBAL REDUCE posix.system": lambda path: b"\x8c\x05posix\x8c\x06system\x93" + _touch(path) + b"\x85R.",
    "INST os.system": lambda path: b"(" + _touch(path) + b"ios\nsystem\n.",
    "OBJ os.system": lambda path: b"(cos\nsystem\n" + _touch(path) + b"o.",
    "NEWOBJ": lambda path: b"\x80\x02c" + HERE + b"\n_Trap\n" + _unicode(str(path)) + b"\x85\x81.",
    "NEWOBJ_EX": lambda path: b"\x80\x04c" + HERE + b"\n_Trap\n)}" + _unicode("path") + _unicode(str(path)) + b"s\x92.",
    "BUILD": lambda path: b"\x80\x02c" + HERE + b"\n_Trap\n)\x81}" + _unicode("path") + _unicode(str(path)) + b"sb.",
    "EXT1": lambda path: b"\x80\x02\x82\xf0" + _touch(path) + b"\x85R.",
    "EXT2": lambda path: b"\x80\x02\x83\xf0\x00" + _touch(path) + b"\x85R.",
    "EXT4": lambda path: b"\x80\x02\x84\xf0\x00\x00\x00" + _touch(path) + b"\x85R.",
    "two calls": lambda path: (
        b"\x80\x04cbuiltins\ngetattr\ncos\npath\n\x8c\x06exists\x86R0cos\nsystem\n" + _touch(path) + b"\x85R."
    ),
    "a call in a dictionary key": lambda path: b"}(cos\nsystem\n" + _touch(path) + b"\x85RK\x01u.",
}


@pytest.fixture
def extension() -> Iterator[None]:
    copyreg.add_extension(os.system.__module__, "system", 0xF0)
    yield
    copyreg.remove_extension(os.system.__module__, "system", 0xF0)


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.usefixtures("extension")
def test_what_a_pickle_names_is_never_called(attack: str, tmp_path: Path) -> None:
    """Each of these leaves a file behind when the standard library loads it, and none when we do."""
    marker = tmp_path / "called"
    data = ATTACKS[attack](marker)
    refused_or_harmless(data)
    assert not marker.exists()
    pickle.loads(data)
    assert marker.exists()


@pytest.mark.parametrize(
    "attack",
    [
        b"c%s\nf\n.",
        b"\x8c\x10%s\x8c\x01f\x93.",
        b"(i%s\nf\n.",
        b"(c%s\nf\no.",
        b"\x80\x02c%s\nf\n)\x81.",
        b"c%s\nf\n)R.",
    ],
    ids=["GLOBAL", "STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "REDUCE"],
)
def test_what_a_pickle_names_is_never_imported(attack: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marker = tmp_path / "imported"
    (tmp_path / "a_trap_to_import.py").write_text(f"open({str(marker)!r}, 'w').close()\ndef f(): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    data = attack % b"a_trap_to_import"
    before = set(sys.modules)
    value = read(data)
    assert set(sys.modules) == before
    assert not marker.exists()
    assert Global("a_trap_to_import", "f") in (value, getattr(value, "cls", None))
    pickle.Unpickler(__import__("io").BytesIO(b"ca_trap_to_import\nf\n.")).load()
    assert marker.exists()
    del sys.modules["a_trap_to_import"]


def test_calling_what_was_called_is_refused() -> None:
    with pytest.raises(UnsafeError):
        read(b"\x80\x04cbuiltins\ngetattr\n)R)R.")


def test_a_persistent_id_is_refused_where_none_is_expected() -> None:
    for data in (b"Pdata\n.", b"K\x01Q."):
        with pytest.raises(UnsafeError, match="outside itself"):
            read(data)


@pytest.mark.parametrize("code", [b"\x82\x01", b"\x83\x01\x00", b"\x84\x01\x00\x00\x00", b"\x97", b"\x98", b"\xff"])
def test_instructions_that_no_checkpoint_has_are_unsafe(code: bytes) -> None:
    with pytest.raises(UnsafeError):
        read(code + b".")


# -- damage ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_pickle_cut_off_anywhere_is_damaged(protocol: int) -> None:
    tree = {"a": [1, -70000, 2.5, None, True, "text", b"raw", (1, 2, 3, 4)], "b": argparse.Namespace(x=1 << 80)}
    data = pickle.dumps(tree, protocol)
    for length in range(len(data)):
        with pytest.raises(DamagedError):
            read(data[:length])


def test_a_real_pickle_cut_off_anywhere_is_damaged() -> None:
    data = real_pickle(LAYER)
    assert len(data) > 1000
    for length in range(len(data)):
        with pytest.raises(DamagedError):
            read(data[:length], persistent=lambda identifier: identifier)


@pytest.mark.parametrize("path", [LAYER, STATES], ids=["layer", "states"])
def test_changed_bytes_never_raise_anything_else(path: Path) -> None:
    data = real_pickle(path)
    rng = random.Random(7)
    for _ in range(800 if len(data) < 4000 else 100):
        changed = bytearray(data)
        for _ in range(rng.choice((1, 1, 2, 8))):
            changed[rng.randrange(len(data))] = rng.randrange(256)
        value = refused_or_harmless(bytes(changed))
        try:
            list(walk(value, "a.pkl"))
        except UnsafeError:
            continue


@given(data=st.binary(max_size=60))
@settings(max_examples=200, deadline=None)
def test_random_bytes_never_raise_anything_else(data: bytes) -> None:
    refused_or_harmless(data + b".")


OPCODES = b"().0125NIJKLMGXUSTVBC]}alesudtpqrghjcRbioQP" + bytes((*range(0x80, 0x99),))


@pytest.mark.slow
@given(codes=st.lists(st.sampled_from(OPCODES), max_size=40), tail=st.binary(max_size=8))
@settings(max_examples=300, deadline=None)
def test_random_instructions_never_raise_anything_else(codes: list[int], tail: bytes) -> None:
    refused_or_harmless(bytes(codes) + tail + b".")


# -- bombs -------------------------------------------------------------------------------------------------------------

DEEP = 100_000
REFUSED_BOMBS = {
    "BINUNICODE8 of 2^63 bytes": b"\x8d" + struct.pack("<Q", 1 << 63) + b"a.",
    "BINBYTES8 of 2^64 - 1 bytes": b"\x8e" + struct.pack("<Q", (1 << 64) - 1) + b"a.",
    "BYTEARRAY8 of 2^62 bytes": b"\x96" + struct.pack("<Q", 1 << 62) + b"a.",
    "BINUNICODE of 2^32 - 1 bytes": b"X" + struct.pack("<I", (1 << 32) - 1) + b"a.",
    "LONG4 of -1 bytes": b"\x8b" + struct.pack("<i", -1) + b"a" * 20 + b".",
    "LONG4 of -2^31 bytes": b"\x8b" + struct.pack("<i", -(1 << 31)) + b"a" * 20 + b".",
    "BINSTRING of -3 bytes": b"T" + struct.pack("<i", -3) + b"a" * 20 + b".",
    "a memo index that was never set": b"j" + struct.pack("<I", 1 << 31) + b".",
    "a deep tuple as a key": b"})" + b"\x85" * DEEP + b"K\x01s.",
    "a list as a key": b"}]K\x01s.",
    "a deep tuple as an attribute's name": b"\x80\x02ca\nb\n)\x81})" + b"\x85" * DEEP + b"K\x01sb.",
    "POP of nothing": b"0.",
    "TUPLE3 over a mark": b"K\x01(K\x02K\x03\x87.",
    "no value at the end": b".",
    "a mark at the end": b"K\x01(.",
    "POPMARK without a mark": b"K\x011.",
    "a memo of a mark": b"K\x01(q\x00.",
    "SETITEM on a tuple": b")K\x01K\x02s.",
    "an odd number of items": b"}(K\x01u.",
    "DUP of nothing": b"2.",
    "INT that is none": b"Ix\n.",
    "FLOAT that is none": b"Fx\n.",
    "text that is not UTF-8": b"\x8c\x01\xff.",
}
HARMLESS_BOMBS = {
    "a memo index of 2^31": b"K\x01r" + struct.pack("<I", 1 << 31) + b".",
    "deep tuples": b")" + b"\x85" * DEEP + b".",
    "deep lists": b"]" * DEEP + b"a" * (DEEP - 1) + b".",
    "deep dicts": b"}K\x00" * (DEEP - 1) + b"}" + b"s" * (DEEP - 1) + b".",
    "a list in itself": b"]q\x00h\x00a.",
    "a dict in itself": b"}q\x00K\x01h\x00s.",
    "deep calls": b"ca\nb\n" * DEEP + b")" + b"R\x85" * (DEEP - 1) + b"R.",
    "a tuple that doubles 100 times": b")" + b"2\x86" * 100 + b".",
}


@pytest.mark.parametrize("bomb", REFUSED_BOMBS)
def test_a_bomb_is_refused(bomb: str) -> None:
    with pytest.raises(DamagedError):
        read(REFUSED_BOMBS[bomb])


@pytest.mark.parametrize("bomb", HARMLESS_BOMBS)
def test_a_bomb_that_reads_is_walked_or_refused(bomb: str) -> None:
    try:
        assert len(list(walk(read(HARMLESS_BOMBS[bomb]), "a.pkl"))) < 3
    except UnsafeError as error:
        assert "nested deeper" in error.what or "hold one another" in error.what  # noqa: PT017


def test_a_key_that_is_wide_and_shared_is_refused() -> None:
    """Five levels of 100 references each are 10^10 elements to look at or to hash, in 550 bytes of pickle."""
    data = b"}(K\x01" + b"2" * 99 + b"t"
    for level in range(4):
        index = bytes((level,))
        data += b"q" + index + b"0(h" + index + b"2" * 99 + b"t"
    pickled = data + b"K" + bytes((1,)) + b"s."
    code = f"from streamconv.containers.pickles.reader import loads; loads({pickled!r}, 'a.pkl')"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, timeout=120, capture_output=True, text=True, check=False
    )
    assert "UnsafeError" in run.stderr


def test_a_pickle_over_the_limit_is_unsafe_before_it_is_read() -> None:
    with pytest.raises(UnsafeError, match="limit"):
        read(b"N" * (MAX_PICKLE_NBYTES + 1))


# -- walking -----------------------------------------------------------------------------------------------------------


def test_walk_gives_each_leaf_with_its_path_and_each_container_once() -> None:
    shared = [1]
    record = Record(Global("a", "B"), (2,), {"x": (3,)}, [4])
    tree = {"a": shared, "b": shared, "c": record, 5: ()}
    assert list(walk(tree, "a.pkl")) == [(("a", 0), 1), (("c", 0), 2), (("c", "x", 0), 3), (("c", 0), 4)]


def test_leaves_of_one_kind_are_those_of_the_walk() -> None:
    tree = {"a": [1, "x", (2.5, {"b": "y"})], "c": Record(Global("a", "B"), ("z",), "w")}
    for kind in (int, str, float, bytes):
        assert list(leaves_of(kind, tree, "a.pkl")) == [(p, v) for p, v in walk(tree, "a.pkl") if isinstance(v, kind)]
    assert list(leaves_of(int, 7, "a.pkl")) == [((), 7)]


def test_walk_refuses_what_is_nested_deeper_than_200() -> None:
    tree: Any = 0
    for _ in range(200):
        tree = [tree]
    assert list(walk(tree, "a.pkl")) == [((0,) * 200, 0)]
    with pytest.raises(UnsafeError):
        list(walk([tree], "a.pkl"))
