"""What is read of Megatron-Core: files made by hand after Megatron's own rules, by torch alone, and damaged ones."""

from __future__ import annotations

import io
import shutil
from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from streamconv import convert, plan
from streamconv.core.errors import AmbiguousError, DamagedError, DifferenceError, UnsupportedError, UsageError
from streamconv.planning.plan import Plan
from tests.formats.megatron import rank_files as files
from tests.formats.megatron.models import CORE, Case, case_of, check_hugging_face, config_of, to_torch
from tests.formats.megatron.rank_files import COPY, Cut, Rank, State, even

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.distributed is .*:UserWarning")

LLAMA, GPT, UNTIED = case_of("llama", head=True), case_of("gpt"), case_of("gpt", head=True)
# What a run's own config.json says of a Llama that nothing else does.
CONFIG = {**config_of(LLAMA.family, LLAMA.model()), "rms_norm_eps": 1e-5, "rope_theta": 10000.0}
Chunks = dict[Rank, list[dict[str, Any]]]


def saved(root: Path, case: Case, cut: Cut, spec: str = "te", *, args: bool = True, **state: Any) -> Path:
    """A case as the ranks of Megatron-LM save it."""
    return saved_chunks(root, case, cut, files.core_files(case.model(), cut, spec), args=args, **state)


def saved_chunks(root: Path, case: Case, cut: Cut, chunks: Chunks, *, args: bool = True, **state: Any) -> Path:
    """The same of models that were changed before."""
    known = {"args": files.core_args(case.model(), cut)} if args else {}
    return files.save_ranks(root, cut, chunks, **{"checkpoint_version": 3.0, **known, **state})


def facts_of(work: Plan) -> list[str]:
    """What was found out about a source."""
    return [fact.what for fact in work.facts]


def edit(root: Path, change: Callable[[State], Any], pattern: str = "mp_rank_*") -> None:
    """Change the files of some ranks."""
    for path in sorted(root.glob(f"iter_0000007/{pattern}/*.pt")):
        state = torch.load(path, weights_only=False)
        change(state)
        torch.save(state, path)


# -- files of ranks ----------------------------------------------------------------------------------------------------


CUTS = (even(1, 1), even(4, 1), even(2, 3), even(1, 2, 2), even(2, 3, 4), Cut(2, (3, 3, 4, 2)), Cut(2, (2, 4, 6), 2))


@pytest.mark.parametrize(
    ("case", "cut"), [*((LLAMA, cut) for cut in CUTS[:5]), *((GPT, cut) for cut in CUTS[::2])], ids=str
)
def test_what_ranks_saved_is_the_model(case: Case, cut: Cut, tmp_path: Path) -> None:
    """With the names of each spec by turns: 4 ranks hold slices of 2 groups, a tied head has a copy on the last."""
    spec = ("te", "local")[cut.pp % 2]
    saved(tmp_path / "src", case, cut, spec)
    work = check_hugging_face(tmp_path / "src", tmp_path / "out", case).plan
    layout = f"TP {cut.tp} x PP {cut.pp}"
    assert {layout, f"names of the spec {spec}"} <= set(facts_of(work))
    assert (work.source_format, work.iteration) == ("Megatron-Core, torch", 7)


@pytest.mark.parametrize("cut", CUTS[3:], ids=str)
def test_nothing_asked_keeps_the_layout(cut: Cut, tmp_path: Path) -> None:
    """The tensors of the result are those that were saved, each in its rank's file."""
    saved(tmp_path / "src", LLAMA, cut)
    convert(tmp_path / "src", tmp_path / "out", container="torch", **CORE)
    files.check_ranks(tmp_path / "out", LLAMA.model(), cut, "te")
    assert (tmp_path / "out" / files.TRACKER).read_text().strip() == "7"


@pytest.mark.parametrize(
    "extra",
    [None, torch.arange(9, dtype=torch.uint8), io.BytesIO(b"scales of FP8")],
    ids=["none", "a tensor", "bytes"],
)
def test_extra_state_stays_behind(extra: Any, tmp_path: Path) -> None:
    """Transformer Engine has had it as bytes in a tensor, as bytes of a stream, and as nothing."""
    cut = even(2, 2)
    chunks = files.core_files(LLAMA.model(), cut)
    modules = [*files.LINEARS, "self_attention.core_attention"]
    more = {f"decoder.layers.{layer}.{name}._extra_state": extra for name in modules for layer in range(6)}
    for models in chunks.values():
        models[0] = {**models[0], **more, "decoder.final_layernorm._extra_state": extra}
    saved_chunks(tmp_path / "src", LLAMA, cut, chunks)
    work = check_hugging_face(tmp_path / "src", tmp_path / "out", LLAMA).plan
    sizes = [dropped.nbytes for dropped in work.dropped if "extra state" in dropped.name]
    # Five modules of each layer and the norm, on each of four ranks.
    assert sizes == ([4 * 31 * 9] if isinstance(extra, torch.Tensor) else [])


