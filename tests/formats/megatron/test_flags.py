"""The flags that a plan prints, by what the model has and the release that is to run it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from streamconv import convert, plan
from tests.formats.megatron import rank_files as files
from tests.formats.megatron.core.test_stages import flags_of
from tests.formats.megatron.models import CORE, MULTIPLE, Stored, case_of
from tests.places import LLAMA as LLAMA_RUN

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.distributed is .*:UserWarning")

LLAMA, GPT, QWEN3 = case_of("llama", head=True), case_of("gpt"), case_of("qwen3", head=True)
LLAMA_3 = {"rope_type": "llama3", "rope_theta": 500000.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA_3["original_max_position_embeddings"] = 8192
ALWAYS = {"--use-checkpoint-args": "", "--no-load-optim": "", "--no-load-rng": ""}
SCALED: dict[str, Any] = {"rope_parameters": {**LLAMA_3, "factor": 8.0}}


@pytest.mark.parametrize(
    ("name", "config", "choices", "expected"),
    [
        ("gpt", {}, {}, {"--ckpt-format": "torch_dist"}),
        ("gpt", {}, {"megatron_version": "0.9"}, {"--ckpt-format": "torch_dist"}),
        ("gpt", {}, {"megatron_version": "0.8"}, {"--use-dist-ckpt": ""}),
        ("gpt", {"layer_norm_epsilon": 1e-6}, {}, {"--ckpt-format": "torch_dist", "--norm-epsilon": "1e-06"}),
        ("gpt", {"activation_function": "gelu"}, {}, {"--ckpt-format": "torch_dist", "--no-bias-gelu-fusion": ""}),
        (
            "gpt",
            {"activation_function": "relu2"},
            {},
            {"--ckpt-format": "torch_dist", "--squared-relu": "", "--no-bias-gelu-fusion": ""},
        ),
        ("gpt", {}, {"dtype": "bf16"}, {"--ckpt-format": "torch_dist", "--bf16": ""}),
        (
            "llama",
            SCALED,
            {"megatron_version": "0.10"},
            {"--ckpt-format": "torch_dist", "--rotary-base": "500000", "--use-rope-scaling": ""},
        ),
        (
            "llama",
            {"rope_parameters": {**LLAMA_3, "factor": 32.0}},
            {},
            {
                "--ckpt-format": "torch_dist",
                "--rotary-base": "500000",
                "--use-rope-scaling": "",
                "--rope-scaling-factor": "32.0",
            },
        ),
        (
            "llama",
            {"rope_parameters": {"rope_type": "default", "rope_theta": 12345.5}},
            {},
            {"--ckpt-format": "torch_dist"},
        ),
        ("mistral", {"sliding_window": 8}, {}, {"--ckpt-format": "torch_dist", "--window-size": "7,0"}),
        ("qwen3", {}, {}, {"--ckpt-format": "torch_dist", "--qk-layernorm": ""}),
    ],
    ids=str,
)
def test_what_args_do_not_set(
    name: str, config: dict[str, Any], choices: dict[str, Any], expected: dict[str, str], tmp_path: Path
) -> None:
    epsilon = {} if name == "gpt" else {"rms_norm_eps": 1e-5}
    case_of(name).save(tmp_path / "hf", **epsilon, **config)
    assert flags_of(plan(tmp_path / "hf", to="megatron-core", config=MULTIPLE, **choices)) == {**ALWAYS, **expected}


def test_release_0_8_has_one_format_of_rank_files(stored: Stored) -> None:
    flags = flags_of(plan(stored(GPT), to="megatron-core", container="torch", megatron_version="0.8"))
    sizes = {"--tensor-model-parallel-size": "1", "--pipeline-model-parallel-size": "1"}
    assert flags == {**ALWAYS, **sizes}


@pytest.mark.parametrize("container", ["torch", "torch_dist"])
def test_without_args_all_of_the_model_is_said(container: str, stored: Stored, tmp_path: Path) -> None:
    work = plan(stored(QWEN3), to="megatron-core", container=container, keep_args=False, config=MULTIPLE)
    flags = flags_of(work)
    assert "--use-checkpoint-args" not in flags
    assert flags["--num-layers"] == "12"
    assert {"--hidden-size", "--ffn-hidden-size", "--num-attention-heads", "--kv-channels", "--seq-length"} <= set(
        flags
    )
    assert flags["--num-query-groups"] == "2"
    assert flags["--make-vocab-size-divisible-by"] == "4"
    assert flags["--normalization"] == "RMSNorm"
    assert flags["--position-embedding-type"] == "rope"
    switches = ("--group-query-attention", "--swiglu", "--disable-bias-linear", "--qk-layernorm")
    assert {flags[name] for name in (*switches, "--untie-embeddings-and-output-weights")} == {""}
    assert not any("tokenizer" in fact.what for fact in work.notes)


# -- the tokenizer -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("theirs", ["PretrainedFromHF", "HFTokenizer", ["a", "list"]], ids=str)
def test_a_tokenizer_that_megatron_lm_has_not_is_left_out(theirs: Any, tmp_path: Path) -> None:
    """Since core_v0.10 ``load_args_from_checkpoint`` takes it over the run's own."""
    convert(
        LLAMA_RUN.folder, tmp_path / "out", container="torch", tp=1, pp=1, config={"tokenizer_type": theirs}, **CORE
    )
    args = files.read_ranks(tmp_path / "out", files.even(1, 1))[0, 0]["args"]
    assert not hasattr(args, "tokenizer_type")
    notes = plan(LLAMA_RUN.folder, to="megatron-core", config={"tokenizer_type": theirs}).notes
    assert any("tokenizer_type" in note.what and "left out of args" in note.what for note in notes)
    assert any(note.what == "no tokenizer_type in args" for note in notes)


