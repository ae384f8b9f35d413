"""Folders of DeepSpeed's engine that do not open as a model: whose they are, what is whole, and what is wrong."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from streamconv import plan, verify
from streamconv.core.errors import DamagedError, SourceError, UnsupportedError
from streamconv.formats.survey import Survey, survey
from tests.inspection.samples import BLOOM, LLAMA, cut_off, look, step_of, words_of
from tests.places import MADE

Layers = Mapping[int, Mapping[str, tuple[int, ...]]]
Break = Callable[[Path], object]
HIDDEN = 4

NEOX_LLAMA: Layers = {
    0: {"word_embeddings.weight": (8, HIDDEN)},
    **{
        number: {
            "input_layernorm.scale": (HIDDEN,),
            "attention.query_key_value.weight": (3 * HIDDEN, HIDDEN),
            "attention.dense.weight": (HIDDEN, HIDDEN),
            "post_attention_layernorm.scale": (HIDDEN,),
            "mlp.linear1.weight": (12, HIDDEN),
            "mlp.linear2.weight": (HIDDEN, 6),
        }
        for number in (2, 3)
    },
    5: {"norm.scale": (HIDDEN,)},
    6: {"final_linear.weight": (8, HIDDEN)},
}
NEOX_MAMBA: Layers = {
    0: {"word_embeddings.weight": (8, HIDDEN)},
    **{number: {"norm.weight": (HIDDEN,), "mixer.in_proj.weight": (8, HIDDEN)} for number in (2, 3)},
    5: {"norm.weight": (HIDDEN,)},
}
BLOCK = {f"self_attn.{name}_proj.weight": (HIDDEN, HIDDEN) for name in "qkvo"} | {"input_layernorm.weight": (HIDDEN,)}
# Pipelines of users' own modules: transformers' layers one by one; layers with activations, which have no parameters;
# a first layer that is a function, and has no file.
LLAMA_PIPE: Layers = {
    0: {"weight": (8, HIDDEN)},
    1: BLOCK,
    2: BLOCK,
    3: {"weight": (HIDDEN,)},
    4: {"weight": (8, HIDDEN)},
}
PLAIN_PIPE: Layers = {0: {"weight": (8, 8), "bias": (8,)}, 1: {}, 2: {"weight": (3, 8), "bias": (3,)}}
LATE_PIPE: Layers = {1: {"conv.weight": (2, 2)}, 4: {"linear.weight": (2, 2), "linear.bias": (2,)}, 5: {}}
# Layers with names that Megatron or GPT-NeoX has too.
OWN_BLOCK = {"norm.weight": (4,), "norm.bias": (4,), "mlp.weight": (4, 4)}
NAMED_PIPE: Layers = {0: {"word_embeddings.weight": (8, 4)}, 1: OWN_BLOCK, 2: OWN_BLOCK, 3: {"lm_head.weight": (8, 4)}}
NEOX_BLOCK = {"input_layernorm.weight": (4,), "attention.query_key_value.weight": (12, 4)}
HF_NEOX_PIPE: Layers = {0: {"embed_in.weight": (8, 4)}, 1: NEOX_BLOCK, 2: {"embed_out.weight": (8, 4)}}
LATE_NAMED_PIPE: Layers = {1: {"word_embeddings.weight": (8, 4)}, 2: {"weight": (4, 4)}, 3: {"weight": (4, 4)}}
FOREIGN = {
    "transformers' layers": LLAMA_PIPE,
    "activations": PLAIN_PIPE,
    "functions": LATE_PIPE,
    "names of Megatron": NAMED_PIPE,
    "names of Megatron behind a function": LATE_NAMED_PIPE,
    "transformers' GPT-NeoX": HF_NEOX_PIPE,
}


def write(root: Path, layers: Layers, tp: int = 1, pp: int = 1, args: object = None, config: object = None) -> Path:
    """A folder as DeepSpeed's pipeline engine writes it; each element is numbered by its layer and its place."""
    folder = root / "global_step2"
    folder.mkdir(parents=True)
    (root / "latest").write_text(folder.name)
    for index, shapes in layers.items():
        for rank in range(tp):
            tensors = {
                key: torch.arange(torch.Size(shape).numel()).reshape(shape) + 1000.0 * index + 0.5 * rank
                for key, shape in shapes.items()
            }
            torch.save(tensors, folder / f"layer_{index:02d}-model_{rank:02d}-model_states.pt")
    shapes_of = [{f"{index}.{key}": torch.Size(shape) for index in layers for key, shape in layers[index].items()}]
    for rank in range(tp * pp):
        state: dict[str, Any] = {
            "module": None,
            "param_shapes": shapes_of,
            "dp_world_size": 1,
            "global_steps": 2,
            "iteration": 2,
        }
        state |= {} if args is None else {"args": args}
        torch.save(state, folder / f"mp_rank_{rank:02d}_model_states.pt")
    if config is not None:
        (folder / "configs").mkdir()
        (folder / "configs" / "run.yml").write_text(json.dumps(config))
    return root


