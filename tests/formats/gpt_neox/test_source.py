"""GPT-NeoX folders: transformers' own model cut up by hand comes back whole; what is not translated has a name."""

from __future__ import annotations

import itertools
import shutil
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from streamconv.containers.open_any import open_any
from streamconv.core.coverage import prove
from streamconv.core.errors import AmbiguousError, DamagedError, StreamconvError, UnsupportedError
from streamconv.core.layout import ParallelLayout
from streamconv.formats.gpt_neox import source as neox
from streamconv.formats.gpt_neox import target as neox_target
from streamconv.formats.gpt_neox.options import BEFORE, NOW, NeoxOptions
from streamconv.formats.gpt_neox.yaml_config import FOLDER, plain_values, read_configs
from streamconv.formats.huggingface.names import HfNames
from streamconv.formats.options import TrainingSourceOptions
from streamconv.formats.recorded import whole as whole_number
from streamconv.formats.registry import find_source
from streamconv.formats.source import StoredModel
from streamconv.formats.target import TargetModel
from streamconv.models.families.gpt_neox import FAMILY, SUMMED
from streamconv.models.fused import gather, shard
from streamconv.models.orders import RowOrders
from streamconv.models.parameter import ParameterId, Section
from streamconv.planning.gather import assemble
from streamconv.planning.recognise import recognise
from streamconv.planning.scatter import Filler
from streamconv.planning.vocabulary import VocabularyPlan
from tests.places import MADE

LABELLED = MADE / "neox_L3_tp2pp2_z1"
LAYERS, HIDDEN, HEADS, VOCAB = 3, 16, 4, 24
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Run:
    """A run to write as gpt-neox does."""

    tp: int = 1
    pp: int = 1
    parallel: bool = True
    linear: bool = False
    tied: bool = False
    shapes: bool = True
    buffers: bool = False
    even: bool = False
    dtype: torch.dtype = torch.float32

    @property
    def config(self) -> str:
        words = {True: "true", False: "false"}
        return f"""{{
  "pos-emb": "rotary", "rotary-pct": 0.25, # a comment
  "no_weight_tying": {words[not self.tied]},
  "gpt_j_residual": {words[self.parallel]},
  "num_layers": {LAYERS},
}}"""


