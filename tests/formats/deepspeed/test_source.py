"""What is read out of a Megatron-DeepSpeed folder, and what is refused."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import streamconv
from streamconv import convert, plan
from streamconv.core.errors import (
    AmbiguousError,
    DamagedError,
    DifferenceError,
    SourceError,
    StreamconvError,
    UnsupportedError,
    UsageError,
)
from streamconv.formats.deepspeed.source import open_model
from streamconv.formats.options import RowOrderOptions
from streamconv.models.orders import QkvLayout
from tests import oracle
from tests.places import LABELLED, MADE, REAL, Source
from tests.spread import Sweep

BLOOM = REAL[1]
UNEVEN = LABELLED[1]


@pytest.fixture
def copy(tmp_path: Path) -> Callable[[Source], Path]:
    """Copies of a checkpoint that a test may change."""

    def make(source: Source) -> Path:
        return Path(shutil.copytree(source.folder, tmp_path / "copy", dirs_exist_ok=True))

    return make


def tag_folder(root: Path) -> Path:
    return root / (root / "latest").read_text().strip()


def edit(path: Path, change: Callable[[Any], None]) -> None:
    """Load a file with the framework's classes stubbed out, change it, save it."""
    state = oracle.load_stubbed(path)
    if "args" in state:
        plain = {k: v for k, v in vars(state["args"]).items() if isinstance(v, str | int | float | list | None)}
        state["args"] = argparse.Namespace(**plain)
    change(state)
    torch.save(state, path)


def edit_ranks(root: Path, change: Callable[[Any], None]) -> None:
    for path in tag_folder(root).glob("mp_rank_*"):
        edit(path, change)


# -- the folder ----------------------------------------------------------------------------------------------------


def test_root_and_tag_folder_are_the_same_checkpoint() -> None:
    assert (
        plan(BLOOM.folder, to="megatron-legacy").source
        == plan(BLOOM.folder / "global_step3", to="megatron-legacy").source
    )


def test_a_tag_chooses_among_several(copy: Callable[[Source], Path]) -> None:
    root = copy(BLOOM)
    shutil.copytree(root / "global_step3", root / "global_step9")
    assert plan(root, tag="global_step9", to="megatron-legacy").source.name == "global_step9"
    with pytest.raises(SourceError, match="no folder for the tag") as caught:
        plan(root, tag="global_step4", to="megatron-legacy")
    assert "global_step9" in str(caught.value)


@pytest.mark.parametrize("name", ["../elsewhere", "/etc", "..", "a\\b"])
def test_a_tag_read_from_a_file_cannot_leave_the_folder(name: str, copy: Callable[[Source], Path]) -> None:
    root = copy(BLOOM)
    (root / "latest").write_text(name)
    with pytest.raises(DamagedError, match="not the name of a folder"):
        plan(root, to="megatron-legacy")


def test_a_folder_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such folder"):
        plan(tmp_path / "nothing", to="megatron-legacy")


def test_an_empty_folder_is_not_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="an empty folder"):
        plan(tmp_path, to="megatron-legacy")


# -- layers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", [1, 3, 4, 6, 8])
def test_a_missing_layer_is_never_overlooked(index: int, copy: Callable[[Source], Path]) -> None:
    root = copy(BLOOM)
    for path in tag_folder(root).glob(f"layer_{index:02d}-*"):
        path.unlink()
    with pytest.raises(DamagedError):
        plan(root, to="megatron-legacy")


@pytest.mark.parametrize("index", [3, 4, 6])
def test_a_missing_layer_is_noticed_without_any_args(index: int, copy: Callable[[Source], Path]) -> None:
    root = copy(BLOOM)
    for path in [*tag_folder(root).glob(f"layer_{index:02d}-*"), *tag_folder(root).glob("mp_rank_*")]:
        path.unlink()
    with pytest.raises(DamagedError, match="missing"):
        plan(root, num_heads=4, to="megatron-legacy")


def test_a_missing_rank_of_one_layer_is_named(copy: Callable[[Source], Path]) -> None:
    root = copy(BLOOM)
    (tag_folder(root) / "layer_05-model_01-model_states.pt").unlink()
    with pytest.raises(DamagedError, match=r"layer_05-model_01-model_states\.pt"):
        plan(root, to="megatron-legacy")