def surveyed(root: Path) -> Survey:
    found = survey(step_of(root))
    assert found is not None
    return found


# -- GPT-NeoX ----------------------------------------------------------------------------------------------------------

NEOX_ARGS = {"num_layers": 2, "hidden_size": HIDDEN, "num_attention_heads": 2, "model_parallel_size": 2}
RMS = {"norm": "rmsnorm", "activation": "swiglu", "pos_emb": "rotary", "num_layers": 2}


@pytest.mark.parametrize("layers", [NEOX_LLAMA, {n: t for n, t in NEOX_LLAMA.items() if n < 6}], ids=["untied", "tied"])
@pytest.mark.parametrize("config", [RMS, None], ids=["configured", "keys alone"])
def test_a_whole_llama_of_gpt_neox_is_no_damage(layers: Layers, config: object, tmp_path: Path) -> None:
    """Between the blocks and the final norm stands a function, which has no file."""
    root = write(tmp_path, layers, tp=2, args=NEOX_ARGS, config=config)
    with pytest.raises(UnsupportedError, match=r"GPT-NeoX with .*not translated"):
        plan(root, to="huggingface")
    report = look(root, target_tp=1, target_pp=1)
    assert (report.what, report.exit_code) == ("GPT-NeoX", 0)
    assert [finding.severity for finding in report.findings] == ["note"]
    assert verify(root).exit_code == 0
    model = surveyed(root).model
    assert model is not None
    assert (model.tp, model.num_layers, model.pp) == (2, 2, 1)
    assert report.model is not None
    assert (report.model.num_layers, report.model.hidden, report.model.heads) == (2, HIDDEN, 2)
    sizes = {key: torch.Size(shape).numel() for number in (0, 2, 3) for key, shape in layers[number].items()}
    block = sum(2 * size for key, size in sizes.items() if key in layers[2] and "norm" not in key) + 2 * HIDDEN
    assert report.model.parameters_per_layer == block
    joined = {row.name for row in report.tensors}
    assert {"layers.0.mlp.linear2.weight", "layers.1.attention.dense.weight"} <= joined


def test_blocks_of_gpt_neox_that_are_no_transformer_layers_are_no_damage(tmp_path: Path) -> None:
    report = look(write(tmp_path, NEOX_MAMBA))
    assert (report.what, report.exit_code) == ("GPT-NeoX", 0)
    assert "Mamba" in words_of(report)


@pytest.mark.parametrize("lost", [0, 2, 3, 5])
def test_a_layer_of_gpt_neox_that_is_missing_is_damage(lost: int, tmp_path: Path) -> None:
    root = write(tmp_path, {n: shapes for n, shapes in NEOX_LLAMA.items() if n != lost}, config=RMS)
    report = look(root)
    assert report.what == "GPT-NeoX"
    assert f"the first missing is layer_{lost:02d}" in words_of(report)
    assert report.exit_code == 6