def made_model(run: Run) -> GPTNeoXForCausalLM:
    """transformers' model with random weights, biases and norms too."""
    torch.manual_seed(5)
    config = GPTNeoXConfig(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=4 * HIDDEN,
        max_position_embeddings=32,
        use_parallel_residual=run.parallel,
        tie_word_embeddings=run.tied,
    )
    model = GPTNeoXForCausalLM(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    return model.to(run.dtype)


def cut(name: str, tensor: torch.Tensor, run: Run, rank: int) -> torch.Tensor:
    """One rank's part, as megatron/mpu/layers.py holds it."""
    if name.endswith(("attention.dense.weight", "mlp.dense_4h_to_h.weight")):
        return tensor.chunk(run.tp, 1)[rank].clone()
    if name.endswith(("attention.dense.bias", "mlp.dense_4h_to_h.bias")):
        if not run.parallel or run.tp == 1:
            return tensor.clone()
        # Shares of which no two are alike, and that add up without rounding.
        uneven = run.tp == 2 and not run.even
        return tensor * (2.0 if rank == 0 else -1.0) if uneven else tensor / run.tp
    if "norm" in name:
        return tensor.clone()
    return tensor.chunk(run.tp, 0)[rank].clone()


def write(root: Path, model: GPTNeoXForCausalLM, run: Run) -> Path:
    """A folder as gpt-neox and DeepSpeed write it."""
    state: Tensors = model.state_dict()
    files: dict[int, Tensors] = {0: {"word_embeddings.weight": state["gpt_neox.embed_in.weight"]}}
    for name, tensor in state.items():
        if name.startswith("gpt_neox.layers."):
            number, key = name.removeprefix("gpt_neox.layers.").split(".", 1)
            files.setdefault(2 + int(number), {})[key] = tensor
    files[LAYERS + 3] = {f"norm.{kind}": state[f"gpt_neox.final_layer_norm.{kind}"] for kind in ("weight", "bias")}
    if not run.tied:
        files[LAYERS + 4] = {"final_linear.weight": state["lm_head.weight"]}
    folder = root / "global_step9"
    (folder / "configs").mkdir(parents=True)
    (folder / "configs" / "run.yml").write_text(run.config)
    (root / "latest").write_text(folder.name)
    for (index, whole), rank in itertools.product(files.items(), range(run.tp)):
        mine = {key: cut(key, tensor, run, rank) for key, tensor in whole.items()}
        if run.linear:
            mine = {
                key.replace("dense_h_to_4h", "linear1").replace("dense_4h_to_h", "linear2"): t
                for key, t in mine.items()
            }
        if run.buffers and 2 <= index < LAYERS + 2:
            mine["attention.rotary_emb.inv_freq"] = torch.ones(1)
        torch.save(mine, folder / f"layer_{index:02d}-model_{rank:02d}-model_states.pt")
    bounds = {1: [range(99)], 2: [range(4), range(4, 99)]}[run.pp]
    for (stage, owned), rank in itertools.product(enumerate(bounds), range(run.tp)):
        names = {
            f"{i}.{key}": torch.Size([1])
            for i in files
            if i in owned
            for key in torch.load(folder / f"layer_{i:02d}-model_{rank:02d}-model_states.pt")
        }
        state_of_rank = {
            "module": None,
            "param_shapes": [names] if run.shapes else None,
            "ds_version": "0.3.15",
            "iteration": 9,
            "args": {
                "num_layers": LAYERS,
                "hidden_size": HIDDEN,
                "num_attention_heads": HEADS,
                "max_position_embeddings": 32,
                "make_vocab_size_divisible_by": 4,
                "padded_vocab_size": VOCAB,
                "model_parallel_size": run.tp,
            },
        }
        torch.save(state_of_rank, folder / f"mp_rank_{stage * run.tp + rank:02d}_model_states.pt")
    return root


def canonical(model: StoredModel) -> Tensors:
    """The whole, unfused tensors by name, put together by the package, with each source element read once."""
    _, family, sizes = recognise(model, None)
    assert family is FAMILY
    assembly = assemble(model, family, sizes, VocabularyPlan(sizes.vocab, sizes.vocab, None, "as stored"), "first")
    found: Tensors = {}
    roles = []
    for parameter, parts in assembly.whole.items():
        roles += [(parameter.name, part) for part in parts]
        found |= {f"{parameter.name}.{number}": part.torch().clone() for number, part in enumerate(parts)}
    assert prove(assembly.sources, assembly.left_out, roles).consumed
    return found


def expected(model: GPTNeoXForCausalLM, tmp_path: Path) -> Tensors:
    """The same from transformers' own file."""
    model.save_pretrained(tmp_path / "hf")
    stored = open_any(tmp_path / "hf" / "model.safetensors").tensors()
    known: dict[str, Any] = {"untie_embeddings_and_output_weights": not model.config.tie_word_embeddings}
    # Nothing of GPT-NeoX is stored in parts, whose rows these would count.
    known |= {"num_key_value_heads": HEADS, "num_attention_heads": HEADS, "kv_channels": 1, "ffn_hidden_size": 1}
    found = HfNames(FAMILY).read(stored, known, tmp_path)
    whole = StoredModel(
        path=tmp_path, format="", tp=1, num_layers=LAYERS, tensors={p: (t,) for p, t in found.tensors.items()},
        stages=None, pp=1, args={"num_attention_heads": HEADS}, iteration=None, vocab_size=None,
        qkv=FAMILY.huggingface.qkv, family=FAMILY.name,
    )  # fmt: skip
    return canonical(whole)


RUNS = [
    *(Run(tp, pp, dtype=dtype) for tp in (1, 2) for pp in (1, 2) for dtype in (torch.float32, torch.bfloat16)),
    Run(4, dtype=torch.float16),
    Run(1, parallel=False),
    Run(2, parallel=False),
    Run(2, linear=True, buffers=True),
    Run(2, tied=True),
]


@pytest.mark.parametrize("run", RUNS, ids=str)
def test_a_folder_is_transformers_own_model(run: Run, tmp_path: Path) -> None:
    model = made_model(run)
    root = write(tmp_path / "neox", model, run)
    opened = neox.open_model(root, TrainingSourceOptions())
    ours, theirs = canonical(opened), expected(model, tmp_path)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name
    assert (opened.tp, opened.pp, opened.iteration, opened.family) == (run.tp, run.pp, 9, "gpt_neox")
    assert opened.stages == ((LAYERS,) if run.pp == 1 else (2, 1))
    assert opened.args is not None
    assert opened.args["use_parallel_residual"] is run.parallel
    assert opened.args["rotary_percent"] == 0.25
    assert not opened.warnings
    assert any("inv_freq" in dropped.name for dropped in opened.dropped) is run.buffers


def test_query_rows_are_those_of_heads(tmp_path: Path) -> None:
    """Not of transformers' table, which is ours too: by hand from its model."""
    model = made_model(Run(2))
    ours = canonical(neox.open_model(write(tmp_path, model, Run(2)), TrainingSourceOptions()))
    rows = model.state_dict()["gpt_neox.layers.1.attention.query_key_value.weight"].view(
        HEADS, 3, HIDDEN // HEADS, HIDDEN
    )
    for part in range(3):
        name = f"layers.1.self_attention.query_key_value.weight.{part}"
        assert torch.equal(ours[name].reshape(HEADS, -1, HIDDEN), rows[:, part])


def test_the_labelled_folder_is_read_as_it_was_made() -> None:
    model = find_source(LABELLED).open(LABELLED, TrainingSourceOptions())
    assert isinstance(model, StoredModel)
    assert (model.format, model.tp, model.pp, model.stages, model.iteration) == ("GPT-NeoX", 2, 2, (2, 1), 7)
    whole = canonical(model)
    for layer, (number, key) in itertools.product(range(3), enumerate(SUMMED)):
        # labels.py: 4096 * (16 * (2 + layer) + parameter) + index
        first = 4096 * (16 * (2 + layer) + (9 if number == 0 else 15))
        assert whole[f"layers.{layer}.{key}.0"].tolist() == [first + index for index in range(8)]
    assert whole["lm_head.weight.0"].flatten().tolist() == [4096 * (16 + 6) + index for index in range(32 * 8)]


def test_one_format_claims_a_folder(tmp_path: Path) -> None:
    root = write(tmp_path, made_model(Run()), Run())
    assert find_source(root) is neox.SOURCE
    assert find_source(root / "global_step9") is neox.SOURCE
    assert neox.claims(MADE / "gpt_L2_tp12pp1_z0") is None
    assert neox.claims(tmp_path / "nothing") is None


# -- the residual ------------------------------------------------------------------------------------------------------


def without_config(root: Path) -> Path:
    shutil.rmtree(root / "global_step9" / "configs")
    return root


@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize("name", ["use_parallel_residual", "gpt_j_residual"])
def test_the_user_says_the_residual(parallel: bool, name: str, tmp_path: Path) -> None:
    run = Run(2, parallel=parallel)
    root = without_config(write(tmp_path / "neox", made_model(run), run))
    opened = neox.open_model(root, TrainingSourceOptions(config={name: parallel}))
    assert opened.orders.shares is parallel
    assert any("nothing says the kind of positions" in warning for warning in opened.warnings)
    assert canonical(opened).keys() == expected(made_model(run), tmp_path).keys()


def test_without_the_residual_ranks_are_ambiguous_and_one_rank_is_not(tmp_path: Path) -> None:
    two = without_config(write(tmp_path / "two", made_model(Run(2)), Run(2)))
    with pytest.raises(AmbiguousError, match="summed over 2 ranks cannot be known"):
        neox.open_model(two, TrainingSourceOptions())
    one = without_config(write(tmp_path / "one", made_model(Run()), Run()))
    model = neox.open_model(one, TrainingSourceOptions())
    assert not model.orders.shares
    assert "use_parallel_residual" not in (model.args or {})


def test_shares_are_cut_where_the_target_sums(tmp_path: Path) -> None:
    run = Run(2)
    model = neox.open_model(write(tmp_path, made_model(run), run), TrainingSourceOptions())
    _, _, sizes = recognise(model, None)
    for key in SUMMED:
        first = ParameterId(Section.LAYER, 0, key)
        parameter, shards = FAMILY.parameter(first), model.tensors[first]
        whole = gather(parameter, shards, sizes, model.orders)
        real = shards[0].torch() + shards[1].torch()
        assert torch.equal(whole[0].torch(), real)
        (stored,) = gather(parameter, shards[:1], sizes, RowOrders())
        assert torch.equal(shard(parameter, (stored,), 4, 3, RowOrders(shares=True)).torch(), shards[0].torch() / 4)
        assert shard(parameter, (stored,), 4, 3, RowOrders()) == stored
        assert shard(parameter, (stored,), 1, 0, RowOrders(shares=True)) == stored


# -- writing -----------------------------------------------------------------------------------------------------------


def target_model(opened: StoredModel, layout: ParallelLayout, dialect: str) -> tuple[TargetModel[NeoxOptions], Filler]:
    _, family, sizes = recognise(opened, None)
    assembly = assemble(opened, family, sizes, VocabularyPlan(sizes.vocab, sizes.vocab, None, "as stored"), "first")
    filler = Filler(assembly, family, layout.tp, None)
    model = TargetModel(
        family=family, sizes=sizes, layout=layout, has_head=bool(opened.keys(Section.HEAD)), args=opened.args,
        iteration=opened.iteration, dtype=None, vocab_size=None, config=None, supplied={}, fork=None, spec=None,
        tensor_of=filler.tensor, options=NeoxOptions(fork=dialect),
    )  # fmt: skip
    return model, filler


def rewrite(opened: StoredModel, layout: ParallelLayout, dialect: str, root: Path) -> Path:
    """What the target lays out, written by the test, without an engine."""
    model, filler = target_model(opened, layout, dialect)
    laid_out = neox_target.lay_out(model)
    for file in filler.fill(laid_out)[0]:
        data, crcs = bytearray(file.layout.nbytes), {}
        for number, ((offset, nbytes), entry) in enumerate(zip(file.layout.storages, file.entries, strict=True)):
            data[offset : offset + nbytes] = entry.tensor.torch().contiguous().numpy().tobytes()
            crcs[number] = zlib.crc32(data[offset : offset + nbytes])
        for offset, part in file.layout.frame(crcs):
            data[offset : offset + len(part)] = part
        (root / file.path).parent.mkdir(parents=True, exist_ok=True)
        (root / file.path).write_bytes(data)
    for name, text in {**laid_out.small, **laid_out.texts}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        assert isinstance(text, str)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize("dialect", [NOW, BEFORE])
@pytest.mark.parametrize(
    "run", [Run(), Run(2), Run(2, 2), Run(4, 2), Run(2, parallel=False), Run(2, 2, tied=True)], ids=str
)
def test_what_is_written_is_what_gpt_neox_loads(run: Run, dialect: str, tmp_path: Path) -> None:
    """One rank's folder becomes another layout: gpt-neox's keys, numbers and cuts, and the same model once read."""
    model = made_model(run)
    whole = neox.open_model(write(tmp_path / "one", model, replace(run, tp=1, pp=1)), TrainingSourceOptions())
    layout = ParallelLayout(run.tp, (LAYERS,) if run.pp == 1 else (2, 1))
    root = rewrite(whole, layout, dialect, tmp_path / "new")
    byhand = write(tmp_path / "hand", model, replace(run, linear=dialect == NOW, even=True))
    for real in sorted((byhand / "global_step9").glob("*.pt")):
        mine, theirs = (torch.load(folder / "global_step9" / real.name) for folder in (root, byhand))
        if real.name.startswith("layer"):
            assert mine.keys() == theirs.keys() != set()
            assert all(torch.equal(mine[key], theirs[key]) for key in theirs), real.name
        else:
            names = set(theirs["param_shapes"][0])
            tied = {f"tied_modules.embed.{name.removeprefix('0.')}" for name in names if name.startswith("0.")}
            if run.tied:
                names = {name for name in names if not name.startswith("0.")}
                tied = {"tied_modules.embed.word_embeddings.weight"}
            assert set(mine["param_shapes"][0]) == (names | tied if run.tied else names)
            assert mine["args"] == theirs["args"]
            assert (mine["module"], mine["iteration"]) == (None, 9)
            assert mine["mp_world_size"] == run.tp * run.pp
    again = neox.open_model(root, TrainingSourceOptions())
    assert (again.tp, again.stages, again.orders.shares) == (run.tp, layout.stages, run.parallel)
    first, second = canonical(whole), canonical(again)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert again.args is not None
    assert whole.args is not None
    assert {**again.args, "tensor_model_parallel_size": 1, "ffn_hidden_size": None} == {
        **whole.args, "ffn_hidden_size": None
    }  # fmt: skip


def test_a_target_must_know_the_residual(tmp_path: Path) -> None:
    root = without_config(write(tmp_path, made_model(Run()), Run()))
    opened = neox.open_model(root, TrainingSourceOptions())
    model, _ = target_model(opened, ParallelLayout(2, (LAYERS,)), NOW)
    with pytest.raises(AmbiguousError, match="depends on use_parallel_residual"):
        neox_target.lay_out(model)
    model, _ = target_model(opened, ParallelLayout(1, (LAYERS,)), NOW)
    assert "gpt_j_residual" not in next(iter(neox_target.lay_out(model).small.values()))


# -- stages ------------------------------------------------------------------------------------------------------------


def test_stages_are_recomputed_where_shapes_are_not_recorded(tmp_path: Path) -> None:
    run = Run(1, 2, shapes=False)
    root = write(tmp_path, made_model(run), run)
    # type:transformer|mlp counts both functions around the blocks too: 5 of 8 modules, 3 on the first stage.
    model = neox.open_model(root, TrainingSourceOptions())
    assert model.stages == (2, 1)
    assert any(fact.what == "stages recomputed" for fact in model.facts)
    said = neox.open_model(without_config(root), TrainingSourceOptions(pp_layers=(1, 2)))
    assert said.stages == (1, 2)


# -- refusals ----------------------------------------------------------------------------------------------------------


def block(root: Path, change: Callable[[Tensors], Tensors], number: int = 2) -> None:
    """Change one block's file on each rank."""
    for path in (root / "global_step9").glob(f"layer_{number:02d}-*"):
        torch.save(change(torch.load(path)), path)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ('"norm": "rmsnorm"', "the norm rmsnorm"),
        ('"pos_emb": "alibi"', "alibi positions"),
        ('"activation": "swiglu"', "the activation swiglu"),
        ('"gpt_j_tied": true', "gpt_j_tied"),
        ('"moe_num_experts": 8', "MoE"),
        ('"num-kv-heads": 2', "grouped-query attention"),
        ('"use_qk_layernorm": True', "norms of queries and keys"),
    ],
)
def test_what_a_configuration_says_is_refused_by_name(config: str, words: str, tmp_path: Path) -> None:
    root = write(tmp_path, made_model(Run()), Run())
    name = config.split(":")[0].strip('"')
    text = "{" + config + ("" if name == "pos_emb" else ', "pos_emb": "rotary"') + ', "no-weight-tying": true}'
    (root / "global_step9" / "configs" / "run.yml").write_text(text)
    with pytest.raises(UnsupportedError, match=words):
        neox.open_model(root, TrainingSourceOptions())