def test_a_missing_mp_rank_file_is_named(copy: Callable[[Source], Path]) -> None:
    root = copy(BLOOM)
    (tag_folder(root) / "mp_rank_02_model_states.pt").unlink()
    with pytest.raises(DamagedError, match=r"1 of 4 mp_rank files are missing: mp_rank_02_model_states\.pt"):
        plan(root, to="megatron-legacy")


@pytest.mark.slow
@pytest.mark.sweep(2)
@pytest.mark.parametrize(("layers", "ranks"), [(101, 1), (101, 11), (9, 11)])
def test_layer_numbers_and_ranks_beyond_9_and_99_are_numbers(layers: int, ranks: int, tmp_path: Path) -> None:
    """A BLOOM of 101 layers, and on 11 ranks, under file names of two and of three digits."""
    folder = tmp_path / "global_step1"
    folder.mkdir()
    hidden = 2 * ranks
    generator = torch.Generator().manual_seed(1)

    def save(index: int, tensors: dict[str, tuple[tuple[int, ...], bool]]) -> None:
        shared = {k: torch.randn(shape, generator=generator) for k, (shape, split) in tensors.items() if not split}
        for rank in range(ranks):
            mine = {k: torch.randn(shape, generator=generator) for k, (shape, split) in tensors.items() if split}
            torch.save(shared | mine, folder / f"layer_{index:02d}-model_{rank:02d}-model_states.pt")

    norm: dict[str, tuple[tuple[int, ...], bool]] = dict.fromkeys(("weight", "bias"), ((hidden,), False))
    save(
        1, {"word_embeddings.weight": ((4, hidden), True), **{f"word_embeddings.norm.{k}": v for k, v in norm.items()}}
    )
    for index in range(3, 3 + layers):
        block: dict[str, tuple[tuple[int, ...], bool]] = {}
        for name in ("input_layernorm", "post_attention_layernorm"):
            block |= {f"{name}.{kind}": v for kind, v in norm.items()}
        for name, rows, columns in (
            ("self_attention.query_key_value", 6, hidden),
            ("self_attention.dense", hidden, 2),
            ("mlp.dense_h_to_4h", 8, hidden),
            ("mlp.dense_4h_to_h", hidden, 8),
        ):
            block |= {f"{name}.weight": ((rows, columns), True), f"{name}.bias": ((rows,), rows != hidden)}
        save(index, block)
    save(layers + 4, norm)
    stages = (4, layers - 4)
    convert(folder, tmp_path / "out", num_heads=ranks, pp_layers=stages, tp=1, max_ram="3G", to="megatron-legacy")
    result = oracle.result_model(oracle.result_files(tmp_path / "out", 1, 2), heads=ranks)
    oracle.assert_same_model(result, oracle.source_model(folder, heads=ranks))
    assert len({key.split(".")[1] for key in result if key.startswith("layers.")}) == layers


def test_a_file_without_a_model_axis_is_rank_0(copy: Callable[[Source], Path], tmp_path: Path) -> None:
    root = copy(REAL[0])
    for path in tag_folder(root).glob("layer_*"):
        path.rename(path.with_name(path.name.replace("-model_00", "")))
    convert(root, tmp_path / "out", max_ram="2G", to="megatron-legacy")
    result = oracle.result_model(oracle.result_files(tmp_path / "out", 1, 2))
    oracle.assert_same_model(result, oracle.source_model(REAL[0].folder))


def test_bloated_layer_files_are_read_by_range(copy: Callable[[Source], Path], tmp_path: Path) -> None:
    """Old DeepSpeed saved views of one storage that held the whole stage (DeepSpeed issue 549)."""
    root = copy(BLOOM)
    for path in tag_folder(root).glob("layer_*"):
        state = torch.load(path, weights_only=True)
        stage = torch.cat([torch.full((1000,), 7.0), *(tensor.flatten() for tensor in state.values()), torch.zeros(99)])
        offset, views = 1000, {}
        for key, tensor in state.items():
            views[key] = stage[offset : offset + tensor.numel()].view(tensor.shape)
            offset += tensor.numel()
        torch.save(views, path)
    for number, (tp, pp) in enumerate(((2, 2), (1, 1), (4, 1))):
        convert(root, tmp_path / f"{number}", max_ram="2G", tp=tp, pp=pp, to="megatron-legacy")
        result = oracle.result_model(oracle.result_files(tmp_path / f"{number}", tp, pp))
        oracle.assert_same_model(result, oracle.source_model(BLOOM.folder), 100)