def test_without_args_the_tensors_and_the_user_say_it(tmp_path: Path) -> None:
    cut, asked = even(2, 2), even(4, 3, 2)
    saved(tmp_path / "src", LLAMA, cut, args=False)
    with pytest.raises(AmbiguousError, match="number of attention heads"):
        plan(tmp_path / "src", to="megatron-core", container="torch", tp=4)
    assert any("no training arguments" in warning for warning in plan(tmp_path / "src", num_heads=4).warnings)
    config = {"make_vocab_size_divisible_by": 4, "untie_embeddings_and_output_weights": True, "kv_channels": 8}
    to_torch(tmp_path / "src", tmp_path / "out", asked, num_heads=4, vocab_size=50, config=config)
    files.check_ranks(tmp_path / "out", LLAMA.model(), asked, "te")
    check_hugging_face(tmp_path / "src", tmp_path / "hf", LLAMA, config=CONFIG, vocab_size=None)


def test_without_args_and_without_a_move_heads_need_not_be_known(tmp_path: Path) -> None:
    """GPT's rows of query_key_value are as they stand; its result has no args either."""
    cut = even(2, 2)
    saved(tmp_path / "src", UNTIED, cut, args=False)
    to_torch(tmp_path / "src", tmp_path / "out", even(2, 3))
    files.check_ranks(tmp_path / "out", UNTIED.model(), even(2, 3), "te")
    assert "args" not in files.read_ranks(tmp_path / "out", even(2, 3))[0, 0]


# -- the head ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vpp", [1, 2])
def test_a_tied_heads_copy_is_compared_and_left_behind(vpp: int, tmp_path: Path) -> None:
    cut = even(2, 2, vpp)
    saved(tmp_path / "src", GPT, cut)
    work = plan(tmp_path / "src", to="huggingface", vocab_size=50)
    assert "tied head: output_layer.weight is a copy" in facts_of(work)
    assert [dropped.nbytes for dropped in work.dropped if dropped.name == "output_layer of 2 ranks"] == [56 * 16 * 4]
    last = f"model{vpp - 1}" if vpp > 1 else "model"
    edit(tmp_path / "src", lambda state: state[last][COPY][3].add_(1), "mp_rank_01_001")
    with pytest.raises(DifferenceError, match=r"output_layer\.weight of rank 1"):
        convert(tmp_path / "src", tmp_path / "out", replicated="fail", **CORE)
    (drift,) = check_hugging_face(tmp_path / "src", tmp_path / "out", GPT).drifts
    assert (drift.original, drift.elements) == ("the word embedding", 16)


@pytest.mark.parametrize(
    "said", [{"tie_word_embeddings": True}, {"untie_embeddings_and_output_weights": False}], ids=["theirs", "ours"]
)
def test_without_args_the_user_says_that_the_head_is_tied(said: dict[str, bool], tmp_path: Path) -> None:
    cut, asked = even(1, 2), even(1, 3)
    saved(tmp_path / "src", GPT, cut, args=False)
    taken = plan(tmp_path / "src", to="megatron-core")
    assert any("say config with" in warning and "tie_word_embeddings" in warning for warning in taken.warnings)
    to_torch(tmp_path / "src", tmp_path / "out", asked, config=said)
    files.check_ranks(tmp_path / "out", GPT.model(), asked, "te")
    to_torch(tmp_path / "src", tmp_path / "one", even(1, 1), config=said)
    files.check_ranks(tmp_path / "one", GPT.model(), even(1, 1), "te")


def test_without_args_a_head_is_taken_for_its_own(tmp_path: Path) -> None:
    saved(tmp_path / "src", UNTIED, even(1, 2), args=False)
    to_torch(tmp_path / "src", tmp_path / "out", even(1, 1))
    files.check_ranks(tmp_path / "out", UNTIED.model(), even(1, 1), "te")


