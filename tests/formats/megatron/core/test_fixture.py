"""A checkpoint that the real Megatron-Core saved (``torch_dist``, TP 2 x PP 2, no args) goes everywhere and back."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint import FileSystemReader, load

from streamconv import convert, inspect, plan, verify
from streamconv.core.errors import AmbiguousError
from tests.places import FRAMEWORKS

SAVED = FRAMEWORKS / "mcore_llama_dist_tp2pp2"
LAYERS, HEADS, FFN = 4, 4, 48
SAID: dict[str, Any] = {"num_heads": HEADS, "iteration": 3, "max_ram": "2G"}
CONFIG = {"rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 32}


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a ``torch_dist`` folder, read by torch alone."""
    reader = FileSystemReader(folder)
    found = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in reader.read_metadata().state_dict_metadata.items()
        if hasattr(entry, "size")
    }
    with warnings.catch_warnings():
        # It says that it runs in one process.
        warnings.simplefilter("ignore")
        load(found, storage_reader=reader, no_dist=True)
    return found


def assert_same(found: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor), name


@pytest.fixture(scope="module")
def saved() -> dict[str, torch.Tensor]:
    return tensors_of(SAVED)


def test_it_is_recognised_and_the_heads_are_asked_for() -> None:
    with pytest.raises(AmbiguousError, match="number of attention heads is unknown") as caught:
        plan(SAVED)
    assert caught.value.remedy == "say num_heads=N"
    work = plan(SAVED, num_heads=HEADS, iteration=3)
    assert (work.source_format, work.family, work.target_format) == (
        "Megatron-Core, torch_dist",
        "Llama",
        "megatron-core",
    )
    assert any("nothing says norm_epsilon, rotary_base" in warning for warning in work.warnings)
    assert inspect(SAVED).what == "Megatron-Core, torch_dist"


@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 2), (1, 4), (2, 1)])
def test_written_again_at_any_layout_it_is_the_same(
    tp: int, pp: int, saved: Mapping[str, torch.Tensor], tmp_path: Path
) -> None:
    convert(SAVED, tmp_path / "out", to="megatron-core", tp=tp, pp=pp, **SAID)
    assert_same(tensors_of(tmp_path / "out" / "iter_0000003"), saved)
    chunks = [path.name for path in sorted((tmp_path / "out" / "iter_0000003").glob("*.distcp"))]
    assert chunks == [f"__{rank}_0.distcp" for rank in range(tp * pp)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("to", "choices"),
    [
        ("megatron-core", {"container": "torch", "tp": 4, "pp": 1}),
        ("megatron-core", {"container": "torch", "tp": 1, "pp": 2, "vpp": 2, "spec": "local"}),
        ("megatron-legacy", {"tp": 2, "pp": 3}),
        ("megatron-legacy", {"tp": 1, "pp": 2, "vpp": 2, "dialect": "2023-09"}),
        ("deepspeed", {"tp": 2, "pp": 2}),
        ("huggingface", {"config": CONFIG, "vocab_padding": "keep"}),
    ],
)
def test_there_and_back_is_bit_for_bit(
    to: str, choices: dict[str, Any], saved: Mapping[str, torch.Tensor], tmp_path: Path
) -> None:
    way = {name: value for name, value in SAID.items() if to != "huggingface" or name != "iteration"}
    convert(SAVED, tmp_path / "there", to=to, **choices, **way)
    checked = verify(tmp_path / "there", against=SAVED, num_heads=HEADS)
    assert checked.exit_code == 0, checked
    convert(tmp_path / "there", tmp_path / "back", to="megatron-core", tp=1, pp=1, max_ram="2G")
    (folder,) = (tmp_path / "back").glob("[ir]*")
    assert_same(tensors_of(folder), saved)


def test_each_rank_of_the_torch_container_has_its_rows(saved: Mapping[str, torch.Tensor], tmp_path: Path) -> None:
    convert(SAVED, tmp_path / "out", to="megatron-core", container="torch", tp=4, pp=1, **SAID)
    names = {name for name in saved if not name.startswith("decoder.layers.")}
    for rank in range(4):
        path = tmp_path / "out" / "iter_0000003" / f"mp_rank_{rank:02d}" / "model_optim_rng.pt"
        model = torch.load(path, weights_only=False)["model"]
        parameters = {name: tensor for name, tensor in model.items() if not name.endswith("_extra_state")}
        assert {name for name, value in model.items() if value is None} == model.keys() - parameters.keys()
        assert len(parameters) == len(names) + (len(saved) - len(names)) * LAYERS
        for name, tensor in parameters.items():
            layer = re.match(r"decoder\.layers\.(\d+)\.", name)
            whole = saved[name.replace(f".{layer[1]}.", ".", 1)][int(layer[1])] if layer else saved[name]
            assert torch.equal(tensor, shard_of(name, whole, rank)), name


def shard_of(name: str, whole: torch.Tensor, rank: int) -> torch.Tensor:
    """Megatron's rule for one of four ranks; two groups of keys and values are cut by rows."""
    if name.endswith(("linear_proj.weight", "linear_fc2.weight")):
        return whole.chunk(4, dim=1)[rank]
    if name.endswith("linear_fc1.weight"):
        return torch.cat([half.chunk(4)[rank] for half in whole.split(FFN)])
    return whole if "norm" in name else whole.chunk(4)[rank]
