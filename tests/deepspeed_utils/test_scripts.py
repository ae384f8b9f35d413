"""``zero_to_fp32`` and ``zero_to_torch``: DeepSpeed's words, and what DeepSpeed's own scripts make of a run."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Container, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from streamconv import DestinationError
from streamconv.deepspeed_utils import zero_to_fp32, zero_to_torch
from tests.kept import Tensors, bits, written
from tests.making.zero import Run, Truth, write_run
from tests.making.zero_values import ODD, Model, Parameter
from tests.places import FRAMEWORKS
from tests.trees import tree

Script = Callable[..., int]
# The engine takes what has no elements for frozen.
FROZEN = {"frozen.weight", "layers.0.frozen", "empty"}
WORDS = {"float32": torch.float32, "fp32": torch.float32, "float16": torch.float16, "fp16": torch.float16,
         "bfloat16": torch.bfloat16, "bf16": torch.bfloat16}  # fmt: skip


@pytest.fixture(autouse=True)
def _signals_stay() -> Iterator[None]:
    """A command sets what a signal does."""
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}
    yield
    for each, handler in before.items():
        signal.signal(each, handler)


def fp32(*words: object) -> int:
    return zero_to_fp32.main([*map(str, words), "--max-ram", "1G"])


def to_torch(*words: object) -> int:
    return zero_to_torch.main([*map(str, words), "--max-ram", "1G"])


def assert_masters(
    found: Tensors, truth: Truth, dtype: torch.dtype = torch.float32, without: Container[str] = ()
) -> None:
    """Every floating tensor has the dtype; the masters are rounded to it once, what has none is cast."""
    wanted = {name: tensor for name, tensor in truth.master().items() if name not in without}
    assert set(found) == set(wanted)
    for name, tensor in wanted.items():
        assert found[name].dtype == (dtype if tensor.is_floating_point() else tensor.dtype), name
        assert torch.equal(bits(found[name]), bits(tensor.to(found[name].dtype))), name
        assert found[name].shape == tensor.shape


def test_the_output_may_be_in_the_checkpoint_and_not_in_the_tags_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As people say it, who stand in the checkpoint: ``zero_to_fp32.py . pytorch_model.bin``."""
    truth = write_run(tmp_path / "run", Run(stage=2, dp=2))
    monkeypatch.chdir(tmp_path / "run")
    assert fp32(".", "model", "--safe_serialization") == 0
    assert_masters(written(tmp_path / "run" / "model"), truth)
    assert fp32(".", "again", "--safe_serialization") == 0
    assert_masters(written(tmp_path / "run" / "again"), truth)
    assert fp32(".", "global_step3/model") == DestinationError.exit_code


@pytest.mark.parametrize("dp", [1, 3])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_zero_to_fp32_writes_one_torch_file_of_the_masters(stage: int, dp: int, tmp_path: Path) -> None:
    truth = write_run(tmp_path / "run", Run(stage=stage, dp=dp))
    assert fp32(tmp_path / "run", tmp_path / "out") == 0
    assert "pytorch_model.bin" in tree(tmp_path / "out")
    assert_masters(written(tmp_path / "out"), truth)


@pytest.mark.parametrize("word", list(WORDS))
def test_zero_to_torch_takes_the_dtypes_by_deepspeeds_words(word: str, tmp_path: Path) -> None:
    truth = write_run(tmp_path / "run", Run(stage=2, dp=3, dtype="fp16"))
    assert to_torch(tmp_path / "run", tmp_path / "out", "--dtype", word) == 0
    assert_masters(written(tmp_path / "out"), truth, WORDS[word])