@pytest.mark.parametrize(
    ("case", "cut", "match"),
    [
        (UNTIED, even(1, 1), "the head is not tied to the embedding, and there is no output_layer.weight"),
        (UNTIED, even(2, 2), "the head is not tied to the embedding, and there is no output_layer.weight"),
        (GPT, even(2, 2), "no output_layer.weight on the last stage"),
    ],
    ids=["of one stage", "of two", "a copy"],
)
def test_a_head_or_its_copy_must_be_there(case: Case, cut: Cut, match: str, tmp_path: Path) -> None:
    saved(tmp_path / "src", case, cut)
    edit(tmp_path / "src", lambda state: state["model"].pop(COPY), ALL if cut.pp == 1 else LAST)
    with pytest.raises(DamagedError, match=match):
        plan(tmp_path / "src")


@pytest.mark.parametrize(("args", "case"), [(UNTIED, GPT), (GPT, UNTIED)], ids=["it is missing", "it is too many"])
def test_the_head_of_torch_dist_is_what_args_say(args: Case, case: Case, tmp_path: Path) -> None:
    files.save_dist(tmp_path / "src", files.whole_tensors(case.model(), 4), common_of(args))
    there = "no" if args is UNTIED else "an"
    with pytest.raises(DamagedError, match=rf"to the embedding, and there is {there} output_layer\.weight"):
        plan(tmp_path / "src")


def test_args_that_are_not_tied_outweigh_the_user(tmp_path: Path) -> None:
    saved(tmp_path / "src", UNTIED, even(1, 2))
    with pytest.raises(UsageError, match="tie_word_embeddings is True in config and False in the source"):
        convert(
            tmp_path / "src", tmp_path / "out", to="huggingface", vocab_size=50, config={"tie_word_embeddings": True}
        )


# -- what is refused by name -------------------------------------------------------------------------------------------


MOE = "decoder.layers.0.mlp.experts.linear_fc1.weight0"
KINDS: dict[str, tuple[dict[str, Any], str]] = {
    "experts": ({"num_experts": 8}, r"a mixture of experts \(MoE\), as args say"),
    "mamba": ({"hybrid_override_pattern": "M-M*"}, r"layers of Mamba \(hybrid_override_pattern 'M-M\*'\), as args say"),
    "mamba since 0.17": ({"hybrid_layer_pattern": "M*"}, "layers of Mamba"),
    "mla": ({"multi_latent_attention": True}, r"multi-latent attention \(multi_latent_attention True\), as args say"),
    "mtp": ({"mtp_num_layers": 1}, r"layers that predict several tokens \(MTP\) \(mtp_num_layers 1\), as args say"),
    "softmax": ({"softmax_type": "off-by-one"}, "another softmax"),
    "scale": ({"softmax_scale": 0.5}, "another scale of the attention's scores"),
    "norms of queries": ({"qk_l2_norm": True}, "queries and keys of length 1"),
    "quick": ({"quick_geglu": True}, "another activation"),
    "an offset": ({"glu_linear_offset": 1.0}, "another gated unit"),
    "a clamp": ({"activation_func_clamp_value": 7.0}, "a clamped activation"),
    "muP": ({"use_mup": True}, r"muP\) \(use_mup True\)"),
    "norms less 1 since 0.16": ({"layernorm_zero_centered_gamma": True}, "norms stored less 1"),
    "residuals": ({"apply_residual_connection_post_layernorm": True}, "residuals behind the norms"),
    "positions": ({"position_embedding_type": "mrope"}, "positions of the kind mrope, as args say"),
    "part of a head": ({"rotary_percent": 0.25}, "rotary positions in a part of each head"),
    "pairs": ({"rotary_interleaved": True}, "rotary positions by pairs"),
    "no rope": ({"no_rope_freq": 4}, "layers without rotary positions"),
    "norms less 1": ({"apply_layernorm_1p": True}, "norms stored less 1"),
    "window of some": ({"window_attn_skip_freq": 2}, "a window in some of the layers"),
    "gate": ({"attention_output_gate": True}, "an output gate of the attention"),
}
NAMES: dict[str, tuple[str, str]] = {
    "experts": (MOE, r"a mixture of experts \(MoE\)"),
    "grouped experts": ("decoder.layers.0.mlp.experts.weight1", r"a mixture of experts \(MoE\)"),
    "a router": ("decoder.layers.0.mlp.router.weight", r"a mixture of experts \(MoE\)"),
    "mamba": ("decoder.layers.0.mixer.in_proj.weight", "layers of Mamba"),
    "mla": ("decoder.layers.0.self_attention.linear_kv_down_proj.weight", "multi-latent attention"),
    "mtp": ("mtp.layers.0.enorm.weight", r"layers that predict several tokens \(MTP\)"),
    "t5": ("encoder.layers.0.mlp.linear_fc1.weight", "an encoder and a decoder"),
    "bert": ("lm_head.dense.weight", r"1 tensors of unknown role, the first is lm_head\.dense\.weight"),
    "lora": ("decoder.layers.0.mlp.linear_fc1.adapter.weight", "1 tensors of unknown role"),
}