def test_transposed_tensors_are_read_by_their_strides(copy: Callable[[Source], Path], tmp_path: Path) -> None:
    root = copy(BLOOM)
    for path in tag_folder(root).glob("layer_0[3-6]*"):
        state = torch.load(path, weights_only=True)
        torch.save({k: v.t().contiguous().t() if v.dim() == 2 else v for k, v in state.items()}, path)
    convert(root, tmp_path / "out", tp=1, pp=1, max_ram="2G", to="megatron-legacy")
    result = oracle.result_model(oracle.result_files(tmp_path / "out", 1, 1))
    oracle.assert_same_model(result, oracle.source_model(BLOOM.folder), 100)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda s: s.update({"mlp.adapter.weight": torch.zeros(2)}), UnsupportedError, r"unknown tensors mlp\.adapter"),
        (lambda s: s.pop("mlp.dense_4h_to_h.bias"), DamagedError, r"mlp\.dense_4h_to_h\.bias is not in both"),
        (lambda s: s.update({"mlp.dense_h_to_4h.bias": torch.zeros(63)}), DamagedError, r"\(64,\).*\(63,\)"),
        (lambda s: s.update({"input_layernorm.bias": torch.zeros(32, dtype=torch.int64)}), DamagedError, "int64"),
    ],
)
def test_one_rank_that_differs_is_refused(
    change: Callable[[Any], Any], error: type[StreamconvError], words: str, copy: Callable[[Source], Path]
) -> None:
    root = copy(BLOOM)
    for rank in (0, 1) if "adapter" in words else (1,):
        edit(tag_folder(root) / f"layer_04-model_{rank:02d}-model_states.pt", change)
    with pytest.raises(error, match=words) as caught:
        plan(root, to="megatron-legacy")
    assert error is UnsupportedError or "copy both again" in str(caught.value.remedy)


def test_a_gated_linear_unit_is_refused_by_its_shape(copy: Callable[[Source], Path]) -> None:
    root = copy(BLOOM)
    for path in tag_folder(root).glob("layer_0[3-6]*"):
        edit(path, lambda s: s.update({k: torch.cat([v, v]) for k, v in s.items() if "h_to_4h" in k}))
    edit_ranks(root, lambda s: vars(s["args"]).pop("ffn_hidden_size"))
    with pytest.raises(UnsupportedError, match="GLU"):
        plan(root, to="megatron-legacy")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("num_experts", [8], "MoE"),
        ("swiglu", True, "GLU"),
        ("glu_activation", "geglu", "GLU"),
        ("use_rotary_position_embeddings", True, "rotary"),
        ("num_key_value_heads", 2, "grouped-query"),
        ("normalization", "rmsnorm", "RMSNorm"),
    ],
)
def test_a_mechanism_in_args_is_refused_by_its_name(
    name: str, value: object, words: str, copy: Callable[[Source], Path]
) -> None:
    root = copy(REAL[6])
    edit_ranks(root, lambda s: setattr(s["args"], name, value))
    with pytest.raises(UnsupportedError, match=words):
        plan(root, to="megatron-legacy")


def test_expert_files_are_refused_as_moe(copy: Callable[[Source], Path]) -> None:
    root = copy(BLOOM)
    torch.save({}, tag_folder(root) / "layer_4_expert_0_mp_rank_00_model_states.pt")
    with pytest.raises(UnsupportedError, match="MoE"):
        plan(root, to="megatron-legacy")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("layer_999999999999-model_00-model_states.pt", "1 of 14 layer files are missing"),
        ("layer_03-model_999999999999-model_states.pt", "beyond the ranks of a model of TP 2 x PP 2: layer_03-model_9"),
    ],
)
def test_a_huge_number_in_a_file_name_is_only_a_file_too_many(
    name: str, words: str, copy: Callable[[Source], Path]
) -> None:
    root = copy(BLOOM)
    shutil.copy(tag_folder(root) / "layer_03-model_00-model_states.pt", tag_folder(root) / name)
    with pytest.raises(DamagedError, match=words):
        plan(root, to="megatron-legacy")


