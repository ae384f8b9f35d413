"""The verdict on each global, held against torch's own tables."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from streamconv.containers.pickles.machine import Global
from streamconv.containers.pickles.reader import load_from, loads
from streamconv.containers.pickles.verdicts import PLAIN, modern_name, verdict
from streamconv.containers.torch_save.zip_reader import open_torch_zip
from tests.places import FIXTURES

FILES = sorted(FIXTURES.rglob("*.pt"))
unpickler: Any = pytest.importorskip("torch._weights_only_unpickler")


def test_plain_is_what_torch_accepts() -> None:
    theirs = set(unpickler._get_allowed_globals())
    if torch.__version__.startswith("2.13."):
        assert theirs == PLAIN
    # Other releases know other dtypes and storages; what rebuilds tensors is the same.
    assert {name for name in theirs ^ PLAIN if "rebuild_tensor" in name or "collections" in name} <= {
        "collections.Counter"
    }


@pytest.mark.parametrize("folder", sorted({path.relative_to(FIXTURES).parts[1] for path in FILES}))
def test_the_globals_of_every_fixture_are_those_that_torch_finds(folder: str) -> None:
    for path in (path for path in FILES if folder in path.parts):
        found = open_torch_zip(path).globals
        unsafe = set(torch.serialization.get_unsafe_globals_in_checkpoint(path))
        assert {modern_name(value) for value in found if verdict(value) != "plain"} == unsafe, path
        assert not [value for value in found if verdict(value) == "executes"], path


def name(full: str) -> Global:
    module, _, last = full.rpartition(".")
    return Global(module, last)


@pytest.mark.parametrize(
    "full",
    [
        "os.system",
        "posix.system",
        "nt.system",
        "subprocess.Popen",
        "commands.getoutput",
        "sys.exit",
        "builtins.eval",
        "builtins.exec",
        "builtins.compile",
        "builtins.open",
        "builtins.__import__",
        "builtins.getattr",
        "__builtin__.eval",
        "__builtin__.execfile",
        "importlib.import_module",
        "runpy.run_path",
        "socket.socket",
        "shutil.rmtree",
        "pty.spawn",
        "ctypes.CDLL",
        "pickle.loads",
        "_pickle.loads",
        "cPickle.loads",
        "webbrowser.open",
        "torch.hub.load",
        "torch.load",
        "torch.storage._load_from_bytes",
        "torch.utils.cpp_extension.load_inline",
        "operator.attrgetter",
        "_operator.methodcaller",
        "types.FunctionType",
        "urllib.request.urlopen",
        "numpy.testing._private.utils.runstring",
        "asyncio.unix_events._UnixSubprocessTransport._start",
        "_aix_support._read_cmd_output",
        "_osx_support._read_output",
        "_pyrepl.pager.pipe_pager",
        "test.support.script_helper.assert_python_ok",
        "uuid._get_command_stdout",
    ],
)
def test_what_runs_code_executes(full: str) -> None:
    assert verdict(name(full)) == "executes"


@pytest.mark.parametrize(
    ("module", "attribute"),
    [
        ("torch", "serialization.os.system"),
        ("collections", "OrderedDict.__init__.__globals__"),
        ("os", "path.join"),
        ("torch.nn", "functional.importlib.import_module"),
    ],
)
def test_a_dotted_name_that_reaches_through_a_module_executes(module: str, attribute: str) -> None:
    """Protocol 4 lets a name have dots, and unpicklers follow them."""
    assert verdict(Global(module, attribute)) == "executes"


@pytest.mark.parametrize(
    "full",
    [
        "argparse.Namespace",
        "megatron.core.enums.ModelType",
        "megatron.enums.PositionEmbeddingType",
        "numpy.core.multiarray._reconstruct",
        "numpy.dtype",
        "pathlib.PosixPath",
        "copyreg._reconstructor",
        "copy_reg._reconstructor",
        "_io.BytesIO",
        "functools.partial",
        "torch.distributed.checkpoint.metadata.Metadata",
        "deepspeed.runtime.fp16.loss_scaler.LossScaler",
        "oslo.config",
        "systems.model",
        "uuid.UUID",
        "test.model",
    ],
)
def test_a_class_that_is_only_foreign_is_refused(full: str) -> None:
    assert verdict(name(full)) == "refused"


def test_a_name_of_very_many_parts_is_judged_by_its_first() -> None:
    """The names of all that it could be in would take 200 GB."""
    assert verdict(Global("a." * 300_000 + "a", "b")) == "refused"
    assert verdict(Global("torch.hub." + "a." * 300_000 + "a", "b")) == "executes"


@pytest.mark.parametrize("full", ["torch.Size", "builtins.set", "__builtin__.set", "collections.OrderedDict"])
def test_names_of_both_pythons_are_plain(full: str) -> None:
    assert verdict(name(full)) == "plain"


# -- what the pickle machine counts ------------------------------------------------------------------------------------


def counted(data: bytes) -> dict[str, int]:
    named: dict[Global, int] = {}
    loads(data, "a.pkl", named=named)
    return {str(value): count for value, count in named.items()}


@pytest.mark.parametrize("protocol", range(6))
def test_calls_are_counted_and_names_alone_are_not(protocol: int) -> None:
    value = [complex(1, 2), complex(3, 4), complex, Path]
    found = counted(pickle.dumps(value, protocol))
    assert found.pop(f"{'__builtin__' if protocol < 3 else 'builtins'}.complex") == 2
    assert list(found.values()) == [0]


@pytest.mark.parametrize(
    ("data", "count"),
    [
        (b"cposix\nsystem\n(S'x'\ntR.", 1),
        (b"(S'x'\niposix\nsystem\n.", 1),
        (b"(cposix\nsystem\nS'x'\no.", 1),
        (b"cposix\nsystem\n)\x81.", 1),
        (b"cposix\nsystem\n)}\x92.", 1),
        (b"cposix\nsystem\n.", 0),
        (b"cposix\nsystem\n0cposix\nsystem\n)R0cposix\nsystem\n)R.", 2),
        (b"\x8c\x05posix\x8c\x06system\x93)R.", 1),
    ],
)
def test_each_way_to_call_is_counted(data: bytes, count: int) -> None:
    assert counted(data) == {"posix.system": count}


def test_counts_add_up_over_pickles() -> None:
    named: dict[Global, int] = {}
    for _ in range(3):
        loads(b"cposix\nsystem\n)R.", "a.pkl", named=named)
    assert named == {Global("posix", "system"): 3}


def test_pickles_one_behind_the_other() -> None:
    data = b"xx" + pickle.dumps([1]) + pickle.dumps({"a": 2}) + b"yy"
    first, end = load_from(data, 2, "a.pkl")
    second, last = load_from(data, end, "a.pkl")
    assert (first, second, data[last:]) == ([1], {"a": 2}, b"yy")