@pytest.mark.parametrize(("args", "match"), KINDS.values(), ids=list(KINDS))
def test_args_of_other_models_are_refused_by_name(args: dict[str, Any], match: str, tmp_path: Path) -> None:
    saved(tmp_path / "ranks", LLAMA, even(1, 1))
    edit(tmp_path / "ranks", args_of(**args))
    files.save_dist(tmp_path / "dist", files.whole_tensors(LLAMA.model(), 4), common_of(LLAMA, **args))
    for folder in ("ranks", "dist"):
        with pytest.raises(UnsupportedError, match=match):
            plan(tmp_path / folder, to="huggingface")


@pytest.mark.parametrize(("name", "match"), NAMES.values(), ids=list(NAMES))
def test_tensors_of_other_models_are_refused_by_name(name: str, match: str, tmp_path: Path) -> None:
    cut, stray = even(1, 1), {name: torch.zeros(2, 3)}
    chunks = files.core_files(LLAMA.model(), cut)
    chunks[0, 0][0] |= stray
    saved_chunks(tmp_path / "ranks", LLAMA, cut, chunks)
    files.save_dist(tmp_path / "dist", files.whole_tensors(LLAMA.model(), 4) | stray, {})
    for folder in ("ranks", "dist"):
        with pytest.raises(UnsupportedError, match=match):
            plan(tmp_path / folder, to="huggingface")


@pytest.mark.parametrize("version", [0, 1.0, 4.0, "3", True])
def test_other_versions_are_refused(version: Any, tmp_path: Path) -> None:
    saved(tmp_path / "src", GPT, even(1, 1), checkpoint_version=version)
    with pytest.raises(UnsupportedError, match="checkpoint_version"):
        plan(tmp_path / "src")


def test_orders_of_rows_are_not_to_be_chosen(tmp_path: Path) -> None:
    saved(tmp_path / "src", LLAMA, even(1, 1))
    with pytest.raises(UsageError, match=r"qkv_layout \(.*\) has no meaning for a Megatron-Core source"):
        plan(tmp_path / "src", qkv_layout="blocks")
    with pytest.raises(UsageError, match=r"glu_order \(.*\) has no meaning for a Megatron-Core source"):
        plan(tmp_path / "src", glu_order="up-gate")


# -- damaged files of ranks --------------------------------------------------------------------------------------------


def popped(model: str, start: str) -> Callable[[State], Any]:
    """Names of a chunk that begin so are not there."""
    return lambda state: [state[model].pop(name) for name in list(state[model]) if name.startswith(start)]


def moved(state: State) -> None:
    """A head on the first stage."""
    state["model0"][COPY] = state["model0"]["embedding.word_embeddings.weight"].clone()


def renamed(old: str, new: str) -> Callable[[State], None]:
    """Names of a chunk that begin so begin otherwise."""

    def change(state: State) -> None:
        for name in [name for name in state["model1"] if name.startswith(old)]:
            state["model1"][name.replace(old, new, 1)] = state["model1"].pop(name)

    return change


def args_of(**values: Any) -> Callable[[State], None]:
    """Arguments that say otherwise."""

    def change(state: State) -> None:
        state["args"] = Namespace(**{**vars(state["args"]), **values})

    return change


