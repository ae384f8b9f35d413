"""A Megatron-DeepSpeed folder as a target: names and numbers of each fork, what rank files hold, what is refused."""

from __future__ import annotations

import argparse
import enum
import pickle
import sys
import types
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from streamconv import convert, verify
from streamconv.containers.pickles.reader import Global
from streamconv.containers.pickles.writer import Call, dumps
from streamconv.core.errors import UnsupportedError
from streamconv.core.layout import ParallelLayout, RankCoordinates
from streamconv.formats.deepspeed import source as deepspeed
from streamconv.formats.deepspeed.options import DeepSpeedOptions
from streamconv.formats.deepspeed.runs import mechanisms_of
from streamconv.formats.deepspeed.target import TARGET, lay_out
from streamconv.formats.options import RowOrderOptions
from streamconv.formats.target import TargetFiles, TargetModel
from streamconv.models.family import ModelFamily
from streamconv.models.mechanisms import GROUPED_HEADS, HEAD_SIZE, LEARNED, ROTARY, Mechanism
from streamconv.models.orders import GluOrder, QkvLayout, RowOrders
from streamconv.models.parameter import Section
from streamconv.models.registry import known_families
from streamconv.planning.gather import assemble
from streamconv.planning.recognise import recognise
from streamconv.planning.scatter import Filler
from streamconv.planning.vocabulary import VocabularyPlan
from tests import oracle
from tests.places import FRAMEWORKS, LABELLED, MADE, REAL, Source

BLOOM, BS_GPT, DS_GPT_Z1, DS_GPT, UNTIED = REAL[1], REAL[2], REAL[3], REAL[4], REAL[6]
LLAMA = FRAMEWORKS / "dsp_llama_gqa_tp2pp2_fp32_z0"
FORKS = ("deepspeedai", "deepspeedai-2024-11", "bigscience")
RAM: dict[str, Any] = {"max_ram": "2G"}


def target_model(
    root: Path, tp: int = 2, stages: tuple[int, ...] = (2, 2), **changes: Any
) -> TargetModel[DeepSpeedOptions]:
    """What the planner hands to the target, with all stored rows of the vocabulary."""
    model = deepspeed.open_model(root, RowOrderOptions())
    _, family, sizes = recognise(model, None)
    whole = assemble(model, family, sizes, VocabularyPlan(sizes.vocab, sizes.vocab, None, ""), "first")
    filler = Filler(whole, family, tp, changes.get("dtype"))
    asked = TargetModel(
        family=family,
        sizes=sizes,
        layout=ParallelLayout(tp, stages),
        has_head=any(parameter.section is Section.HEAD for parameter in model.tensors),
        args=model.args,
        iteration=model.iteration,
        dtype=None,
        vocab_size=model.vocab_size,
        config=None,
        supplied={},
        fork=model.fork,
        spec=None,
        tensor_of=filler.tensor,
        options=DeepSpeedOptions(**{name: changes.pop(name) for name in ("fork", "keep_args") if name in changes}),
    )
    return replace(asked, **changes)


def family_named(name: str) -> ModelFamily:
    return next(family for family in known_families() if family.name == name)


def layer_numbers(files: TargetFiles) -> list[int]:
    return sorted({int(file.path.split("layer_")[1][:2]) for file in files.files if "layer_" in file.path})


def chosen(files: TargetFiles) -> str:
    return next(fact.what for fact in files.facts if fact.what.startswith("for "))


def rank_states(root: Path) -> list[dict[str, Any]]:
    tag = (root / "latest").read_text()
    return [oracle.load_stubbed(path) for path in sorted((root / tag).glob("mp_rank_*_model_states.pt"))]


def layer_states(root: Path) -> dict[str, Mapping[str, torch.Tensor]]:
    tag = (root / "latest").read_text()
    return {path.name: torch.load(path, weights_only=True) for path in (root / tag).glob("layer_*")}


