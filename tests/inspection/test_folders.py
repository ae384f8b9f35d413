"""A folder of Megatron-DeepSpeed's: family, sizes, parameters, stages and the place of every file."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from streamconv.core.errors import UsageError
from streamconv.inspection.report import ParallelFacts
from tests import oracle
from tests.inspection.samples import BLOOM, GPT, LLAMA, copied, look, step_of, words_of
from tests.places import LABELLED, MADE, REAL, Source

SOURCES = [*REAL, *LABELLED]


def layer_files(source: Source) -> dict[int | str, dict[int, str]]:
    """The files of each transformer layer, of what is before them and behind them, by rank: read by torch."""
    folder = step_of(source.folder)
    found: dict[int | str, dict[int, str]] = {}
    layer = -1
    for path in sorted(folder.glob("layer_*-model_*-model_states.pt")):
        match = re.fullmatch(r"layer_(\d+)-model_(\d+)-model_states\.pt", path.name)
        assert match
        keys = set(torch.load(path, weights_only=True))
        layer += "input_layernorm.weight" in keys and match[2] == "00"
        embedding = "word_embeddings.weight" in keys
        place = layer if "input_layernorm.weight" in keys else "first" if embedding else f"last {match[1]}"
        found.setdefault(place, {})[int(match[2])] = path.name
    return found


def expected_grid(source: Source) -> dict[tuple[int, int], set[str]]:
    folder, found = step_of(source.folder), layer_files(source)
    grid: dict[tuple[int, int], set[str]] = {}
    first = 0
    for stage, length in enumerate(source.stages):
        layers: list[int | str] = [*range(first, first + length)]
        first += length
        layers += ["first"] if stage == 0 else []
        layers += [place for place in found if str(place).startswith("last")] if stage == source.pp - 1 else []
        for rank in range(source.tp):
            number = stage * source.tp + rank
            files = {found[layer][rank] for layer in layers} if found else set()
            optimizer = {path.name for path in folder.glob(f"*zero_pp_rank_*_mp_rank_{number:02d}_optim_states.pt")}
            grid[stage, rank] = files | optimizer | {f"mp_rank_{number:02d}_model_states.pt"}
    return grid


def grid_of(facts: ParallelFacts | None) -> dict[tuple[int, int], set[str]]:
    assert facts is not None
    assert all(len(cell.files) == len(set(cell.files)) for cell in facts.grid)
    return {(cell.stage, cell.rank): set(cell.files) for cell in facts.grid}


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_sizes_parameters_and_the_place_of_every_file(source: Source) -> None:
    report = look(source.folder)
    whole = oracle.source_model(source.folder, source.heads, blocks=source.blocks)
    model, parallel = report.model, report.parallel
    assert model is not None
    assert parallel is not None
    assert model.family == ("BLOOM" if "bloom" in source.name else "GPT")
    assert report.what.startswith("Megatron-DeepSpeed")
    assert report.kind == "folder"
    assert model.iteration == (3 if source in REAL else 7)
    assert model.parameters == sum(tensor.numel() for tensor in whole.values())
    per_layer = sum(tensor.numel() for name, tensor in whole.items() if name.startswith("layers.0."))
    assert model.parameters_per_layer == per_layer
    words = whole["word_embeddings.weight"]
    assert (model.vocabulary.stored, model.hidden) == tuple(words.shape)
    assert model.vocabulary.true == source.true_vocab
    assert model.vocabulary.padding == words.shape[0] - source.true_vocab
    assert (model.num_layers, model.heads) == (sum(source.stages), source.heads)
    assert model.ffn == whole["layers.0.mlp.dense_h_to_4h.weight"].shape[0]
    assert (parallel.tp, parallel.pp) == (source.tp, source.pp)
    assert parallel.stages is not None
    assert tuple(map(len, parallel.stages)) == source.stages
    assert [layer for stage in parallel.stages for layer in stage] == list(range(sum(source.stages)))
    assert grid_of(parallel) == expected_grid(source)


@pytest.mark.parametrize("source", LABELLED, ids=lambda source: source.name)
def test_stages_are_those_that_the_engine_made(source: Source) -> None:
    recorded = json.loads((MADE / source.name / "stages.json").read_text())["transformer_layers"]
    parallel = look(source.folder).parallel
    assert parallel is not None
    assert [list(stage) for stage in parallel.stages or ()] == recorded


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_every_stored_tensor_is_listed_with_its_bytes(source: Source) -> None:
    report, folder = look(source.folder), step_of(source.folder)
    files: dict[str, set[bytes]] = {}
    nbytes = 0
    for row in report.tensors:
        assert row.offset is not None
        with (folder / row.file).open("rb") as file:
            file.seek(row.offset)
            files.setdefault(row.file, set()).add(file.read(row.nbytes))
        nbytes += row.nbytes
    assert nbytes == sum(entry["nbytes"] for entry in report.dtypes().values())
    if any(name.startswith("layer_") for name in files):
        stored = {path.name: torch.load(path, weights_only=True) for path in folder.glob("layer_*")}
        assert files.keys() == stored.keys()
        for name, tensors in stored.items():
            assert files[name] == {bytes(t.contiguous().view(torch.uint8).numpy()) for t in tensors.values()}
            (listed,) = [file for file in report.files if file.path == name]
            assert (listed.tensors, listed.nbytes) == (len(tensors), (folder / name).stat().st_size)
    assert {row.path for row in report.files} == {path.name for path in folder.iterdir()}


def test_evidence_says_what_from() -> None:
    report = look(BLOOM)
    evidence = {fact.what: fact.evidence for fact in report.evidence}
    assert "layer files count 2" in evidence["TP 2"]
    assert "mp_rank files count 2" in evidence["PP 2"]
    assert "word_embeddings.norm.weight" in evidence["family BLOOM"]
    assert report.args is not None
    assert report.args["embed_layernorm"] is True
    assert not report.findings


def test_optimizer_state_in_its_own_files_and_in_the_ranks() -> None:
    report = look(GPT)
    assert report.optimizer is not None
    path = step_of(GPT) / "zero_pp_rank_0_mp_rank_00_optim_states.pt"
    assert (report.optimizer.files, report.optimizer.nbytes) == (1, path.stat().st_size)
    assert report.optimizer.what == "ZeRO stage 1, fp32 master weights, Adam moments"
    assert report.parallel is not None
    assert report.parallel.dp == 1
    ranks = look(BLOOM).optimizer
    assert ranks is not None
    assert (ranks.present, ranks.files, ranks.what) == (True, 0, "in the ranks' own files")
    states = [oracle.load_stubbed(p)["optimizer"] for p in step_of(BLOOM).glob("mp_rank_*")]

    def nbytes(node: object) -> int:
        if isinstance(node, torch.Tensor):
            return int(node.numel() * node.element_size())
        items = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
        return sum(map(nbytes, items))

    assert ranks.nbytes == nbytes(states)


def test_no_optimizer_state_is_said(tmp_path: Path) -> None:
    state = look(LABELLED[1].folder).optimizer
    assert state is not None
    assert not state.present or state.what == "in the ranks' own files"
    root = copied(GPT, tmp_path)
    (step_of(root) / "zero_pp_rank_0_mp_rank_00_optim_states.pt").unlink()
    state = look(root).optimizer
    assert state is not None
    assert (state.present, state.files, state.nbytes, state.what) == (False, 0, 0, "none")


# -- targets -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source", [s for s in SOURCES if s.name != "gpt_L2_tp12pp1_z0"], ids=lambda source: source.name
)
@pytest.mark.parametrize(("tp", "pp"), [(1, 2), (4, 1), (3, None)])
def test_a_target_takes_each_file_of_the_source(source: Source, tp: int | None, pp: int | None) -> None:
    report = look(source.folder, target_tp=tp, target_pp=pp)
    target, found = report.target, layer_files(source)
    assert target is not None
    wanted_tp, wanted_pp = tp or source.tp, pp or source.pp
    assert (target.tp, target.pp) == (wanted_tp, wanted_pp)
    assert target.stages is not None
    assert [layer for stage in target.stages for layer in stage] == list(range(sum(source.stages)))
    lengths = [len(stage) for stage in target.stages]
    assert tuple(lengths) == source.stages if wanted_pp == source.pp else max(lengths) - min(lengths) <= 1
    grid = grid_of(target)
    assert grid.keys() == {(stage, rank) for stage in range(wanted_pp) for rank in range(wanted_tp)}
    for (stage, rank), files in grid.items():
        places: list[int | str] = [*target.stages[stage], *(["first"] if stage == 0 else [])]
        places += [place for place in found if str(place).startswith("last")] if stage == wanted_pp - 1 else []
        # The fractions of a row that target rank r of T and source rank s of S hold must meet.
        low, high = rank * source.tp, (rank + 1) * source.tp
        ranks = [s for s in range(source.tp) if max(low, s * wanted_tp) < min(high, (s + 1) * wanted_tp)]
        if found:
            assert files == {found[place][s] for place in places for s in ranks}
        else:
            assert files == {f"mp_rank_{s:02d}_model_states.pt" for s in ranks}
    if found:
        assert set().union(*grid.values()) == {name for ranks_of in found.values() for name in ranks_of.values()}


def test_an_untranslated_family_is_described_and_mapped(tmp_path: Path) -> None:
    root = copied(LLAMA, tmp_path)
    folder = step_of(root)
    for path in folder.glob("layer_0[2-5]-*"):
        state = torch.load(path, weights_only=True)
        torch.save({**state, "self_attention.rel_pos.weight": torch.ones(2, 2)}, path)
    report = look(root, target_tp=1, target_pp=2)
    assert report.model is not None
    row_parallel = ("self_attention.dense.weight", "mlp.dense_4h_to_h.weight")
    total = 0
    for first in sorted(folder.glob("layer_*-model_00*")):
        shards = [torch.load(folder / first.name.replace("model_00", f"model_0{r}"), weights_only=True) for r in (0, 1)]
        for key, tensor in shards[0].items():
            split = key.endswith(row_parallel) or ("norm" not in key and tensor.dim() > 1)
            total += tensor.numel() * (2 if split else 1)
    assert report.model.parameters == total
    assert report.model.num_layers == 4
    assert report.target is not None
    assert set().union(*grid_of(report.target).values()) == {path.name for path in folder.glob("layer_*")}
    assert "unknown tensors self_attention.rel_pos.weight" in words_of(report)
    assert report.exit_code == 0


def test_a_target_of_more_ranks_than_heads_is_refused_at_once() -> None:
    with pytest.raises(UsageError, match="target_tp=1000000000000000000000000000000: must be at most 2147483647"):
        look(BLOOM, target_tp=10**30)
    for tp in (5, 1_000_000_000):
        with pytest.raises(UsageError, match="cut into more than 4 parts"):
            look(BLOOM, target_tp=tp)
    assert look(BLOOM, target_tp=4).target is not None


@pytest.mark.parametrize("change", [{"tp": 0}, {"pp": 0}, {"pp": 5}, {"tp": -1}])
def test_a_target_that_cannot_be_is_refused(change: dict[str, int]) -> None:
    with pytest.raises(UsageError, match=r"target_[tp]p"):
        look(BLOOM, **{f"target_{name}": value for name, value in change.items()})


def test_a_tag_may_be_named_and_a_lost_latest_is_no_trouble(tmp_path: Path) -> None:
    for source in (BLOOM, REAL[4].folder):
        root = copied(source, tmp_path)
        (root / "latest").unlink()
        report = look(root)
        assert report.path == str(root / "global_step3")
        assert report.model is not None
        assert report.model.parameters == sum(t.numel() for t in oracle.source_model(root / "global_step3").values())
        assert report.exit_code == 0
    assert look(BLOOM / "global_step3").nbytes == look(BLOOM).nbytes