FIRST, LAST, ALL = "mp_rank_*_000", "mp_rank_*_001", "mp_rank_*"
WORDS = "embedding.word_embeddings.weight"
NORM = "decoder.final_layernorm.weight"
DAMAGED: dict[str, tuple[Callable[[State], Any], str, str]] = {
    "a chunk is missing": (lambda s: s.pop("model1"), ALL, "args say 2 virtual stages, the files have 1"),
    "the first chunk is missing": (lambda s: s.pop("model0"), ALL, "it has the models model1"),
    "one rank has one chunk": (lambda s: s.pop("model1"), "mp_rank_01_000", r"its models are \['model0'\]"),
    "a gap in the chunks": (lambda s: s.update(model3=s.pop("model1")), ALL, "it has the models model0, model3"),
    "two kinds of chunks": (lambda s: s.update(model=s["model0"]), ALL, "it has the models model, model0, model1"),
    "no model": (lambda s: (s.pop("model0"), s.pop("model1")), ALL, "no entry `model`"),
    "args of more chunks": (
        args_of(virtual_pipeline_model_parallel_size=3),
        ALL,
        "args say 3 virtual stages, the files have 2",
    ),
    "args of one model": (
        args_of(virtual_pipeline_model_parallel_size=None),
        ALL,
        "args say 1 virtual stages, the files have 2",
    ),
    "args of another size": (args_of(num_layers=24), ALL, "args say 24 layers, 12 are there"),
    "args of more ranks": (args_of(tensor_model_parallel_size=4), ALL, "4 of 8 files are missing"),
    "a rank of another run": (args_of(hidden_size=32), "mp_rank_01_001", "hidden_size is 32 in mp_rank_01_001"),
    "another step": (lambda s: s.update(iteration=8), "mp_rank_01_001", "iteration is 8 in mp_rank_01_001"),
    "a head too early": (moved, FIRST, "stage 0 of 2, chunk 0, has a head: it belongs on"),
    "a head too early on one rank": (moved, "mp_rank_01_000", "head"),
    "no embedding": (popped("model0", "embedding."), FIRST, "stage 0 of 2, chunk 0, has no embedding"),
    "an embedding too late": (
        lambda s: s["model1"].update({WORDS: torch.zeros(28, 16)}),
        FIRST,
        "stage 0 of 2, chunk 1, has an embedding",
    ),
    "no final norm": (popped("model1", "decoder.final"), LAST, "stage 1 of 2, chunk 1, has no final norm"),
    "half a final norm": (popped("model1", NORM), LAST, "the final norm: missing tensors weight"),
    "a norm too early": (
        lambda s: s["model0"].update({NORM: torch.zeros(16)}),
        LAST,
        "stage 1 of 2, chunk 0, has a final norm: it belongs on",
    ),
    "a gap in the layers": (
        renamed("decoder.layers.1.", "decoder.layers.5."),
        ALL,
        r"the stage's layers are numbered \[0, 2, 5\], not from 0",
    ),
    "layers of the whole model": (
        renamed("decoder.layers.0.", "decoder.layers.9."),
        ALL,
        r"numbered \[1, 2, 9\], not from 0",
    ),
    "a tensor of a layer": (
        popped("model1", "decoder.layers.2.mlp.linear_fc2.weight"),
        FIRST,
        r"layer 8: missing tensors mlp\.dense_4h_to_h\.weight",
    ),
    "a tensor on one rank": (
        popped("model1", "decoder.layers.2.mlp.linear_fc2.weight"),
        "mp_rank_01_000",
        r"mlp\.dense_4h_to_h\.weight",
    ),
    "two specs": (
        renamed("decoder.layers.0.self_attention.linear_qkv.layer_norm_", "decoder.layers.0.input_layernorm."),
        ALL,
        "norms are named by two specs: local and te",
    ),
    "one norm by two names": (
        lambda s: s["model0"].update({"decoder.layers.0.input_layernorm.weight": torch.zeros(16)}),
        FIRST,
        r"is there under two names",
    ),
    "a half of a rank": (
        lambda s: s["model0"].update({WORDS: s["model0"][WORDS][:5]}),
        "mp_rank_01_000",
        r"word_embeddings\.weight",
    ),
    "no dictionary": (lambda s: s.update(model1=[1, 2]), ALL, "its `model1` is no dictionary"),
}