@pytest.mark.parametrize(
    ("number", "old", "new", "words"),
    [
        (2, "input_layernorm.weight", "input_layernorm.scale", "RMSNorm"),
        (2, "mlp.dense_h_to_4h.weight", "mlp.w1.weight", "gated linear unit"),
        (2, "mlp.dense_h_to_4h.weight", "mlp.experts.0.weight", "MoE"),
        (2, "attention.query_key_value.weight", "attention.qkv.weight", "Transformer Engine"),
        (2, "attention.dense.weight", "attention.other.weight", "unknown role"),
        (0, None, "position_embeddings.weight", "learned positions"),
        (7, "final_linear.weight", "rm_linear.weight", "reward model"),
    ],
)
def test_what_keys_show_is_refused_by_name(number: int, old: str | None, new: str, words: str, tmp_path: Path) -> None:
    root = write(tmp_path, made_model(Run()), Run())

    def change(tensors: Tensors) -> Tensors:
        tensor = tensors.pop(old) if old else next(iter(tensors.values()))
        return {**tensors, new: tensor}

    block(root, change, number)
    with pytest.raises(UnsupportedError, match=words):
        neox.open_model(root, TrainingSourceOptions())


def test_grouped_heads_are_refused_by_their_rows(tmp_path: Path) -> None:
    root = write(tmp_path, made_model(Run()), Run())
    key = "attention.query_key_value.weight"
    block(root, lambda tensors: {**tensors, key: tensors[key][:32].clone()})
    with pytest.raises(UnsupportedError, match="grouped-query attention"):
        neox.open_model(root, TrainingSourceOptions())


