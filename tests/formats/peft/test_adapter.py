"""An adapter by itself: out of a run by its live names, under the names of its own file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from streamconv import diff, inspect, plan, verify
from tests.kept import Tensors, assert_same, kept
from tests.making.adapters import entries, in_file, thin, uneven, write_adapter, write_base
from tests.making.zero import Run, write_run
from tests.making.zero_values import Model, Parameter
from tests.places import FRAMEWORKS
from tests.trees import tree

PEFT = "base_model.model."
# A live model of peft: the weights of the base are frozen, a head is trained whole beside its original.
LIVE = Model(
    (
        Parameter(f"{PEFT}embed.weight", (7, 5), None),
        Parameter(f"{PEFT}layers.0.q.base_layer.weight", (5, 5), None),
        Parameter(f"{PEFT}layers.0.q.lora_A.default.weight", (2, 5)),
        Parameter(f"{PEFT}layers.0.q.lora_B.default.weight", (5, 2)),
        Parameter(f"{PEFT}embed.lora_embedding_A.default", (2, 7)),
        Parameter(f"{PEFT}embed.lora_embedding_B.default", (5, 2)),
        Parameter(f"{PEFT}head.original_module.weight", (7, 5), None),
        Parameter(f"{PEFT}head.modules_to_save.default.weight", (7, 5), 1),
        Parameter(f"{PEFT}head.modules_to_save.default.bias", (7,), 1),
    ),
    (),
)
IN_FILE = {
    f"{PEFT}layers.0.q.lora_A.weight": f"{PEFT}layers.0.q.lora_A.default.weight",
    f"{PEFT}layers.0.q.lora_B.weight": f"{PEFT}layers.0.q.lora_B.default.weight",
    f"{PEFT}embed.lora_embedding_A": f"{PEFT}embed.lora_embedding_A.default",
    f"{PEFT}embed.lora_embedding_B": f"{PEFT}embed.lora_embedding_B.default",
    f"{PEFT}head.weight": f"{PEFT}head.modules_to_save.default.weight",
    f"{PEFT}head.bias": f"{PEFT}head.modules_to_save.default.bias",
}


def live_run(root: Path, stage: int, *, excluded: bool = False) -> tuple[Tensors, Tensors]:
    """A run of the adapter with its configuration; its tensors by the names of a file, as masters and as the module."""
    truth = write_run(root, Run(stage=stage, dp=3, exclude_frozen=excluded), LIVE)
    (root / "adapter_config.json").write_text(json.dumps(entries(modules_to_save=["head"])))
    masters, module = ({new: of[name] for new, name in IN_FILE.items()} for of in (truth.trained, truth.module))
    return masters, module


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_model.bin"])
def test_inspect_calls_an_adapter_what_it_is(name: str, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "adapter", in_file({"layers.0.q": thin(5, 6)}), name)
    report = inspect(folder)
    assert report.what == "an adapter (PEFT)"
    assert sorted(row.name for row in report.tensors) == [
        f"base_model.model.layers.0.q.lora_{half}.weight" for half in "AB"
    ]
    assert not report.findings


@pytest.mark.parametrize("excluded", [pytest.param(False, id="base-too"), pytest.param(True, id="alone")])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_masters_of_a_run_become_the_folder_of_its_adapter(stage: int, excluded: bool, tmp_path: Path) -> None:
    masters, _ = live_run(tmp_path / "run", stage, excluded=excluded)
    found = kept(tmp_path / "run", tmp_path / "out", weights="master")
    assert_same(found, masters)
    there = tree(tmp_path / "out")
    assert there.keys() == {"adapter_config.json", "adapter_model.safetensors", "streamconv.json"}
    assert there["adapter_config.json"] == (tmp_path / "run" / "adapter_config.json").read_bytes()


@pytest.mark.parametrize("excluded", [False, True], ids=["base-too", "alone"])
@pytest.mark.parametrize("stage", [1, 2])
def test_the_module_of_a_run_becomes_the_folder_of_its_adapter(stage: int, excluded: bool, tmp_path: Path) -> None:
    _, module = live_run(tmp_path / "run", stage, excluded=excluded)
    assert_same(kept(tmp_path / "run", tmp_path / "out", "pytorch-bin"), module)
    assert [*(tmp_path / "out").glob("*.bin")] == [tmp_path / "out" / "adapter_model.bin"]


def test_what_is_left_of_the_base_is_told(tmp_path: Path) -> None:
    live_run(tmp_path / "run", 2)
    found = plan(tmp_path / "run", to="safetensors", max_ram="1G")
    assert [(each.nbytes, each.reason) for each in found.dropped if each.name == "3 weights of the base"] == [
        (2 * (35 + 25 + 35), "not trained")
    ]


def test_the_run_may_be_merged_at_once_and_gives_what_its_adapters_folder_gives(tmp_path: Path) -> None:
    masters, _ = live_run(tmp_path / "run", 3)
    whole = {"embed.weight": uneven(7, 5), "layers.0.q.weight": uneven(5, 5, start=35), "head.weight": uneven(7, 5)}
    write_base(tmp_path / "base", {**whole, "head.bias": uneven(7)})
    found = kept(tmp_path / "run", tmp_path / "out", base=tmp_path / "base")
    live_run(tmp_path / "alone", 3, excluded=True)
    kept(tmp_path / "alone", tmp_path / "adapter")
    assert_same(kept(tmp_path / "adapter", tmp_path / "again", base=tmp_path / "base"), found)
    assert torch.equal(found["head.weight"], masters[f"{PEFT}head.weight"])
    assert torch.equal(found["head.bias"], masters[f"{PEFT}head.bias"])
    parts = {key: masters[f"{PEFT}layers.0.q.lora_{key}.weight"].double() for key in "AB"}
    exact = whole["layers.0.q.weight"].double() + 1.5 * parts["B"] @ parts["A"]
    assert torch.allclose(found["layers.0.q.weight"].double(), exact, rtol=1e-6, atol=0)


def test_biases_that_a_run_trained_are_the_adapters(tmp_path: Path) -> None:
    """``bias="all"`` or ``"lora_only"``; their live names are those of the base's own."""
    bias = Parameter(f"{PEFT}layers.0.q.base_layer.bias", (5,), 1)
    truth = write_run(tmp_path / "run", Run(stage=2), Model((*LIVE.parameters, bias), ()))
    (tmp_path / "run" / "adapter_config.json").write_text(json.dumps(entries(bias="lora_only")))
    found = kept(tmp_path / "run", tmp_path / "out", weights="master")
    assert any(torch.equal(tensor, truth.trained[bias.name]) for tensor in found.values())