@pytest.mark.parametrize("iteration", [-1, 10**30])
def test_an_iteration_out_of_bounds_is_refused(iteration: int, copy: Callable[[Source], Path]) -> None:
    root = copy(BLOOM)
    edit_ranks(root, lambda s: s.update(iteration=iteration))
    with pytest.raises(DamagedError, match="iteration"):
        plan(root, to="megatron-legacy")


@pytest.mark.parametrize("twin", ["layer_5-model_00-model_states.pt", "layer_05-model_states.pt"])
def test_two_files_of_one_layer_and_rank_are_refused(twin: str, copy: Callable[[Source], Path]) -> None:
    root = copy(BLOOM)
    shutil.copy(tag_folder(root) / "layer_06-model_00-model_states.pt", tag_folder(root) / twin)
    with pytest.raises(DamagedError, match="the same layer and rank"):
        plan(root, to="megatron-legacy")


@pytest.mark.parametrize("name", ["iteration", "num_layers"])
def test_ranks_of_different_runs_are_refused(name: str, copy: Callable[[Source], Path]) -> None:
    root = copy(BLOOM)
    path = tag_folder(root) / "mp_rank_01_model_states.pt"
    edit(path, lambda s: s.update(iteration=77) if name == "iteration" else setattr(s["args"], name, 77))
    with pytest.raises(DamagedError, match=f"{name} is 77 in mp_rank_01"):
        plan(root, to="megatron-legacy")


@pytest.mark.parametrize("version", [0, 1.0, "new"])
def test_the_row_orders_of_before_2021_are_refused(version: object, copy: Callable[[Source], Path]) -> None:
    root = copy(BLOOM)
    edit_ranks(root, lambda s: s.update(checkpoint_version=version))
    with pytest.raises(UnsupportedError, match="checkpoint_version"):
        plan(root, to="megatron-legacy")


def test_frozen_parameters_count_for_the_stages(copy: Callable[[Source], Path]) -> None:
    root = copy(LABELLED[0])

    def freeze(state: Any) -> None:
        frozen = {n: shape for group in state["param_shapes"] for n, shape in group.items() if n.startswith("4.")}
        state["param_shapes"] = [{n: s for n, s in g.items() if n not in frozen} for g in state["param_shapes"]]
        state["frozen_param_shapes"] = frozen

    edit_ranks(root, freeze)
    assert open_model(root, RowOrderOptions()).stages == (4, 4, 4)


def test_a_pipe_under_a_checkpoints_name_does_not_hang(copy: Callable[[Source], Path]) -> None:
    root = copy(BLOOM)
    path = tag_folder(root) / "layer_03-model_00-model_states.pt"
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(SourceError, match="not a file"):
        plan(root, to="megatron-legacy")


@pytest.mark.parametrize(
    ("name", "value"), [("kv_channels", "x"), ("make_vocab_size_divisible_by", -64), ("num_attention_heads", 0)]
)
def test_an_argument_that_is_no_number_is_damage(name: str, value: object, copy: Callable[[Source], Path]) -> None:
    root = copy(BLOOM)
    edit_ranks(root, lambda s: setattr(s["args"], name, value))
    with pytest.raises(DamagedError, match=f"args.{name}"):
        plan(root, tp=1, to="megatron-legacy")


def test_arguments_of_any_name_and_shape_are_carried(copy: Callable[[Source], Path], tmp_path: Path) -> None:
    root = copy(BLOOM)
    shared: list[Any] = []
    for _ in range(15):  # 2^15 paths through 15 lists
        shared = [shared, shared]

    def change(state: Any) -> None:
        vars(state["args"]).update({"self": 1, "shared": shared, "pp_partition_method": "type:("})

    edit_ranks(root, change)
    convert(root, tmp_path / "out", pp_layers=(2, 2), max_ram="2G", to="megatron-legacy")
    args = oracle.result_files(tmp_path / "out", 2, 2)[0, 0]["args"]
    assert vars(args)["self"] == 1
    assert args.shared[0] is args.shared[1]


