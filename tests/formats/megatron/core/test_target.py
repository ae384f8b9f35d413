"""What is written for Megatron-Core, and read back: each element of each rank is where Megatron's own rules put it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from streamconv import convert, stream, verify
from streamconv.models.mechanisms import RMSNORM, ROTARY
from tests.formats.megatron import rank_files as files
from tests.formats.megatron.models import CASES, CORE, MULTIPLE, Case, Stored, to_torch
from tests.formats.megatron.rank_files import LINEARS, Cut, Labelled, State, even

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.distributed is .*:UserWarning")

STAGES = ((1, 1), (2, 1), (2, 2), (3, 1), (3, 2))
SPECS = ("te", "local")


def name_of(case: Case, stored: Stored) -> Path | None:
    """What tells a family from another one with parameters of the same names."""
    return stored(case) / "config.json" if case.family.only_named else None


# -- the container torch -----------------------------------------------------------------------------------------------


# Each family at each TP; a head of its own stands where a tied one's copy does, so one TP is enough for it.
MATRIX = [(case, tp) for case in CASES for tp in ([4] if case.head else [1, 2, 4])]


@pytest.mark.slow
@pytest.mark.sweep(3)
@pytest.mark.parametrize(("case", "tp"), MATRIX, ids=str)
def test_each_rank_has_its_labels_and_all_of_it_comes_back(case: Case, tp: int, stored: Stored, tmp_path: Path) -> None:
    """From transformers to one cut, from each cut to the next, from the last to another TP, and back."""
    model, source = case.model(), stored(case)
    first: dict[str, Any] = {"config": MULTIPLE}
    other = even({1: 2, 2: 4, 4: 1}[tp], 2)
    for number, cut in enumerate([*(even(tp, pp, vpp) for pp, vpp in STAGES), other]):
        spec = SPECS[(number + tp) % 2]
        root = to_torch(source, tmp_path / str(number), cut, spec=spec, **first)
        files.check_ranks(root, model, cut, spec)
        source, first = root, {}
    convert(source, tmp_path / "back", config=name_of(case, stored), **{**CORE, "to": "huggingface"})
    files.assert_same(files.load_hugging_face(tmp_path / "back"), case.tensors(), model, "transformers")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_args_say_what_megatron_builds_the_model_from(case: Case, stored: Stored, tmp_path: Path) -> None:
    cut, sizes = even(4, 2), case.model().sizes
    to_torch(stored(case), tmp_path / "out", cut, config=MULTIPLE)
    states = files.read_ranks(tmp_path / "out", cut)
    found = vars(states[0, 0]["args"])
    assert all(vars(state["args"]) == found for state in states.values())
    expected = {
        "num_layers": 12,
        "hidden_size": sizes.hidden,
        "ffn_hidden_size": sizes.ffn,
        "num_attention_heads": sizes.heads,
        "kv_channels": sizes.head_dim,
        "group_query_attention": sizes.groups < sizes.heads,
        "num_query_groups": sizes.groups,
        "swiglu": case.family.gated,
        "normalization": "RMSNorm" if RMSNORM in case.family.mechanisms else "LayerNorm",
        "position_embedding_type": "rope" if ROTARY in case.family.mechanisms else "learned_absolute",
        "untie_embeddings_and_output_weights": case.head,
        "tensor_model_parallel_size": 4,
        "pipeline_model_parallel_size": 2,
        "virtual_pipeline_model_parallel_size": None,
        "padded_vocab_size": 64,
        "num_experts": None,
    }
    assert {name: found.get(name, "nothing") for name in expected} == expected
    assert {(s["checkpoint_version"], s["iteration"]) for s in states.values()} == {(3.0, 0)}


def test_the_vocabulary_is_padded_as_megatron_pads_it(stored: Stored, tmp_path: Path) -> None:
    """To a multiple of 128 and of TP, if nothing else is said, with copies of the last row."""
    case = CASES[0]
    cut = replace(even(2, 1), multiple=128)
    to_torch(stored(case), tmp_path / "out", cut)
    files.check_ranks(tmp_path / "out", case.model(), cut, "te")


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_a_cast_changes_types_and_no_places(name: str, stored: Stored, tmp_path: Path) -> None:
    """A rounded label is still the label of one place only up to its neighbours, so all of them are looked at."""
    case, cut, dtype = CASES[-1], even(2, 2, 2), getattr(torch, name)
    to_torch(stored(case), tmp_path / "out", cut, dtype={"bfloat16": "bf16", "float16": "fp16"}[name], config=MULTIPLE)
    model = case.model()
    rounded = replace(model, tensors={name: tensor.to(dtype) for name, tensor in model.tensors.items()})
    files.check_ranks(tmp_path / "out", rounded, cut, "te")
    args = files.read_ranks(tmp_path / "out", cut)[0, 0]["args"]
    assert (args.params_dtype, args.bf16, args.fp16) == (dtype, name == "bfloat16", name == "float16")


# -- the container torch_dist ------------------------------------------------------------------------------------------


def to_dist(source: Path, root: Path, cut: Cut, **how: Any) -> Path:
    """A conversion to the container that is the default; the folder of its iteration."""
    convert(source, root, tp=cut.tp, pp_layers=cut.stages, **{**CORE, **how})
    return files.checkpoint_of(root)


def check_dist(place: Path, model: Labelled, cut: Cut) -> set[str]:
    """Torch reads the tensors that Megatron's model stores, and no others; the names of the objects."""
    found, objects = files.read_dist(place)
    files.assert_same(found, files.whole_tensors(model, cut.multiple * cut.tp), model, str(cut))
    return objects