def test_the_trainers_own_adapter_is_taken_and_the_runs_masters_on_demand(tmp_path: Path) -> None:
    source = FRAMEWORKS / "ds_trainer_lora_z3" / "checkpoint-2"
    saved = load_file(source / "adapter_model.safetensors")
    assert_same(kept(source, tmp_path / "out"), saved)
    masters = kept(source, tmp_path / "masters", weights="master")
    assert masters.keys() == saved.keys()
    for name, tensor in masters.items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor.to(saved[name].dtype), saved[name])
    assert not torch.equal(masters[min(saved)], saved[min(saved)].float())


def test_an_adapter_may_be_cast_and_selected_from(tmp_path: Path) -> None:
    tensors = in_file({"layers.0.q": thin(5, 6), "layers.1.q": thin(5, 6)})
    write_adapter(tmp_path / "in", tensors)
    found = kept(tmp_path / "in", tmp_path / "out", dtype="bf16", tensors="*layers.1*")
    assert_same(found, {name: tensor.bfloat16() for name, tensor in tensors.items() if "layers.1" in name})


def test_live_names_without_a_configuration_are_kept_with_a_warning(tmp_path: Path) -> None:
    live = {name: torch.full((2,), float(number)) for number, name in enumerate(IN_FILE.values())}
    torch.save(live, tmp_path / "in.pt")
    assert_same(kept(tmp_path / "in.pt", tmp_path / "out"), live)
    words = "an adapter without adapter_config.json: its names are kept as a model's, and peft does not load it so"
    assert words in plan(tmp_path / "in.pt", to="safetensors", max_ram="1G").warnings


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_peft_loads_what_was_written_and_merges_to_the_same(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 11, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 16}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, **heads, tie_word_embeddings=False))
    model.save_pretrained(tmp_path / "base")
    kinds: dict[str, Any] = {"target_modules": ["q_proj", "down_proj"], "modules_to_save": ["lm_head"]}
    live = peft.get_peft_model(model, peft.LoraConfig(r=3, lora_alpha=5, use_rslora=True, **kinds))
    with torch.no_grad():
        for parameter in live.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape))
    live.save_pretrained(tmp_path / "saved")
    torch.save(live.state_dict(), tmp_path / "live.pt")
    (tmp_path / "adapter_config.json").write_bytes((tmp_path / "saved" / "adapter_config.json").read_bytes())
    assert_same(
        kept(tmp_path / "live.pt", tmp_path / "out"), load_file(tmp_path / "saved" / "adapter_model.safetensors")
    )
    base = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "base")
    wanted = peft.PeftModel.from_pretrained(base, tmp_path / "out").merge_and_unload().state_dict()
    found = kept(tmp_path / "out", tmp_path / "merged", base=tmp_path / "base")
    assert set(found) == set(wanted)
    for name, tensor in wanted.items():
        assert torch.allclose(found[name], tensor, rtol=1e-6, atol=1e-6), name


def test_the_adapters_folder_is_equal_to_the_run_that_it_is_made_of(tmp_path: Path) -> None:
    live_run(tmp_path / "run", 3, excluded=True)
    kept(tmp_path / "run", tmp_path / "out")
    found = diff(tmp_path / "run", tmp_path / "out", max_ram="1G")
    assert (found.exit_code, found.compared) == (0, len(IN_FILE))


def test_a_trainers_folder_is_equal_to_the_adapter_that_is_taken_of_it(tmp_path: Path) -> None:
    source = FRAMEWORKS / "ds_trainer_lora_z3" / "checkpoint-2"
    count = len(kept(source, tmp_path / "out"))
    found = diff(source, tmp_path / "out", max_ram="1G")
    assert (found.exit_code, found.compared, found.a.names) == (0, count, "own")
    assert verify(tmp_path / "out", against=source, max_ram="1G").exit_code == 0


def test_inspect_shows_the_adapter_that_a_conversion_takes() -> None:
    source = FRAMEWORKS / "ds_trainer_lora_z3" / "checkpoint-2"
    saved = load_file(source / "adapter_model.safetensors")
    assert saved.keys() <= {row.name for row in inspect(source, tensors="*").tensors}


def test_inspect_shows_an_adapter(tmp_path: Path) -> None:
    tensors = in_file({"layers.0.q": thin(5, 6)})
    write_adapter(tmp_path / "adapter", tensors)
    rows = {row.name: row.shape for row in inspect(tmp_path / "adapter", tensors="*").tensors}
    assert rows == {name: tuple(tensor.shape) for name, tensor in tensors.items()}