@pytest.mark.parametrize(
    ("root", "fork", "numbers"),
    [
        (BLOOM.folder, "bigscience", [1, 3, 4, 5, 6, 8]),
        (BS_GPT.folder, "bigscience", [1, 3, 4, 5, 6, 8]),
        (BS_GPT.folder, "deepspeedai", [1, 2, 3, 4, 5, 6]),
        (UNTIED.folder, "deepspeedai", [1, 2, 3, 4, 5, 6, 7]),
        (LLAMA, "deepspeedai-2024-11", [1, 2, 3, 4, 5, 6, 7]),
    ],
)
def test_layers_are_numbered_as_the_fork_numbers_them(root: Path, fork: str, numbers: list[int]) -> None:
    files = lay_out(target_model(root, fork=fork))
    assert layer_numbers(files) == numbers
    assert files.texts == {"latest": "global_step3"}
    assert all(file.path.startswith("global_step3/") for file in files.files)


def test_ranks_are_numbered_by_stage_first() -> None:
    files = lay_out(target_model(BLOOM.folder, tp=4, stages=(1, 2, 1)))
    places = {file.path: file.rank for file in files.files}
    assert places["global_step3/mp_rank_06_model_states.pt"] == RankCoordinates(tp=2, pp=1)
    assert places["global_step3/layer_05-model_03-model_states.pt"] == RankCoordinates(tp=3, pp=1)
    assert places["global_step3/layer_08-model_01-model_states.pt"] == RankCoordinates(tp=1, pp=2)
    assert sum("mp_rank_" in path for path in places) == 12
    assert any("unequal" in fact.what for fact in files.facts)


def test_a_model_without_an_iteration_is_step_0() -> None:
    files = lay_out(target_model(BLOOM.folder, iteration=None))
    assert files.texts == {"latest": "global_step0"}
    tree = next(file.tree for file in files.files if "mp_rank_" in file.path)
    assert (tree["iteration"], tree["global_steps"]) == (0, 0)


@pytest.mark.parametrize(
    ("fork", "orders"),
    [
        ("deepspeedai", RowOrders(QkvLayout.BLOCKS, GluOrder.GATE_UP)),
        ("deepspeedai-2024-11", RowOrders(QkvLayout.INTERLEAVED, GluOrder.GATE_UP)),
        ("bigscience", RowOrders(QkvLayout.INTERLEAVED, GluOrder.UP_GATE)),
    ],
)
def test_rows_are_in_the_forks_orders(fork: str, orders: RowOrders) -> None:
    assert lay_out(target_model(BS_GPT.folder, fork=fork)).orders == orders


@pytest.mark.parametrize(
    ("root", "source", "title"),
    [
        (BLOOM.folder, None, "bigscience-workshop"),
        (BS_GPT.folder, "bigscience", "bigscience-workshop"),
        (BS_GPT.folder, None, "since 676a482c"),
        (BS_GPT.folder, "deepspeedai-2024-11", "before 676a482c"),
        (BS_GPT.folder, "gpt-of-nobody", "since 676a482c"),
        (LLAMA, None, "before 676a482c"),
        # The source's own fork is not taken where it cannot run the model.
        (LLAMA, "deepspeedai", "before 676a482c"),
        (BLOOM.folder, "deepspeedai", "bigscience-workshop"),
    ],
)
def test_without_a_fork_the_sources_or_the_first_that_runs_it(root: Path, source: str | None, title: str) -> None:
    assert title in chosen(lay_out(replace(target_model(root), fork=source)))


@pytest.mark.parametrize(
    ("root", "fork", "reason", "remedy"),
    [
        (BLOOM.folder, "deepspeedai", "no ALiBi", "--fork bigscience"),
        (BLOOM.folder, "deepspeedai-2024-11", "no ALiBi", "--fork bigscience"),
        (UNTIED.folder, "bigscience", "no head apart", "--fork deepspeedai or deepspeedai-2024-11"),
        (LLAMA, "bigscience", "no RMSNorm", "--fork deepspeedai-2024-11"),
        (LLAMA, "deepspeedai", "no heads that share keys and values", "--fork deepspeedai-2024-11"),
    ],
)
def test_a_fork_that_cannot_run_the_model_is_refused_by_name(root: Path, fork: str, reason: str, remedy: str) -> None:
    with pytest.raises(UnsupportedError, match=reason) as caught:
        lay_out(target_model(root, fork=fork))
    assert remedy in str(caught.value.remedy)


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("gpt", None),
        ("bloom", None),
        ("llama", None),
        ("mistral", None),
        ("qwen2", "no biases on queries, keys and values alone"),
        ("qwen3", "no norms of queries and keys"),
    ],
)
def test_families_that_no_fork_runs(family: str, reason: str | None) -> None:
    found = TARGET.refusal(family_named(family))
    assert found is None if reason is None else found == f"Megatron-DeepSpeed has {reason}"
    if reason is not None:
        with pytest.raises(UnsupportedError, match=reason):
            lay_out(target_model(LLAMA, family=family_named(family)))


