"""Virtual stages, and the orders of rows of Megatron-LM's older files: written and read as Megatron-LM does both."""

from __future__ import annotations

import shutil
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from streamconv import convert, plan
from streamconv.core.errors import AmbiguousError, DamagedError, UnsupportedError
from tests.formats.megatron import rank_files as files
from tests.formats.megatron.models import CORE, MULTIPLE, Case, Stored, case_of, check_hugging_face, to_torch
from tests.formats.megatron.rank_files import Cut, Labelled, State, even

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*torch.distributed is .*:UserWarning"),
]

GPT, UNTIED, LLAMA = case_of("gpt"), case_of("gpt", head=True), case_of("llama", head=True)
LEGACY = {**CORE, "to": "megatron-legacy"}
NOTHING_SAID = object()


def saved(root: Path, case: Case, cut: Cut, version: Any = 3.0, *, args: bool = True) -> Path:
    """A case as the ranks of Megatron-LM's legacy model save it, rows in the order of a checkpoint_version."""
    order = 0 if version is NOTHING_SAID else int(version)
    state: State = {} if version is NOTHING_SAID else {"checkpoint_version": version}
    if args:
        state["args"] = legacy_args(case.model(), cut)
    return files.save_ranks(root, cut, files.legacy_files(case.model(), cut, order), **state)


def legacy_args(model: Labelled, cut: Cut) -> Namespace:
    """The arguments, with the name that the norms' epsilon had up to 2023."""
    args = vars(files.core_args(model, cut))
    return Namespace(**{**args, "layernorm_epsilon": args["norm_epsilon"]})


