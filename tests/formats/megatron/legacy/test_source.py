"""What is read out of a legacy Megatron-LM folder, ours and Megatron-LM's own, and what is refused."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from streamconv import convert, plan
from streamconv.cli.main import main
from streamconv.core.errors import AmbiguousError, DamagedError, DifferenceError, SourceError, UnsupportedError
from streamconv.core.layout import ParallelLayout, even_stages
from streamconv.core.work_folder import RECEIPT
from streamconv.formats.megatron.legacy.source import open_model
from streamconv.formats.options import RowOrderOptions
from streamconv.formats.registry import find_source
from streamconv.formats.source import StoredModel
from streamconv.models.orders import QkvLayout
from streamconv.models.parameter import WORDS, Section
from tests import oracle
from tests.places import FRAMEWORKS, LABELLED, REAL, Source

SOURCES = [*REAL, *LABELLED]
GPT, UNTIED, BLOCKS = REAL[2], REAL[6], REAL[4]
TRACKER = "latest_checkpointed_iteration.txt"
ITERATION = "iter_0000003"


def opened(root: Path, **options: Any) -> StoredModel:
    return open_model(root, RowOrderOptions(**options))


def files_of(root: Path) -> dict[str, bytes]:
    """The files below a folder, but for the receipt: it is of one source."""
    files = (path for path in root.rglob("*") if path.is_file() and path.name != RECEIPT)
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def edit(path: Path, change: Callable[[Any], None]) -> None:
    state = oracle.load_plain(path)
    change(state)
    torch.save(state, path)


def edit_all(root: Path, change: Callable[[Any], None], pattern: str = "mp_rank_*") -> None:
    for path in sorted(root.glob(f"{ITERATION}/{pattern}/*.pt")):
        edit(path, change)


Converted = Callable[[Source], Path]


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Converted:
    """A source converted to its own layout, once for all tests: nobody changes it."""

    @cache
    def converted(source: Source) -> Path:
        out = tmp_path_factory.mktemp("once") / source.name
        convert(source.folder, out, max_ram="2G", to="megatron-legacy")
        return out

    return converted


@pytest.fixture
def gpt(once: Converted, tmp_path: Path) -> Path:
    """A tied GPT of four layers at TP 2 x PP 2, as converted."""
    return Path(shutil.copytree(once(GPT), tmp_path / "gpt"))


@pytest.fixture
def untied(once: Converted) -> Path:
    """A GPT with a head of its own at TP 2 x PP 1."""
    return once(UNTIED)


# -- there and back ------------------------------------------------------------------------------------------------


def detour(source: Source) -> tuple[ParallelLayout, ParallelLayout]:
    """Two layouts that the source does not have: by the first to the second."""
    first, second = {1: (2, 4), 2: (4, 1), 12: (6, 3)}[source.tp]
    layers = sum(source.stages)
    return ParallelLayout(first, even_stages(layers, 2)), ParallelLayout(second, even_stages(layers, min(3, layers)))


@pytest.mark.slow
@pytest.mark.sweep(3)
@pytest.mark.parametrize("dialect", ["2021", "2023-09"])
@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_a_detour_ends_in_the_files_of_the_direct_way(source: Source, dialect: str, tmp_path: Path) -> None:
    """The whole files are the same, args included: what the first step leaves out of them, the second does too.

    The legacy layout does not record the true vocabulary, so the second step is told.
    """
    first, second = detour(source)
    convert(
        source.folder,
        tmp_path / "first",
        tp=first.tp,
        pp_layers=first.stages,
        dialect=dialect,
        max_ram="2G",
        to="megatron-legacy",
    )
    said: dict[str, Any] = {
        "to": "megatron-legacy",
        "tp": second.tp,
        "pp_layers": second.stages,
        "max_ram": "2G",
    }
    convert(source.folder, tmp_path / "direct", **said)
    said["vocab_size"] = source.true_vocab
    convert(tmp_path / "first", tmp_path / "back", **said)
    assert files_of(tmp_path / "back") == files_of(tmp_path / "direct")
    result = oracle.result_model(oracle.result_files(tmp_path / "back", second.tp, second.pp), source.heads)
    oracle.assert_same_model(result, oracle.model_of(source), source.true_vocab)


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_a_conversion_to_its_own_layout_gives_the_same_files(source: Source, once: Converted, tmp_path: Path) -> None:
    convert(once(source), tmp_path / "twice", max_ram="2G", to="megatron-legacy")
    assert files_of(once(source)) == files_of(tmp_path / "twice")


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_sizes_and_stages_are_read_back(source: Source, once: Converted) -> None:
    out = once(source)
    model = opened(out)
    assert (model.tp, model.pp, model.stages, model.qkv) == (
        source.tp,
        source.pp,
        source.stages,
        QkvLayout.INTERLEAVED,
    )
    assert model.path == out / f"iter_{model.iteration:07d}"
    assert set(model.named) == set(model.path.rglob("*.pt"))
    assert all(model.named.values())


@pytest.mark.parametrize("stages", [(1, 3), (1, 1, 2), (4,)])
def test_stages_as_asked_are_read_back(stages: tuple[int, ...], once: Converted, tmp_path: Path) -> None:
    convert(GPT.folder, tmp_path / "out", pp_layers=stages, max_ram="2G", to="megatron-legacy")
    assert opened(tmp_path / "out").stages == stages
    convert(tmp_path / "out", tmp_path / "back", pp_layers=GPT.stages, max_ram="2G", to="megatron-legacy")
    assert files_of(tmp_path / "back") == files_of(once(GPT))


def test_a_cast_on_the_way_is_a_cast(gpt: Path, tmp_path: Path) -> None:
    convert(
        gpt,
        tmp_path / "out",
        tp=1,
        pp=1,
        dtype="bf16",
        dialect="2023-09",
        vocab_size=100,
        max_ram="2G",
        to="megatron-legacy",
    )
    convert(
        GPT.folder, tmp_path / "direct", tp=1, pp=1, dtype="bf16", dialect="2023-09", max_ram="2G", to="megatron-legacy"
    )
    assert files_of(tmp_path / "out") == files_of(tmp_path / "direct")


def test_without_args_the_heads_must_be_said_where_rows_move(tmp_path: Path) -> None:
    convert(GPT.folder, tmp_path / "out", keep_args=False, max_ram="2G", to="megatron-legacy")
    assert any("no training arguments" in warning for warning in plan(tmp_path / "out", to="megatron-legacy").warnings)
    with pytest.raises(AmbiguousError, match="number of attention heads"):
        plan(tmp_path / "out", tp=1, to="megatron-legacy")
    convert(tmp_path / "out", tmp_path / "back", tp=1, num_heads=4, max_ram="2G", to="megatron-legacy")
    result = oracle.result_model(oracle.result_files(tmp_path / "back", 1, 2))
    oracle.assert_same_model(result, oracle.source_model(GPT.folder), GPT.true_vocab)


def test_the_command_line_takes_it(gpt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(
            [
                "convert",
                str(gpt),
                str(tmp_path / "out"),
                "--to",
                "megatron-legacy",
                "--tp",
                "1",
                "--pp",
                "1",
                "--max-ram",
                "2G",
            ]
        )
        == 0
    )
    assert "TP 1 x PP 1" in capsys.readouterr().out
    result = oracle.result_model(oracle.result_files(tmp_path / "out", 1, 1))
    oracle.assert_same_model(result, oracle.source_model(GPT.folder), GPT.true_vocab)


# -- names of other ages -------------------------------------------------------------------------------------------


def oldest(state: Any) -> None:
    model = state["model"]["language_model"]
    encoder = model.pop("encoder")
    model["transformer"] = {key.replace(".self_attention.", ".attention."): t for key, t in encoder.items()}


def flat_embedding(state: Any) -> None:
    nested = state["model"]["language_model"]["embedding"]
    flat = {f"{outer}.{inner}": t for outer, tensors in nested.items() for inner, t in tensors.items()}
    state["model"]["language_model"]["embedding"] = flat


@pytest.mark.parametrize("rename", [oldest, flat_embedding])
def test_names_of_other_ages_are_the_same_model(rename: Callable[[Any], None], gpt: Path, tmp_path: Path) -> None:
    convert(gpt, tmp_path / "before", tp=1, pp=1, max_ram="2G", to="megatron-legacy")
    edit_all(gpt, rename)
    convert(gpt, tmp_path / "after", tp=1, pp=1, max_ram="2G", to="megatron-legacy")
    assert files_of(tmp_path / "before") == files_of(tmp_path / "after")


def test_the_plan_says_whose_names_these_are(gpt: Path, tmp_path: Path) -> None:
    convert(GPT.folder, tmp_path / "new", dialect="2023-09", max_ram="2G", to="megatron-legacy")
    assert any(fact.what == "names of 2021" for fact in opened(gpt).facts)
    assert any(fact.what == "names of 2023-09" for fact in opened(tmp_path / "new").facts)
    edit_all(gpt, oldest)
    assert any(fact.what == "the oldest names" for fact in opened(gpt).facts)


# -- the folder ----------------------------------------------------------------------------------------------------


def test_the_root_and_the_iterations_folder_are_the_same_checkpoint(gpt: Path) -> None:
    assert (
        plan(gpt, to="megatron-legacy").source == plan(gpt / ITERATION, to="megatron-legacy").source == gpt / ITERATION
    )


def test_a_tag_chooses_another_iteration_or_the_release(gpt: Path) -> None:
    shutil.copytree(gpt / ITERATION, gpt / "iter_0000009")
    shutil.copytree(gpt / ITERATION, gpt / "release")
    assert opened(gpt).path.name == ITERATION
    for name in ("iter_0000009", "release"):
        assert plan(gpt, tag=name, to="megatron-legacy").source.name == name
    with pytest.raises(SourceError, match="no folder for the tag 'iter_0000004'"):
        plan(gpt, tag="iter_0000004", to="megatron-legacy")
    with pytest.raises(DamagedError, match="not the name of a folder"):
        plan(gpt, tag="../elsewhere", to="megatron-legacy")


def test_a_release_is_followed_and_needs_no_iteration(gpt: Path) -> None:
    (gpt / ITERATION).rename(gpt / "release")
    (gpt / TRACKER).write_text("release\n")
    assert opened(gpt).iteration == 3
    for path in gpt.glob("release/*/*.pt"):
        edit(path, lambda state: state.update(iteration=0))
    assert opened(gpt).iteration is None
    for path in gpt.glob("release/*/*.pt"):
        edit(path, lambda state: state.pop("iteration"))
    work = plan(gpt, to="megatron-legacy")
    assert work.iteration is None
    assert work.texts == {TRACKER: "release"}
    assert plan(gpt, iteration=5, to="megatron-legacy").iteration == 5


def test_an_iteration_of_0_is_warned_of(gpt: Path) -> None:
    assert any("iteration 0" in warning for warning in plan(gpt, iteration=0, to="megatron-legacy").warnings)


@pytest.mark.parametrize(
    ("words", "error", "match"),
    [
        ("later", DamagedError, "neither a number nor `release`"),
        ("-3", DamagedError, "neither a number"),
        ("4", SourceError, "no folder for the tag 'iter_0000004'"),
        ("release", SourceError, "no folder for the tag 'release'"),
    ],
)
def test_a_tracker_that_names_nothing_is_refused(words: str, error: type[Exception], match: str, gpt: Path) -> None:
    (gpt / TRACKER).write_text(words)
    with pytest.raises(error, match=match):
        plan(gpt, to="megatron-legacy")


def test_a_root_without_a_tracker_needs_a_tag(gpt: Path) -> None:
    (gpt / TRACKER).unlink()
    with pytest.raises(AmbiguousError, match=TRACKER) as caught:
        plan(gpt, to="megatron-legacy")
    assert ITERATION in str(caught.value)
    assert plan(gpt, tag=ITERATION, to="megatron-legacy").iteration == 3


def test_a_tracker_alone_is_a_checkpoint_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / TRACKER).write_text("3")
    with pytest.raises(SourceError, match="iter_0000003"):
        plan(tmp_path, to="megatron-legacy")


@pytest.mark.parametrize("name", ["model_rng.pt", "model_optim_rng.pt"])
def test_runs_with_the_distributed_optimizer_open(name: str, gpt: Path) -> None:
    """``optim.pt`` of 2022 is in a folder of its own for each data-parallel rank; it must not pass for a stage's."""
    for folder in sorted((gpt / ITERATION).iterdir()):
        (folder / "model_optim_rng.pt").rename(folder / name)
        if name == "model_rng.pt":
            folder.with_name(f"{folder.name}_000").mkdir()
            (folder.with_name(f"{folder.name}_000") / "optim.pt").write_bytes(bytes(100))
        else:
            (folder / "distrib_optim.pt").write_bytes(bytes(100))
    (left,) = [dropped for dropped in plan(gpt, to="megatron-legacy").dropped if "optimizer files" in dropped.name]
    assert (left.nbytes, left.reason) == (400, "optimizer state: parameters only")