@pytest.mark.parametrize("fork", [None, *FORKS])
@pytest.mark.parametrize("root", [BLOOM.folder, BS_GPT.folder, LLAMA], ids=lambda root: root.name)
def test_no_fork_takes_a_mechanism_that_it_does_not_list(root: Path, fork: str | None) -> None:
    model = target_model(root, fork=fork)
    invented = Mechanism("invented", "wheels within wheels")
    stranger = replace(model.family, mechanisms=model.family.mechanisms | {invented})
    with pytest.raises(UnsupportedError, match="no wheels within wheels"):
        lay_out(replace(model, family=stranger))


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("apply_layernorm_1p", True, "no norms stored less 1"),
        ("squared_relu", True, "no squared ReLU"),
    ],
)
def test_arguments_that_only_deepspeedais_forks_have(name: str, value: object, reason: str) -> None:
    """They are carried along there, and bigscience's model would be built without them."""
    model = target_model(DS_GPT.folder)
    model = replace(model, args={**(model.args or {}), name: value})
    with pytest.raises(UnsupportedError, match=reason):
        lay_out(replace(model, options=DeepSpeedOptions(fork="bigscience")))
    assert "deepspeedai" in chosen(lay_out(replace(model, options=DeepSpeedOptions(fork="deepspeedai"))))


def test_bigscience_rotates_with_its_own_base() -> None:
    model = target_model(DS_GPT.folder, fork="bigscience")
    rotary = replace(model.family, mechanisms=model.family.mechanisms - {LEARNED} | {ROTARY})
    args = {**(model.args or {}), "rope_theta": 500000}
    assert lay_out(replace(model, args=args)).files
    with pytest.raises(UnsupportedError, match="no rotary base but 10000, and the model's is 500000"):
        lay_out(replace(model, family=rotary, args=args))


def test_sizes_decide_which_mechanisms_a_model_needs() -> None:
    """Llama's heads may share keys and values, and be of another size: those of one model need not."""
    model = target_model(LLAMA)
    assert mechanisms_of(model) == model.family.mechanisms - {HEAD_SIZE}
    alone = replace(model, sizes=replace(model.sizes, groups=model.sizes.heads))
    assert mechanisms_of(alone) == model.family.mechanisms - {HEAD_SIZE, GROUPED_HEADS}


@pytest.mark.parametrize("source", [BS_GPT, DS_GPT_Z1], ids=lambda source: source.name)
def test_param_shapes_are_those_that_deepspeed_recorded(source: Source, tmp_path: Path) -> None:
    convert(source.folder, tmp_path / "out", to="deepspeed", **RAM)
    for mine, recorded in zip(rank_states(tmp_path / "out"), rank_states(source.folder), strict=True):
        (shapes,) = mine["param_shapes"]
        assert isinstance(shapes, OrderedDict)
        assert all(type(shape) is torch.Size for shape in shapes.values())
        assert shapes == {name: shape for group in recorded["param_shapes"] for name, shape in group.items()}


def test_the_embedding_norm_is_on_the_first_stage_alone() -> None:
    files = lay_out(target_model(BLOOM.folder))
    trees = [file.tree for file in files.files if "mp_rank_" in file.path]
    norms = [[name for name in tree["param_shapes"][0] if "embeddings.norm" in name] for tree in trees]
    assert [len(found) for found in norms] == [2, 2, 0, 0]
    assert all("tied_modules.embed.word_embeddings.weight" in tree["param_shapes"][0] for tree in trees)


@pytest.mark.parametrize("source", [*REAL, *LABELLED], ids=lambda source: source.name)
def test_the_same_fork_and_layout_gives_the_sources_layer_files(source: Source, tmp_path: Path) -> None:
    convert(source.folder, tmp_path / "out", to="deepspeed", **RAM)
    mine = layer_states(tmp_path / "out")
    if source.name.startswith("dsp_gpt_nopipe"):
        expected = oracle.source_model(source.folder)
        oracle.assert_same_model(oracle.source_model(tmp_path / "out"), expected)
        return
    theirs = layer_states(source.folder)
    assert set(mine) == set(theirs)
    for name, state in theirs.items():
        assert list(mine[name]) == list(state), name
        for key, tensor in state.items():
            assert mine[name][key].dtype == tensor.dtype
            assert torch.equal(mine[name][key].view(torch.uint8), tensor.view(torch.uint8)), (name, key)


