"""Llama-like models in Megatron-DeepSpeed and legacy Megatron-LM folders: grouped heads, gated MLPs, who wrote it."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from streamconv.core.errors import AmbiguousError, DamagedError, StreamconvError, UnsupportedError
from streamconv.formats.deepspeed import source as deepspeed
from streamconv.formats.deepspeed.options import BIGSCIENCE, DEEPSPEEDAI, DEEPSPEEDAI_2024_11
from streamconv.formats.gpt_neox import source as gpt_neox
from streamconv.formats.megatron.legacy import source as megatron_legacy_source
from streamconv.formats.source import StoredModel
from streamconv.models.fused import gather
from streamconv.models.orders import GluOrder, QkvLayout
from streamconv.models.parameter import Section
from streamconv.models.registry import known_families
from streamconv.planning.capabilities import capability_table
from streamconv.planning.recognise import recognise
from tests.making import deepspeed as making
from tests.making.deepspeed import Tensors
from tests.making.families import case_of
from tests.making.labelled import GLU, QKV, Labelled, part_of
from tests.options import source_options
from tests.places import FRAMEWORKS, LABELLED, MADE, REAL

REAL_LLAMA = FRAMEWORKS / "dsp_llama_gqa_tp2pp2_fp32_z0"
# Two groups on each rank: with one, rows are the same in each order.
LAYERS, HIDDEN, HEADS, GROUPS, HEAD_DIM, FFN, VOCAB, TP = 2, 12, 8, 4, 3, 10, 8, 2
ARGS = {
    "num_layers": LAYERS,
    "hidden_size": HIDDEN,
    "ffn_hidden_size": FFN,
    "num_attention_heads": HEADS,
    "num_key_value_heads": GROUPS,
    "kv_channels": HEAD_DIM,
    "padded_vocab_size": VOCAB,
    "max_position_embeddings": 16,
    "tensor_model_parallel_size": TP,
    "pipeline_model_parallel_size": 1,
    "normalization": "rmsnorm",
    "swiglu": True,
    "use_rotary_position_embeddings": True,
    "add_position_embedding": False,
    "add_bias_linear": False,
    "untie_embeddings_and_output_weights": True,
}


@dataclass(frozen=True)
class Rows(making.Rows):
    """How fused rows are stored, and whether the model is the Qwen 2 that has biases where this Llama has none."""

    biases: bool = False

    @property
    def model(self) -> Labelled:
        sizes = {"num_layers": LAYERS, "hidden": HIDDEN, "heads": HEADS, "groups": GROUPS, "head_dim": HEAD_DIM}
        return case_of("qwen2" if self.biases else "llama", head=True, **sizes, ffn=FFN, vocab=VOCAB).model()


def block(layer: int, rank: int, rows: Rows) -> Tensors:
    """One rank's tensors of a layer."""
    return making.block(rows.model, layer, (rank, TP), rows)


def end(name: str, rank: int, rows: Rows) -> torch.Tensor:
    return making.end(rows.model, name, (rank, TP))


def deepspeed_folder(root: Path, rows: Rows, args: Mapping[str, Any] | None = None, **numbers: int) -> Path:
    return making.save_pipeline(root, rows.model, TP, rows, args, **numbers)


def without_pipeline(root: Path, rows: Rows, args: Mapping[str, Any]) -> Path:
    return making.save_modules(root, rows.model, TP, rows, args)


def as_bigscience(root: Path, rows: Rows, args: Mapping[str, Any] | None = None) -> Path:
    return deepspeed_folder(root, rows, args, first=3, final=2)


def without(*names: str, **changed: Any) -> dict[str, Any]:
    return {name: value for name, value in ARGS.items() if name not in names} | changed


def opened(root: Path, **options: Any) -> StoredModel:
    return deepspeed.open_model(root, source_options(**options))


def canonical(model: StoredModel, num_heads: int | None = None) -> Tensors:
    """Every tensor, whole; fused ones by part, flat."""
    _, family, sizes = recognise(model, num_heads)
    found: Tensors = {}
    for stored, shards in model.tensors.items():
        parameter = family.parameter(stored)
        chosen = shards if parameter.axis is not None else shards[:1]
        whole = gather(parameter, chosen, sizes, model.orders)
        module, _, kind = stored.name.rpartition(".")
        names = [f"{module}.{part}.{kind}" for part in parameter.parts] or [stored.name]
        for name, tensor in zip(names, whole, strict=True):
            values = tensor.torch().clone()
            found[name] = values.flatten(0, 1) if ".query_key_value." in name else values
    return found