def test_optimizer_and_random_state_stay_behind_by_name(gpt: Path) -> None:
    state = {
        "optimizer": {"fp32_from_fp16_params": [[torch.zeros(10)]]},
        "opt_param_scheduler": {"num_steps": 3},
        "rng_state": [{"torch_rng_state": torch.zeros(16, dtype=torch.uint8)}],
        "extra": torch.zeros(3),
    }
    edit_all(gpt, lambda found: found.update(state))
    left = {dropped.name: (dropped.nbytes, dropped.reason) for dropped in plan(gpt, to="megatron-legacy").dropped}
    assert left["4 tensors of optimizer in 4 rank files"] == (160, "optimizer state: parameters only")
    assert left["4 tensors of rng_state in 4 rank files"] == (64, "random number state: parameters only")
    assert left["4 tensors of extra in 4 rank files"] == (48, "not a parameter")


# -- which source --------------------------------------------------------------------------------------------------


def test_each_folder_goes_to_its_own_format(gpt: Path, tmp_path: Path) -> None:
    for source in SOURCES:
        assert find_source(source.folder).name == "deepspeed"
    for path, words in (
        (tmp_path / "nothing", "no such folder"),
        (tmp_path, f"no checkpoint itself: a checkpoint is below it\n.*\n  remedy: give {gpt}"),
        (gpt / ITERATION / "mp_rank_00_000", "no checkpoint of .*legacy Megatron-LM, GPT-NeoX: it has model_optim_rng"),
    ):
        with pytest.raises(SourceError, match=words):
            find_source(path)
    assert find_source(gpt).name == find_source(gpt / ITERATION).name == "megatron-legacy"