# -- damage ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["layer_03-model_01", "layer_04-model_00", "layer_00-model_01", "layer_07-model_01"])
def test_a_missing_file_is_named(name: str, tmp_path: Path) -> None:
    root = write(tmp_path, made_model(Run(2)), Run(2))
    (root / "global_step9" / f"{name}-model_states.pt").unlink()
    with pytest.raises(DamagedError, match=name):
        neox.open_model(root, TrainingSourceOptions())


@pytest.mark.parametrize("number", [0, 2, 4, 6, 7])
def test_a_missing_layer_is_no_smaller_model(number: int, tmp_path: Path) -> None:
    root = write(tmp_path, made_model(Run(2)), Run(2))
    for path in (root / "global_step9").glob(f"layer_{number:02d}-*"):
        path.unlink()
    with pytest.raises(DamagedError):
        neox.open_model(root, TrainingSourceOptions())


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ('"hidden_size": 99', "hidden_size is 99 in configs/run.yml, and recorded as 16"),
        ('"no_weight_tying": false', "heads of its own: False"),
    ],
)
def test_files_that_contradict_each_other(config: str, words: str, tmp_path: Path) -> None:
    root = write(tmp_path, made_model(Run()), Run())
    path = root / "global_step9" / "configs" / "run.yml"
    path.write_text('{"pos_emb": "rotary", "gpt_j_residual": true, ' + config + "}")
    with pytest.raises(DamagedError, match=words):
        neox.open_model(root, TrainingSourceOptions())