def expected(rows: Rows) -> Tensors:
    """What :func:`canonical` must give."""
    model, found = rows.model, Tensors()
    for name, tensor in model.tensors.items():
        module, _, kind = name.rpartition(".")
        parts = making.PARTS if QKV in name else ("gate", "up") if GLU in name else ()
        found |= {f"{module}.{part}.{kind}": part_of(model, name, part) for part in parts} or {name: tensor}
    return found


def assert_same(found: Tensors, wanted: Tensors) -> None:
    assert set(found) == set(wanted)
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor), name


def words_of(model: StoredModel) -> str:
    return "\n".join(f"{fact.what}: {fact.evidence}" for fact in model.facts)


# -- the real one --------------------------------------------------------------------------------------------------


def test_a_real_llama_is_opened_with_its_orders() -> None:
    model = opened(REAL_LLAMA)
    assert (model.tp, model.pp, model.stages, model.vocab_size) == (2, 2, (2, 2), 101)
    assert (model.qkv, model.glu, model.fork) == (QkvLayout.INTERLEAVED, GluOrder.GATE_UP, DEEPSPEEDAI_2024_11)
    assert not model.warnings
    _, family, sizes = recognise(model, None)
    assert (family.name, sizes.heads, sizes.groups, sizes.head_dim, sizes.ffn) == ("llama", 4, 2, 8, 48)
    assert "dense_h_to_4h rows gate-up: args.swiglu" in words_of(model)