def test_nothing_in_the_arguments_can_become_an_instruction(tmp_path: Path, copy: Callable[[Source], Path]) -> None:
    """A class name with a line break in it would go on as opcodes if it were written as it stands."""
    root = copy(BLOOM)
    edit_ranks(root, lambda s: setattr(s["args"], "params_dtype", "MARK"))
    for path in tag_folder(root).glob("mp_rank_*"):
        name = b"float32\ncposix\nsystem\n(X\x04\x00\x00\x00truetR0ctorch\nint8"
        words = b"X\x05\x00\x00\x00torchX" + struct.pack("<I", len(name)) + name + b"\x93"
        with zipfile.ZipFile(path) as old:
            records = {info.filename: old.read(info) for info in old.infolist()}
        with zipfile.ZipFile(path, "w") as new:
            for record, data in records.items():
                index = data.find(b"X\x04\x00\x00\x00MARK") if record.endswith("data.pkl") else -1
                new.writestr(record, data if index < 0 else data[:index] + words + data[index + 9 :])
    work = plan(root, to="megatron-legacy")
    assert any("params_dtype" in note.what for note in work.notes)
    convert(root, tmp_path / "out", max_ram="2G", to="megatron-legacy")
    assert not hasattr(oracle.result_files(tmp_path / "out", 2, 2)[0, 0]["args"], "params_dtype")


def test_parameters_in_layer_files_and_in_a_module_are_refused(copy: Callable[[Source], Path]) -> None:
    root = copy(BLOOM)
    edit_ranks(root, lambda s: s.update(module={"weight": torch.zeros(3)}))
    with pytest.raises(UnsupportedError, match="parameters in this file too"):
        plan(root, to="megatron-legacy")


def test_parameters_that_are_the_same_bytes_are_refused(copy: Callable[[Source], Path]) -> None:
    root = copy(BLOOM)
    for path in tag_folder(root).glob("layer_04*"):
        edit(path, lambda s: s.update({"mlp.dense_4h_to_h.bias": s["self_attention.dense.bias"]}))
    with pytest.raises(UnsupportedError, match="the same bytes"):
        plan(root, to="megatron-legacy")


def test_what_the_user_says_against_the_record_is_said(copy: Callable[[Source], Path]) -> None:
    assert any("iteration=9 " in warning for warning in plan(BLOOM.folder, iteration=9, to="megatron-legacy").warnings)
    with pytest.raises(UsageError, match="args say 4"):
        plan(BLOOM.folder, num_heads=8, to="megatron-legacy")


# -- sizes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", [*REAL, *LABELLED], ids=lambda source: source.name)
def test_tp_pp_and_stages_are_found(source: Source) -> None:
    model = open_model(source.folder, RowOrderOptions())
    assert (model.tp, model.pp, model.stages) == (source.tp, source.pp, source.stages)
    assert model.vocab_size == source.true_vocab
    assert model.qkv is (QkvLayout.BLOCKS if source.blocks else QkvLayout.INTERLEAVED)


@pytest.mark.parametrize("folder", sorted(MADE.glob("*/stages.json")), ids=lambda path: path.parent.name)
def test_stages_are_those_that_the_engine_made(folder: Path) -> None:
    made = [len(stage) for stage in json.loads(folder.read_text())["transformer_layers"]]
    assert open_model(folder.parent, RowOrderOptions()).stages == tuple(made)


def test_the_plan_says_where_stages_are_known_from() -> None:
    words = {
        source.name: " ".join(fact.what for fact in plan(source.folder, to="megatron-legacy").facts)
        for source in LABELLED
    }
    assert "stages recorded" in words["bloom_L12_tp1pp3_type_z1"]
    assert "stages recomputed" in words["bloom_L7_tp2pp3_embpart_z0"]


