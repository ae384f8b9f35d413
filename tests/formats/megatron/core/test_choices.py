"""What is asked of Megatron-Core's target and makes no sense is refused before anything is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from streamconv import convert, plan
from streamconv.cli.main import main
from streamconv.core.errors import UnsupportedError, UsageError
from tests.formats.megatron import rank_files as files
from tests.formats.megatron.models import CORE, MULTIPLE, Stored, case_of
from tests.formats.megatron.rank_files import LINEARS, even

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.distributed is .*:UserWarning")

LLAMA, GPT = case_of("llama", head=True), case_of("gpt")
TORCH: dict[str, Any] = {"to": "megatron-core", "container": "torch"}
DIST: dict[str, Any] = {"to": "megatron-core"}

SENSELESS: dict[str, tuple[dict[str, Any], str]] = {
    "virtual stages of one stage": ({**TORCH, "vpp": 2}, "2 virtual stages need a pipeline of at least 2 stages"),
    "too many virtual stages": (
        {**TORCH, "pp": 2, "vpp": 4},
        "stages of 6,6 layers do not divide into 4 virtual stages",
    ),
    "stages that do not divide": (
        {**TORCH, "pp": 5, "vpp": 2},
        "stages of 3,3,2,2,2 layers do not divide into 2 virtual stages",
    ),
    "one stage that does not divide": (
        {**TORCH, "pp_layers": (4, 5, 3), "vpp": 2},
        "stages of 4,5,3 layers do not divide into 2 virtual stages",
    ),
    "no virtual stage": ({**TORCH, "pp": 2, "vpp": 0}, "vpp=0: must be at least 1"),
    "virtual stages by default": ({**DIST, "pp": 2, "vpp": 2}, 'vpp has no meaning with container="torch_dist"'),
    "virtual stages in torch_dist": (
        {**DIST, "container": "torch_dist", "pp": 2, "vpp": 2},
        'vpp has no meaning with container="torch_dist"',
    ),
    "another container": ({**DIST, "container": "zarr"}, "container='zarr': no such choice"),
    "another spec": ({**TORCH, "spec": "modelopt"}, "spec='modelopt': no such choice"),
    "another spec in torch_dist": ({**DIST, "spec": "apex"}, "spec='apex': no such choice"),
    "a dialect": ({**TORCH, "dialect": "2023-09"}, r"dialect \(.*\) has no meaning with to=\"megatron-core\""),
    "a stage without layers": ({**TORCH, "pp_layers": (0, 12)}, r"pp_layers=\(0, 12\): must be at least 1"),
    "virtual stages of one stage in torch_dist": (
        {**DIST, "vpp": 2},
        'vpp has no meaning with container="torch_dist"',
    ),
    "no container": ({**DIST, "container": ""}, "container='': no such choice"),
    "another norm": (
        {**DIST, "config": {"normalization": "RMSNorm"}},
        "config says normalization 'RMSNorm', and the",
    ),
    "experts": ({**DIST, "config": {"num_experts": 8}}, "config says num_experts 8, and the model has None"),
    "groups": ({**DIST, "config": {"num_query_groups": 1}}, "config says num_query_groups 1, and the model has 4"),
    "stages of another model": ({**TORCH, "pp_layers": (5, 5)}, r"pp_layers=\(5, 5\) adds up to 10 layers"),
    "two numbers of stages": ({**TORCH, "pp": 3, "pp_layers": (6, 6)}, "pp=3 and 2 stages in pp_layers"),
    "too many stages": ({**TORCH, "pp": 13}, "pp=13: the model has 12 layers"),
    **{
        f"--megatron-version {said}": (
            {**DIST, "megatron_version": said},
            f"megatron_version={said!r}: no release that is known",
        )
        for said in ("0.7", "0.20", "1.0", "latest", "", "core_v16", "0.16.x", "0.١٦")
    },
    **{
        f"{flag} --to {to}": ({"to": to, name: value}, rf"{name} \(.*\) has no meaning with to=\"{to}\"")
        for to in ("megatron-legacy", "deepspeed", "huggingface")
        for flag, name, value in (
            ("--container", "container", "torch"),
            ("--spec", "spec", "te"),
            ("--megatron-version", "megatron_version", "0.16"),
        )
    },
    **{
        f"--vpp --to {to}": ({"to": to, "vpp": 2}, rf"vpp \(.*\) has no meaning with to=\"{to}\"")
        for to in ("deepspeed", "huggingface")
    },
}


@pytest.mark.parametrize(("choices", "match"), SENSELESS.values(), ids=list(SENSELESS))
def test_what_makes_no_sense_is_refused(choices: dict[str, Any], match: str, stored: Stored, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=match):
        convert(stored(GPT), tmp_path / "out", max_ram="1G", **choices)
    assert not (tmp_path / "out").exists()


def test_the_command_line_says_so_and_ends_with_2(
    stored: Stored, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["convert", str(stored(GPT)), str(tmp_path / "out"), "--to", "megatron-core", "--container", "torch"]
    assert main([*asked, "--pp", "2", "--vpp", "4"]) == 2
    assert "stages of 6,6 layers do not divide into 4 virtual stages" in capsys.readouterr().err
    assert main([*asked, "--pp", "2", "--vpp", "3", "--spec", "local", "--megatron-version", "core_v0.16.1"]) == 0
    assert len(list((tmp_path / "out").rglob("*.pt"))) == 2


@pytest.mark.parametrize("said", ["0.16", "0.16.1", "core_v0.16.0", "core_r0.16.0", "v0.16", "core_0.16"])
def test_spellings_of_a_release(said: str, stored: Stored) -> None:
    assert plan(stored(GPT), **DIST, megatron_version=said).target_format == "megatron-core"


@pytest.mark.parametrize("to", ["megatron-core", "megatron-legacy", "deepspeed"])
def test_one_virtual_stage_is_none(to: str, stored: Stored) -> None:
    assert plan(stored(GPT), to=to, vpp=1).target_layout.vpp == 1


# -- ranks that a model does not divide over --------------------------------------------------------------------------


UNDIVIDED: dict[str, tuple[dict[str, Any], int, str]] = {
    "heads": ({}, 3, "4 attention heads do not divide over the target's TP 3"),
    "more ranks than heads": ({}, 8, "4 attention heads do not divide over the target's TP 8"),
    "groups": (
        {"heads": 12, "groups": 4, "ffn": 48},
        6,
        "4 key and value heads do not divide over the target's TP 6",
    ),
    "groups, though heads do": (
        {"heads": 6, "groups": 2, "ffn": 48},
        3,
        "2 key and value heads do not divide over the target's TP 3",
    ),
}


@pytest.mark.parametrize("container", ["torch", "torch_dist"])
@pytest.mark.parametrize(("sizes", "tp", "match"), UNDIVIDED.values(), ids=list(UNDIVIDED))
def test_heads_must_divide_over_the_ranks(
    sizes: dict[str, Any], tp: int, match: str, container: str, tmp_path: Path
) -> None:
    case_of("llama", num_layers=2, **sizes).save(tmp_path / "hf")
    with pytest.raises(UnsupportedError, match=match):
        plan(tmp_path / "hf", to="megatron-core", container=container, tp=tp, config=MULTIPLE)


@pytest.mark.parametrize("container", ["torch", "torch_dist"])
@pytest.mark.parametrize("name", ["gpt", "llama"])
def test_a_head_with_keys_of_its_own_is_not_cut(name: str, container: str, tmp_path: Path) -> None:
    """Ranks share groups of heads, never a head [attention.py: num_attention_heads divides over the ranks]."""
    case_of(name, num_layers=2, groups=4).save(tmp_path / "hf")
    with pytest.raises(UnsupportedError, match="4 attention heads do not divide over the target's TP 8"):
        plan(tmp_path / "hf", to="megatron-core", container=container, tp=8, config=MULTIPLE)


def test_no_other_target_cuts_groups(stored: Stored) -> None:
    for to in ("megatron-legacy", "deepspeed"):
        with pytest.raises(UnsupportedError, match="2 key and value heads do not divide over the target's TP 4"):
            plan(stored(LLAMA), to=to, tp=4)


def test_what_does_not_divide_otherwise_is_named(tmp_path: Path) -> None:
    case_of("llama", num_layers=2, ffn=23).save(tmp_path / "hf")
    with pytest.raises(UsageError, match=r"mlp\.dense_h_to_4h\.weight: 23 does not divide over TP 2"):
        plan(tmp_path / "hf", **TORCH, tp=2, config=MULTIPLE)


# -- releases that are too old ----------------------------------------------------------------------------------------


def scaled(kind: str, factor: float, **more: Any) -> dict[str, Any]:
    """A configuration with scaled rotary positions."""
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, "factor": factor, **more}}


LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
NEEDS: dict[str, tuple[str, dict[str, Any], dict[str, Any], int, str]] = {
    "more ranks than groups": ("llama", {}, {**TORCH, "tp": 4}, 16, "2 key and value heads at TP 4"),
    "a window": ("mistral", {"sliding_window": 8}, DIST, 15, r"a sliding window \(7, 0\)"),
    "Llama 3's scaling": ("llama", scaled("llama3", 8.0, **LLAMA3), DIST, 10, "Llama 3's scaling by 8"),
    "by another factor": ("llama", scaled("llama3", 32.0, **LLAMA3), DIST, 11, "Llama 3's scaling by 32"),
    "linear scaling": ("llama", scaled("linear", 4.0), DIST, 19, "linear scaling by 4"),
    "a first stage": ("gpt", {}, {**TORCH, "pp_layers": (2, 5, 5)}, 9, "a first or last stage of another length"),
    "both ends": ("gpt", {}, {**TORCH, "pp_layers": (5, 3, 4)}, 9, "a first or last stage of another length"),
    "both ends of two": ("gpt", {}, {**TORCH, "pp_layers": (5, 7)}, 9, "a first or last stage of another length"),
    "virtual stages of uneven ends": (
        "gpt",
        {},
        {**TORCH, "pp_layers": (2, 4, 6), "vpp": 2},
        11,
        "a first or last stage of another length",
    ),
    "an uneven middle": ("gpt", {}, {**TORCH, "pp_layers": (3, 3, 4, 2)}, 13, "stages of these lengths"),
    "RMSNorm": ("llama", {}, {**TORCH, "spec": "local"}, 12, "RMSNorm in the local spec"),
    "a base by args alone": (
        "llama",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 12345.5}},
        DIST,
        10,
        r"a rotary base of 12345\.5",
    ),
    "no args": ("gpt", {}, {**DIST, "keep_args": False}, 16, "a torch_dist checkpoint without args"),
}


@pytest.mark.parametrize(("name", "config", "choices", "since", "what"), NEEDS.values(), ids=list(NEEDS))
def test_a_release_must_be_able_to_run_it(
    name: str, config: dict[str, Any], choices: dict[str, Any], since: int, what: str, tmp_path: Path
) -> None:
    case_of(name).save(tmp_path / "hf", **config)
    choices = {**choices, "config": MULTIPLE}
    with pytest.raises(
        UnsupportedError, match=rf"{what}.*: Megatron-LM has it since core_v0\.{since}, not in core_v0\.{since - 1}"
    ):
        plan(tmp_path / "hf", megatron_version=f"0.{since - 1}", **choices)
    plan(tmp_path / "hf", megatron_version=f"0.{since}", **choices)
    (fact,) = [fact for fact in plan(tmp_path / "hf", **choices).notes if fact.what.startswith("container ")]
    assert f"NVIDIA/Megatron-LM since core_v0.{since} for " in fact.evidence


def test_any_release_reads_torch_dist_at_its_own_size(stored: Stored) -> None:
    """Its reader cuts as it likes, so neither groups of heads nor stages ask for a release."""
    plan(stored(LLAMA), **DIST, tp=4, pp_layers=(3, 3, 4, 2), megatron_version="0.8")


def test_scaling_that_megatron_has_no_argument_for(tmp_path: Path) -> None:
    for number, config in enumerate(
        (scaled("yarn", 4.0), scaled("llama3", 8.0, **{**LLAMA3, "low_freq_factor": 2.0}), scaled("linear", 1.5))
    ):
        case_of("llama").save(tmp_path / str(number), **config)
        with pytest.raises(UnsupportedError, match="no argument for this scaling of rotary positions") as caught:
            plan(tmp_path / str(number), **DIST)
        assert 'to="huggingface"' in str(caught.value)


# -- what Megatron-Core cannot run ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bloom", "gpt_neox"])
def test_families_that_megatron_core_cannot_run_are_refused_by_name(name: str, tmp_path: Path) -> None:
    case = case_of(name, head=name == "gpt_neox")
    case.save(tmp_path / "hf")
    title, why = {
        "bloom": ("BLOOM", "no ALiBi and no embedding norm"),
        "gpt_neox": ("GPT-NeoX", "no parallel residual"),
    }[name]
    with pytest.raises(
        UnsupportedError, match=f"{title} cannot go to megatron-core: Megatron-Core has {why}"
    ) as caught:
        plan(tmp_path / "hf", **TORCH)
    remedy = caught.value.remedy
    assert remedy is not None
    works = remedy.removeprefix("targets that can hold it: ").split(", ")
    assert (
        works
        == {"bloom": ["deepspeed", "huggingface", "megatron-legacy"], "gpt_neox": ["huggingface", "gpt-neox"]}[name]
    )
    for to in works:
        assert plan(tmp_path / "hf", to=to).target_format == to


def test_megatron_means_the_newest_layout_that_runs_the_model(stored: Stored, tmp_path: Path) -> None:
    case_of("bloom").save(tmp_path / "bloom")
    assert plan(stored(GPT), to="megatron").target_format == "megatron-core"
    assert plan(tmp_path / "bloom", to="megatron").target_format == "megatron-legacy"
    with pytest.raises(UsageError, match='has no meaning with to="megatron-legacy", which to="megatron" is'):
        plan(tmp_path / "bloom", to="megatron", container="torch")


# -- the spec ---------------------------------------------------------------------------------------------------------


def test_the_spec_changes_nothing_in_torch_dist(stored: Stored, tmp_path: Path) -> None:
    """Names are those of Transformer Engine for both, and its norms may be in a model of the local spec too."""
    objects = {}
    for spec in ("te", "local"):
        convert(stored(LLAMA), tmp_path / spec, spec=spec, tp=2, config=MULTIPLE, **CORE)
        found, objects[spec] = files.read_dist(files.checkpoint_of(tmp_path / spec))
        files.assert_same(found, files.whole_tensors(LLAMA.model(), 8), LLAMA.model(), spec)
    modules = [*LINEARS, "self_attention.core_attention"]
    layers = {f"decoder.layers.{module}._extra_state/shard_{n}_12" for module in modules for n in range(12)}
    assert objects["local"] == objects["te"] == layers | {"decoder.final_layernorm._extra_state/shard_0_1"}


def test_both_specs_differ_in_the_names_of_norms_alone(stored: Stored, tmp_path: Path) -> None:
    cut = even(1, 1)
    tensors = {}
    for spec in ("te", "local"):
        convert(stored(LLAMA), tmp_path / spec, container="torch", spec=spec, config=MULTIPLE, **CORE)
        tensors[spec] = files.tensors_of(files.read_ranks(tmp_path / spec, cut)[0, 0]["model"])
    norms = {name for name in tensors["te"] if "layer_norm_" in name}
    assert norms == {
        f"decoder.layers.{layer}.{module}.layer_norm_weight"
        for layer in range(12)
        for module in ("self_attention.linear_qkv", "mlp.linear_fc1")
    }
    same = set(tensors["te"]) - norms
    assert set(tensors["local"]) - same == {
        f"decoder.layers.{layer}.{norm}.weight"
        for layer in range(12)
        for norm in ("input_layernorm", "pre_mlp_layernorm")
    }
    assert all(torch.equal(tensors["te"][name], tensors["local"][name]) for name in same)