@pytest.fixture(scope="session")
def virtual(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tied GPT at TP 2 x PP 2 with two chunks each, as Megatron-LM saves it."""
    return saved(tmp_path_factory.mktemp("virtual") / "src", GPT, even(2, 2, 2))


@pytest.mark.parametrize(("change", "pattern", "match"), DAMAGED.values(), ids=list(DAMAGED))
def test_damage_is_named(
    change: Callable[[State], Any], pattern: str, match: str, virtual: Path, tmp_path: Path
) -> None:
    shutil.copytree(virtual, tmp_path / "src")
    edit(tmp_path / "src", change, pattern)
    with pytest.raises(DamagedError, match=match):
        plan(tmp_path / "src", to="huggingface", vocab_size=50)


def test_what_is_damaged_was_whole_before(virtual: Path, tmp_path: Path) -> None:
    check_hugging_face(virtual, tmp_path / "out", GPT)


def test_a_missing_file_is_named(virtual: Path, tmp_path: Path) -> None:
    shutil.copytree(virtual, tmp_path / "src")
    shutil.rmtree(tmp_path / "src" / "iter_0000007" / "mp_rank_01_001")
    with pytest.raises(DamagedError, match=r"1 of 4 files are missing, the first is mp_rank_01_001"):
        plan(tmp_path / "src")


# -- torch_dist --------------------------------------------------------------------------------------------------------


def common_of(case: Case, **more: Any) -> State:
    """The state beside the tensors."""
    return {"args": files.core_args(case.model(), even(1, 1), **more), "iteration": 7, "checkpoint_version": 3.0}


NAMING: dict[str, Callable[[Mapping[str, torch.Tensor]], dict[str, torch.Tensor]]] = {
    "stacked": dict,
    "by layer": files.by_layer,
    "stacked halves": files.in_halves,
    "halves by layer": lambda tensors: files.in_halves(files.by_layer(tensors)),
}


@pytest.mark.parametrize(
    ("case", "naming"),
    [(LLAMA, name) for name in NAMING]
    + [(GPT, "stacked"), (GPT, "by layer"), (case_of("qwen2"), "stacked"), (case_of("qwen3", head=True), "by layer")],
    ids=str,
)
def test_what_torch_saved_is_the_model(case: Case, naming: str, tmp_path: Path) -> None:
    tensors = NAMING[naming](files.whole_tensors(case.model(), 8))
    files.save_dist(tmp_path / "src", tensors, common_of(case))
    work = check_hugging_face(tmp_path / "src", tmp_path / "hf", case).plan
    assert (work.source_format, work.iteration) == ("Megatron-Core, torch_dist", 7)
    assert ("layers stacked in one tensor" in facts_of(work)) is ("by layer" not in naming)
    cut = even(4, 3, 2)
    to_torch(tmp_path / "src", tmp_path / "ranks", cut, vocab_size=50)
    files.check_ranks(tmp_path / "ranks", case.model(), cut, "te")


@pytest.mark.parametrize("as_list", [True, False])
def test_the_common_state_may_be_an_object(as_list: bool, tmp_path: Path) -> None:
    state = common_of(LLAMA)
    tree = {**files.whole_tensors(LLAMA.model(), 8), "common_state/shard_0_1": [state] if as_list else state}
    files.save_dist(tmp_path / "src", tree, None)
    work = check_hugging_face(tmp_path / "src", tmp_path / "out", LLAMA).plan
    assert not work.dropped or all("objects" not in dropped.name for dropped in work.dropped)
    assert not any("no training arguments" in warning for warning in work.warnings)


def test_a_common_state_that_is_none_is_damaged(tmp_path: Path) -> None:
    files.save_dist(tmp_path / "src", {**files.whole_tensors(LLAMA.model(), 8), "common_state/shard_0_1": [1, 2]}, None)
    with pytest.raises(DamagedError, match="its common state is no dictionary"):
        plan(tmp_path / "src")


def test_optimizer_and_objects_stay_behind_with_their_bytes(tmp_path: Path) -> None:
    tensors = files.whole_tensors(GPT.model(), 4)
    optimizer = {f"optimizer.state.{kind}.{WORDS}": torch.zeros(52, 16) for kind in ("exp_avg", "fp32_param")}
    optimizer |= {f"chained_1.optimizer.state.exp_avg_sq.{WORDS}": torch.zeros(52, 16)}
    optimizer |= {"optimizer.distributed.dp_group_idx_0.gbuf_idx_0.bucket_idx_0.exp_avg": torch.zeros(100)}
    objects = {"rng_state/shard_0.0_1.1": [{"random": 1}], "decoder.layers.mlp.linear_fc1._extra_state/shard_0_12": [0]}
    files.save_dist(tmp_path / "src", {**tensors, **optimizer, **objects}, common_of(GPT))
    work = check_hugging_face(tmp_path / "src", tmp_path / "out", GPT).plan
    dropped = {one.name: one.nbytes for one in work.dropped}
    assert dropped["4 tensors of the optimizer"] == 3 * 52 * 16 * 4 + 400
    assert "2 objects" in dropped


def test_torch_dist_without_args(tmp_path: Path) -> None:
    """A head in it is one of the model's own: the copy of a tied one is not stored twice."""
    files.save_dist(tmp_path / "src", files.whole_tensors(LLAMA.model(), 4), {})
    assert plan(tmp_path / "src", num_heads=4).iteration == 7
    check_hugging_face(tmp_path / "src", tmp_path / "out", LLAMA, config=CONFIG, vocab_size=None)


Tree = dict[str, torch.Tensor]
FC2 = "decoder.layers.mlp.linear_fc2.weight"


def without(*starts: str) -> Callable[[Tree], Tree]:
    return lambda tree: {name: tensor for name, tensor in tree.items() if not name.startswith(starts)}


def shorter(*names: str, layers: int = 11) -> Callable[[Tree], Tree]:
    return lambda tree: {n: t[:layers].clone() if not names or n in names else t for n, t in tree.items()}


BROKEN: dict[str, tuple[Callable[[Tree], Tree], bool, str]] = {
    "a stack of another height": (shorter(FC2), False, f"stacks of different heights: {FC2} has 11, .* has 12"),
    "a layer is missing in all stacks": (
        lambda tree: tree | {n: t[:11].clone() for n, t in tree.items() if n.startswith("decoder.layers.")},
        False,
        "args say 12 layers, 11 are there",
    ),
    "a stack is missing": (without(FC2), False, r"layer 0: missing tensors mlp\.dense_4h_to_h\.weight"),
    "a layer is missing": (without("decoder.layers.5."), True, r"numbered \[0, 1, 2, 3, 4, 6, 7, 8\]"),
    "the last layer is missing": (without("decoder.layers.11."), True, "args say 12 layers, 11 are there"),
    "a tensor of a layer is missing": (
        without("decoder.layers.5.mlp.linear_fc2.weight"),
        True,
        r"layer 5: missing tensors mlp\.dense_4h_to_h\.weight",
    ),
    "no final norm": (without("decoder.final_layernorm."), False, "the final norm: missing tensors bias, weight"),
    "no layers": (without("decoder.layers."), False, r"layers are numbered \[\]"),
    "stacked and by layer": (
        lambda tree: tree | {"decoder.layers.3.mlp.linear_fc2.weight": tree[FC2][3].clone()},
        False,
        "under two names",
    ),
    "a stack without an axis": (lambda tree: tree | {FC2: torch.zeros(())}, False, "shape"),
    "a stack of one axis": (lambda tree: tree | {FC2: torch.zeros(12)}, False, "shape"),
    "an empty stack of many layers": (lambda tree: tree | {FC2: torch.empty(3 * 10**6, 0)}, False, "shape"),
    "a stack of a thousand times the layers": (
        lambda tree: {n: t.repeat(1000, *(1,) * (t.dim() - 1)) if ".layers." in n else t for n, t in tree.items()},
        False,
        "args say 12 layers, 12000 are there",
    ),
    "another width": (lambda tree: tree | {FC2: tree[FC2][:, :, :5].clone()}, False, r"mlp\.dense_4h_to_h\.weight is"),
}


@pytest.mark.parametrize(("change", "each", "match"), BROKEN.values(), ids=list(BROKEN))
def test_damage_of_torch_dist_is_named(change: Callable[[Tree], Tree], each: bool, match: str, tmp_path: Path) -> None:
    tree = files.whole_tensors(GPT.model(), 4)
    files.save_dist(tmp_path / "src", change(files.by_layer(tree) if each else tree), common_of(GPT))
    with pytest.raises(DamagedError, match=match):
        plan(tmp_path / "src", to="huggingface", vocab_size=50)


def test_torch_dist_without_an_embedding_is_damaged(tmp_path: Path) -> None:
    tree = without("embedding.")(files.whole_tensors(GPT.model(), 4))
    files.save_dist(tmp_path / "src", tree, common_of(GPT))
    with pytest.raises(DamagedError, match="embedding"):
        plan(tmp_path / "src")


def test_one_half_of_a_gated_layer_is_refused(tmp_path: Path) -> None:
    tree = files.in_halves(files.whole_tensors(LLAMA.model(), 4))
    del tree["decoder.layers.mlp.linear_fc1.weight_v"]
    files.save_dist(tmp_path / "src", tree, common_of(LLAMA))
    with pytest.raises((DamagedError, UnsupportedError), match=r"linear_fc1\.weight_w|dense_h_to_4h"):
        plan(tmp_path / "src")


def test_the_container_of_before_is_refused_by_name(tmp_path: Path) -> None:
    """Up to core_v0.9 ``--ckpt-format zarr`` wrote a folder for each tensor [dist_checkpointing/strategies/zarr.py]."""
    place = files.started(tmp_path / "src")
    (place / "metadata.json").write_text('{"sharded_backend": "zarr", "sharded_backend_version": 1}')
    (place / "decoder.layers.mlp.linear_fc1.weight").mkdir()
    (place / "decoder.layers.mlp.linear_fc1.weight" / ".zarray").write_text("{}")
    torch.save(common_of(GPT), place / "common.pt")
    with pytest.raises(UnsupportedError, match="zarr"):
        plan(tmp_path / "src")


def test_a_root_of_both_containers_reads_the_one_that_is_meant(tmp_path: Path) -> None:
    """The tracker, or the tag, names an iteration, whatever the others are."""
    saved(tmp_path / "src", GPT, even(1, 1))
    (tmp_path / "src" / "iter_0000007").rename(tmp_path / "src" / "iter_0000003")
    files.save_dist(tmp_path / "dist", files.whole_tensors(GPT.model(), 4), common_of(GPT))
    (tmp_path / "dist" / "iter_0000007").rename(tmp_path / "src" / "iter_0000007")
    assert plan(tmp_path / "src").source_format == "Megatron-Core, torch_dist"
    assert plan(tmp_path / "src", tag="iter_0000003").source_format == "Megatron-Core, torch"
    (tmp_path / "src" / files.TRACKER).write_text("3")
    assert plan(tmp_path / "src").source_format == "Megatron-Core, torch"
    assert plan(tmp_path / "src", tag="iter_0000007").source_format == "Megatron-Core, torch_dist"


def test_a_description_beside_the_tracker_is_none_of_a_checkpoint(tmp_path: Path) -> None:
    saved(tmp_path / "src", GPT, even(1, 1))
    (tmp_path / "src" / "metadata.json").write_text("{}")
    check_hugging_face(tmp_path / "src", tmp_path / "out", GPT)


@pytest.mark.parametrize("container", ["torch", "torch_dist"])
def test_args_that_are_no_namespace_are_named(container: str, tmp_path: Path) -> None:
    if container == "torch":
        saved(tmp_path / "src", GPT, even(1, 1))
        edit(tmp_path / "src", lambda state: state.update(args=["no", "namespace"]))
    else:
        files.save_dist(
            tmp_path / "src", files.whole_tensors(GPT.model(), 4), {**common_of(GPT), "args": "no namespace"}
        )
    with pytest.raises(DamagedError, match="`args` is no namespace of arguments"):
        plan(tmp_path / "src")


def test_torch_dist_of_another_version_is_refused(tmp_path: Path) -> None:
    files.save_dist(
        tmp_path / "src", files.whole_tensors(GPT.model(), 4), {**common_of(GPT), "checkpoint_version": 1.0}
    )
    with pytest.raises(UnsupportedError, match=r"checkpoint_version 1\.0"):
        plan(tmp_path / "src")


def test_too_many_layers_without_args_are_refused(tmp_path: Path) -> None:
    tree = files.whole_tensors(GPT.model(), 4)
    high = {n: t.repeat(1000, *(1,) * (t.dim() - 1)) if ".layers." in n else t for n, t in tree.items()}
    files.save_dist(tmp_path / "src", high, {"iteration": 7, "checkpoint_version": 3.0})
    with pytest.raises(DamagedError, match=r"has 12000 layers: more than 10000"):
        plan(tmp_path / "src", num_heads=4)


def test_a_kind_of_positions_that_is_a_word_goes_along_to_legacy(tmp_path: Path) -> None:
    """It is bigscience's enum that stays behind, with a warning."""
    saved(tmp_path / "src", GPT, even(1, 1))
    edit(tmp_path / "src", args_of(position_embedding_type="learned_absolute"))
    assert not any("enum" in warning for warning in plan(tmp_path / "src", to="megatron-legacy").warnings)


@pytest.mark.parametrize(("said", "warns"), [(None, False), (7, False), (9, True)])
def test_an_iteration_against_the_recorded_one_is_warned_of(said: int | None, warns: bool, tmp_path: Path) -> None:
    saved(tmp_path / "src", GPT, even(1, 1), iteration=7)
    warnings = plan(tmp_path / "src", to="megatron-core", iteration=said).warnings
    assert any("iteration=9 against the recorded 7" in warning for warning in warnings) == warns


def test_a_release_without_an_iteration_warns_of_nothing(tmp_path: Path) -> None:
    GPT.save(tmp_path / "hf")
    to_torch(tmp_path / "hf", tmp_path / "release", even(1, 1))
    assert (tmp_path / "release" / "release").is_dir()
    assert not any("iteration" in warning for warning in plan(tmp_path / "release", to="megatron-core").warnings)


@pytest.mark.parametrize(
    ("spec", "choices", "warns"), [("local", {}, True), ("local", {"spec": "local"}, False), ("te", {}, False)]
)
def test_other_names_of_norms_are_warned_of(spec: str, choices: dict[str, Any], warns: bool, tmp_path: Path) -> None:
    """Megatron-LM since core_v0.13 passes over norms of the other spec, and they keep their first values."""
    saved(tmp_path / "src", LLAMA, even(1, 1), spec)
    work = plan(tmp_path / "src", to="megatron-core", container="torch", **choices)
    assert any('spec="local" keeps them' in warning for warning in work.warnings) == warns