def test_optimizer_files_beside_a_whole_gpt_neox_are_described(tmp_path: Path) -> None:
    root = Path(shutil.copytree(MADE / "neox_L3_tp2pp2_z1", tmp_path / "neox"))
    flat = {"zero_stage": 1, "single_partition_of_fp32_groups": [torch.ones(3)]}
    for data, rank in ((d, r) for d in range(2) for r in range(4)):
        name = f"zero_pp_rank_{data}_mp_rank_{rank:02d}_optim_states.pt"
        torch.save({"optimizer_state_dict": flat}, step_of(root) / name)
    report = look(root)
    assert report.optimizer is not None
    assert (report.optimizer.files, report.optimizer.what) == (8, "ZeRO stage 1, fp32 master weights")
    assert report.parallel is not None
    assert report.parallel.dp == 2
    assert {len(cell.files) for cell in report.parallel.grid} == {6}
    assert report.exit_code == 0
    (step_of(root) / "zero_pp_rank_1_mp_rank_02_optim_states.pt").unlink()
    words = "1 of 8 optimizer files are missing: zero_pp_rank_1_mp_rank_02_optim_states.pt"
    assert words in words_of(look(root))


# -- pipelines of users' own -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (1, 2), (2, 1)])
def test_a_whole_pipeline_of_a_user_is_no_damage(name: str, tp: int, pp: int, tmp_path: Path) -> None:
    root = write(tmp_path, FOREIGN[name], tp, pp)
    words = "2 tensor-parallel ranks: nothing says how" if tp == 2 else "a model without config.json"
    with pytest.raises(SourceError, match=words):
        plan(root, to="huggingface")
    report = look(root, stats=True)
    what = "DeepSpeed, pipeline engine" if tp == 2 else "DeepSpeed, pipeline of own modules"
    assert (report.what, report.exit_code) == (what, 0)
    assert {finding.severity for finding in report.findings} <= {"note"}
    assert verify(root).exit_code == 0
    # Whole layers have the numbers of their files in their names; else a name is behind that of its file.
    sign = ":" if tp == 2 else "."
    stored = {(row.file, row.name.partition(sign)[2]): row.shape for row in report.tensors if "layer_" in row.file}
    assert stored == {
        (f"layer_{index:02d}-model_{rank:02d}-model_states.pt", key): shape
        for index, shapes in FOREIGN[name].items()
        for rank in range(tp)
        for key, shape in shapes.items()
    }


def gone(pattern: str) -> Break:
    def change(folder: Path) -> None:
        for path in folder.glob(pattern):
            path.unlink()

    return change


