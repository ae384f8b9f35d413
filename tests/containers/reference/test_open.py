"""The formats' own readers find the tensors that ours finds, under the same names, and run nothing."""

from __future__ import annotations

import os
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file

from streamconv.containers.open_any import checkpoint_files, open_any
from streamconv.containers.reference.open import check_torch, open_reference
from streamconv.core.errors import UnsupportedError
from tests.places import FRAMEWORKS, MADE

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")

CHILDREN = (*FRAMEWORKS.iterdir(), *MADE.parent.glob("megatron_core/*"))
FOLDERS = sorted(path for path in CHILDREN if path.is_dir() and checkpoint_files(path))
TREE = {
    "half": torch.full((3, 4), 1.5, dtype=torch.bfloat16),
    "flags": torch.tensor([True, False, True]),
    "tiny": torch.tensor([1.0, -2.0]).to(torch.float8_e4m3fn),
    "step": torch.tensor(7),
    "empty": torch.empty(0, 3),
    "complex": torch.tensor([1 + 2j, 3.0]),
    "matrix": torch.arange(60.0).reshape(6, 10),
}


def raw(tensor: torch.Tensor) -> bytes:
    own = tensor.detach().clone(memory_format=torch.contiguous_format).reshape(-1)
    return own.view(torch.uint8).numpy().tobytes() if len(own) else b""


def same_as_ours(path: Path) -> int:
    """The number of tensors that both readers find alike, which are all."""
    ours = open_any(path)
    theirs, tensors = open_reference(ours), ours.tensors()
    assert set(theirs) == set(tensors)
    for name, tensor in tensors.items():
        other, own = theirs[name], tensor.torch()
        assert (other.shape, other.dtype) == (own.shape, own.dtype), name
        assert raw(other) == raw(own), name
    theirs.give_back()
    return len(tensors)


@pytest.mark.parametrize("folder", sorted(FOLDERS), ids=lambda path: path.name)
def test_what_the_frameworks_wrote_is_read_alike(folder: Path) -> None:
    """With their enums, namespaces and loss scalers, whose classes are not here."""
    assert sum(same_as_ours(path) for path in checkpoint_files(folder)) > 20


@pytest.mark.parametrize("kind", ["torch", "safetensors", "distcp"])
def test_every_kind_of_tensor_is_read_alike(kind: str, tmp_path: Path) -> None:
    if kind == "torch":
        tied = {"again": TREE["matrix"], "turned": TREE["matrix"].T, "nested": [{"deep": TREE["step"]}]}
        torch.save({**TREE, **tied}, tmp_path / "x.pt")
        assert same_as_ours(tmp_path / "x.pt") == len(TREE) + 3
    elif kind == "safetensors":
        save_file(TREE, tmp_path / "x.safetensors")
        assert same_as_ours(tmp_path / "x.safetensors") == len(TREE)
    else:
        dcp.save({name: TREE[name] for name in TREE if name != "empty"}, checkpoint_id=tmp_path / "d", no_dist=True)
        assert same_as_ours(tmp_path / "d" / "__0_0.distcp") == len(TREE) - 1


def test_pages_that_were_looked_at_are_given_back(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(4 << 20)}, tmp_path / "x.pt")
    theirs = open_reference(open_any(tmp_path / "x.pt"))

    def resident() -> int:
        lines = Path("/proc/self/smaps").read_text().splitlines()
        (place,) = (number for number, line in enumerate(lines) if line.endswith(str(tmp_path / "x.pt")))
        return next(int(line.split()[1]) for line in lines[place:] if line.startswith("Rss:"))

    assert theirs["w"].sum() == 0
    assert resident() >= 16 << 10
    theirs.give_back()
    assert resident() == 0
    assert theirs["w"].sum() == 0


# -- nothing is run ------------------------------------------------------------------------------------------------

CANARY = """
from pathlib import Path
Path(__file__).with_name("sang").touch()
def sing(*args): Path(__file__).with_name("sang").touch()
class Bird:
    def __setstate__(self, state): sing()
"""