def test_a_tokenizer_of_megatron_lm_stays(tmp_path: Path) -> None:
    config = {"tokenizer_type": "GPT2BPETokenizer", "disable_bias_linear": False}
    convert(LLAMA_RUN.folder, tmp_path / "out", container="torch", tp=1, pp=1, config=config, **CORE)
    args = files.read_ranks(tmp_path / "out", files.even(1, 1))[0, 0]["args"]
    assert args.tokenizer_type == "GPT2BPETokenizer"
    # It would outweigh add_bias_linear, which is what the model has.
    assert not hasattr(args, "disable_bias_linear")
    assert args.add_bias_linear is False
    assert args.data_parallel_random_init is False
    notes = plan(LLAMA_RUN.folder, to="megatron-core", config=config).notes
    assert not any("tokenizer" in note.what for note in notes)


# -- what --use-mp-args-from-checkpoint-args takes ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layout", "vpp", "each"),
    [({"pp": 2}, None, None), ({"pp": 2, "vpp": 3}, 3, 2), ({"pp_layers": (2, 4, 6), "vpp": 2}, 2, None)],
    ids=str,
)
def test_virtual_stages_in_args(
    layout: dict[str, Any], vpp: int | None, each: int | None, stored: Stored, tmp_path: Path
) -> None:
    convert(stored(GPT), tmp_path / "out", container="torch", config=MULTIPLE, **layout, **CORE)
    (path,) = tmp_path.glob("out/*/mp_rank_00_000/model_optim_rng.pt")
    args = torch.load(path, weights_only=False)["args"]
    assert args.virtual_pipeline_model_parallel_size == vpp
    assert args.num_layers_per_virtual_pipeline_stage == each
    assert args.pipeline_model_parallel_size == len(layout.get("pp_layers", (6, 6)))
    assert (args.decoder_first_pipeline_num_layers, args.decoder_last_pipeline_num_layers) == (
        (2, 6) if "pp_layers" in layout else (None, None)
    )