def llama_logits(model: StoredModel, tokens: torch.Tensor) -> torch.Tensor:
    """What transformers answers with the tensors of an opened source."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = recognise(model, None).sizes
    args = model.args or {}
    network = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=sizes.vocab, hidden_size=sizes.hidden, intermediate_size=sizes.ffn,
            num_hidden_layers=sizes.num_layers, num_attention_heads=sizes.heads, num_key_value_heads=sizes.groups,
            head_dim=sizes.head_dim, rms_norm_eps=args["layernorm_epsilon"], rope_theta=args["rope_theta"],
            tie_word_embeddings=False,
        )
    )  # fmt: skip
    names = {
        "word_embeddings": "model.embed_tokens", "final_layernorm": "model.norm", "lm_head": "lm_head",
        "layers": "model.layers", "self_attention.query_key_value.query": "self_attn.q_proj",
        "self_attention.query_key_value.key": "self_attn.k_proj",
        "self_attention.query_key_value.value": "self_attn.v_proj", "self_attention.dense": "self_attn.o_proj",
        "mlp.dense_h_to_4h.gate": "mlp.gate_proj", "mlp.dense_h_to_4h.up": "mlp.up_proj",
        "mlp.dense_4h_to_h": "mlp.down_proj",
    }  # fmt: skip
    state = {}
    for name, tensor in canonical(model).items():
        for ours, theirs in names.items():
            name = name.replace(f"{ours}.", f"{theirs}.")
        state[name] = tensor
    network.load_state_dict(state, strict=True)
    network.eval()
    with torch.no_grad():
        logits: torch.Tensor = network(tokens).logits
    return logits


def test_a_real_llama_answers_as_the_live_run_did() -> None:
    answer = torch.load(REAL_LLAMA / "oracle_logits.pt", weights_only=True)
    live = answer["logits"][..., :101].float()
    assert live.std() > 0.1
    found = llama_logits(opened(REAL_LLAMA), answer["tokens"])[..., :101]
    assert torch.allclose(found, live, rtol=0, atol=1e-5)
    # Each rank has one group of heads, so only the other order of the halves makes another model.
    model = opened(REAL_LLAMA, glu_order="up-gate")
    wrong = llama_logits(model, answer["tokens"])[..., :101]
    assert (wrong - live).abs().max() > 10 * (found - live).abs().max()


# -- query_key_value -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize("qkv", ["interleaved", "blocks", "apart"])
def test_grouped_heads_are_read_in_each_order(qkv: str, biases: bool, tmp_path: Path) -> None:
    rows = Rows(qkv, biases=biases)
    args = without(**({"ds_sequence_parallel_fpdt": False} if qkv == "blocks" else {}))
    model = opened(deepspeed_folder(tmp_path, rows, args))
    assert_same(canonical(model), expected(rows))
    assert model.fork == (DEEPSPEEDAI if qkv == "blocks" else DEEPSPEEDAI_2024_11)
    assert any("cannot run such a model" in warning for warning in model.warnings) is (qkv == "blocks")


@pytest.mark.parametrize("qkv", ["interleaved", "apart"])
def test_a_folder_without_pipeline_is_read(qkv: str, tmp_path: Path) -> None:
    model = opened(without_pipeline(tmp_path, Rows(qkv), ARGS))
    assert_same(canonical(model), expected(Rows(qkv)))
    assert (model.glu, model.fork) == (GluOrder.GATE_UP, DEEPSPEEDAI_2024_11)


def taken_apart(mixed: torch.Tensor, order: str) -> list[torch.Tensor]:
    """Query, key and value by head, as ``ParallelAttention.forward`` of deepspeedai's fork views and splits them.

    ``interleaved`` at 6acc370, ``apart`` at d6c9d841; what is split for ``blocks`` is what 4efb479 asserts under
    sequence parallelism, as in thirds it cannot run.
    """
    heads, groups = HEADS // TP, GROUPS // TP
    if order == "interleaved":
        view = mixed.view(len(mixed), -1, HEADS // GROUPS + 2, HEAD_DIM)
        query, key, value = torch.split(view, [HEADS // GROUPS, 1, 1], dim=-2)
        return [query.reshape(len(mixed), heads, HEAD_DIM), key.squeeze(-2), value.squeeze(-2)]
    query, rest = mixed[:, : heads * HEAD_DIM], mixed[:, heads * HEAD_DIM :]
    if order == "apart":
        key, value = rest.view(len(mixed), groups, 2 * HEAD_DIM).split(HEAD_DIM, -1)
    else:
        key, value = (part.reshape(len(mixed), groups, HEAD_DIM) for part in rest.chunk(2, -1))
    return [query.view(len(mixed), heads, HEAD_DIM), key, value]


@pytest.mark.parametrize("order", ["interleaved", "blocks", "apart"])
def test_rows_are_those_that_the_forks_own_forward_takes(order: str, tmp_path: Path) -> None:
    args = without(**({"ds_sequence_parallel_fpdt": False} if order == "blocks" else {}))
    model = canonical(opened(deepspeed_folder(tmp_path, Rows(order), args)))
    inputs = torch.randn(5, HIDDEN, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for rank in range(TP):
        state = torch.load(tmp_path / f"global_step7/layer_02-model_{rank:02d}-model_states.pt", weights_only=True)
        names = ("query", "key_value") if order == "apart" else ("query_key_value",)
        stored = torch.cat([state[f"self_attention.{name}.weight"] for name in names]).double()
        for part, heads in zip(("query", "key", "value"), taken_apart(inputs @ stored.T, order), strict=True):
            whole = model[f"layers.0.self_attention.query_key_value.{part}.weight"].double()
            assert torch.allclose(heads.flatten(1), inputs @ whole.chunk(TP)[rank].T)


def test_heads_apart_say_where_they_come_from(tmp_path: Path) -> None:
    model = opened(deepspeed_folder(tmp_path, Rows("apart"), ARGS))
    assert model.qkv is QkvLayout.BLOCKS
    assert "8415d03e" in words_of(model)
    assert not any("key_value" in key and "query" not in key for key in model.keys(Section.LAYER, 0))
    warnings = opened(tmp_path, qkv_layout="interleaved").warnings
    assert any("--qkv-layout interleaved is not used" in warning for warning in warnings)


def test_heads_apart_without_args_need_the_number_of_heads(tmp_path: Path) -> None:
    root = deepspeed_folder(tmp_path, Rows("apart"))
    with pytest.raises(AmbiguousError, match="number of attention heads") as caught:
        opened(root)
    assert "--num-heads" in str(caught.value)
    assert_same(canonical(opened(root, num_heads=HEADS), HEADS), expected(Rows("apart")))
    with pytest.raises(DamagedError, match="no whole heads of 4 rows") as broken:
        canonical(opened(root, num_heads=5), 5)
    assert "--num-heads" in str(broken.value)


def test_heads_apart_in_some_layers_only_are_damage(tmp_path: Path) -> None:
    root = deepspeed_folder(tmp_path, Rows("apart"), ARGS)
    for rank in range(TP):
        torch.save(block(1, rank, Rows()), root / "global_step7" / f"layer_03-model_{rank:02d}-model_states.pt")
    with pytest.raises(DamagedError, match="apart in others"):
        opened(root)


@pytest.mark.parametrize("other", [torch.zeros(12, 5), torch.zeros(12), torch.zeros(12, HIDDEN).half()])
def test_a_key_value_that_is_not_its_querys_is_damage(other: torch.Tensor, tmp_path: Path) -> None:
    root = deepspeed_folder(tmp_path, Rows("apart"), ARGS)
    for path in (root / "global_step7").glob("layer_03*"):
        torch.save(torch.load(path, weights_only=True) | {"self_attention.key_value.weight": other}, path)
    with pytest.raises(DamagedError, match="do not belong together"):
        opened(root)


def test_a_key_value_without_its_query_is_refused(tmp_path: Path) -> None:
    root = deepspeed_folder(tmp_path, Rows("apart"), ARGS)
    for path in (root / "global_step7").glob("layer_03*"):
        state = torch.load(path, weights_only=True)
        del state["self_attention.query.weight"]
        torch.save(state, path)
    with pytest.raises(StreamconvError, match="key_value"):
        recognise(opened(root), None)


# -- the halves of a gated linear unit -----------------------------------------------------------------------------


def test_bigscience_activates_the_second_half(tmp_path: Path) -> None:
    rows = Rows(glu="up-gate")
    model = opened(as_bigscience(tmp_path, rows, without("swiglu", glu_activation="swiglu")))
    assert (model.glu, model.fork) == (GluOrder.UP_GATE, BIGSCIENCE)
    assert "rows up-gate: args.glu_activation" in words_of(model)
    assert_same(canonical(model), expected(rows))


@pytest.mark.parametrize("order", ["gate-up", "up-gate"])
def test_without_args_bigsciences_numbers_leave_the_order_open(order: str, tmp_path: Path) -> None:
    rows = Rows(glu=order)
    root = as_bigscience(tmp_path, rows)
    with pytest.raises(AmbiguousError, match="which half") as caught:
        opened(root)
    assert "--glu-order" in str(caught.value)
    model = opened(root, glu_order=order)
    assert_same(canonical(model, HEADS), expected(rows))
    assert "--glu-order" in words_of(model)
    assert model.fork is None


def test_without_args_the_numbers_of_deepspeedai_settle_it(tmp_path: Path) -> None:
    model = opened(deepspeed_folder(tmp_path, Rows()), qkv_layout="interleaved")
    assert model.glu is GluOrder.GATE_UP
    assert "deepspeedai's fork since 2023-07" in words_of(model)
    assert_same(canonical(model, HEADS), expected(Rows()))


def test_glu_order_outweighs_the_evidence(tmp_path: Path) -> None:
    rows = Rows(glu="up-gate")
    model = opened(deepspeed_folder(tmp_path, rows, ARGS), glu_order="up-gate")
    assert_same(canonical(model), expected(rows))
    assert any("--glu-order up-gate against the evidence (args.swiglu" in warning for warning in model.warnings)


@pytest.mark.parametrize("activation", ["geglu", "liglu", "reglu"])
def test_another_activation_is_refused_by_its_name(activation: str, tmp_path: Path) -> None:
    root = as_bigscience(tmp_path, Rows(glu="up-gate"), without("swiglu", glu_activation=activation))
    with pytest.raises(UnsupportedError, match=activation):
        opened(root)


@pytest.mark.parametrize("denied", [{"swiglu": False}, {"glu_activation": None}])
def test_args_that_deny_a_gated_unit_are_not_overlooked(denied: dict[str, Any], tmp_path: Path) -> None:
    root = deepspeed_folder(tmp_path, Rows(), without("swiglu", **denied))
    with pytest.raises(UnsupportedError, match="args say that there is none"):
        opened(root)


def test_a_model_that_is_not_gated_has_no_order() -> None:
    assert opened(REAL[1].folder).glu is None


# -- whose folder --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", [*REAL, *LABELLED], ids=lambda source: source.name)
def test_the_fork_is_found(source: Any) -> None:
    is_bigscience = source.name.startswith(("bs_", "bloom_"))
    expected_fork = BIGSCIENCE if is_bigscience else DEEPSPEEDAI if source.blocks else DEEPSPEEDAI_2024_11
    assert opened(source.folder).fork == expected_fork


def test_the_fork_is_not_guessed(tmp_path: Path) -> None:
    old_numbers = as_bigscience(tmp_path / "args", Rows(), without())
    assert opened(old_numbers).fork == DEEPSPEEDAI_2024_11
    root = Path(shutil.copytree(REAL[2].folder, tmp_path / "gpt"))
    for path in root.glob("*/mp_rank_*"):
        path.unlink()
    assert opened(root).fork is None


def test_a_gpt_neox_folder_is_not_claimed(tmp_path: Path) -> None:
    root = deepspeed_folder(tmp_path, Rows(), ARGS)
    folder = root / "global_step7"
    assert deepspeed.claims(root) == "the file `latest`"
    assert str(deepspeed.claims(folder)).startswith("layer_01")
    (root / "latest").write_text("../elsewhere")
    assert deepspeed.claims(root) is None
    neox = MADE / "neox_L3_tp2pp2_z1"
    for path in (neox, neox / "global_step7"):
        assert deepspeed.claims(path) is None
        assert gpt_neox.claims(path) is not None


def test_a_part_of_a_gpt_neox_folder_is_refused_with_the_families_there_are(tmp_path: Path) -> None:
    root = deepspeed_folder(tmp_path, Rows(), ARGS)
    torch.save({"attention.dense.weight": torch.zeros(2)}, root / "global_step7/layer_02-model_00-model_states.pt")
    with pytest.raises(UnsupportedError, match="GPT-NeoX") as caught:
        opened(root)
    cells = [cell for cell in capability_table() if cell.source.name == "deepspeed"]
    allowed = {cell.family.title for cell in cells if cell.source.refusal(cell.family) is None}
    assert {"Llama", "BLOOM"} < allowed < {family.title for family in known_families()}
    assert set(str(caught.value.remedy).partition(": ")[2].split(", ")) == allowed


# -- legacy Megatron-LM --------------------------------------------------------------------------------------------

MEGATRON_LM = {
    **without("num_key_value_heads", "use_rotary_position_embeddings", "add_position_embedding"),
    "normalization": "RMSNorm",
    "norm_epsilon": 1e-6,
    "group_query_attention": True,
    "num_query_groups": GROUPS,
    "position_embedding_type": "rope",
    "use_rotary_position_embeddings": False,
    "add_position_embedding": True,
    "rotary_base": 10000,
    "rotary_percent": 1.0,
    "add_qkv_bias": False,
    "pipeline_model_parallel_size": 2,
}
_NEW_NORMS = {"input_layernorm": "input_norm", "post_attention_layernorm": "post_attention_norm"}


def legacy_folder(root: Path, rows: Rows, args: Mapping[str, Any] | None) -> Path:
    """As Megatron-LM since 2023-09 saves it, TP 2 x PP 2."""
    (root / "iter_0000007").mkdir(parents=True)
    (root / "latest_checkpointed_iteration.txt").write_text("7")
    for rank in range(TP):
        for stage in range(2):
            encoder = {}
            for key, tensor in block(stage, rank, rows).items():
                module, _, leaf = key.partition(".")
                encoder[f"layers.0.{_NEW_NORMS.get(module, module)}.{leaf}"] = tensor
            model: dict[str, Any] = {"encoder": encoder}
            if stage == 0:
                model["embedding"] = {"word_embeddings": {"weight": end("word_embeddings.weight", rank, rows)}}
            else:
                encoder["final_norm.weight"] = end("final_layernorm.weight", rank, rows)
                model["output_layer"] = {"weight": end("lm_head.weight", rank, rows)}
            state = {"model": {"language_model": model}, "checkpoint_version": 3.0, "iteration": 7}
            folder = root / "iter_0000007" / f"mp_rank_{rank:02d}_{stage:03d}"
            folder.mkdir()
            torch.save(
                state if args is None else {**state, "args": argparse.Namespace(**args)}, folder / "model_optim_rng.pt"
            )
    return root


def opened_legacy(root: Path, **options: Any) -> StoredModel:
    return megatron_legacy_source.open_model(root, source_options(**options))


@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize("qkv", ["interleaved", "apart"])
def test_megatron_lms_llama_is_read(qkv: str, biases: bool, tmp_path: Path) -> None:
    rows = Rows(qkv, biases=biases)
    root = legacy_folder(tmp_path, rows, {**MEGATRON_LM, "add_qkv_bias": biases})
    assert megatron_legacy_source.claims(root) == "the folder iter_0000007/mp_rank_00_000"
    model = opened_legacy(root)
    assert_same(canonical(model), expected(rows))
    assert (model.glu, model.stages, model.fork) == (GluOrder.GATE_UP, (1, 1), None)
    assert recognise(model, None).family.name == ("qwen2" if biases else "llama")
    assert not model.warnings


def test_megatron_lms_args_are_kept_and_translated(tmp_path: Path) -> None:
    args = opened_legacy(legacy_folder(tmp_path, Rows(), MEGATRON_LM)).args or {}
    kept = {name: args[name] for name in MEGATRON_LM if name != "use_rotary_position_embeddings"}
    assert kept == {name: value for name, value in MEGATRON_LM.items() if name in kept}
    assert args["num_key_value_heads"] == GROUPS
    assert (args["layernorm_epsilon"], args["rope_theta"]) == (1e-6, 10000)
    assert args["use_rotary_position_embeddings"] is True


def test_without_group_query_attention_the_number_of_groups_means_nothing(tmp_path: Path) -> None:
    args = {**MEGATRON_LM, "group_query_attention": False, "num_query_groups": 1}
    assert "num_key_value_heads" not in (opened_legacy(legacy_folder(tmp_path, Rows(), args)).args or {})


def test_a_rotary_base_that_was_not_used_is_said(tmp_path: Path) -> None:
    model = opened_legacy(legacy_folder(tmp_path, Rows(), {**MEGATRON_LM, "rotary_base": 500000}))
    assert any("args.rotary_base is 500000" in warning for warning in model.warnings)
    assert (model.args or {})["rope_theta"] == 10000


@pytest.mark.parametrize("order", ["gate-up", "up-gate"])
def test_a_legacy_folder_without_args_is_megatron_lms_unless_said(order: str, tmp_path: Path) -> None:
    rows = Rows(glu=order)
    root = legacy_folder(tmp_path, rows, None)
    assert opened_legacy(root).glu is GluOrder.GATE_UP
    assert_same(canonical(opened_legacy(root, glu_order=order), HEADS), expected(rows))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_experts": 8}, "mixture of experts"),
        ({"normalization": "LayerNorm"}, "without bias"),
        ({"rotary_seq_len_interpolation_factor": 4}, "interpolated"),
        ({"swiglu": False}, "GLU"),
    ],
)
def test_what_megatron_lm_has_beyond_a_llama_is_refused(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    root = legacy_folder(tmp_path, Rows(), {**MEGATRON_LM, **change})
    with pytest.raises(UnsupportedError, match=words):
        opened_legacy(root)


def test_a_llama_turns_whole_heads(tmp_path: Path) -> None:
    model = opened_legacy(legacy_folder(tmp_path, Rows(), {**MEGATRON_LM, "rotary_percent": 0.5}))
    words = r"rotary positions in a part of each head \(args.rotary_percent is 0.5\): .* for the family Llama"
    with pytest.raises(UnsupportedError, match=words):
        recognise(model, None)


# -- through a conversion ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize(
    ("rows", "extra"),
    [
        (Rows("apart"), {}),
        (Rows("interleaved"), {}),
        (Rows("blocks"), {"ds_sequence_parallel_fpdt": False}),
        (Rows("interleaved", biases=True), {}),
    ],
)
def test_each_order_converts_to_the_same_model(rows: Rows, extra: dict[str, Any], tp: int, tmp_path: Path) -> None:
    from streamconv import convert

    root = deepspeed_folder(tmp_path / "source", rows, without(**extra))
    convert(root, tmp_path / "out", tp=tp, pp=2, max_ram="2G", to="megatron-legacy")
    model = opened_legacy(tmp_path / "out")
    assert (model.tp, model.qkv, model.glu) == (tp, QkvLayout.INTERLEAVED, GluOrder.GATE_UP)
    assert_same(canonical(model), expected(replace(rows, qkv="interleaved")))