def test_megatron_deepspeeds_own_tracker_makes_no_legacy_checkpoint() -> None:
    assert (FRAMEWORKS / "dsh_gpt_tp2pp2_fp32_z0" / TRACKER).is_file()
    assert plan(FRAMEWORKS / "dsh_gpt_tp2pp2_fp32_z0", to="megatron-legacy").source_format.startswith(
        "Megatron-DeepSpeed"
    )


def test_a_root_of_both_is_refused_until_one_is_named(gpt: Path, tmp_path: Path) -> None:
    root = tmp_path / "both"
    shutil.copytree(GPT.folder, root)
    shutil.copytree(gpt / ITERATION, root / ITERATION)
    with pytest.raises(AmbiguousError, match="looks like two checkpoints") as caught:
        plan(root, to="megatron-legacy")
    assert "`latest`" in str(caught.value)
    assert f"{ITERATION}/mp_rank_00_000" in str(caught.value)
    assert plan(root, tag=ITERATION, to="megatron-legacy").source_format.startswith("Megatron-LM")
    assert plan(root, tag="global_step3", to="megatron-legacy").source_format.startswith("Megatron-DeepSpeed")
    assert plan(root / ITERATION, to="megatron-legacy").source_format.startswith("Megatron-LM")


def test_files_of_both_in_one_folder_are_refused(gpt: Path, tmp_path: Path) -> None:
    shutil.copytree(GPT.folder / "global_step3", gpt / ITERATION, dirs_exist_ok=True)
    for path, tag in ((gpt / ITERATION, None), (gpt, ITERATION)):
        with pytest.raises(AmbiguousError, match="looks like two checkpoints"):
            plan(path, tag=tag, to="megatron-legacy")


