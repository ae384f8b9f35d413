"""The two commands with the names and lines of bigscience's inspectors, held against what those would print."""

from __future__ import annotations

import argparse
import enum
import importlib.util
import json
import pickle
import random
import shutil
import signal
import subprocess
import sys
import types
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from streamconv.bigscience import inspect_checkpoint, inspect_deepspeed_checkpoint
from streamconv.bigscience.dump import dump_lines
from streamconv.bigscience.python_text import text_of
from streamconv.containers.pickles.reader import Global, Record
from streamconv.core.errors import UnsafeError
from tests.places import FRAMEWORKS, MADE

FOLDERS = sorted(path.name for path in FRAMEWORKS.iterdir() if path.is_dir())
Run = Callable[..., tuple[int, list[str], str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Run a command here: its exit code, its lines, and what it said on stderr."""
    handler = signal.getsignal(signal.SIGTERM)

    def call(command: types.ModuleType, *words: object) -> tuple[int, list[str], str]:
        try:
            code = command.main([str(word) for word in words])
        except SystemExit as end:
            code = end.code
        printed = capsys.readouterr()
        return code, printed.out.split("\n")[:-1], printed.err

    yield call
    signal.signal(signal.SIGTERM, handler)


# -- what the original would print -------------------------------------------------------------------------------------


class Foreign:
    """Stands for a class of the training framework, and prints as the commands say that such an object prints."""

    given: tuple[Any, ...] = ()

    def __init__(self, *args: Any) -> None:
        self.given = args

    def __repr__(self) -> str:
        words = [repr(plain(value)) for value in self.given]
        words += [f"{name}={plain(value)!r}" for name, value in vars(self).items() if name != "given"]
        return f"{type(self).__module__}.{type(self).__name__}({', '.join(words)})"


class Shown:
    """Prints as it is told."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


class Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] in ("megatron", "deepspeed"):
            return type(name, (Foreign,), {"__module__": module})
        return super().find_class(module, name)


FOREIGN = types.SimpleNamespace(Unpickler=Unpickler, load=pickle.load, __name__="foreign")


def plain(value: Any) -> Any:
    """The value with what the commands print in words of their own: arrays, and tensors inside other objects."""
    if isinstance(value, np.ndarray):
        return Shown(f"numpy.ndarray(shape={value.shape}, dtype={value.dtype.str[1:]}, {value.nbytes} bytes)")
    if isinstance(value, torch.Tensor):
        return Shown(f"tensor({value.shape}, dtype={value.dtype})")
    if isinstance(value, argparse.Namespace):
        return argparse.Namespace(**{name: plain(item) for name, item in vars(value).items()})
    return value


def dumped(datum: Any, name_list: Sequence[str] = ()) -> Iterator[str]:
    """dump_data of the original."""
    prefix = ".".join(name_list)
    if type(datum) in (dict, OrderedDict):
        for key, value in datum.items():
            yield from dumped(value, [*name_list, str(key)])
    elif type(datum) in (list, tuple):
        for value in datum:
            yield from dumped(value, name_list)
    elif torch.is_tensor(datum):
        yield f"[tensor] {prefix} = {datum.shape}"
    else:
        yield from f"[other] {prefix} = {plain(datum)}".split("\n")


def assert_prints_the_original(run: Run, path: Path) -> None:
    state = torch.load(path, map_location="cpu", weights_only=False, pickle_module=FOREIGN)
    code, lines, said = run(inspect_checkpoint, path)
    assert (code, said) == (0, "")
    assert lines == [f"loading checkpoint file: {path}", *dumped(state)], path


# -- inspect_checkpoint ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FOLDERS)
def test_every_file_of_the_frameworks(name: str, run: Run) -> None:
    # A Trainer's arguments are no checkpoint, and name classes of packages that need not be there.
    files = [
        path
        for path in sorted((FRAMEWORKS / name).rglob("*"))
        if path.suffix in (".pt", ".bin") and path.name != "training_args.bin"
    ]
    assert files
    for path in files:
        assert_prints_the_original(run, path)


def values() -> dict[Any, Any]:
    """What ``print`` shows of these can be known without importing anything."""
    arguments = argparse.Namespace(lr=1e-5, name="it's", betas=(0.9,), odd={"x": [None, True]}, dtype=torch.bfloat16)
    setattr(arguments, "not-a-name", 2)
    arguments.device, arguments.count, arguments.raw = torch.device("cuda", 1), np.float32(0.1), b"\x00a"
    return {
        "args": arguments,
        "none": None,
        3: {True: 1.0, (1, "b"): -0.0, None: float("nan")},
        "text": "two\nlines\tand 語",
        "empty": [(), {}, [], ""],
        "nested": [1, (2, [{"deep": torch.zeros(2, 0, dtype=torch.int8)}])],
        "scalar": torch.tensor(1.5),
        "parameter": torch.nn.Parameter(torch.ones(3)),
        "dtype": torch.float16,
        "devices": [torch.device("cpu"), torch.device("cuda"), torch.device("cuda:3")],
        "numpy": [np.float64(0.1), np.float32(0.1), np.int64(-3), np.bool_(True), np.uint8(7)],
        "array": np.arange(6, dtype=np.int32).reshape(2, 3),
        "bytes": [b"", b"\x00\xff'", bytearray(b"ab")],
        "sets": [{1}, set(), frozenset(), frozenset(("a",))],
        "state": random.Random(1).getstate(),
        "big": 10**40,
        "param_shapes": [OrderedDict([("a.weight", torch.Size([2, 3])), ("b", torch.Size([]))])],
    }


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before-1.6"])
def test_plain_values_print_as_python_prints_them(zipped: bool, tmp_path: Path, run: Run) -> None:
    torch.save(values(), tmp_path / "file.pt", _use_new_zipfile_serialization=zipped)
    assert_prints_the_original(run, tmp_path / "file.pt")


class Colour(enum.Enum):
    RED = 1


class Thing:
    def __init__(self) -> None:
        self.size, self.tensor = 3, torch.zeros(2)


def test_other_objects_print_as_calls(tmp_path: Path, run: Run) -> None:
    state = {
        "enum": Colour.RED,
        "thing": [Thing(), {"in": argparse.Namespace(thing=Thing(), colour=Colour.RED)}],
        "class": Thing,
        "builtins": [1 + 2j, range(1, 3)],
        "blob": bytes(1000),
        "strange": "\x1b[31m\ud800",
    }
    torch.save(state, tmp_path / "file.pt")
    code, lines, _ = run(inspect_checkpoint, tmp_path / "file.pt")
    thing = f"{__name__}.Thing(size=3, tensor=tensor(torch.Size([2]), dtype=torch.float32))"
    colours = (f"{__name__}.Colour(1)", f"{__name__}.Colour.RED")
    found = [line.replace(colours[1], colours[0]) for line in lines]  # by name on Python 3.11.0 to 3.11.3
    assert code == 0
    assert found[1:] == [
        f"[other] enum = {colours[0]}",
        f"[other] thing = {thing}",
        f"[other] thing.in = Namespace(thing={thing}, colour={colours[0]})",
        f"[other] class = {__name__}.Thing",
        "[other] builtins = complex(1.0, 2.0)",
        "[other] builtins = range(1, 3, 1)",
        f"[other] blob = {bytes(64)!r}.. (1000 bytes)",
        "[other] strange = \\x1b[31m\\ud800",
    ]


def test_a_file_that_is_one_value(tmp_path: Path, run: Run) -> None:
    torch.save(5, tmp_path / "number.pt")
    assert run(inspect_checkpoint, tmp_path / "number.pt")[1][1:] == ["[other]  = 5"]
    torch.save(torch.zeros(2, 3), tmp_path / "tensor.pt")
    assert run(inspect_checkpoint, tmp_path / "tensor.pt")[1][1:] == ["[tensor]  = torch.Size([2, 3])"]


def test_a_size_is_one_value_where_a_tuple_is_several() -> None:
    state = {"tuple": (2, 3), "size": torch.Size([2, 3]), "in": Record(Global("a", "B"), (torch.Size([1]),))}
    assert list(dump_lines(state, "file", 1000, has_sizes=True)) == [
        "[other] tuple = 2",
        "[other] tuple = 3",
        "[other] size = torch.Size([2, 3])",
        "[other] in = a.B(torch.Size([1]))",
    ]


def test_a_value_without_end_is_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(UnsafeError, match="deeper"):
        list(dump_lines({"a": endless}, "file", 1000, has_sizes=False))
    with pytest.raises(UnsafeError, match="deeper"):
        text_of(Record(Global("a", "B"), (endless,)), "file")
    many: Any = []
    for _ in range(100):
        many = [many, many]
    text = text_of(Record(Global("a", "B"), (many,)), "file")
    assert text.startswith("a.B([[")
    assert text.endswith(".. (cut after 1048576 characters)")


def test_what_cannot_be_opened_is_said(tmp_path: Path, run: Run) -> None:
    assert run(inspect_checkpoint)[0] == 2
    code, lines, said = run(inspect_checkpoint, tmp_path / "none.pt")
    assert (code, lines) == (3, [])
    assert said.startswith("error: no such file")
    (tmp_path / "text.pt").write_text("hello")
    assert run(inspect_checkpoint, tmp_path / "text.pt")[0] == 3


def test_neither_needs_torch() -> None:
    folder = FRAMEWORKS / "bs_gpt2_tp2pp2_fp16_z1"
    file = folder / "global_step3" / "mp_rank_00_model_states.pt"
    code = (
        "import sys; from streamconv.bigscience import inspect_checkpoint as a, inspect_deepspeed_checkpoint as b; "
        f"a.main([{str(file)!r}]); b.main(['--folder', {str(folder)!r}]); "
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


# -- inspect_deepspeed_checkpoint --------------------------------------------------------------------------------------


def section(lines: Sequence[str], first: str) -> list[str]:
    """The lines after the last one that is ``first``, up to the next of no ``key = value``."""
    start = len(lines) - list(reversed(lines)).index(first)
    rest = list(lines[start:])
    return rest[: next((n for n, line in enumerate(rest) if " = " not in line), len(rest))]


def shape_of(folder: Path, key: str, parameter: str, ranks: Sequence[int], dim: int | None) -> str:
    loaded = [torch.load(folder / f"{key}-model_{rank:02d}-model_states.pt")[parameter] for rank in ranks]
    return str((loaded[0] if dim is None else torch.cat(loaded, dim)).shape)


def summary(folder: Path, key: str, ranks: Sequence[int]) -> str:
    """show_state_summary over _merge_state_dicts of DeepSpeed: joined on axis 0, but for these."""
    columns = ("self_attention.dense.weight", "mlp.dense_4h_to_h.weight")
    first = ("layernorm.weight", "layernorm.bias", "dense.bias", "dense_4h_to_h.bias", "position_embeddings.weight")
    found = {}
    for parameter in torch.load(folder / f"{key}-model_00-model_states.pt"):
        dim = 1 if parameter in columns else None if parameter.endswith(first) else 0
        found[parameter] = Shown(shape_of(folder, key, parameter, ranks, dim))
    return str(found)


@pytest.mark.parametrize(
    ("tp", "pp", "ranks"),
    [
        (2, 2, {"0,0": [0], "0,1": [1], "1,0": [2], "1,1": [3]}),
        (1, 2, {"0,0": [0, 1], "1,0": [2, 3]}),
        (2, 1, {"0,0": [0, 2], "0,1": [1, 3]}),
        (1, 1, {"0,0": [0, 1, 2, 3]}),
    ],
)
def test_a_folder_at_several_degrees(tp: int, pp: int, ranks: dict[str, list[int]], run: Run) -> None:
    root = FRAMEWORKS / "bs_bloom_tp2pp2_fp32_z0"
    folder = root / "global_step3"
    code, lines, said = run(inspect_deepspeed_checkpoint, "--folder", root, "--target_tp", tp, "--target_pp", pp)
    assert code == 0
    keys = [f"layer_{number:02d}" for number in (1, 3, 4, 5, 6, 8)]
    joined = [list(range(rank * 2 // tp, (rank + 1) * 2 // tp)) for rank in range(tp)]
    layer = {key: [str(folder / f"{key}-model_{rank:02d}-model_states.pt") for rank in (0, 1)] for key in keys}
    model = [str(folder / f"mp_rank_{rank:02d}_model_states.pt") for rank in range(4)]
    stages = {1: [keys[1:5]], 2: [keys[1:3], keys[3:5]]}[pp]
    state = [
        f"layer keys = {keys}",
        "layer count = 6",
        f"tp_degree_count = 2 ------> {tp}",
        f"pp_degree_count = 2 ------> {pp}",
        "dp_degree_count = 1",
        "old 2d map ==>",
        *(f"{i},{j} = [{2 * i + j}]" for i in range(2) for j in range(2)),
        "new 2d map ==>",
        *(f"{key} = {numbers}" for key, numbers in ranks.items()),
    ]
    every = [str(root / "latest"), str(root / "oracle_logits.pt"), *(f for key in keys for f in layer[key]), *model]
    files = {"all": every, "zero": [], "layer": [f for key in keys for f in layer[key]], "mp rank": model}
    expected = [
        "Inspecting DeepSpeed Checkpoint",
        f"args = Namespace(folder={str(root)!r}, target_tp={tp}, target_pp={pp})",
        *state,
        *(
            line
            for tag, found in files.items()
            for line in (f"Listing files: {tag}", *(f"{n}: {f}" for n, f in enumerate(found, start=1)))
        ),
        *state,
        "Dump mapping: pp_to_transformer_layers",
        *(f"{stage} = {found}" for stage, found in enumerate(stages)),
        "Dump mapping: rank_to_transformer_files",
        *(
            f"({rank}, {stage}) = {[[layer[key][number] for number in joined[rank]] for key in found]}"
            for stage, found in enumerate(stages)
            for rank in range(tp)
        ),
        "Dump mapping: tp_to_embedding_layers",
        *(f"{rank} = {[layer['layer_01'][number] for number in joined[rank]]}" for rank in range(tp)),
        "Dump mapping: tp_to_final_norm_layers",
        *(f"{rank} = {[layer['layer_08'][number] for number in joined[rank]]}" for rank in range(tp)),
        "reshaped 2d map ---- begin",
        *(f"[{i}, {j}] = {[model[n] for n in ranks[f'{i},{j}']]}" for i in range(pp) for j in range(tp)),
        "reshaped 2d map ---- end",
        *(f"embedding[{rank}] = {summary(folder, 'layer_01', joined[rank])}" for rank in range(tp)),
        *(f"final_norm[{rank}] = {summary(folder, 'layer_08', joined[rank][:1])}" for rank in range(tp)),
    ]
    for rank in range(tp):
        for stage, found in enumerate(stages):
            expected.append(f"tp_pp_rank[{rank},{stage}] = ")
            for number, key in enumerate(found):
                expected += [f"      block[{number}] = {summary(folder, key, joined[rank])}", ""]
    first = torch.load(model[0], weights_only=False, pickle_module=FOREIGN)
    expected.append(f"checkpoint args = {plain(first['args'])}")
    assert lines == expected
    doubled = "joined as DeepSpeed joins them, although each rank holds them whole: word_embeddings.norm.bias, "
    assert (doubled in said) == (tp == 1)
    assert "no ZeRO files" in said


@pytest.mark.parametrize(
    ("folder", "pp", "stages", "origin"),
    [
        (FRAMEWORKS / "bs_bloom_L5_embpart_tp1pp2_fp32_z0", None, [[3, 4, 5], [6, 7]], "the source's own"),
        (MADE / "bloom_L7_tp2pp3_embpart_z0", 3, [[3, 4], [5, 6, 7], [8, 9]], "the source's own"),
        (MADE / "gpt_L7_tp1pp3_uniform_z0", None, [[2, 3], [4, 5, 6, 7], [8]], "the source's own"),
        (MADE / "bloom_L12_tp1pp3_type_z1", 3, [[3, 4, 5, 6], [7, 8, 9, 10], [11, 12, 13, 14]], None),
        (MADE / "bloom_L7_tp2pp3_embpart_z0", 1, [[3, 4, 5, 6, 7, 8, 9]], None),
    ],
)
def test_no_layer_is_lost(folder: Path, pp: int | None, stages: list[list[int]], origin: str | None, run: Run) -> None:
    words = [] if pp is None else ["--target_pp", pp]
    code, lines, said = run(inspect_deepspeed_checkpoint, "--folder", folder, *words)
    named = [[f"layer_{number:02d}" for number in stage] for stage in stages]
    assert code == 0
    assert section(lines, "Dump mapping: pp_to_transformer_layers") == [
        f"{n} = {found}" for n, found in enumerate(named)
    ]
    blocks = [line for line in lines if line.startswith(("      block[", "tp_pp_rank[0,"))]
    assert [line.split(" =")[0].strip() for line in blocks][: len(stages) + sum(map(len, stages))] == [
        word
        for stage, found in enumerate(stages)
        for word in (f"tp_pp_rank[0,{stage}]", *(f"block[{n}]" for n in range(len(found))))
    ]
    assert ("do not divide" in said) == (origin is not None)
    assert origin is None or f"layers, {origin}\n" in said


def test_layers_that_do_not_divide_by_another_pp(run: Run) -> None:
    folder = MADE / "bloom_L7_tp2pp3_embpart_z0"
    code, lines, said = run(inspect_deepspeed_checkpoint, "--folder", folder, "--target_tp", 1, "--target_pp", 2)
    assert code == 0
    assert [len(line.split(",")) for line in section(lines, "Dump mapping: pp_to_transformer_layers")] == [4, 3]
    assert section(lines, "new 2d map ==>") == ["0,0 = [0, 1, 2]", "1,0 = [3, 4, 5]"]
    assert "stages are of 4,3 layers, cut as DeepSpeed cuts a uniform partition" in said
    assert "takes ranks of a stage apart" in said


def test_even_stages_that_are_not_the_sources_are_said(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def stages() -> tuple[list[int], str]:
        _, lines, said = run(inspect_deepspeed_checkpoint, "--folder", MADE / "gptuntied_L5_tp2pp2_z1_bf16")
        found = section(lines, "Dump mapping: pp_to_transformer_layers")
        return [line.count("layer_") for line in found], said

    # Five layers and the final norm, which stands before the head here: DeepSpeed's class takes it for a layer.
    counts, said = stages()
    assert counts == [3, 3]
    assert "reckoning" not in said
    other = types.SimpleNamespace(stages=(4, 1))
    monkeypatch.setattr("streamconv.bigscience.degree_maps.open_model", lambda *_: other)
    counts, said = stages()
    assert counts == [3, 3]
    assert "stages of 3,3 layers are DeepSpeed's reckoning; the source's own are of 4,2 layers\n" in said


def test_many_ranks_are_in_the_order_of_their_numbers(tmp_path: Path, run: Run) -> None:
    for rank in (99, 100, 0, 5):
        (tmp_path / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt").touch()
    torch.save({"args": None}, tmp_path / "mp_rank_00_model_states.pt")
    code, lines, said = run(inspect_deepspeed_checkpoint, "--folder", f"{tmp_path}/")
    start = lines.index("Listing files: zero") + 1
    assert code == 0
    assert [line.split("zero_pp_rank_")[1].split("_")[0] for line in lines[start : start + 4]] == [
        "0",
        "5",
        "99",
        "100",
    ]
    assert lines[start] == f"1: {tmp_path}/zero_pp_rank_0_mp_rank_00_optim_states.pt"
    assert "dp_degree_count = 4" in lines
    assert lines[-1] == "checkpoint args = None"
    assert "no layer files" in said


def test_a_copy_beside_the_files_is_no_rank(tmp_path: Path, run: Run) -> None:
    whole = FRAMEWORKS / "bs_bloom_tp2pp2_fp32_z0" / "global_step3"
    folder = Path(shutil.copytree(whole, tmp_path / "copied"))
    for name in ("mp_rank_00_model_states.pt", "layer_03-model_00-model_states.pt"):
        shutil.copy(folder / name, folder / f"{name}.bak")
    code, lines, said = run(inspect_deepspeed_checkpoint, "--folder", folder)
    assert code == 0, said
    assert "tp_degree_count = 2 ------> 2" in lines
    # Each stands in the list of all files, and in no other.
    copies = [number for number, line in enumerate(lines) if line.endswith(".bak")]
    assert len(copies) == 2
    assert max(copies) < lines.index("Listing files: zero")


def test_a_folder_that_is_none_is_refused_in_words(tmp_path: Path, run: Run) -> None:
    command = inspect_deepspeed_checkpoint
    whole = FRAMEWORKS / "bs_bloom_tp2pp2_fp32_z0"
    assert run(command)[0] == 2
    assert run(command, "--folder", tmp_path / "none")[0] == 3
    assert "no mp_rank_* file" in run(command, "--folder", tmp_path)[2]
    for step in (1, 2):
        (tmp_path / f"global_step{step}").mkdir()
        torch.save({}, tmp_path / f"global_step{step}" / "mp_rank_00_model_states.pt")
    code, _, said = run(command, "--folder", tmp_path)
    assert code == 3
    assert str(tmp_path / "global_step2") in said
    for words in (("--target_tp", 3), ("--target_tp", 4), ("--target_pp", 0), ("--target_tp", -1), ("--target_pp", 3)):
        code, _, said = run(command, "--folder", whole, *words)
        assert code == 2, words
        assert "divisor" in said
    torch.save({}, tmp_path / "global_step1" / "layer_01-model_00-model_states.pt")
    torch.save({}, tmp_path / "global_step1" / "layer_01-model_01-model_states.pt")
    code, _, said = run(command, "--folder", tmp_path / "global_step1")
    assert code == 6
    assert "1 mp_rank files, but TP 2" in said


# -- DeepSpeed itself --------------------------------------------------------------------------------------------------

_REAL_CLASS = """
import json, pickle, sys, types
import torch
class Stub:
    def __init__(self, *args): pass
class Unpickler(pickle.Unpickler):
    def find_class(self, module, name):
        return Stub if module.startswith("megatron") else super().find_class(module, name)
load = torch.load
stubs = types.SimpleNamespace(Unpickler=Unpickler, load=pickle.load, __name__="stubs")
torch.load = lambda *args, **options: load(*args, **options, pickle_module=stubs)
from deepspeed.checkpoint import DeepSpeedCheckpoint
folder, tp, pp = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
found = DeepSpeedCheckpoint(folder, tp, pp)
shapes = lambda state: {key: list(value.shape) for key, value in state.items()}
json.dump({
    "new": found.new_2d_map.map,
    "stages": found.pp_to_transformer_map,
    "layers": {f"{k[0]},{k[1]}": v for k, v in found.transformer_file_map.items()},
    "embedding": [shapes(found.get_embedding_state(i)) for i in range(tp)],
    "states": [[shapes(s) for s in found.get_transformer_state(i, j)] for i in range(tp) for j in range(pp)],
    "degrees": [found.zero_checkpoint.get_src_tp_degree(), found.zero_checkpoint.get_src_pp_degree(), found.dp_degree],
}, open(sys.argv[4], "w"))
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bs_bloom_tp2pp2_fp32_z0", "dsh_gpt_tp2pp2_fp32_z0", "dsp_gptuntied_tp2pp1_fp32_z0"])
@pytest.mark.parametrize(("tp", "pp"), [(2, 2), (1, 2), (2, 1), (1, 1)])
def test_deepspeeds_own_class_agrees(name: str, tp: int, pp: int, tmp_path: Path) -> None:
    if importlib.util.find_spec("deepspeed") is None:
        pytest.skip("deepspeed is not installed")
    from streamconv.bigscience.degree_files import open_folder
    from streamconv.bigscience.degree_maps import maps_to, merged_shapes

    source = FRAMEWORKS / name / "global_step3"
    for path in source.iterdir():
        if "optim_states" not in path.name:
            (tmp_path / path.name).symlink_to(path)
    folder = open_folder(str(tmp_path))
    pp = min(pp, folder.degrees.pp)
    for rank in range(2 * len(folder.ranks)):  # DeepSpeed wants ZeRO files, and looks at their names only
        data, model = divmod(rank, len(folder.ranks))
        (tmp_path / f"zero_pp_rank_{data}_mp_rank_{model:02d}_optim_states.pt").touch()
    answer = tmp_path / "answer.json"
    words = [sys.executable, "-c", _REAL_CLASS, str(tmp_path), str(tp), str(pp), str(answer)]
    subprocess.run(words, check=True, capture_output=True)
    found = json.loads(answer.read_text())
    answer.unlink()
    folder = open_folder(str(tmp_path))
    maps = maps_to(folder, tp, pp)
    assert found["degrees"] == [folder.degrees.tp, folder.degrees.pp, folder.degrees.dp]
    assert found["new"] == {f"{stage},{rank}": numbers for (stage, rank), numbers in maps.new_ranks.items()}
    assert found["stages"] == {str(stage): keys for stage, keys in maps.stages.items()}
    assert found["layers"] == {f"{rank},{stage}": files for (rank, stage), files in maps.layers.items()}
    assert found["embedding"] == [_shapes(merged_shapes(files)) for files in maps.embedding.values()]
    states = [[_shapes(merged_shapes(files)) for files in maps.layers[i, j]] for i in range(tp) for j in range(pp)]
    assert found["states"] == states


def _shapes(shapes: dict[str, tuple[int, ...]]) -> dict[str, list[int]]:
    return {key: list(shape) for key, shape in shapes.items()}