@pytest.mark.parametrize("name", ["layer_1000000000000-model_00", "layer_00-model_1000000000000", "layer_08-model_00"])
def test_a_stray_number_is_damage(name: str, tmp_path: Path) -> None:
    root = write(tmp_path, made_model(Run()), Run())
    folder = root / "global_step9"
    shutil.copy(folder / "layer_07-model_00-model_states.pt", folder / f"{name}-model_states.pt")
    with pytest.raises(DamagedError):
        neox.open_model(root, TrainingSourceOptions())


def test_names_that_only_look_like_layers(tmp_path: Path) -> None:
    (tmp_path / "layer_00-model_states").touch()
    with pytest.raises(DamagedError, match="no layer files"):
        neox.open_model(tmp_path, TrainingSourceOptions())


def test_an_empty_layer_is_damage(tmp_path: Path) -> None:
    run = Run(1, 2, shapes=False)
    root = write(tmp_path, made_model(run), run)
    block(root, lambda tensors: {})
    with pytest.raises(DamagedError, match="missing tensors"):
        canonical(neox.open_model(root, TrainingSourceOptions()))


def test_rank_files_of_two_runs_are_refused(tmp_path: Path) -> None:
    root = write(tmp_path, made_model(Run(2)), Run(2))
    path = root / "global_step9" / "mp_rank_01_model_states.pt"
    state: dict[str, Any] = torch.load(path)
    torch.save({**state, "args": {**state["args"], "hidden_size": 1}}, path)
    with pytest.raises(StreamconvError, match="not the same in mp_rank_01"):
        neox.open_model(root, TrainingSourceOptions())