def dist_extra_states(modules: Iterable[str], layers: int = 12) -> set[str]:
    """The objects of extra state that Megatron's modules have, one for each layer."""
    return {f"decoder.layers.{module}._extra_state/shard_{i}_{layers}" for module in modules for i in range(layers)}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=str)
def test_torch_reads_the_labels_and_all_of_it_comes_back(case: Case, stored: Stored, tmp_path: Path) -> None:
    """And from it to a file for each rank. Four ranks have each a slice of two groups."""
    model, source, cut = case.model(), tmp_path / "dist", even(4, 3) if case.head else even(2, 2)
    place = to_dist(stored(case), source, cut, config=MULTIPLE)
    assert dist_extra_states(LINEARS) <= check_dist(place, model, cut)
    assert len(list(place.glob("*.distcp"))) == cut.tp * cut.pp
    cut = even(2, 3, 2)
    files.check_ranks(to_torch(source, tmp_path / "ranks", cut), model, cut, "te")
    convert(source, tmp_path / "back", config=name_of(case, stored), **{**CORE, "to": "huggingface"})
    files.assert_same(files.load_hugging_face(tmp_path / "back"), case.tensors(), model, "transformers")


def test_a_cast_in_torch_dist(stored: Stored, tmp_path: Path) -> None:
    case, cut = CASES[-1], even(2, 2)
    place = to_dist(stored(case), tmp_path / "out", cut, dtype="bf16", config=MULTIPLE)
    model = case.model()
    rounded = replace(model, tensors={name: tensor.bfloat16() for name, tensor in model.tensors.items()})
    check_dist(place, rounded, cut)


@pytest.mark.slow
def test_both_containers_hold_the_same(stored: Stored, tmp_path: Path) -> None:
    case = CASES[-1]
    to_dist(stored(case), tmp_path / "dist", even(4, 3), config=MULTIPLE)
    to_torch(tmp_path / "dist", tmp_path / "torch", even(2, 2, 2))
    for left, right in ((tmp_path / "dist", tmp_path / "torch"), (tmp_path / "torch", stored(case))):
        assert verify(left, right, max_ram="1G").exit_code == 0
    states = files.read_ranks(tmp_path / "torch", even(2, 2, 2))
    states[1, 1]["model1"]["decoder.final_layernorm.weight"][3] += 1
    name = files.rank_folder(1, 1, 2)
    torch.save(states[1, 1], files.checkpoint_of(tmp_path / "torch") / name / "model_optim_rng.pt")
    assert verify(tmp_path / "torch", tmp_path / "dist", max_ram="1G", replicated="fail").exit_code == 7


def test_what_is_streamed_is_what_is_written(stored: Stored, tmp_path: Path) -> None:
    case, cut = CASES[-1], even(2, 2, 2)
    expected = files.core_files(case.model(), cut)
    found: dict[files.Rank, dict[str, torch.Tensor]] = {place: {} for place in cut.ranks}
    for one in stream(
        stored(case), to="megatron-core", container="torch", tp=2, pp=2, vpp=2, config=MULTIPLE, max_ram="1G", copy=True
    ):
        found[one.rank.tp, one.rank.pp][one.name] = one.tensor
    for place, chunks in expected.items():
        named = {
            f"model{number}.{name}": tensor for number, chunk in enumerate(chunks) for name, tensor in chunk.items()
        }
        files.assert_same(found[place], named, case.model(), str(place))


def test_the_other_state_is_a_file_or_an_object(stored: Stored, tmp_path: Path) -> None:
    """Since core_v0.19 it is an object, and objects are lists of one."""
    cut = even(2, 2)
    old = to_dist(stored(CASES[0]), tmp_path / "old", cut, megatron_version="0.18")
    new = to_dist(stored(CASES[0]), tmp_path / "new", cut, megatron_version="0.19")
    assert not (new / "common.pt").exists()
    state: State = torch.load(old / "common.pt", weights_only=False)
    (listed,) = files.read_object(new, "common_state/shard_0_1")
    assert state.keys() == listed.keys() == {"checkpoint_version", "iteration", "checkpoint_info", "args"}
    assert vars(state["args"]) == vars(listed["args"])
    assert state["args"].ckpt_format == "torch_dist"
    for place in (old, new):
        config = json.loads((place / "metadata.json").read_text())
        assert (config["sharded_backend"], config["sharded_backend_version"]) == ("torch_dist", 1)
        assert files.read_object(place, "decoder.layers.mlp.linear_fc1._extra_state/shard_3_12") == [None]
    root = to_torch(tmp_path / "new", tmp_path / "back", cut)
    files.check_ranks(root, CASES[0].model(), replace(cut, multiple=128), "te")