def test_an_unknown_partition_needs_pp_layers(copy: Callable[[Source], Path], tmp_path: Path) -> None:
    root = copy(UNEVEN)
    edit_ranks(root, lambda s: setattr(s["args"], "pp_partition_method", "profile"))
    with pytest.raises(AmbiguousError, match="which stage owned which layer") as caught:
        plan(root, to="megatron-legacy")
    assert "pp_layers=(N, N, ..) adding up to 7" in str(caught.value)
    work = plan(root, pp_layers=(1, 5, 1), to="megatron-legacy")
    assert work.target_layout.stages == (1, 5, 1)
    assert any("pp_layers" in fact.evidence for fact in work.facts)
    with pytest.raises(UsageError, match="adds up to 6"):
        plan(root, pp_layers=(1, 4, 1), to="megatron-legacy")


def test_a_partition_that_depends_on_an_unknown_deepspeed_version_is_not_guessed(
    copy: Callable[[Source], Path],
) -> None:
    root = copy(LABELLED[2])  # uniform: 2,4,1 since DeepSpeed 0.10.1, 1,3,3 before
    edit_ranks(root, lambda s: s.update(ds_version="0.9.5"))
    assert open_model(root, RowOrderOptions()).stages == (1, 3, 3)
    edit_ranks(root, lambda s: s.pop("ds_version"))
    assert open_model(root, RowOrderOptions()).stages is None


def test_args_against_the_record_is_a_warning(copy: Callable[[Source], Path]) -> None:
    root = copy(BLOOM)
    edit_ranks(root, lambda s: setattr(s["args"], "tensor_model_parallel_size", 4))
    work = plan(root, to="megatron-legacy")
    assert work.target_layout.tp == 2
    assert any("args.tensor_model_parallel_size says 4" in warning for warning in work.warnings)


@pytest.mark.parametrize(
    ("key", "size", "words"),
    [
        ("tp_degree", 4, "12 of 24 layer files are missing: layer_01-model_02-model_states.pt, "),
        ("pp_degree", 4, "4 of 8 mp_rank files are missing: mp_rank_04_model_states.pt, "),
        ("tp_degree", 1, "beyond the ranks of a model of TP 1 x PP 2: layer_01-model_01-model_states.pt, "),
        ("pp_degree", 1, "beyond the ranks of a model of TP 2 x PP 1: mp_rank_02_model_states.pt, "),
        ("tp_degree", 0, "contradictory: checkpoint_parallel_dimensions says 0"),
    ],
)
def test_the_record_against_the_files_is_refused(
    key: str, size: int, words: str, copy: Callable[[Source], Path]
) -> None:
    root = copy(BLOOM)
    edit_ranks(root, lambda s: s["checkpoint_parallel_dimensions"].update({key: size}))
    with pytest.raises(DamagedError, match=words):
        plan(root, to="megatron-legacy")


@pytest.mark.parametrize("name", ["hidden_size", "padded_vocab_size", "ffn_hidden_size", "num_layers"])
def test_args_against_the_tensors_is_refused(name: str, copy: Callable[[Source], Path]) -> None:
    root = copy(BLOOM)
    edit_ranks(root, lambda s: setattr(s["args"], name, 48))
    with pytest.raises(DamagedError, match="48"):
        plan(root, to="megatron-legacy")


def test_param_shapes_of_another_checkpoint_are_refused(copy: Callable[[Source], Path]) -> None:
    root = copy(LABELLED[0])
    edit(
        tag_folder(root) / "mp_rank_01_model_states.pt",
        lambda s: s.update(param_shapes=[{"3.input_layernorm.weight": 1}]),
    )
    with pytest.raises(DamagedError, match="do not cover"):
        plan(root, to="megatron-legacy")


# -- layer files only ----------------------------------------------------------------------------------------------


def layers_only(root: Path) -> Path:
    for path in tag_folder(root).glob("mp_rank_*"):
        path.unlink()
    return root


def test_layer_files_only_convert_with_what_the_user_says(copy: Callable[[Source], Path], tmp_path: Path) -> None:
    root = layers_only(copy(BLOOM))
    with pytest.raises(AmbiguousError, match="PP is unknown"):
        plan(root, to="megatron-legacy")
    convert(root, tmp_path / "out", tp=4, pp=1, num_heads=4, vocab_size=100, max_ram="2G", to="megatron-legacy")
    files = oracle.result_files(tmp_path / "out", 4, 1)
    oracle.assert_same_model(oracle.result_model(files), oracle.source_model(BLOOM.folder), 100)
    assert files[0, 0]["iteration"] == 3
    args = vars(files[0, 0]["args"])
    assert args["num_attention_heads"] == 4
    assert args["padded_vocab_size"] == files[0, 0]["model"]["word_embeddings_for_head"]["weight"].shape[0] * 4


