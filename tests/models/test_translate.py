"""config.json and training arguments, each from the other, judged by transformers' own configuration classes."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, GenerationConfig
from transformers.activations import ACT2FN
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from streamconv.containers.json_file import read_config
from streamconv.containers.open_any import open_any
from streamconv.core.errors import AmbiguousError, DamagedError, UnsupportedError, UsageError
from streamconv.models.config.activation_and_window import activation_of
from streamconv.models.config.training_args import neutral_args
from streamconv.models.family import ModelFamily
from streamconv.models.mechanisms import ALIBI, LEARNED, ROTARY
from streamconv.models.parameter import ModelSizes
from streamconv.models.registry import family_of, known_families
from streamconv.models.translate import ConfigFiles, args_of, config_of
from tests.places import FRAMEWORKS

FAMILIES = {family.name: family for family in known_families()}
EVERY = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)


def small(family: ModelFamily) -> ModelSizes:
    has_groups = 2 if family.grouped else 4
    positions = 64 if LEARNED in family.mechanisms else None
    return ModelSizes(3, 32, 128, 101, positions, 4, has_groups, 8, family.gated)


def entries(family: ModelFamily, **changes: Any) -> dict[str, Any]:
    """A config.json of a small model, as transformers saves it."""
    sizes = small(family)
    table = CONFIG_MAPPING[family.huggingface.model_type]
    names: dict[str, Any] = {
        "num_hidden_layers": 3,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "vocab_size": sizes.vocab,
    }
    names |= {"intermediate_size": 128} if family.gated or family.name == "gpt_neox" else {}
    names |= {"num_key_value_heads": 2, "head_dim": 8} if family.grouped else {}
    names |= {"max_position_embeddings": 64} if ALIBI not in family.mechanisms else {}
    names |= {"sliding_window": None} if family.name == "mistral" else {}
    return dict(json.loads(table(**names, **changes).to_json_string(use_diff=False)))


def made(family: ModelFamily, args: Mapping[str, Any] | None = None, **more: Any) -> ConfigFiles:
    supplied, sizes = more.pop("supplied", {}), more.pop("sizes", small(family))
    choices: dict[str, Any] = {"config": None, "dtype_name": "bfloat16", "has_head": False, **more}
    return config_of(family, sizes, args=args, supplied=supplied, **choices)


def loaded(files: ConfigFiles, folder: Path) -> Any:
    """What transformers makes of the written files."""
    (folder / "config.json").write_text(json.dumps(files.config))
    (folder / "generation_config.json").write_text(json.dumps(files.generation_config))
    GenerationConfig.from_pretrained(folder)
    return AutoConfig.from_pretrained(folder)


# -- defaults -----------------------------------------------------------------------------------------------------


def assumed(family: ModelFamily) -> Iterator[tuple[str, Any]]:
    known: dict[str, Any] = {}
    for setting in family.huggingface.settings:
        missing = setting.defaults({}, known)
        known |= missing
        yield from setting.write(missing).items() if missing else ()


@EVERY
def test_defaults_are_those_of_transformers(family: ModelFamily) -> None:
    config = CONFIG_MAPPING[family.huggingface.model_type]()
    stored = config.to_dict()
    seen = set()
    for name, value in assumed(family):
        if name in stored and name != "n_inner":
            assert stored[name] == value, name
            seen.add(name)
    assert len(seen) > 7
    assert args_of(family, {}).args["untie_embeddings_and_output_weights"] is not config.tie_word_embeddings


@EVERY
def test_no_entry_that_changes_the_model_is_forgotten(family: ModelFamily) -> None:
    """Every parameter of transformers' class is a setting's, or is known to change no logits."""
    harmless = {"vocab_size", "use_cache", "tie_word_embeddings", "rope_parameters", "pretraining_tp"}
    harmless |= {"slow_but_exact", "summary_type", "summary_use_proj", "summary_activation", "summary_proj_to_labels"}
    harmless |= {"summary_first_dropout", "classifier_dropout", "is_decoder", "hidden_dropout", "attention_dropout"}
    harmless |= {"max_window_layers", "layer_types", "use_sliding_window"}  # read by the sliding window's setting
    mine = {name for setting in family.huggingface.settings for name in setting.entries}
    kind = CONFIG_MAPPING[family.huggingface.model_type]
    base = set(inspect.get_annotations(kind.__mro__[1]))
    assert {name for name in inspect.get_annotations(kind) if name not in base} - mine <= harmless


# -- there and back -----------------------------------------------------------------------------------------------


@EVERY
def test_config_to_arguments_and_back(family: ModelFamily, tmp_path: Path) -> None:
    before = entries(family, initializer_range=0.01)
    translation = args_of(family, before)
    assert translation.refusals == ()
    has_head = not before["tie_word_embeddings"]
    files = made(family, translation.args, has_head=has_head)
    again = loaded(files, tmp_path).to_dict()
    unknown = {"transformers_version", "dtype", "architectures", "bos_token_id", "eos_token_id", "pad_token_id"}
    same = set(before) - unknown - {"n_inner", "id2label", "_name_or_path"}
    assert {name: again.get(name) for name in same} == {name: before[name] for name in same}
    assert files.warnings == ()
    assert args_of(family, files.config).args == translation.args


@EVERY
def test_what_is_written_says_all_in_both_spellings(family: ModelFamily, tmp_path: Path) -> None:
    args = args_of(family, entries(family)).args
    files = made(family, args, supplied={"bos_token_id": 3, "use_cache": False})
    assert list(files.config) == sorted(files.config)
    assert files.config["architectures"] == [family.huggingface.architecture]
    assert (files.config["dtype"], files.config["torch_dtype"]) == ("bfloat16", "bfloat16")
    assert (files.config["vocab_size"], files.config["tie_word_embeddings"]) == (101, True)
    assert (files.config["use_cache"], files.config["bos_token_id"], files.config["eos_token_id"]) == (False, 3, None)
    assert files.generation_config == {"_from_model_config": True, "bos_token_id": 3}
    if ROTARY in family.mechanisms:
        assert files.config["rope_theta"] == files.config["rope_parameters"]["rope_theta"] == 10000.0
    config = loaded(files, tmp_path)
    assert config.dtype == torch.bfloat16
    assert config.eos_token_id is None
    assert any("eos_token_id" in what for what, _ in files.notes)


@EVERY
def test_a_huggingface_config_keeps_its_entries(family: ModelFamily, tmp_path: Path) -> None:
    before = entries(family, eos_token_id=7)
    extra = {"auto_map": {"AutoConfig": "own.Config"}, "_name_or_path": "/home/me", "mine": [1]}
    files = made(family, config={**before, **extra}, has_head=True)
    changed = {"dtype", "architectures", "tie_word_embeddings", "_name_or_path"}
    assert {name: files.config[name] for name in before if name not in changed} == {
        name: value for name, value in before.items() if name not in changed
    }
    assert files.config["mine"] == [1]
    assert not {"auto_map", "_name_or_path"} & set(files.config)
    assert files.config["tie_word_embeddings"] is False
    assert files.generation_config["eos_token_id"] == 7
    assert loaded(files, tmp_path).eos_token_id == 7


# -- arguments of real runs ---------------------------------------------------------------------------------------

RUNS = sorted(path for path in FRAMEWORKS.iterdir() if path.name[:3] in ("bs_", "dsh", "dsp"))


def arguments(folder: Path) -> dict[str, Any]:
    state = open_any(sorted(folder.rglob("mp_rank_00_model_states.pt"))[0]).state
    return dict(state["args"].attributes)


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_arguments_of_real_runs(run: Path, tmp_path: Path) -> None:
    args = arguments(run)
    name = "bloom" if "bloom" in run.name else "llama" if "llama" in run.name else "gpt"
    family, has_head = FAMILIES[name], args.get("untie_embeddings_and_output_weights", False)
    heads, groups = args["num_attention_heads"], args.get("num_key_value_heads") or args["num_attention_heads"]
    positions = args["max_position_embeddings"] if name == "gpt" else None
    sizes = ModelSizes(
        args["num_layers"],
        args["hidden_size"],
        args["ffn_hidden_size"],
        112,
        positions,
        heads,
        groups,
        8,
        name == "llama",
    )
    files = made(family, args, sizes=sizes, has_head=has_head)
    config = loaded(files, tmp_path)
    assert config.num_hidden_layers == args["num_layers"]
    assert getattr(config, "rms_norm_eps" if name == "llama" else "layer_norm_epsilon") == 1e-5
    if name == "gpt":
        assert config.activation_function == "gelu"
    if name == "llama":
        assert (config.num_key_value_heads, config.max_position_embeddings) == (2, 16)
    assert any("GELU" in warning and "4.73e-4" in warning for warning in files.warnings) is (name == "bloom")


@pytest.mark.parametrize(
    ("args", "function"),
    [
        ({"bias_gelu_fusion": True}, "gelu_new"),
        ({"bias_gelu_fusion": False}, "gelu"),
        ({"bias_gelu_fusion": True, "add_bias_linear": False}, "gelu"),
        ({"openai_gelu": True, "bias_gelu_fusion": False}, "gelu_new"),
        # deepspeedai's fork fuses only F.gelu, bigscience's fuses whatever is asked for.
        ({"onnx_safe": True, "bias_gelu_fusion": True}, "gelu"),
        ({"onnx_safe": True, "bias_gelu_fusion": True, "glu_activation": None}, "gelu_new"),
        ({"squared_relu": True, "bias_gelu_fusion": True}, "relu2"),
        ({"openai_gelu": False}, None),
        ({}, None),
    ],
)
def test_the_function_that_a_run_computed(args: dict[str, Any], function: str | None) -> None:
    assert activation_of(args) == function


def test_what_the_warning_says_of_gelu_is_so() -> None:
    x = torch.linspace(-8, 8, 160_001, dtype=torch.float64)
    difference = (ACT2FN["gelu"](x) - ACT2FN["gelu_new"](x)).abs()
    assert 4.72e-4 < float(difference.max()) < 4.74e-4
    assert abs(float(x[difference.argmax()])) == pytest.approx(2.699, abs=1e-3)
    for name in ("gelu_fast", "gelu_accurate", "gelu_pytorch_tanh", "gelu_python_tanh"):
        assert torch.allclose(ACT2FN[name](x), ACT2FN["gelu_new"](x), rtol=0, atol=1e-8)
        assert args_of(FAMILIES["gpt"], {"activation_function": name}).args["bias_gelu_fusion"] is True


def test_other_forks_names() -> None:
    megatron = {"norm_epsilon": 1e-6, "normalization": "RMSNorm", "rotary_base": 500000, "num_attention_heads": 4}
    megatron |= {"group_query_attention": True, "num_query_groups": 2, "position_embedding_type": "rope"}
    args = neutral_args(megatron)
    assert (args["layernorm_epsilon"], args["rope_theta"], args["normalization"]) == (1e-6, 500000, "rmsnorm")
    assert (args["num_key_value_heads"], args["use_rotary_position_embeddings"]) == (2, True)
    assert neutral_args({**megatron, "group_query_attention": False})["num_key_value_heads"] == 4
    config = made(FAMILIES["llama"], {**megatron, "use_rope_scaling": True, "rope_scaling_factor": 32.0}).config
    assert config["rope_parameters"]["rope_type"] == config["rope_scaling"]["rope_type"] == "llama3"
    assert (config["rope_theta"], config["rope_parameters"]["factor"]) == (500000.0, 32.0)


# -- what is asked for, and what is refused -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("bloom", ["layer_norm_epsilon", "apply_residual_connection_post_layernorm"]),
        ("gpt", ["layer_norm_epsilon", "activation_function"]),
        ("gpt_neox", ["layer_norm_eps", "hidden_act", "rope_theta", "rotary_pct", "use_parallel_residual"]),
        ("llama", ["rms_norm_eps", "rope_theta"]),
        ("mistral", ["rms_norm_eps", "rope_theta", "sliding_window"]),
        ("qwen2", ["rms_norm_eps", "rope_theta"]),
        ("qwen3", ["rms_norm_eps", "rope_theta"]),
    ],
)
def test_what_nothing_says_is_asked_for_by_name(name: str, missing: list[str]) -> None:
    family = FAMILIES[name]
    with pytest.raises(AmbiguousError) as caught:
        made(family)
    assert f"says {', '.join(missing)}, and" in str(caught.value)
    with pytest.raises(AmbiguousError, match=family.huggingface.settings[2].entries[0]):
        made(family, sizes=replace(small(family), heads=None, groups=None, head_dim=None))
    whole = entries(family)
    assert made(family, supplied={entry: whole[entry] for entry in whole if entry != "tie_word_embeddings"})


def test_a_contradiction_names_both_values() -> None:
    llama, gpt = FAMILIES["llama"], FAMILIES["gpt"]
    args = args_of(llama, entries(llama)).args
    for supplied, words in (
        ({"rms_norm_eps": 1e-5}, "rms_norm_eps is 1e-05 in --config and 1e-06"),
        ({"num_hidden_layers": 4}, "num_hidden_layers is 4 in --config and 3"),
        ({"rope_theta": 5e5}, r"rope_theta is 500000\.0 in --config and 10000\.0"),
        ({"vocab_size": 200}, "vocab_size is 200 in --config and 101"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings is False"),
        ({"model_type": "mistral"}, "model_type is 'mistral'"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"rms_norm_eps": "small"}, "--config: rms_norm_eps is 'small'"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling is"),
    ):
        with pytest.raises(UsageError, match=words):
            made(llama, args, supplied=supplied)
    files = made(llama, args, supplied={"vocab_size": 100, "attention_dropout": 0.5, "hidden_act": "swish"})
    assert (files.config["vocab_size"], files.config["attention_dropout"]) == (101, 0.0)
    assert any("attention_dropout 0.0, not 0.5" in what for what, _ in files.notes)
    with pytest.raises(DamagedError, match="num_hidden_layers 5, the tensors have 3"):
        made(llama, config={**entries(llama), "num_hidden_layers": 5})
    with pytest.raises(UsageError, match="n_layer 5"):
        made(gpt, config={**entries(gpt), "n_layer": 5}, supplied={"n_layer": 5})
    with pytest.raises(DamagedError, match="n_layer is 3, num_hidden_layers is 4"):
        args_of(gpt, {**entries(gpt), "num_hidden_layers": 4})
    assert args_of(llama, {**entries(llama), "rope_theta": 5e5}).warnings == (
        "config.json: rope_theta is 500000.0: passed over for 10000.0, as by transformers",
    )


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("llama", {"rope_scaling": {**LLAMA3, "original_max_position_embeddings": 32}}, "rope_type 'llama3', factor 8"),
        ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type 'linear'"),
        ("llama", {"rope_parameters": {"rope_theta": 1e4, "rope_type": "yarn", "factor": 4.0}}, "rope_type 'yarn'"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ("mistral", {"sliding_window": 8}, r"sliding_window 8 \(of 64"),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}, "sliding_window 8"),
        ("gpt", {"activation_function": "quick_gelu"}, "activation_function 'quick_gelu'"),
        ("gpt", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx True"),
        ("gpt", {"reorder_and_upcast_attn": True}, "reorder_and_upcast_attn True"),
        ("gpt", {"add_cross_attention": True}, "add_cross_attention True"),
        ("gpt", {"scale_attn_weights": False}, "scale_attn_weights False"),
    ],
)
def test_what_no_argument_says_is_refused_by_name(name: str, changes: dict[str, Any], words: str) -> None:
    config = entries(FAMILIES[name])
    if "rope_scaling" in changes:
        config.pop("rope_parameters")
    if name == "qwen2":
        config.pop("layer_types")
    (refusal,) = args_of(FAMILIES[name], {**config, **changes}).refusals
    assert re.search(words, refusal), refusal


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("bloom", {"slow_but_exact": True, "pretraining_tp": 4}),
        ("llama", {"pretraining_tp": 2, "hidden_act": "swish"}),
        ("mistral", {"sliding_window": 64}),
        ("qwen2", {"sliding_window": 8}),
        ("qwen3", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 28, "layer_types": None}),
    ],
)
def test_what_changes_nothing_is_not_refused(name: str, changes: dict[str, Any]) -> None:
    assert args_of(FAMILIES[name], {**entries(FAMILIES[name]), **changes}).refusals == ()


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("gpt", {"apply_layernorm_1p": True}, "apply_layernorm_1p"),
        ("gpt", {"apply_residual_connection_post_layernorm": True}, "apply_residual_connection_post_layernorm"),
        ("llama", {"rotary_percent": 0.5}, r"rotary_percent 0\.5"),
        ("llama", {"rotary_interleaved": True}, "rotary_interleaved"),
        ("llama", {"window_size": (8, 0)}, "sliding_window of 9"),
        ("llama", {"window_size": (8, 1)}, "window_size"),
        ("bloom", {"squared_relu": True, "bias_gelu_fusion": False, "openai_gelu": False}, "squared_relu"),
    ],
)
def test_what_transformers_cannot_do_is_refused(name: str, changes: dict[str, Any], words: str) -> None:
    args = args_of(FAMILIES[name], entries(FAMILIES[name])).args
    with pytest.raises(UnsupportedError, match=words):
        made(FAMILIES[name], {**args, **changes})


def test_sizes_that_transformers_has_no_entry_for() -> None:
    changed: tuple[tuple[str, dict[str, Any]], ...] = (
        ("bloom", {"ffn": 96}),
        ("gpt", {"head_dim": 16}),
        ("gpt_neox", {"head_dim": 16}),
    )
    for name, changes in changed:
        family = FAMILIES[name]
        with pytest.raises(UnsupportedError, match="has always"):
            made(family, args_of(family, entries(family)).args, sizes=replace(small(family), **changes))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "mixtral"}, "mixtral: a mixture of experts"),
        ({"model_type": "qwen3_moe"}, "mixture of experts"),
        ({"model_type": "deepseek_v3"}, "mixture of experts"),
        ({"model_type": "gpt_oss", "num_local_experts": 32}, "mixture of experts"),
        ({"model_type": "llava", "vision_config": {}}, "vision_config"),
        ({"model_type": "gemma2"}, "gemma2: no model type"),
        ({}, "no model_type"),
        ({"model_type": "llama", "quantization_config": {"quant_method": "gptq"}}, "gptq"),
        (
            {"model_type": "llama", "architectures": ["LlamaForSequenceClassification"]},
            "LlamaForSequenceClassification",
        ),
        ({"model_type": ["llama"]}, "no model type"),
    ],
)
def test_other_models_are_refused_by_name(config: dict[str, Any], words: str) -> None:
    with pytest.raises(UnsupportedError, match=words):
        family_of(config)


@EVERY
def test_the_family_is_named(family: ModelFamily) -> None:
    table = family.huggingface
    assert family_of({"model_type": table.model_type, "architectures": [table.architecture]}) is family
    assert family_of({"architectures": [table.architecture]}) is family


# -- files --------------------------------------------------------------------------------------------------------


def test_files_that_are_no_configuration(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    with pytest.raises(UsageError, match="no such file"):
        read_config(path)
    for text, words in (("[]", "a JSON list"), ("{", "no JSON"), ("[" * 100_000, "no JSON"), ("\xff", "no JSON")):
        path.write_bytes(text.encode("latin-1"))
        with pytest.raises(DamagedError, match=words) as caught:
            read_config(path)
        assert "download or copy it again" in str(caught.value.remedy)
    path.write_bytes(b" " * (16 << 20) + b"{}")
    with pytest.raises(DamagedError, match="the limit is"):
        read_config(path)
    path.write_text('{"a": 1}')
    assert read_config(path) == {"a": 1}


JUNK = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.integers())


@pytest.mark.slow
@EVERY
@settings(deadline=None, max_examples=50)
@given(data=st.data())
def test_any_entries_give_arguments_or_an_error_of_ours(family: ModelFamily, data: st.DataObject) -> None:
    names = [*entries(family), "rope_scaling", "rope_theta", "num_hidden_layers", "quantization_config"]
    junk = data.draw(st.dictionaries(st.sampled_from(names), JUNK | st.dictionaries(st.text(), JUNK), max_size=4))
    try:
        args_of(family, junk)
        made(family, config=junk)
    except (DamagedError, UsageError):
        pass