def test_two_configurations_that_disagree(tmp_path: Path) -> None:
    root = write(tmp_path, made_model(Run()), Run())
    (root / "global_step9" / "configs" / "a.yml").write_text("rotary_pct: 0.5\n")
    with pytest.raises(DamagedError, match=r"rotary_pct is 0\.25 here, and 0\.5 in another"):
        neox.open_model(root, TrainingSourceOptions())


# -- the configuration's text ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ('{"a": 1, "b-c": true, # x: 2\n "d": {"e": 5, "a": 9}, "f": [1, {"a": 3}], "g": 1.0e-5,}', [1, True, 1e-5]),
        ("a: 1\nb-c:  True # x\nd:\n  a: 5\n\n# a: 9\nf: [1,\n  2]\ng: 1.0e-5\n", [1, True, 1e-5]),
        ("# first\n{a: 1, 'b_c': true, d: 'x, {#', f: {}, g: 1e-5}", [1, True, 1e-5]),
    ],
)
def test_plain_values_at_the_top_are_read(text: str, values: list[Any]) -> None:
    found = plain_values(text)
    assert [found["a"], found["b_c"], found["g"]] == values
    assert "f" not in found
    assert "e" not in found


@pytest.mark.parametrize(
    "text", ["{", "}}}", '{"a": "', "- a: 1", "\0", "a: b: c", "{" * 1000, "!!python/object:os.x {}"]
)
def test_a_text_that_is_no_mapping_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER / "a.yml").write_text(text)
    with pytest.raises(DamagedError, match="no YAML") as caught:
        read_configs(tmp_path)
    assert caught.value.where == str(tmp_path / FOLDER / "a.yml")


def test_no_text_is_no_values(tmp_path: Path) -> None:
    assert plain_values("") == {}
    assert read_configs(tmp_path) == ({}, ())