def test_heads_are_needed_only_where_rows_move(copy: Callable[[Source], Path]) -> None:
    root = layers_only(copy(BLOOM))
    assert plan(root, pp_layers=(2, 2), to="megatron-legacy").target_layout.pp == 2
    with pytest.raises(AmbiguousError, match="number of attention heads"):
        plan(root, pp_layers=(2, 2), tp=1, to="megatron-legacy")


def test_the_iteration_must_come_from_somewhere(copy: Callable[[Source], Path]) -> None:
    root = layers_only(copy(BLOOM))
    tag_folder(root).rename(root / "weights")
    with pytest.raises(AmbiguousError, match="iteration"):
        plan(root / "weights", pp=1, to="megatron-legacy")
    assert plan(root / "weights", pp=1, iteration=12, to="megatron-legacy").iteration == 12


# -- query_key_value -----------------------------------------------------------------------------------------------


def test_the_row_order_is_never_guessed(copy: Callable[[Source], Path]) -> None:
    root = layers_only(copy(REAL[4]))
    with pytest.raises(AmbiguousError, match="row order"):
        plan(root, pp=1, num_heads=4, to="megatron-legacy")
    for layout in ("interleaved", "blocks"):
        facts = plan(root, pp=1, num_heads=4, qkv_layout=layout, to="megatron-legacy").facts
        assert any(layout in fact.what and fact.evidence == "qkv_layout" for fact in facts)


def test_qkv_layout_settles_it_against_the_evidence(tmp_path: Path) -> None:
    source = REAL[4]
    convert(source.folder, tmp_path / "out", qkv_layout="interleaved", max_ram="2G", to="megatron-legacy")
    result = oracle.result_model(oracle.result_files(tmp_path / "out", 2, 2))
    oracle.assert_same_model(result, oracle.source_model(source.folder, blocks=False))
    assert any(
        "against the evidence" in warning
        for warning in plan(source.folder, qkv_layout="interleaved", to="megatron-legacy").warnings
    )


@pytest.mark.parametrize("tp", [3, 8])
def test_heads_that_do_not_divide_are_refused(tp: int) -> None:
    with pytest.raises(UnsupportedError, match="4 attention heads do not divide"):
        plan(BLOOM.folder, tp=tp, to="megatron-legacy")


# -- replicas ------------------------------------------------------------------------------------------------------


@pytest.fixture
def drifted(copy: Callable[[Source], Path]) -> Path:
    root = copy(BLOOM)
    path = tag_folder(root) / "layer_04-model_01-model_states.pt"
    edit(path, lambda s: s["post_attention_layernorm.weight"][:3].add_(0.5))
    return root


def test_drift_is_reported_and_the_first_rank_counts(drifted: Path, tmp_path: Path) -> None:
    report = convert(drifted, tmp_path / "out", tp=1, pp=1, max_ram="2G", to="megatron-legacy")
    (drift,) = report.drifts
    assert (drift.name, drift.ranks, drift.elements) == ("layers.1.post_attention_layernorm.weight", (1,), 3)
    assert drift.largest == pytest.approx(0.5)
    result = oracle.result_model(oracle.result_files(tmp_path / "out", 1, 1))
    oracle.assert_same_model(result, oracle.source_model(BLOOM.folder), 100)


def test_drift_can_be_averaged(drifted: Path, tmp_path: Path) -> None:
    convert(drifted, tmp_path / "out", tp=1, pp=1, replicated="mean", max_ram="2G", to="megatron-legacy")
    result = oracle.result_model(oracle.result_files(tmp_path / "out", 1, 1))
    expected = oracle.source_model(BLOOM.folder)
    ranks = [
        torch.load(path, weights_only=True)["post_attention_layernorm.weight"]
        for path in sorted(tag_folder(drifted).glob("layer_04-*"))
    ]
    expected["layers.1.post_attention_layernorm.weight"] = torch.stack(ranks).double().mean(0).float()
    oracle.assert_same_model(result, expected, 100)


