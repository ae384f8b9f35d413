"""The names that wrappers put around a model's own are taken off, and a model's own never are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from streamconv import convert, plan
from streamconv.formats.wrappers import bare_names
from tests.stored import counted

LLAMA = ["model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight", "model.norm.weight", "lm_head.weight"]
OTHER = ["encoder.weight", "head.0.bias"]
BEFORE = ["module.", "_forward_module.", "_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.",
          "base_model.model.", "state_dict."]  # fmt: skip
INSIDE = ["_forward_module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"]


def bare(names: list[str], own: frozenset[str] = frozenset()) -> tuple[list[str], list[str]]:
    found, taken = bare_names(names, own)
    assert found.keys() <= set(names)
    assert all(found[name] != name for name in found)
    return [found.get(name, name) for name in names], taken


@pytest.mark.parametrize("names", [LLAMA, OTHER], ids=["llama", "other"])
@pytest.mark.parametrize("wrapper", BEFORE)
def test_each_wrapper_before_all_names_is_taken_off(wrapper: str, names: list[str]) -> None:
    assert bare([wrapper + name for name in names]) == (names, [wrapper])


@pytest.mark.parametrize("wrapper", ["module.", "base_model.model.", "state_dict.", "model."])
def test_what_is_not_before_all_names_is_the_models_own(wrapper: str) -> None:
    names = [wrapper + name for name in OTHER] + ["bias"]
    assert bare(names) == (names, [])


@pytest.mark.parametrize("wrapper", INSIDE)
def test_wrappers_in_the_middle_of_some_names_are_taken_off(wrapper: str) -> None:
    """As where single layers are wrapped: activation checkpointing, FSDP's nested units, a compiled block."""
    stored = ["embed.weight", f"layers.0.{wrapper}.up.weight", f"layers.1.{wrapper}.mlp.{wrapper}.up.weight"]
    assert bare(stored) == (["embed.weight", "layers.0.up.weight", "layers.1.mlp.up.weight"], [f"{wrapper}."])


def test_the_middle_of_a_word_is_no_wrapper() -> None:
    names = ["my_orig_mod.weight", "_orig_mode.weight", "x._orig_modx.bias", "submodule.weight"]
    assert bare(names) == (names, [])


@pytest.mark.parametrize(
    ("stacked", "taken"),
    [
        ("module._orig_mod.", ["_orig_mod.", "module."]),
        ("_orig_mod.module.", ["_orig_mod.", "module."]),
        ("module.module.", ["module."]),
        ("state_dict.module._forward_module.", ["_forward_module.", "state_dict.", "module."]),
        ("module.base_model.model.", ["module.", "base_model.model."]),
        (
            "_forward_module._orig_mod._fsdp_wrapped_module.",
            ["_forward_module.", "_orig_mod.", "_fsdp_wrapped_module."],
        ),
    ],
)
def test_wrappers_around_wrappers_are_taken_off(stacked: str, taken: list[str]) -> None:
    assert bare([stacked + name for name in LLAMA]) == (LLAMA, taken)


def test_names_that_would_collide_keep_their_wrapper() -> None:
    """A model that holds a compiled copy beside the module itself."""
    names = ["net.weight", "net._orig_mod.weight"]
    assert bare(names) == (names, [])
    outer = ["module.net.weight", "module.net._orig_mod.weight"]
    assert bare(outer) == (names, ["module."])


def test_a_name_of_the_wrapper_alone_is_the_models_own() -> None:
    names = ["module.", "module.weight"]
    assert bare(names) == (names, [])
    assert bare([]) == ([], [])


# -- an outer `model.` -------------------------------------------------------------------------------------------------


def test_an_outer_model_around_transformers_own_is_a_wrapper() -> None:
    """As Lightning names ``self.model = AutoModelForCausalLM..``."""
    assert bare(["model." + name for name in LLAMA]) == (LLAMA, ["model."])
    gpt2 = ["transformer.wte.weight", "transformer.h.0.ln_1.weight", "lm_head.weight"]
    assert bare(["model." + name for name in gpt2]) == (gpt2, ["model."])


def test_a_models_own_outer_model_stays() -> None:
    tied = LLAMA[:3]
    assert bare(tied) == (tied, [])
    encoder_decoder = ["model.encoder.embed_tokens.weight", "model.decoder.layers.0.fc1.weight", "model.shared.weight"]
    assert bare(encoder_decoder) == (encoder_decoder, [])


def test_what_the_configuration_says_decides() -> None:
    own = frozenset(LLAMA)
    tied = LLAMA[:3]
    assert bare(tied, own) == (tied, [])
    assert bare(["model." + name for name in tied], own) == (tied, ["model."])
    assert bare(["module.model." + name for name in tied], own) == (tied, ["module.", "model."])
    # A model whose own names do not begin with `model.`, in a trainer's attribute of that name.
    plain = ["wte.weight", "h.0.weight"]
    assert bare(["model." + name for name in plain], frozenset(plain)) == (plain, ["model."])
    assert bare(["model." + name for name in plain]) == (["model." + name for name in plain], [])


def saved_llama(folder: Path, prefix: str, *, tied: bool) -> dict[str, torch.Tensor]:
    """A real model of transformers, its file's names behind ``prefix``; the labelled tensors by its own names."""
    sizes: dict[str, Any] = {"vocab_size": 5, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    heads: dict[str, Any] = {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 8}
    model: Any = LlamaForCausalLM(LlamaConfig(**sizes, **heads, tie_word_embeddings=tied))
    start, tensors = 0, {}
    for name, tensor in model.state_dict().items():
        if not (tied and name == "lm_head.weight"):
            tensors[name] = counted(*tensor.shape, start=start)
            start += tensor.numel()
    folder.mkdir()
    model.config.save_pretrained(folder)
    save_file({prefix + name: tensor for name, tensor in tensors.items()}, folder / "model.safetensors")
    return tensors


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("prefix", ["", "model.", "module.", "_orig_mod.model.", "module.module.model."])
def test_transformers_gets_back_its_own_names(prefix: str, tied: bool, tmp_path: Path) -> None:
    """Of a tied Llama all names begin with ``model.``, which is no wrapper."""
    tensors = saved_llama(tmp_path / "in", prefix, tied=tied)
    convert(tmp_path / "in", tmp_path / "out", to="safetensors", max_ram="1G")
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    model, report = LlamaForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report.values()), report
    assert torch.equal(model.state_dict()["model.norm.weight"], tensors["model.norm.weight"])


def test_a_warning_says_what_was_taken_off_of_how_many_names(tmp_path: Path) -> None:
    save_file({f"module.{name}": counted(2) for name in "abc"}, tmp_path / "all.safetensors")
    found = plan(tmp_path / "all.safetensors", to="safetensors", max_ram="1G")
    assert "all names bear module.: taken off" in found.warnings
    names = ["a.weight", "b._checkpoint_wrapped_module.weight", "c._orig_mod.weight"]
    save_file({name: counted(2) for name in names}, tmp_path / "some.safetensors")
    found = plan(tmp_path / "some.safetensors", to="safetensors", max_ram="1G")
    assert "2 names bear _orig_mod., _checkpoint_wrapped_module.: taken off" in found.warnings


def test_wrapped_names_become_a_translated_model(tmp_path: Path) -> None:
    """The target of transformers sees through them as well."""
    tensors = saved_llama(tmp_path / "in", "module._orig_mod.", tied=False)
    convert(tmp_path / "in", tmp_path / "out", to="huggingface", max_ram="1G")
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