def flat(tree: Any, path: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of nested dictionaries."""
    if isinstance(tree, torch.Tensor):
        yield path, tree
    elif isinstance(tree, dict):
        for key, value in tree.items():
            yield from flat(value, f"{path}.{key}" if path else str(key))


def check_legacy(root: Path, model: Labelled, cut: Cut) -> None:
    """Each rank has the tensors that Megatron-LM's legacy model has there, and no others."""
    expected = files.legacy_files(model, cut)
    for (rank, stage), state in files.read_ranks(root, cut).items():
        assert state["checkpoint_version"] == 3.0
        for number, chunk in enumerate(files.chunks_of(state, cut.vpp)):
            where = f"{cut} rank {rank}, stage {stage}, chunk {number}"
            files.assert_same(dict(flat(chunk)), dict(flat(expected[rank, stage][number])), model, where)


# -- older orders of rows ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [even(1, 1), even(2, 2), even(4, 2, 2)], ids=str)
@pytest.mark.parametrize("version", [NOTHING_SAID, 0, 1.0, 2.0, 3], ids=["nothing", "0", "1.0", "2.0", "3"])
def test_every_version_is_the_same_model(version: Any, cut: Cut, tmp_path: Path) -> None:
    saved(tmp_path / "src", GPT, cut, version)
    work = check_hugging_face(tmp_path / "src", tmp_path / "hf", GPT).plan
    said = "0" if version is NOTHING_SAID else str(version)
    assert f"checkpoint_version {said}" in {fact.evidence for fact in work.facts}


@pytest.mark.parametrize("version", [0, 1, 2, 3])
def test_rows_are_put_in_the_order_of_version_3(version: int, tmp_path: Path) -> None:
    """Where TP stays, too."""
    saved(tmp_path / "src", UNTIED, even(2, 2), version)
    for cut in (even(2, 2), even(4, 2, 3)):
        place = tmp_path / str(cut)
        convert(tmp_path / "src", place, tp=cut.tp, pp=cut.pp, vpp=cut.vpp, vocab_size=50, **LEGACY)
        check_legacy(place, UNTIED.model(), cut)
    to_torch(tmp_path / "src", tmp_path / "core", even(2, 3), vocab_size=50)
    files.check_ranks(tmp_path / "core", UNTIED.model(), even(2, 3), "te")


def test_the_orders_of_versions_are_different(tmp_path: Path) -> None:
    """The labels could not tell them apart otherwise."""
    name, sizes = "layers.0.self_attention.query_key_value.weight", GPT.model().sizes
    rows = [files.in_version(GPT.model().tensors[name], sizes, version) for version in (0, 1, 2, 3)]
    same = {(i, j) for i in range(4) for j in range(i) if torch.equal(rows[i], rows[j])}
    assert same == {(3, 2)}


@pytest.mark.parametrize("version", [0, 1])
def test_old_rows_need_the_number_of_heads(version: int, tmp_path: Path) -> None:
    saved(tmp_path / "src", UNTIED, even(2, 2), version, args=False)
    with pytest.raises(AmbiguousError, match="number of attention heads is unknown"):
        plan(tmp_path / "src", to="megatron-core")
    to_torch(tmp_path / "src", tmp_path / "out", even(2, 2), num_heads=4)
    files.check_ranks(tmp_path / "out", UNTIED.model(), even(2, 2), "te")


@pytest.mark.parametrize(
    ("version", "error", "match"),
    [
        (4, UnsupportedError, "checkpoint_version 4: .* unknown order"),
        (2.5, UnsupportedError, "checkpoint_version 2.5"),
        (-1, UnsupportedError, "checkpoint_version -1"),
        ("3", DamagedError, "not a number"),
        (True, DamagedError, "not a number"),
        (None, DamagedError, "not a number"),
    ],
    ids=str,
)
def test_other_versions_are_refused(version: Any, error: type[Exception], match: str, tmp_path: Path) -> None:
    saved(tmp_path / "src", GPT, even(1, 1))
    path = next((tmp_path / "src").rglob("*.pt"))
    torch.save({**torch.load(path, weights_only=False), "checkpoint_version": version}, path)
    with pytest.raises(error, match=match):
        plan(tmp_path / "src")


def test_the_user_may_know_better(tmp_path: Path) -> None:
    saved(tmp_path / "src", GPT, even(2, 1), 0)
    work = plan(tmp_path / "src", qkv_layout="interleaved")
    assert any("against the evidence (checkpoint_version 0)" in warning for warning in work.warnings)
    path = next((tmp_path / "src").rglob("mp_rank_01/*.pt"))
    torch.save({**torch.load(path, weights_only=False), "checkpoint_version": 1}, path)
    with pytest.raises(DamagedError, match="checkpoint_version is 1 in mp_rank_01"):
        plan(tmp_path / "src")


# -- virtual stages of the legacy layout -------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [GPT, UNTIED, case_of("bloom")], ids=str)
@pytest.mark.parametrize("cut", [even(1, 2, 2), even(2, 3, 4)], ids=str)
def test_virtual_stages_are_written_and_read(case: Case, cut: Cut, stored: Stored, tmp_path: Path) -> None:
    """A tied head's copy is on the last chunk of the last stage, in the dialect of 2021 always."""
    convert(stored(case), tmp_path / "out", tp=cut.tp, pp=cut.pp, vpp=cut.vpp, config=MULTIPLE, iteration=7, **LEGACY)
    check_legacy(tmp_path / "out", case.model(), cut)
    args = files.read_ranks(tmp_path / "out", cut)[0, 0]["args"]
    assert args.virtual_pipeline_model_parallel_size == cut.vpp
    assert args.num_layers_per_virtual_pipeline_stage == 12 // cut.pp // cut.vpp
    check_hugging_face(tmp_path / "out", tmp_path / "back", case)


@pytest.mark.parametrize("case", [GPT, LLAMA], ids=str)
def test_what_legacy_ranks_saved_is_the_model(case: Case, tmp_path: Path) -> None:
    cut, core = even(2, 2, 3), even(4, 3, 2)
    if case.family.name == "llama":
        # Legacy files of Llama have the names of 2021 too where a converter wrote them.
        cut = replace(cut, tp=1)
    saved(tmp_path / "src", case, cut)
    check_hugging_face(tmp_path / "src", tmp_path / "hf", case)
    to_torch(tmp_path / "src", tmp_path / "core", core, vocab_size=50, spec="local")
    files.check_ranks(tmp_path / "core", case.model(), core, "local")


Change = Callable[[State], Any]
DAMAGED: dict[str, tuple[Change, str, str]] = {
    "a chunk is missing": (lambda s: s.pop("model1"), "*", "args say 2 virtual stages, the files have 1"),
    "one rank has one chunk": (lambda s: s.pop("model1"), "mp_rank_00_001", r"its models are \['model0'\]"),
    "the first chunk is missing": (lambda s: s.pop("model0"), "*", "it has the models model1"),
    "chunks the other way round": (
        lambda s: s.update(model0=s["model1"], model1=s["model0"]),
        "*",
        "has no embedding",
    ),
    "a head on the wrong chunk": (
        lambda s: s["model0"].update(word_embeddings_for_head=s["model1"].pop("word_embeddings_for_head")),
        "mp_rank_*_001",
        "chunk 0, has a head",
    ),
    "a head of its own on the wrong stage": (
        lambda s: s["model1"]["language_model"].update(output_layer={"weight": torch.zeros(28, 16)}),
        "mp_rank_*_000",
        "chunk 1, has a head",
    ),
    "no head at all": (
        lambda s: s["model1"].pop("word_embeddings_for_head"),
        "mp_rank_*_001",
        "neither output_layer nor word_embeddings_for_head on the last stage",
    ),
    "a norm on the wrong chunk": (
        lambda s: s["model0"]["language_model"]["encoder"].update({"final_layernorm.weight": torch.zeros(16)}),
        "mp_rank_*_001",
        "chunk 0, has a final norm",
    ),
}


@pytest.mark.parametrize(("change", "pattern", "match"), DAMAGED.values(), ids=list(DAMAGED))
def test_damage_is_named(change: Change, pattern: str, match: str, tmp_path: Path) -> None:
    saved(tmp_path / "src", GPT, even(2, 2, 2))
    for path in (tmp_path / "src").glob(f"*/{pattern}/*.pt"):
        state = torch.load(path, weights_only=False)
        change(state)
        torch.save(state, path)
    with pytest.raises(DamagedError, match=match):
        plan(tmp_path / "src", to="huggingface", vocab_size=50)


# -- who keeps virtual stages ------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def virtual(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tied GPT at TP 2 x PP 3 with two chunks each, as Megatron-Core saves it."""
    cut, place = even(2, 3, 2), tmp_path_factory.mktemp("virtual") / "src"
    args = files.core_args(GPT.model(), cut)
    return files.save_ranks(place, cut, files.core_files(GPT.model(), cut), args=args, checkpoint_version=3.0)


@pytest.mark.parametrize(
    ("asked", "vpp"),
    [
        ({"to": "megatron-core", "container": "torch"}, 2),
        ({"to": "megatron-core", "container": "torch", "tp": 1}, 2),
        ({"to": "megatron-core", "container": "torch", "pp": 3}, 2),
        ({"to": "megatron-core", "container": "torch", "vpp": 1}, 1),
        ({"to": "megatron-core", "container": "torch", "vpp": 4}, 4),
        ({"to": "megatron-core", "container": "torch", "pp": 2}, 1),
        ({"to": "megatron-core", "container": "torch", "pp_layers": (4, 6, 2)}, 1),
        ({"to": "megatron-core"}, 1),
        ({"to": "megatron-legacy"}, 2),
        ({"to": "deepspeed"}, 1),
    ],
    ids=str,
)
def test_virtual_stages_stay_with_the_stages(asked: dict[str, Any], vpp: int, virtual: Path) -> None:
    """Where the target has them."""
    work = plan(virtual, vocab_size=50, **asked)
    assert work.target_layout.vpp == vpp
    assert "VPP 2" in work.source_layout


def test_layers_are_where_each_target_has_them(virtual: Path, tmp_path: Path) -> None:
    convert(virtual, tmp_path / "legacy", **LEGACY)
    check_legacy(tmp_path / "legacy", GPT.model(), even(2, 3, 2))
    convert(virtual, tmp_path / "plain", vpp=1, **LEGACY)
    check_legacy(tmp_path / "plain", GPT.model(), even(2, 3))
    convert(virtual, tmp_path / "deepspeed", **{**CORE, "to": "deepspeed"})
    check_hugging_face(tmp_path / "deepspeed", tmp_path / "hf", GPT)


# -- chunks of one stage that differ -----------------------------------------------------------------------------------

# account_for_embedding_in_pipeline_split: the embedding counts as a layer of the first chunk.
ELEVEN = case_of("gpt", num_layers=11)
UNEVEN = Cut(1, (3, 4, 4), 2, chunks=(1, 2, 2, 2, 2, 2))
# --pipeline-model-parallel-layout Et|ttt|ttt|tL and the like.
TWELVE = Cut(1, (4, 8), 2, chunks=(1, 4, 3, 4))


@pytest.mark.parametrize(("case", "cut"), [(ELEVEN, UNEVEN), (GPT, TWELVE)], ids=["counted", "laid out"])
def test_chunks_that_differ_are_read(case: Case, cut: Cut, tmp_path: Path) -> None:
    """What they were is no layout that can be asked for, but any other can be made of it."""
    args = files.core_args(case.model(), cut)
    files.save_ranks(tmp_path / "src", cut, files.core_files(case.model(), cut), args=args, checkpoint_version=3.0)
    check_hugging_face(tmp_path / "src", tmp_path / "hf", case)
    other = Cut(2, (case.model().sizes.num_layers,))
    to_torch(tmp_path / "src", tmp_path / "one", other, vocab_size=50)
    files.check_ranks(tmp_path / "one", case.model(), other, "te")
    convert(tmp_path / "src", tmp_path / "dist", **{**CORE, "vocab_size": 50, "tp": 2, "pp": 1})
    found, _ = files.read_dist(files.checkpoint_of(tmp_path / "dist"))
    files.assert_same(found, files.whole_tensors(case.model(), 8), case.model())


def test_a_folder_that_is_copied_is_the_same_checkpoint(virtual: Path, tmp_path: Path) -> None:
    shutil.copytree(virtual / "iter_0000007", tmp_path / "iter_0000007")
    check_hugging_face(tmp_path / "iter_0000007", tmp_path / "hf", GPT)