def test_a_run_is_described_in_the_tests_as_it_is_in_the_folder(tmp_path: Path) -> None:
    found = plain_values(replace(Run(), tied=True).config)
    assert found == {
        "pos_emb": "rotary", "rotary_pct": 0.25, "no_weight_tying": False, "gpt_j_residual": True, "num_layers": 3
    }  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        'a: !!bool "xx"',
        'a: !!timestamp "xx"',
        'a: !!int ""',
        f"rotary_emb_base: 0x{'f' * 5000}",
        "a: &a {k: 1}\nb: &b {<<: [*a, *a]}",
    ],
)
def test_a_value_that_no_configuration_has_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER / "a.yml").write_text(text)
    with pytest.raises(DamagedError, match="no YAML"):
        read_configs(tmp_path)


ODD = {
    "a part above 1": ('"rotary_pct": 2', "rotary_pct is 2"),
    "a part of nothing": ('"rotary-pct": 0', "rotary_pct is 0"),
    "a part that is no number": ('"rotary_pct": .nan', "rotary_pct is nan"),
    "a list": ('"rotary_pct": [0.25]', "rotary_pct is a list"),
    "a list of norms": ('"norm": ["layernorm"]', "norm is a list"),
    "a mapping": ('"gpt_j_residual": {}', "gpt_j_residual is a dict"),
    "a word for a number": ('"rotary_emb_base": "10000"', "rotary_emb_base is '10000'"),
    "a word for a count": ('"intermediate_size": "64"', "intermediate_size is '64'"),
    "a number for a flag": ('"bias_gelu_fusion": 1', "bias_gelu_fusion is 1"),
    "a word for a flag": ('"no_weight_tying": "no way"', "no_weight_tying is 'no way'"),
    "a flag for a number": ('"layernorm_epsilon": true', "layernorm_epsilon is True"),
    "a flag for a count": ('"num_layers": true', "num_layers is True"),
    "a number below 0": ('"layernorm_epsilon": -1', "layernorm_epsilon is -1"),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_values_of_a_configuration_are_refused(name: str, tmp_path: Path) -> None:
    entry, words = ODD[name]
    root = write(tmp_path, made_model(Run()), Run())
    text = "{" + entry + ', "pos_emb": "rotary"}'
    (root / "global_step9" / "configs" / "run.yml").write_text(text)
    with pytest.raises(DamagedError) as caught:
        neox.open_model(root, TrainingSourceOptions())
    assert words in str(caught.value)


def test_null_is_the_default(tmp_path: Path) -> None:
    root = write(tmp_path, made_model(Run()), Run())
    text = '{"pos_emb": "rotary", "no_weight_tying": true, "num_kv_heads": null, "layernorm_epsilon": null}'
    (root / "global_step9" / "configs" / "run.yml").write_text(text)
    args = neox.open_model(root, TrainingSourceOptions()).args
    assert args is not None
    assert args["layernorm_epsilon"] == 1e-5


def recorded(root: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change what the first rank's file records."""
    path = root / "global_step9" / "mp_rank_00_model_states.pt"
    state = torch.load(path, weights_only=False)
    change(state)
    torch.save(state, path)


def test_truth_values_are_no_sizes(tmp_path: Path) -> None:
    root = write(tmp_path, made_model(Run()), Run())
    recorded(root, lambda state: state.update(checkpoint_parallel_dimensions={"tp_degree": True, "pp_degree": True}))
    model = neox.open_model(root, TrainingSourceOptions())
    assert not any("checkpoint_parallel_dimensions" in fact.evidence for fact in model.facts)
    recorded(root, lambda state: state["args"].update(num_attention_heads=True))
    with pytest.raises(DamagedError, match="num_attention_heads is True, not a number"):
        neox.open_model(root, TrainingSourceOptions())


def test_families_of_such_folders_are_named(tmp_path: Path) -> None:
    root = write(tmp_path, made_model(Run()), Run())
    model = neox.open_model(root, TrainingSourceOptions())
    model = replace(model, args={**(model.args or {}), "normalization": "RMSNorm"})
    with pytest.raises(UnsupportedError) as caught:
        recognise(model, None)
    assert caught.value.remedy == "families so far in such folders: GPT-NeoX"


def test_a_count_that_is_a_truth_value_is_none() -> None:
    assert whole_number(True) is None
    assert whole_number(3) == 3