class Call:
    """Whoever unpickles this calls a function."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], tuple[Any, Any]]:
    """A module that sings when it is imported, or when what is in it is called; returns what is in it."""
    (tmp_path / "canary_of_streamconv.py").write_text(CANARY)
    monkeypatch.syspath_prepend(tmp_path)
    stub = ModuleType("canary_of_streamconv")
    source: dict[str, Any] = {"__name__": "canary_of_streamconv", "__file__": str(tmp_path / "canary_of_streamconv.py")}
    exec(CANARY, source)  # noqa: S102 - to pickle what it names
    (tmp_path / "sang").unlink()
    stub.__dict__.update(sing=source["sing"], Bird=source["Bird"])

    def things() -> tuple[Any, Any]:
        sys.modules["canary_of_streamconv"] = stub
        return source["sing"], source["Bird"]

    monkeypatch.setitem(sys.modules, "canary_of_streamconv", stub)
    return things


def silent(folder: Path) -> bool:
    """Whether nothing was imported, and nothing called."""
    return "canary_of_streamconv" not in sys.modules and not (folder / "sang").exists()


def test_a_class_that_a_file_names_is_neither_imported_nor_called(
    canary: Callable[[], tuple[Any, Any]], tmp_path: Path
) -> None:
    sing, bird = canary()
    built = bird()
    built.weight = torch.ones(3)
    called = Call(sing, torch.arange(4.0), {"deep": torch.zeros(2)})
    torch.save({"w": torch.ones(2), "called": called, "built": built}, tmp_path / "x.pt")
    del sys.modules["canary_of_streamconv"]
    assert same_as_ours(tmp_path / "x.pt") == 4
    assert silent(tmp_path)


def test_a_file_that_would_run_a_command_is_refused(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2), "x": Call(os.system, f"touch {tmp_path / 'sang'}")}, tmp_path / "x.pt")
    with pytest.raises(UnsupportedError, match=r"torch\.load refuses it: .*posix is blocked"):
        open_reference(open_any(tmp_path / "x.pt"))
    torch.save({"w": torch.ones(2), "x": Call(eval, "1")}, tmp_path / "x.pt")
    with pytest.raises(UnsupportedError, match=r"torch\.load refuses it: Unsupported global: GLOBAL eval"):
        open_reference(open_any(tmp_path / "x.pt"))
    assert not (tmp_path / "sang").exists()


def test_metadata_that_would_call_a_function_does_not(canary: Callable[[], tuple[Any, Any]], tmp_path: Path) -> None:
    """torch's reader would unpickle it."""
    dcp.save({"w": torch.arange(6.0)}, checkpoint_id=tmp_path / "d", no_dist=True)
    sing, _ = canary()
    whole = pickle.loads((tmp_path / "d" / ".metadata").read_bytes())
    whole.planner_data = Call(sing, 1)
    (tmp_path / "d" / ".metadata").write_bytes(pickle.dumps(whole))
    del sys.modules["canary_of_streamconv"]
    assert same_as_ours(tmp_path / "d" / "__0_0.distcp") == 1
    assert silent(tmp_path)
    # The canary is alive: torch's own way to read the metadata makes it sing.
    dcp.FileSystemReader(tmp_path / "d").read_metadata()
    assert (tmp_path / "sang").exists()


def test_the_stand_ins_are_gone_afterwards(tmp_path: Path) -> None:
    before = set(torch.serialization.get_safe_globals())
    same_as_ours(FRAMEWORKS / "bs_bloom_tp2pp2_fp32_z0" / "global_step3" / "mp_rank_00_model_states.pt")
    assert set(torch.serialization.get_safe_globals()) == before
    torch.save({"x": Call(Call, 1)}, tmp_path / "x.pt")
    assert same_as_ours(tmp_path / "x.pt") == 0
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "x.pt", weights_only=True)


# -- what the readers refuse ---------------------------------------------------------------------------------------


def test_what_cannot_be_mapped_or_found_is_refused_with_the_reason(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(UnsupportedError, match=r"torch\.load refuses it: mmap can only be used with files saved with"):
        open_reference(open_any(tmp_path / "old.pt"))
    torch.save({"w": torch.ones(2)}, tmp_path / "x.pt", pickle_protocol=4)
    with pytest.raises(UnsupportedError, match=r"torch\.load refuses it: Unsupported operand"):
        open_reference(open_any(tmp_path / "x.pt"))
    shutil.copy(FRAMEWORKS / "mcore_llama_dist_tp2pp2" / "__0_0.distcp", tmp_path)
    with pytest.raises(UnsupportedError, match=r"there is no \.metadata beside it"):
        open_reference(open_any(tmp_path / "__0_0.distcp"))


def test_a_tensor_that_the_file_does_not_have_is_a_key_error(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2)}, tmp_path / "x.pt")
    theirs = open_reference(open_any(tmp_path / "x.pt"))
    with pytest.raises(KeyError):
        _ = theirs["v"]
    assert ("w" in theirs, "v" in theirs, len(theirs)) == (True, False, 1)


def test_this_torch_is_safe() -> None:
    check_torch(distributed=True)