# -- the head ------------------------------------------------------------------------------------------------------


def test_the_heads_copy_is_kept_aside_with_what_it_must_equal(gpt: Path) -> None:
    model = opened(gpt)
    assert [name for name, _, _ in model.copies] == [
        f"word_embeddings_for_head.weight of rank {rank}" for rank in (0, 1)
    ]
    shards = model.tensors[WORDS]
    for (_, copy, original), shard in zip(model.copies, shards, strict=True):
        assert original == shard
        assert copy != shard
        assert torch.equal(copy.torch(), shard.torch())
    (left,) = [dropped for dropped in model.dropped if "word_embeddings_for_head" in dropped.name]
    assert left.name == "word_embeddings_for_head of 2 ranks"
    assert left.nbytes == sum(shard.nbytes for shard in shards)


def test_the_embeddings_own_bytes_are_no_copy(tmp_path: Path) -> None:
    convert(GPT.folder, tmp_path / "out", pp=1, max_ram="2G", to="megatron-legacy")
    assert "word_embeddings_for_head" in oracle.result_files(tmp_path / "out", 2, 1)[0, 0]["model"]
    model = opened(tmp_path / "out")
    assert not model.copies
    assert not model.dropped


def test_a_copy_that_differs_is_reported_or_refused(once: Converted, gpt: Path, tmp_path: Path) -> None:
    def drift(state: Any) -> None:
        state["model"]["word_embeddings_for_head"]["weight"][:2] += 1

    edit_all(gpt, drift, "mp_rank_01_001")
    with pytest.raises(DifferenceError, match=r"word_embeddings_for_head\.weight of rank 1"):
        convert(gpt, tmp_path / "out", replicated="fail", max_ram="2G", to="megatron-legacy")
    (found,) = convert(gpt, tmp_path / "out", max_ram="2G", to="megatron-legacy").drifts
    assert (found.ranks, found.original, found.elements) == ((), "the word embedding", 64)
    assert files_of(tmp_path / "out") == files_of(once(GPT))


