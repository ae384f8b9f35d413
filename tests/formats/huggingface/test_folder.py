"""What is in a Hugging Face folder that is written, and what is refused in one that is read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from streamconv import convert, plan
from streamconv.cli.main import main
from streamconv.core.errors import (
    AmbiguousError,
    DamagedError,
    DestinationError,
    DifferenceError,
    SourceError,
    UnsupportedError,
    UsageError,
)
from tests import hf_models as models
from tests.places import REAL

RAM: dict[str, Any] = {"max_ram": "1G"}
GPT = next(source for source in REAL if source.name == "dsh_gpt_tp2pp2_fp32_z0")
UNTIED = next(source for source in REAL if "untied" in source.name)
BLOOM = next(source for source in REAL if source.name == "bs_bloom_tp2pp2_fp32_z0")


def to_hf(source: Path, out: Path, **choices: Any) -> dict[str, Any]:
    convert(source, out, to="huggingface", **choices, **RAM)
    return dict(json.loads((out / "config.json").read_text()))


# -- what is written ----------------------------------------------------------------------------------------------


def test_shards_are_no_larger_than_asked_and_the_index_names_each_tensor(tmp_path: Path) -> None:
    to_hf(GPT.folder, tmp_path / "out", max_shard_size="20KB")
    shards = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    count = len(shards)
    assert count > 2
    assert shards == [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]
    held = {name: load_file(tmp_path / "out" / name) for name in shards}
    assert index["weight_map"] == {key: name for name, tensors in held.items() for key in tensors}
    sizes = {name: sum(t.nbytes for t in tensors.values()) for name, tensors in held.items()}
    assert index["metadata"]["total_size"] == sum(sizes.values())
    assert all(size <= 20_000 or len(held[name]) == 1 for name, size in sizes.items())


def test_one_shard_needs_no_index(tmp_path: Path) -> None:
    to_hf(GPT.folder, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "model.safetensors",
        "config.json",
        "generation_config.json",
        "streamconv.json",
    }


def test_vocabulary_padding_is_stripped_but_for_bloom(tmp_path: Path) -> None:
    assert to_hf(GPT.folder, tmp_path / "strip")["vocab_size"] == 101
    assert to_hf(GPT.folder, tmp_path / "keep", vocab_padding="keep")["vocab_size"] == 112
    assert to_hf(BLOOM.folder, tmp_path / "bloom")["vocab_size"] > 100
    assert to_hf(BLOOM.folder, tmp_path / "bloom-strip", vocab_padding="strip")["vocab_size"] == 100
    work = plan(GPT.folder, to="huggingface")
    assert any("11 rows of padding are stripped" in choice.evidence for choice in work.choices)
    rows = load_file(tmp_path / "keep" / "model.safetensors")["transformer.wte.weight"]
    assert torch.equal(rows[:101], load_file(tmp_path / "strip" / "model.safetensors")["transformer.wte.weight"])


def test_a_head_of_its_own_is_written_and_a_tied_one_is_not(tmp_path: Path) -> None:
    assert to_hf(UNTIED.folder, tmp_path / "untied")["tie_word_embeddings"] is False
    assert "lm_head.weight" in load_file(tmp_path / "untied" / "model.safetensors")
    assert to_hf(GPT.folder, tmp_path / "tied")["tie_word_embeddings"] is True
    assert "lm_head.weight" not in load_file(tmp_path / "tied" / "model.safetensors")


def test_a_dtype_is_cast_and_said(tmp_path: Path) -> None:
    config = to_hf(GPT.folder, tmp_path / "out", dtype="bf16")
    assert (config["dtype"], config["torch_dtype"]) == ("bfloat16", "bfloat16")
    assert {t.dtype for t in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.bfloat16}


def test_tokenizer_files_are_copied_byte_for_byte_and_code_never(tmp_path: Path) -> None:
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    wanted = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "chat_template.jinja", "merges.txt")
    for name in (*wanted, "tokenization_own.py", "config.json", "model.safetensors", "README.md"):
        (tokenizer / name).write_bytes(name.encode() * 1000 + bytes(range(256)))
    convert(GPT.folder, tmp_path / "out", to="huggingface", tokenizer=tokenizer, **RAM)
    for name in wanted:
        assert (tmp_path / "out" / name).read_bytes() == (tokenizer / name).read_bytes()
    assert not (tmp_path / "out" / "tokenization_own.py").exists()
    assert not (tmp_path / "out" / "README.md").exists()
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "gpt2"
    with pytest.raises(UsageError, match="no tokenizer file"):
        plan(GPT.folder, to="huggingface", tokenizer=GPT.folder)


def test_an_older_model_in_the_destination_is_replaced_whole(tmp_path: Path) -> None:
    out = tmp_path / "out"
    models.make("llama", out)
    (out / "pytorch_model.bin").write_bytes(b"old")
    (out / "notes.txt").write_text("mine")
    with pytest.raises(DestinationError, match="holds a checkpoint"):
        convert(GPT.folder, out, to="huggingface", max_shard_size="20KB", **RAM)
    assert json.loads((out / "config.json").read_text())["model_type"] == "llama"
    convert(GPT.folder, out, to="huggingface", max_shard_size="20KB", overwrite=True, **RAM)
    # model.safetensors, had it stayed, would be loaded in place of the shards.
    assert not (out / "model.safetensors").exists()
    assert not (out / "pytorch_model.bin").exists()
    assert (out / "notes.txt").read_text() == "mine"
    assert models.load(out).config.model_type == "gpt2"


@pytest.mark.parametrize(
    ("choices", "words"),
    [
        ({"to": "huggingface", "tp": 2}, "tp .*has no meaning"),
        ({"to": "huggingface", "pp": 2}, "pp .*has no meaning"),
        ({"to": "deepspeed", "vocab_padding": "keep"}, "vocab_padding .*has no meaning"),
        ({"to": "megatron", "tokenizer": "."}, "tokenizer .*has no meaning"),
        ({"to": "megatron", "max_shard_size": "1GB"}, "max_shard_size .the largest file"),
        ({"to": "huggingface", "for_release": True}, "for_release=True .counters among the training arguments"),
        ({"to": "huggingface", "keep_args": False}, "keep_args=False .the training arguments"),
        ({"to": "huggingface", "iteration": 3}, "iteration .the iteration that a training checkpoint"),
        ({"to": "huggingface", "vocab_padding": "half"}, "no such choice"),
        ({"to": "huggingface", "max_shard_size": "0"}, "max_shard_size='0': not a size"),
    ],
)
def test_a_flag_that_would_do_nothing_is_refused(choices: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        plan(GPT.folder, **choices)


@pytest.mark.parametrize(
    ("choices", "words"),
    [
        ({"qkv_layout": "blocks"}, "qkv_layout .the order of rows"),
        ({"glu_order": "up-gate"}, "glu_order .the order of halves"),
        ({"tag": "global_step5"}, "tag .which checkpoint"),
    ],
)
@pytest.mark.parametrize("to", ["huggingface", "deepspeed"])
def test_what_a_model_of_transformers_leaves_not_open_is_refused(
    to: str, choices: dict[str, Any], words: str, tmp_path: Path
) -> None:
    models.make("gpt", tmp_path / "hf")
    with pytest.raises(UsageError, match=words):
        plan(tmp_path / "hf", to=to, **choices)


def test_the_true_vocabulary_is_asked_for(tmp_path: Path) -> None:
    for path in GPT.folder.rglob("layer_*.pt"):
        target = tmp_path / "src" / path.relative_to(GPT.folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    folder = next((tmp_path / "src").iterdir()) if not any((tmp_path / "src").glob("*.pt")) else tmp_path / "src"
    said: dict[str, Any] = {"qkv_layout": "blocks", "num_heads": 4, "to": "huggingface"}
    with pytest.raises(AmbiguousError, match="true vocabulary size is unknown"):
        plan(folder, **said)
    # Without training arguments nothing tells the epsilon of the norms or the activation either.
    with pytest.raises(AmbiguousError, match="layer_norm_epsilon"):
        plan(folder, vocab_size=101, **said)
    config = {"layer_norm_epsilon": 1e-5, "activation_function": "gelu"}
    assert plan(folder, vocab_size=101, config=config, **said).texts["config.json"]


# -- what is read -------------------------------------------------------------------------------------------------


def sharded(folder: Path) -> Path:
    """A real Llama in shards; the index."""
    model = models.make("llama", folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="20KB")
    return folder / "model.safetensors.index.json"


def rewrite(index: Path, change: Any) -> None:
    content = json.loads(index.read_text())
    change(content)
    index.write_text(json.dumps(content))


def test_shards_by_transformers_are_read(tmp_path: Path) -> None:
    sharded(tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "out", to="huggingface", **RAM)
    models.assert_same_weights(models.load(tmp_path / "hf"), models.load(tmp_path / "out"))


@pytest.mark.parametrize("legacy", [False, True])
def test_torch_files_are_read(legacy: bool, tmp_path: Path) -> None:
    model = models.make("gpt", tmp_path / "hf")
    (tmp_path / "hf" / "model.safetensors").unlink()
    state = dict(model.state_dict())
    # An old file: the base model's names, the tied head as the same bytes, and buffers that are no parameters.
    state = {name.removeprefix("transformer."): tensor for name, tensor in state.items()}
    state["h.0.attn.bias"] = torch.ones(1, 1, 64, 64, dtype=torch.bool).tril()
    state["h.0.attn.masked_bias"] = torch.tensor(-1e4)
    assert state["lm_head.weight"].data_ptr() == state["wte.weight"].data_ptr()
    torch.save(state, tmp_path / "hf" / "pytorch_model.bin", _use_new_zipfile_serialization=not legacy)
    report = convert(tmp_path / "hf", tmp_path / "out", to="huggingface", **RAM)
    models.assert_same_weights(model, models.load(tmp_path / "out"))
    left = {dropped.name: dropped.reason for dropped in report.plan.dropped}
    assert left["h.*.attn.bias"] == left["h.*.attn.masked_bias"] == "no parameter: a causal mask"


@pytest.mark.parametrize("name", ["../evil.safetensors", "/etc/passwd", "a/b.safetensors", "..", ""])
def test_a_shard_path_that_leaves_the_folder_is_refused(name: str, tmp_path: Path) -> None:
    index = sharded(tmp_path / "hf")
    first = min((tmp_path / "hf").glob("model-*.safetensors"))
    (tmp_path / "evil.safetensors").write_bytes(first.read_bytes())

    def change(content: Any) -> None:
        content["weight_map"]["lm_head.weight"] = name

    rewrite(index, change)
    with pytest.raises(DamagedError, match="is not the name of a file beside it"):
        plan(tmp_path / "hf", to="huggingface")


@pytest.mark.parametrize(("more", "remedy"), [(-1, "load the model with it and save it again"), (1, "fetch the model")])
@pytest.mark.parametrize(("family", "entry"), [("llama", "num_hidden_layers"), ("gpt", "n_layer")])
def test_another_number_of_layers_than_said(family: str, entry: str, more: int, remedy: str, tmp_path: Path) -> None:
    models.make(family, tmp_path / "hf")
    said = models.LAYERS + more
    rewrite(tmp_path / "hf" / "config.json", lambda entries: entries.update({entry: said}))
    with pytest.raises(DamagedError, match=f"{said} layers, {models.LAYERS} are there") as caught:
        plan(tmp_path / "hf", to="huggingface")
    assert remedy in str(caught.value.remedy)
    assert f'{{"{entry}": {models.LAYERS}}}' in str(caught.value.remedy)
    work = plan(tmp_path / "hf", to="huggingface", config={entry: models.LAYERS})
    assert json.loads(work.texts["config.json"])[entry] == models.LAYERS
    if more < 0:
        # What the remedy says for the other case.
        AutoModelForCausalLM.from_pretrained(tmp_path / "hf").save_pretrained(tmp_path / "fewer")
        assert plan(tmp_path / "fewer", to="huggingface")


def test_another_vocabulary_than_said(tmp_path: Path) -> None:
    models.make("llama", tmp_path / "hf")
    rewrite(tmp_path / "hf" / "config.json", lambda entries: entries.update(vocab_size=90))
    with pytest.raises(DamagedError, match="a vocabulary of 90, the embedding has 101 rows") as caught:
        plan(tmp_path / "hf", to="huggingface")
    assert '{"vocab_size": 101}' in str(caught.value.remedy)
    work = plan(tmp_path / "hf", to="huggingface", config={"vocab_size": 101})
    assert json.loads(work.texts["config.json"])["vocab_size"] == 101


def test_layers_with_a_gap_are_named(tmp_path: Path) -> None:
    folder = edited(
        tmp_path, "llama", lambda tensors: [tensors.pop(key) for key in list(tensors) if ".layers.1." in key]
    )
    with pytest.raises(DamagedError, match=r"layers are numbered \[0, 2, 3\]") as caught:
        plan(folder, to="huggingface")
    assert "fetch the model again" in str(caught.value.remedy)


def test_faults_of_an_index_are_named(tmp_path: Path) -> None:
    index = sharded(tmp_path / "hf")
    whole = index.read_text()
    first = min(path.name for path in (tmp_path / "hf").glob("model-*.safetensors"))
    rewrite(index, lambda content: content["weight_map"].update({"model.norm.weight": first}))
    warnings = plan(tmp_path / "hf", to="huggingface").warnings
    assert any("1 tensors are in another file than the index says" in words for words in warnings)
    index.write_text(whole)
    rewrite(index, lambda content: content["weight_map"].pop("model.norm.weight"))
    convert(tmp_path / "hf", tmp_path / "out", to="huggingface", **RAM)
    warnings = plan(tmp_path / "hf", to="huggingface").warnings
    assert any("1 tensors are not in the index, and are read" in words for words in warnings)
    models.assert_same_weights(models.load(tmp_path / "hf"), models.load(tmp_path / "out"))
    rewrite(index, lambda content: content["weight_map"].update({"model.norm.weight": first, "model.norm.bias": first}))
    warnings = plan(tmp_path / "hf", to="huggingface").warnings
    assert any("1 tensors are in the index, and in no file: model.norm.bias" in words for words in warnings)
    index.write_text(whole)
    tensors = load_file(tmp_path / "hf" / first)
    save_file({**tensors, "model.norm.weight": torch.ones(32)}, tmp_path / "hf" / first, {"format": "pt"})
    with pytest.raises(DamagedError, match=r"model\.norm\.weight is in model-.*, model-.*which of them counts"):
        plan(tmp_path / "hf", to="huggingface")
    save_file(tensors, tmp_path / "hf" / first, {"format": "pt"})
    index.write_text("[]")
    with pytest.raises(DamagedError, match="no index of shards"):
        plan(tmp_path / "hf", to="huggingface")
    index.write_text(whole)
    (tmp_path / "hf" / first).unlink()
    with pytest.raises(DamagedError, match="is missing"):
        plan(tmp_path / "hf", to="huggingface")


def edited(tmp_path: Path, family: str, change: Any) -> Path:
    """A model of transformers whose tensors are changed behind its back."""
    folder = tmp_path / "hf"
    models.make(family, folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_missing_and_unknown_tensors_are_named(tmp_path: Path) -> None:
    folder = edited(tmp_path / "a", "llama", lambda tensors: tensors.pop("model.layers.2.mlp.up_proj.weight"))
    with pytest.raises(DamagedError, match=r"model\.layers\.2\.mlp\.up_proj\.weight is missing"):
        plan(folder, to="huggingface")
    folder = edited(tmp_path / "b", "llama", lambda tensors: tensors.update({"model.extra.weight": torch.ones(2)}))
    with pytest.raises(UnsupportedError, match=r"model\.extra\.weight"):
        plan(folder, to="huggingface")
    folder = edited(
        tmp_path / "c", "llama", lambda tensors: [tensors.pop(key) for key in list(tensors) if ".3." in key]
    )
    with pytest.raises(DamagedError, match="says 4 layers, 3 are there"):
        plan(folder, to="huggingface")


QUERY, KEY, UP = (f"model.layers.1.{part}_proj.weight" for part in ("self_attn.q", "self_attn.k", "mlp.up"))


@pytest.mark.parametrize(
    ("shapes", "error", "words"),
    [
        # Together they have the rows of the whole: only their border is not where it should be.
        ({QUERY: (24, 32), KEY: (24, 32)}, DamagedError, "_proj.weight is (24, 32) float32: it should have"),
        ({UP: (47, 32)}, DamagedError, "up_proj.weight is (47, 32) float32: it should have 48 rows"),
        ({UP: (48 * 32,)}, DamagedError, "it should have 48 rows"),
        ({UP: ()}, DamagedError, "it should have 48 rows"),
        ({QUERY: (32, 32, 1)}, DamagedError, "it should have"),
    ],
)
def test_parts_of_a_fused_parameter_have_their_own_rows(
    shapes: dict[str, tuple[int, ...]], error: type[Exception], words: str, tmp_path: Path
) -> None:
    def change(tensors: Any) -> None:
        tensors.update({name: torch.zeros(shape) for name, shape in shapes.items()})

    with pytest.raises(error) as caught:
        plan(edited(tmp_path, "llama", change), to="huggingface")
    assert words in str(caught.value)


def test_weights_of_other_types_are_refused(tmp_path: Path) -> None:
    folder = edited(
        tmp_path / "a", "llama", lambda tensors: tensors.update({UP: torch.zeros(48, 32, dtype=torch.int8)})
    )
    with pytest.raises(UnsupportedError, match="int8: quantised"):
        plan(folder, to="huggingface")


def test_a_tied_head_is_dropped_only_if_it_is_the_embedding(tmp_path: Path) -> None:
    def same(tensors: Any) -> None:
        tensors["lm_head.weight"] = tensors["transformer.wte.weight"].clone()

    def other(tensors: Any) -> None:
        tensors["lm_head.weight"] = tensors["transformer.wte.weight"].clone()
        tensors["lm_head.weight"][5, 5] += 1

    folder = edited(tmp_path / "same", "gpt", same)
    report = convert(folder, tmp_path / "out", to="huggingface", **RAM)
    assert any("lm_head.weight" in dropped.name for dropped in report.plan.dropped)
    assert "lm_head.weight" not in load_file(tmp_path / "out" / "model.safetensors")
    folder = edited(tmp_path / "other", "gpt", other)
    with pytest.raises(DifferenceError, match=r"lm_head\.weight differs"):
        convert(folder, tmp_path / "none", to="huggingface", **RAM)
    assert not (tmp_path / "none").exists()
    config = {"tie_word_embeddings": False}
    convert(folder, tmp_path / "both", to="huggingface", config=config, **RAM)
    both = load_file(tmp_path / "both" / "model.safetensors")
    assert torch.equal(both["lm_head.weight"], load_file(folder / "model.safetensors")["lm_head.weight"])


def test_a_folder_without_config_is_not_guessed_at(tmp_path: Path) -> None:
    models.make("llama", tmp_path / "hf")
    (tmp_path / "hf" / "config.json").unlink()
    with pytest.raises(SourceError, match=r"config\.json"):
        plan(tmp_path / "hf", to="huggingface")


def test_what_megatron_has_no_argument_for_is_refused_by_its_name(tmp_path: Path) -> None:
    scaling = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0}
    scaling |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    models.make("llama", tmp_path / "scaled", rope_parameters=scaling)
    with pytest.raises(UnsupportedError, match=r"(?i)rope.*scaling|rope_type"):
        plan(tmp_path / "scaled", to="deepspeed")
    assert plan(tmp_path / "scaled", to="huggingface")
    models.make("mistral", tmp_path / "window", sliding_window=8)
    with pytest.raises(UnsupportedError, match="sliding_window"):
        plan(tmp_path / "window", to="deepspeed")
    assert plan(tmp_path / "window", to="deepspeed", config={"sliding_window": None})


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = str(GPT.folder), tmp_path / "out"
    assert main([source, str(out), "--to", "huggingface", "--max-shard-size", "20KB", "--max-ram", "1G"]) == 0
    printed = capsys.readouterr()
    assert "vocabulary 101 rows" in printed.err
    assert "GPT2LMHeadModel" in printed.err
    assert main(["inspect", str(out)]) == 0
    assert main(["verify", str(out), "--against", source, "--max-ram", "1G"]) == 0
    assert main([str(out), str(tmp_path / "ds"), "--to", "deepspeed", "--tp", "2", "--pp", "2", "--max-ram", "1G"]) == 0
    assert main(["verify", str(tmp_path / "ds"), "--against", source, "--max-ram", "1G"]) == 0