CUT = "layer_03-model_01-model_states.pt"
FAULTS: dict[str, tuple[Break, str]] = {
    "a layer": (gone("layer_01-*"), "no file has layer_01"),
    "a rank of a layer": (gone("layer_02-model_00*"), "1 of 10 layer files are missing: layer_02-model_00-"),
    "a rank": (gone("mp_rank_00*"), "1 of 2 mp_rank files are missing: mp_rank_00_model_states.pt"),
    "an end": (lambda folder: cut_off(folder / CUT), CUT),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_a_pipeline_of_a_user_lacks_is_damage(name: str, tmp_path: Path) -> None:
    root = write(tmp_path, LLAMA_PIPE, tp=2)
    change, words = FAULTS[name]
    change(step_of(root))
    report = look(root)
    assert words in words_of(report)
    assert report.exit_code == 6


def test_a_pipeline_with_experts_has_its_modules_in_rank_files(tmp_path: Path) -> None:
    """With experts the engine saves each stage's modules in its rank file, and no layer files."""
    root = write(tmp_path, {}, pp=2)
    for rank in (0, 1):
        state = {
            "module": {f"{rank}.mlp.deepspeed_moe.gate.wg.weight": torch.full((2, HIDDEN), float(rank))},
            "checkpoint_parallel_dimensions": {"tp_degree": 1, "pp_degree": 2},
        }
        torch.save(state, step_of(root) / f"mp_rank_{rank:02d}_model_states.pt")
    torch.save({}, step_of(root) / "layer_0_expert_0_mp_rank_00_model_states.pt")
    assert look(root).exit_code == 0
    (step_of(root) / "mp_rank_00_model_states.pt").unlink()
    assert "1 of 2 mp_rank files are missing: mp_rank_00_model_states.pt" in words_of(look(root))


# -- one reader --------------------------------------------------------------------------------------------------------


def other_run(folder: Path) -> None:
    path = folder / "mp_rank_01_model_states.pt"
    torch.save({"args": argparse.Namespace(num_layers=9), "iteration": 9}, path)


def swap(folder: Path, one: str, other: str) -> None:
    """Let two files change places."""
    (folder / one).rename(folder / "kept")
    (folder / other).rename(folder / one)
    (folder / "kept").rename(folder / other)


BREAKS: dict[str, Break] = {
    "rank's files swapped": lambda folder: swap(
        folder, "layer_01-model_01-model_states.pt", "layer_04-model_01-model_states.pt"
    ),
    "layer lost": gone("layer_04-*"),
    "layer file lost": gone("layer_04-model_01-*"),
    "rank lost": gone("mp_rank_00*"),
    "of another run": other_run,
    "layer cut off": lambda folder: cut_off(folder / "layer_03-model_00-model_states.pt"),
    "layer of nothing": lambda folder: torch.save({}, folder / "layer_04-model_01-model_states.pt"),
}


@pytest.mark.parametrize("name", BREAKS)
def test_what_stops_a_conversion_is_the_first_that_inspect_finds(name: str, tmp_path: Path) -> None:
    root = Path(shutil.copytree(MADE / "bloom_L7_tp2pp3_embpart_z0", tmp_path / "copy"))
    BREAKS[name](step_of(root))
    with pytest.raises(DamagedError) as caught:
        plan(root, to="megatron-legacy")
    faults = surveyed(root).faults
    assert faults.knows(caught.value)
    first = next(iter((*faults.found, *faults.unopened.values())))
    assert (first.what, first.where) == (caught.value.what, caught.value.where)
    damage = [finding for finding in look(root).findings if finding.severity == "damage"]
    assert caught.value.what in [finding.what for finding in damage]
    assert len(damage) == len({(finding.what, finding.where) for finding in damage})


SWAPPED: dict[str, tuple[Path | Layers, int, int]] = {
    "bigscience": (BLOOM, 1, 8),
    "deepspeedai": (LLAMA, 1, 6),
    "gpt-neox": (NEOX_LLAMA, 0, 5),
}


@pytest.mark.parametrize("name", SWAPPED)
def test_one_ranks_files_that_changed_places_are_named_and_nothing_else(name: str, tmp_path: Path) -> None:
    """The embedding and the final norm: no other part of the model is missing, or there twice."""
    source, *swapped = SWAPPED[name]
    root = tmp_path / "copy"
    if isinstance(source, Path):
        shutil.copytree(source, root)
    else:
        write(root, source, tp=2)
    pairs = [[f"layer_{index:02d}-model_{rank:02d}-model_states.pt" for rank in (0, 1)] for index in swapped]
    swap(step_of(root), pairs[0][1], pairs[1][1])
    report = look(root)
    assert report.exit_code == 6
    damage = [finding for finding in report.findings if finding.severity == "damage"]
    for finding, pair in zip(damage, pairs, strict=True):
        assert finding.what.endswith(f" is not in both {pair[0]} and {pair[1]}")
        assert "copy both again" in str(finding.remedy)


def test_all_faults_are_collected(tmp_path: Path) -> None:
    root = Path(shutil.copytree(LLAMA, tmp_path / "copy"))
    folder = step_of(root)
    for pattern in ("mp_rank_02*", "layer_01-model_00-*", "layer_04-*"):
        gone(pattern)(folder)
    cut_off(folder / "layer_03-model_00-model_states.pt")
    found = surveyed(root)
    words = [fault.what.partition(":")[2] or fault.what for fault in found.faults.found]
    assert words[:2] == [" layer_01-model_00-model_states.pt", " mp_rank_02_model_states.pt"]
    assert any("layer_04 is missing" in fault.what for fault in found.faults.found)
    assert [path.name for path in found.faults.unopened] == ["layer_03-model_00-model_states.pt"]
    assert found.model is None
    assert len(found.files) == len(list(folder.glob("*_model_states.pt"))) + len(list(folder.glob("layer_*"))) - 1