def test_a_head_of_its_own_is_kept(untied: Path) -> None:
    model = opened(untied)
    assert model.keys(Section.HEAD) == {"lm_head.weight"}
    assert not model.copies


# -- query_key_value -----------------------------------------------------------------------------------------------


def test_rows_in_blocks_are_known_by_the_args_of_deepspeedais_fork(gpt: Path) -> None:
    """Its runs without DeepSpeed write this layout with those rows; what is converted has no such argument."""
    edit_all(gpt, lambda state: setattr(state["args"], "ds_sequence_parallel_fpdt", False))
    assert opened(gpt).qkv is QkvLayout.BLOCKS
    assert any("against the evidence" in warning for warning in opened(gpt, qkv_layout=QkvLayout.INTERLEAVED).warnings)


def test_rows_that_were_in_blocks_are_not_taken_for_blocks_again(tmp_path: Path) -> None:
    convert(BLOCKS.folder, tmp_path / "out", max_ram="2G", to="megatron-legacy")
    assert opened(tmp_path / "out").qkv is QkvLayout.INTERLEAVED
    assert not hasattr(oracle.result_files(tmp_path / "out", 2, 2)[0, 0]["args"], "ds_sequence_parallel_fpdt")


# -- refused -------------------------------------------------------------------------------------------------------