@pytest.mark.parametrize("word", [None, "float64", "int8"])
def test_zero_to_torch_wants_one_of_these_dtypes(word: str | None, tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    before = tree(tmp_path)
    assert to_torch(tmp_path / "run", tmp_path / "out", *([] if word is None else ["--dtype", word])) == 2
    assert tree(tmp_path) == before


def test_shards_have_the_size_that_was_asked_for_and_an_index(tmp_path: Path) -> None:
    truth = write_run(tmp_path / "run")
    assert fp32(tmp_path / "run", tmp_path / "out", "--max_shard_size", "200") == 0
    assert_masters(written(tmp_path / "out"), truth)
    index = json.loads((tmp_path / "out" / "pytorch_model.bin.index.json").read_text())["weight_map"]
    assert index.keys() == truth.master().keys()
    assert len(set(index.values())) == len(list((tmp_path / "out").glob("pytorch_model-*.bin"))) > 2


def test_safe_serialization_is_safetensors(tmp_path: Path) -> None:
    truth = write_run(tmp_path / "run", Run(stage=3))
    assert fp32(tmp_path / "run", tmp_path / "out", "--safe_serialization") == 0
    assert [path.name for path in (tmp_path / "out").glob("*.safetensors")] == ["model.safetensors"]
    assert not list((tmp_path / "out").glob("*.bin"))
    assert_masters(written(tmp_path / "out"), truth)


@pytest.mark.parametrize("flag", ["-t", "--tag"])
def test_a_tag_is_taken_before_latest(flag: str, tmp_path: Path) -> None:
    truth = write_run(tmp_path / "run", Run(tag="global_step3"))
    write_run(tmp_path / "run", Run(tag="global_step4", dp=3), ODD.without("embed.weight"))
    assert fp32(tmp_path / "run", tmp_path / "out", flag, "global_step3") == 0
    assert_masters(written(tmp_path / "out"), truth)


@pytest.mark.parametrize("script", [fp32, to_torch])
@pytest.mark.parametrize("stage", [pytest.param(1), 2, 3])  # fmt: skip
def test_frozen_parameters_are_left_out_on_demand(stage: int, script: Script, tmp_path: Path) -> None:
    truth = write_run(tmp_path / "run", Run(stage=stage, dp=3))
    words = ["--dtype", "fp32"] if script is to_torch else []
    assert script(tmp_path / "run", tmp_path / "out", "--exclude_frozen_parameters", *words) == 0
    assert_masters(written(tmp_path / "out"), truth, without=FROZEN)


def test_nothing_is_left_out_where_nothing_is_frozen(tmp_path: Path) -> None:
    truth = write_run(tmp_path / "run", Run(), ODD.without(*FROZEN))
    assert fp32(tmp_path / "run", tmp_path / "out", "--exclude_frozen_parameters") == 0
    assert_masters(written(tmp_path / "out"), truth)


def test_names_with_the_signs_of_patterns_are_left_out_by_name(tmp_path: Path) -> None:
    names = ["w[0]", "w0", "a*b", "axb", "c?", "cd", "!"]
    parameters = [
        Parameter("trained", (3,)),
        *(Parameter(name, (2,), None if n % 2 == 0 else 0) for n, name in enumerate(names)),
    ]
    truth = write_run(tmp_path / "run", Run(), Model(tuple(parameters), ()))
    assert fp32(tmp_path / "run", tmp_path / "out", "--exclude_frozen_parameters") == 0
    assert_masters(written(tmp_path / "out"), truth, without=set(names[::2]))


def test_frozen_parameters_behind_a_wrapper_are_left_out(tmp_path: Path) -> None:
    model = Model((Parameter("_forward_module.a", (3,)), Parameter("_forward_module.b", (2,), None)), ())
    truth = write_run(tmp_path / "run", Run(), model)
    assert fp32(tmp_path / "run", tmp_path / "out", "--exclude_frozen_parameters") == 0
    found = written(tmp_path / "out")
    assert list(found) == ["a"]
    assert torch.equal(found["a"], truth.trained["_forward_module.a"])


def test_a_destination_with_a_model_is_replaced_only_if_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = write_run(tmp_path / "run")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "pytorch_model.bin").write_bytes(b"other")
    assert fp32(tmp_path / "run", tmp_path / "out") == DestinationError.exit_code
    assert tree(tmp_path / "out") == {"pytorch_model.bin": b"other"}
    assert "--overwrite" in capsys.readouterr().err
    assert fp32(tmp_path / "run", tmp_path / "out", "--overwrite") == 0
    assert_masters(written(tmp_path / "out"), truth)


SAID = [
    pytest.param(["--max_shard_size", "large"], "--max_shard_size large"),
    (["--tag", "global_step9"], "global_step9"),
    (["--max-ram", "1"], "--max-ram"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "said"), SAID)
def test_errors_speak_of_these_commands_flags(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "run")
    assert zero_to_fp32.main([str(tmp_path / "run"), str(tmp_path / "out"), *words]) > 1
    told = capsys.readouterr().err
    assert said in told
    assert "--max-shard-size" not in told
    assert "Traceback" not in told
    assert not (tmp_path / "out").exists()


def test_what_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fp32(tmp_path / "gone", tmp_path / "out") == 3
    assert "no such folder" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_of_a_trainers_folder_the_masters_are_taken(tmp_path: Path) -> None:
    """Its own model beside them is rounded."""
    source = FRAMEWORKS / "ds_trainer_llama_z2" / "checkpoint-2"
    assert fp32(source, tmp_path / "out") == 0
    truth = torch.load(FRAMEWORKS.parent / "zero_truth" / "ds_trainer_llama_z2.pt", weights_only=True)
    found = written(tmp_path / "out")
    assert found.keys() == truth.keys()
    assert all(torch.equal(found[name], pair["fp32"]) for name, pair in truth.items())


# -- DeepSpeed's own ---------------------------------------------------------------------------------------------------


def test_the_result_is_deepspeeds_own(tmp_path: Path) -> None:
    """What deepspeed's script made of this run is in the repository."""
    assert fp32(FRAMEWORKS / "z1_bf16", tmp_path / "out") == 0
    found = written(tmp_path / "out")
    theirs = torch.load(FRAMEWORKS / "z1_bf16.fp32" / "pytorch_model.bin", weights_only=True)
    assert set(found) == set(theirs)
    for name, tensor in theirs.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape), name
        assert torch.equal(bits(found[name]), bits(tensor)), name


FOLDERS = ["z1_bf16", "z2_bf16_2g_shared", "z3_bf16_frozen", "ds_z2_aligned", "ds_z2_roundrobin_dp2",
           "ds_z3_subgroups_dp3", "ds_trainer_llama_z3/checkpoint-2"]  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(find_spec("deepspeed") is None, reason="deepspeed is not installed")
@pytest.mark.parametrize("excluded", [False, True], ids=["all", "trained"])
@pytest.mark.parametrize("folder", FOLDERS)
def test_the_result_is_what_deepspeeds_reader_gives(folder: str, excluded: bool, tmp_path: Path) -> None:
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    root = FRAMEWORKS / folder
    theirs = get_fp32_state_dict_from_zero_checkpoint(root, exclude_frozen_parameters=excluded)
    assert fp32(root, tmp_path / "out", *(["--exclude_frozen_parameters"] * excluded)) == 0
    found = written(tmp_path / "out")
    assert set(found) == set(theirs)
    for name, tensor in theirs.items():
        assert found[name].shape == tensor.shape, name
        assert torch.equal(found[name].float(), tensor.float()), name