def test_a_llama_goes_through_bit_for_bit(tmp_path: Path) -> None:
    convert(LLAMA, tmp_path / "there", to="deepspeed", tp=1, pp=4, **RAM)
    convert(tmp_path / "there", tmp_path / "back", to="deepspeed", tp=2, pp=2, **RAM)
    mine, theirs = layer_states(tmp_path / "back"), layer_states(LLAMA)
    assert set(mine) == set(theirs)
    for name, state in theirs.items():
        assert list(mine[name]) == list(state)
        for key, tensor in state.items():
            # The padding on rank 1 was dropped for TP 1 and is made anew: 101 of 2 * 56 rows are true.
            rows = 45 if tensor.shape[0] == 56 and "model_01" in name else tensor.shape[0]
            assert torch.equal(mine[name][key][:rows], tensor[:rows]), (name, key)
    assert verify(tmp_path / "there", LLAMA, **RAM).exit_code == 0


@pytest.mark.parametrize("fork", FORKS)
@pytest.mark.parametrize("source", [BS_GPT, DS_GPT], ids=lambda source: source.name)
@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (4, 1), (2, 3)])
def test_any_fork_and_layout_holds_the_same_model(source: Source, fork: str, tp: int, pp: int, tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert(source.folder, out, to="deepspeed", fork=fork, tp=tp, pp=pp, **RAM)
    expected = oracle.source_model(source.folder, blocks=source.blocks)
    mine = oracle.source_model(out, blocks=fork == "deepspeedai")
    oracle.assert_same_model(mine, expected, source.true_vocab)
    read = deepspeed.open_model(out, RowOrderOptions())
    assert (read.fork, read.tp, read.pp, read.vocab_size) == (fork, tp, pp, source.true_vocab)
    assert read.warnings == ()
    assert verify(out, source.folder, **RAM).exit_code == 0


@pytest.mark.parametrize("source", [BLOOM, BS_GPT, DS_GPT, UNTIED], ids=lambda source: source.name)
def test_rank_files_say_what_the_sources_said(source: Source, tmp_path: Path) -> None:
    convert(source.folder, tmp_path / "out", to="deepspeed", **RAM)
    left = {"ds_config", "ds_version", "optimizer", "param_shapes", "shared_params", "lr_scheduler"}
    for mine, theirs in zip(rank_states(tmp_path / "out"), rank_states(source.folder), strict=True):
        for name in set(mine) - left - {"args"}:
            assert mine[name] == theirs[name], name
        assert all("rng" in name for name in set(theirs) - set(mine))
        args, original = vars(mine["args"]), vars(theirs["args"])
        enums, of_the_rank = (
            {"position_embedding_type"},
            ("model_type", "attn_mask", "rank", "local_rank", "deepspeed_config"),
        )
        same = {name for name in original if name not in (*of_the_rank, *enums)}
        assert {name: args[name] for name in same} == {name: original[name] for name in same}
        for name in enums & set(original):
            assert (type(args[name]).__name__, args[name].args) == ("PositionEmbeddingType", original[name].args)


def test_bigscience_starts_its_schedule_where_the_samples_are(tmp_path: Path) -> None:
    convert(BLOOM.folder, tmp_path / "out", to="deepspeed", **RAM)
    mine, theirs = (rank_states(root)[0]["lr_scheduler"] for root in (tmp_path / "out", BLOOM.folder))
    assert set(mine) == set(theirs)
    assert (mine["num_steps"], mine["num_tokens"]) == (theirs["num_steps"], theirs["num_tokens"])
    assert mine["max_lr"] is None
    convert(BLOOM.folder, tmp_path / "fresh", to="deepspeed", for_release=True, **RAM)
    fresh = rank_states(tmp_path / "fresh")[0]
    assert (fresh["lr_scheduler"]["num_steps"], fresh["global_samples"], fresh["args"].consumed_train_samples) == (
        0,
        0,
        0,
    )


def test_arguments_follow_the_fork_and_the_dtype(tmp_path: Path) -> None:
    convert(BS_GPT.folder, tmp_path / "out", to="deepspeed", fork="deepspeedai", tp=1, pp=1, dtype="bf16", **RAM)
    (state,) = rank_states(tmp_path / "out")
    args = state["args"]
    assert isinstance(args, argparse.Namespace)
    assert (args.params_dtype, args.bf16, args.fp16) == (torch.bfloat16, True, False)
    assert (args.tensor_model_parallel_size, args.pipeline_model_parallel_size, args.padded_vocab_size) == (1, 1, 104)
    assert (args.num_key_value_heads, args.add_position_embedding, args.swiglu) == (4, True, False)
    assert args.ds_sequence_parallel_fpdt is False
    assert not hasattr(args, "position_embedding_type")
    assert "tp_replicated_parameter_patterns" not in state["universal_checkpoint_info"]
    convert(tmp_path / "out", tmp_path / "old", to="deepspeed", fork="deepspeedai-2024-11", **RAM)
    assert not hasattr(rank_states(tmp_path / "old")[0]["args"], "ds_sequence_parallel_fpdt")


def test_a_model_without_arguments_gets_those_that_are_known() -> None:
    tree = next(f.tree for f in lay_out(target_model(BLOOM.folder, args=None)).files if "mp_rank_" in f.path)
    args = tree["args"]
    assert (args.num_layers, args.hidden_size, args.num_attention_heads) == (4, 32, 4)
    assert args.position_embedding_type == Call(Global("megatron.enums", "PositionEmbeddingType"), (3,))
    assert (args.params_dtype, args.fp16, args.bf16) == (Global("torch", "float32"), False, False)


def test_without_arguments_blocks_are_warned_of() -> None:
    files = lay_out(target_model(DS_GPT.folder, keep_args=False))
    assert not any("args" in file.tree for file in files.files if "mp_rank_" in file.path)
    assert "--qkv-layout blocks" in files.warnings[0]
    assert lay_out(target_model(BLOOM.folder, keep_args=False)).warnings == ()
    sizes = replace(target_model(BLOOM.folder).sizes, heads=None, groups=None, head_dim=None)
    nothing = lay_out(target_model(BLOOM.folder, args=None, sizes=sizes))
    assert any(fact.what == "no args" for fact in nothing.facts)


def test_files_are_those_that_torch_names_and_reads(tmp_path: Path) -> None:
    convert(MADE / "gpt_L2_tp12pp1_z0", tmp_path / "out", to="deepspeed", **RAM)
    path = tmp_path / "out" / "global_step7" / "layer_01-model_11-model_states.pt"
    assert zipfile.ZipFile(path).namelist()[0] == f"{path.stem}/data.pkl"
    assert type(torch.load(path, weights_only=True)) is OrderedDict


def test_calls_are_written_as_pickle_writes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("megatron.enums")

    class PositionEmbeddingType(enum.Enum):
        rotary, absolute, alibi = 1, 2, 3

        def __reduce_ex__(self, _: object) -> tuple[object, ...]:
            """As every Python but 3.11.0 to 3.11.3 has it."""
            return self.__class__, (self.value,)

    PositionEmbeddingType.__module__, PositionEmbeddingType.__qualname__ = "megatron.enums", "PositionEmbeddingType"
    module.PositionEmbeddingType = PositionEmbeddingType  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "megatron", types.ModuleType("megatron"))
    monkeypatch.setitem(sys.modules, "megatron.enums", module)
    size, alibi = Global("torch", "Size"), Global("megatron.enums", "PositionEmbeddingType")
    shapes: list[tuple[int, ...]] = [(), (7,), (300, 70000), (2, 3, 4, 5)]
    mine = [*(Call(size, (shape,)) for shape in shapes), Call(alibi, (3,)), Call(alibi, (2,))]
    theirs = [*(torch.Size(shape) for shape in shapes), PositionEmbeddingType(3), PositionEmbeddingType(2)]
    assert dumps(mine) == pickle.dumps(theirs, protocol=2)


def test_no_other_call_is_written() -> None:
    with pytest.raises(TypeError, match=r"os\.system"):
        dumps([Call(Global("os", "system"), ("true",))])