def gone(pattern: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        for path in (root / ITERATION).glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return change


def states(change: Callable[[Any], Any], pattern: str = "mp_rank_*") -> Callable[[Path], None]:
    return lambda root: edit_all(root, change, pattern)


def args(pattern: str = "mp_rank_*", **values: Any) -> Callable[[Path], None]:
    return states(lambda state: vars(state["args"]).update(values), pattern)


def copied(name: str, new: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        old = root / ITERATION / name
        (shutil.copytree if old.is_dir() else shutil.copy)(old, root / ITERATION / new)

    return change


def touched(*names: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        for name in names:
            (root / ITERATION / name).touch()

    return change


def encoder(state: Any) -> Any:
    return state["model"]["language_model"]["encoder"]


def rename(state: Any, old: str, new: str) -> None:
    tensors = encoder(state)
    for key in list(tensors):
        if re.match(old, key):
            tensors[re.sub(old, new, key)] = tensors.pop(key)


def embedding(state: Any) -> Any:
    return state["model"]["language_model"]["embedding"]


LAST, FIRST = "mp_rank_*_001", "mp_rank_*_000"
NORM, BIAS = "layers.0.input_layernorm.weight", "layers.1.mlp.dense_4h_to_h.bias"
REFUSED: dict[str, tuple[Callable[[Path], None], type[Exception], str]] = {
    "version 4": (states(lambda s: s.update(checkpoint_version=4.0)), UnsupportedError, "unknown order"),
    "version in words": (states(lambda s: s.update(checkpoint_version="3")), DamagedError, "not a number"),
    "a virtual stage that is missing": (
        states(lambda s: s.update(model1=s.pop("model"))),
        DamagedError,
        "it has the models model1",
    ),
    "virtual stages in args": (args(virtual_pipeline_model_parallel_size=2), DamagedError, "2 virtual stages, the f"),
    "a rank": (gone("mp_rank_01_001"), DamagedError, r"1 of 4 files .* mp_rank_01_001/model_optim_rng\.pt"),
    "the last stage": (gone(LAST), DamagedError, r"2 of 4 files .* mp_rank_00_001/model_optim_rng\.pt"),
    "the last rank": (gone("mp_rank_01_*"), DamagedError, r"the first is mp_rank_01_000/model_optim_rng\.pt"),
    "a file": (gone("mp_rank_00_001/*.pt"), DamagedError, r"mp_rank_00_001/model_optim_rng\.pt is missing"),
    "all files": (gone("*"), DamagedError, "no mp_rank_"),
    "two files": (
        copied("mp_rank_00_000/model_optim_rng.pt", "mp_rank_00_000/model_rng.pt"),
        DamagedError,
        "no release of Megatron-LM writes both",
    ),
    "more ranks": (args(tensor_model_parallel_size=1), DamagedError, "args say TP 1 x PP 2, .* TP 2 x PP 2"),
    "stages and none": (
        copied("mp_rank_00_000", "mp_rank_00"),
        DamagedError,
        "mp_rank_00 and mp_rank_00_000 cannot belong",
    ),
    "a rank twice": (
        copied("mp_rank_00_000", "mp_rank_0_000"),
        DamagedError,
        "mp_rank_00_000 and mp_rank_0_000 cannot belong",
    ),
    "an expert's rank": (
        copied("mp_rank_00_000", "mp_rank_00_000_000"),
        UnsupportedError,
        "mixture of experts",
    ),
    "experts in args": (args(num_experts=4), UnsupportedError, "mixture of experts"),
    "query groups": (args(group_query_attention=True, num_query_groups=2), UnsupportedError, "grouped-query"),
    "no biases": (args(add_bias_linear=False), UnsupportedError, "without bias"),
    "another iteration": (
        states(lambda s: s.update(iteration=4), "mp_rank_01_001"),
        DamagedError,
        "iteration is 4 in mp_rank_01_001/model_optim_rng.pt, but 3 in mp_rank_00_000",
    ),
    "another run": (args("mp_rank_01_000", hidden_size=48), DamagedError, "hidden_size is 48"),
    "args in some": (states(lambda s: s.pop("args"), "mp_rank_01_000"), DamagedError, "args is not there"),
    "no model": (states(lambda s: s.pop("model")), DamagedError, "no entry `model`"),
    "no dictionary": (
        lambda root: torch.save([1], root / ITERATION / "mp_rank_01_001" / "model_optim_rng.pt"),
        DamagedError,
        "not a dictionary",
    ),
    "BERT": (states(lambda s: s["model"].update(lm_head={"bias": torch.zeros(2)})), UnsupportedError, "BERT or T5"),
    "a classifier": (
        states(lambda s: s["model"].update(classification_head={"bias": torch.zeros(2)})),
        UnsupportedError,
        "classifier",
    ),
    "vision": (states(lambda s: s.update(model={"backbone": {}})), UnsupportedError, "no language model"),
    "a pooler": (
        states(lambda s: s["model"]["language_model"].update(pooler={"dense.weight": torch.zeros(2)})),
        UnsupportedError,
        r"1 tensors of unknown role, the first is language_model\.pooler\.dense\.weight",
    ),
    "token types": (
        states(lambda s: embedding(s).update(tokentype_embeddings={"weight": torch.zeros(2, 32)}), FIRST),
        UnsupportedError,
        "tokentype_embeddings",
    ),
    "an unknown tensor of a layer": (
        states(lambda s: encoder(s).update({"layers.0.mlp.gate.weight": torch.zeros(2)})),
        UnsupportedError,
        "unknown tensors mlp.gate.weight",
    ),
    "Transformer Engine": (
        states(lambda s: rename(s, r"(layers\.\d+)\.input_layernorm", r"\1.self_attention.layernorm_qkv")),
        UnsupportedError,
        "unknown tensors",
    ),
    "a missing tensor": (states(lambda s: encoder(s).pop(BIAS)), DamagedError, "missing tensors"),
    "a missing layer": (
        states(lambda s: rename(s, r"layers\.1\.", "layers.2."), FIRST),
        DamagedError,
        r"numbered \[0, 2\], not from 0",
    ),
    "fewer layers": (
        states(lambda s: [encoder(s).pop(key) for key in list(encoder(s)) if key.startswith("layers.1.")], LAST),
        DamagedError,
        "args say 4 layers, 3 are there",
    ),
    "two names": (
        states(lambda s: encoder(s).update({"layers.0.input_norm.weight": encoder(s)[NORM]})),
        DamagedError,
        "under two names",
    ),
    "ranks that differ": (
        states(lambda s: encoder(s).pop(BIAS), "mp_rank_01_000"),
        DamagedError,
        "is not in both mp_rank_00_000/model_optim_rng.pt and mp_rank_01_000",
    ),
    "no embedding": (
        states(lambda s: s["model"]["language_model"].pop("embedding"), FIRST),
        DamagedError,
        "stage 0 of 2 has no embedding",
    ),
    "no final norm": (
        states(lambda s: [encoder(s).pop(f"final_layernorm.{k}") for k in ("weight", "bias")], LAST),
        DamagedError,
        "stage 1 of 2 has no final norm",
    ),
    "a final norm before the end": (
        states(lambda s: encoder(s).update({"final_layernorm.weight": torch.zeros(32)}), FIRST),
        DamagedError,
        "stage 0 of 2 has a final norm: it belongs on stage 1",
    ),
    "a head before the end": (
        states(lambda s: s["model"]["language_model"].update(output_layer={"weight": torch.zeros(2)}), FIRST),
        DamagedError,
        "stage 0 of 2 has a head",
    ),
    "no copy for the head": (
        states(lambda s: s["model"].pop("word_embeddings_for_head"), LAST),
        DamagedError,
        "neither output_layer nor word_embeddings_for_head",
    ),
    "a head and a copy": (
        states(lambda s: s["model"]["language_model"].update(output_layer={"weight": torch.zeros(2)}), LAST),
        DamagedError,
        "a head of its own and word_embeddings_for_head",
    ),
    "an untied head that is not there": (
        args(untie_embeddings_and_output_weights=True),
        DamagedError,
        "there is no output_layer",
    ),
    "a copy of another shape": (
        states(lambda s: s["model"].update(word_embeddings_for_head={"weight": torch.zeros(2)}), LAST),
        DamagedError,
        r"word_embeddings_for_head\.weight is \(2,\)",
    ),
    "a copy of nothing": (
        states(lambda s: s["model"]["word_embeddings_for_head"].update(bias=torch.zeros(2)), LAST),
        UnsupportedError,
        r"word_embeddings_for_head\.bias is a copy of nothing",
    ),
    "a copy on one rank": (
        states(lambda s: s["model"].pop("word_embeddings_for_head"), "mp_rank_01_001"),
        DamagedError,
        "other keys than on rank 0",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_translated_is_refused_by_its_name(case: str, gpt: Path, tmp_path: Path) -> None:
    change, error, match = REFUSED[case]
    change(gpt)
    with pytest.raises(error, match=match) as caught:
        convert(gpt, tmp_path / "out", max_ram="2G", to="megatron-legacy")
    assert type(caught.value) is error
    assert not (tmp_path / "out").exists()


def test_a_stage_without_layers_is_a_stage(gpt: Path, tmp_path: Path) -> None:
    """``--standalone-embedding-stage`` of Megatron-LM leaves the first stage the embedding alone."""
    folder = gpt / ITERATION
    for rank in ("00", "01"):
        (folder / f"mp_rank_{rank}_001").rename(folder / f"mp_rank_{rank}_002")
        shutil.copytree(folder / f"mp_rank_{rank}_000", folder / f"mp_rank_{rank}_001")
        edit(folder / f"mp_rank_{rank}_000" / "model_optim_rng.pt", lambda s: encoder(s).clear())
        edit(
            folder / f"mp_rank_{rank}_001" / "model_optim_rng.pt",
            lambda s: s["model"]["language_model"].pop("embedding"),
        )
    alone = {"standalone_embedding_stage": True, "transformer_pipeline_model_parallel_size": 2}
    edit_all(gpt, lambda s: vars(s["args"]).update(pipeline_model_parallel_size=3, **alone))
    assert opened(gpt).stages == (0, 2, 2)
    for pp, expected in ((3, (True, 2)), (1, (False, 1))):
        convert(gpt, tmp_path / f"{pp}", pp=pp, max_ram="2G", to="megatron-legacy")
        files = oracle.result_files(tmp_path / f"{pp}", 2, pp)
        args = files[0, 0]["args"]
        assert (args.standalone_embedding_stage, args.transformer_pipeline_model_parallel_size) == expected
        oracle.assert_same_model(oracle.result_model(files), oracle.source_model(GPT.folder))