def test_drift_can_stop_the_run_before_the_first_write(drifted: Path, tmp_path: Path) -> None:
    with pytest.raises(DifferenceError, match=r"layers\.1\.post_attention_layernorm\.weight"):
        convert(drifted, tmp_path / "out", replicated="fail", max_ram="2G", to="megatron-legacy")
    assert not (tmp_path / "out").exists()


def test_a_damaged_copy_is_damage_and_not_drift(copy: Callable[[Source], Path], tmp_path: Path) -> None:
    root = copy(BLOOM)
    path = tag_folder(root) / "layer_04-model_01-model_states.pt"
    view = streamconv.open_checkpoint(path)["input_layernorm.weight"].pieces[0].views[0]
    data = bytearray(path.read_bytes())
    data[view.storage.offset + 9] ^= 4
    path.write_bytes(data)
    with pytest.raises(DamagedError, match="CRC-32"):
        convert(root, tmp_path / "out", max_ram="2G", to="megatron-legacy")


@pytest.mark.parametrize("how", ["whole", "columns", "transposed"])
def test_drift_is_found_however_the_copies_are_stored(how: str, copy: Callable[[Source], Path], tmp_path: Path) -> None:
    root = copy(REAL[2])
    for rank, path in enumerate(sorted(tag_folder(root).glob("layer_01-*"))):
        state = torch.load(path, weights_only=True)
        positions = state["position_embeddings.weight"] + rank * torch.eye(16, 32).half()
        wide = torch.cat([positions, positions], 1)[:, :32]
        state["position_embeddings.weight"] = {
            "whole": positions, "columns": wide, "transposed": positions.t().contiguous().t()
        }[how]  # fmt: skip
        torch.save(state, path)
    (drift,) = convert(root, tmp_path / "out", max_ram="2G", to="megatron-legacy").drifts
    assert (drift.name, drift.ranks, drift.elements) == ("position_embeddings.weight", (1,), 16)


# -- damage --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_flipped_bit_is_found_by_the_recorded_crc(copy: Callable[[Source], Path], tmp_path: Path) -> None:
    root = copy(BLOOM)
    path = tag_folder(root) / "layer_05-model_01-model_states.pt"
    data = bytearray(path.read_bytes())
    weight = torch.load(path, weights_only=True)["mlp.dense_h_to_4h.weight"]
    position = data.find(weight.numpy().tobytes())
    data[position + 1234] ^= 0x10
    path.write_bytes(data)
    for number, tp in enumerate((2, 1, 4)):
        with pytest.raises(DamagedError, match="CRC-32") as caught:
            convert(root, tmp_path / f"{number}", max_ram="2G", tp=tp, to="megatron-legacy")
        assert path.name in str(caught.value)
        assert not (tmp_path / f"{number}").exists()


def test_a_writer_without_crcs_is_warned_of(copy: Callable[[Source], Path], tmp_path: Path) -> None:
    root = copy(BLOOM)
    torch.serialization.set_crc32_options(False)
    try:
        for path in tag_folder(root).glob("layer_*"):
            torch.save(torch.load(path, weights_only=True), path)
    finally:
        torch.serialization.set_crc32_options(True)
    report = convert(root, tmp_path / "out", max_ram="2G", to="megatron-legacy")
    assert report.records_checked == 0
    assert report.records_without_crc > 0


@pytest.mark.slow
def test_any_broken_byte_of_metadata_is_our_error_or_harmless(copy: Callable[[Source], Path], sweep: Sweep) -> None:
    root = copy(BLOOM)
    path = tag_folder(root) / "layer_03-model_00-model_states.pt"
    good = path.read_bytes()
    spots = sweep.of([*range(0, 1200, 7), *range(len(good) - 2500, len(good), 11)], 9)
    refused = 0
    for spot in spots:
        path.write_bytes(good[:spot] + bytes([good[spot] ^ 0xFF]) + good[spot + 1 :])
        try:
            plan(root, to="megatron-legacy")
        except StreamconvError:
            refused += 1
    assert refused > len(spots) // 3
