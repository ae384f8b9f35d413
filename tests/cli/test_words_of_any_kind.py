"""Paths and numbers as a shell may hand them over: empty, not text, or far too large."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import streamconv
from streamconv.api.options import known_options
from streamconv.core.kinds import LARGEST, Count, Counts, InvalidValue
from streamconv.core.options import Option
from streamconv.memory.options import SizeText
from tests.places import FRAMEWORKS
from tests.processes import STREAMCONV, run_main

BLOOM = FRAMEWORKS / "bs_bloom_tp2pp2_fp32_z0"
HUGE, ENDLESS = "9" * 400, "9" * 5000

# -- paths ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("plan", ""), "SRC"),
        (("convert", BLOOM, ""), "DST"),
        (("convert", "", "out"), "SRC"),
        (("", "out"), "SRC"),
        (("inspect", ""), "PATH"),
        (("diff", "", BLOOM), "A"),
        (("diff", BLOOM, ""), "B"),
        (("verify", ""), "DST"),
        (("verify", BLOOM, "--against", ""), "--against"),
        (("bench", ""), "DIR"),
        (("bench", ".", "--src", ""), "--src"),
        (("plan", BLOOM, "--config", ""), "--config"),
        (("plan", BLOOM, "--to", "hf", "--tokenizer", ""), "--tokenizer"),
        (("inspect", BLOOM, "--html", ""), "--html"),
        (("inspect", BLOOM, "--stats", "--plot="), "--plot"),
    ],
)
def test_an_empty_path_is_not_the_folder_that_one_is_in(
    words: tuple[object, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a variable that is not set: ``streamconv SRC "$OUT"``."""
    monkeypatch.chdir(tmp_path)
    done = run_main(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: {said} '': an empty path\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("deepspeed_to_megatron", ("--input_folder", BLOOM, "--output_folder", "")),
        ("deepspeed_to_megatron", ("--input_folder", "", "--output_folder", "out")),
        ("inspect_checkpoint", ("",)),
        ("inspect_deepspeed_checkpoint", ("--folder", "")),
    ],
)
def test_an_empty_path_is_refused_by_bigsciences_commands_too(
    module: str, words: tuple[object, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run_main(*words, module=f"streamconv.bigscience.{module}")
    assert (done.returncode, done.stdout) == (2, "")
    assert "'': an empty path" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["config", "tokenizer", "src"])
def test_a_name_that_no_file_can_have_is_a_usage_error(name: str) -> None:
    for path, words in (
        ("x" * 300, "a name of 300 bytes in it, and the system takes 255"),
        ("é" * 128, "a name of 256 bytes in it, and the system takes 255"),
        ("x/" * 3000, "a path of 6000 bytes, and the system takes 4095"),
        ("a\udc00\ud800", "a path with a character that no file system has"),
    ):
        options: dict[str, Any] = {} if name == "src" else {name: path}
        with pytest.raises(streamconv.UsageError, match=words):
            streamconv.plan(path if name == "src" else BLOOM, **options)


@pytest.mark.parametrize("verb", ["plan", "stream", "inspect", "verify", "bench", "open_checkpoint"])
def test_every_function_refuses_a_name_that_no_file_can_have(verb: str) -> None:
    for path in ("x" * 300, Path("/tmp", "x" * 300)):  # noqa: S108 - nothing is there
        with pytest.raises(streamconv.UsageError, match="a name of 300 bytes"):
            getattr(streamconv, verb)(path)
    with pytest.raises(streamconv.UsageError, match="a name of 300 bytes"):
        streamconv.convert(BLOOM, "x" * 300)


def test_a_path_that_is_no_text_is_printed(tmp_path: Path) -> None:
    """In a UTF-8 locale the standard streams take no surrogates, as which Python has such bytes."""
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/b\xff\xfe"))
    shutil.copytree(BLOOM, folder)

    def said(*words: object, encoding: str = "utf-8") -> str:
        command = [*map(os.fsencode, STREAMCONV), *(os.fsencode(str(word)) for word in words)]
        variables = {**os.environ, "PYTHONIOENCODING": f"{encoding}:strict"}
        done = subprocess.run(command, env=variables, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.decode(encoding)

    assert r"source  " in said("plan", folder)
    assert r"/b\udcff\udcfe/global_step3" in said("plan", folder)
    out = folder.with_name(f"{folder.name}-out")
    assert r"/b\udcff\udcfe-out: 4 files" in said("convert", folder, out, "--max-ram", "1G")
    assert said("verify", out, "--against", folder).startswith("container: whole")
    assert r"/b\udcff\udcfe" in said("inspect", folder, encoding="ascii")


# -- numbers ----------------------------------------------------------------------------------------------------------


def numbers() -> Mapping[str, Option]:
    """The options that are numbers, lists of them, or sizes."""
    kinds = Count | Counts | SizeText
    return {each.flag: each for each in known_options().values() if isinstance(each.kind, kinds)}


@pytest.mark.parametrize("flag", numbers())
@pytest.mark.parametrize("text", [HUGE, ENDLESS, f"-{ENDLESS}", f"1{HUGE}T"], ids=["400", "5000", "-5000", "T"])
def test_a_number_beyond_all_is_refused_where_it_is_read(flag: str, text: str) -> None:
    kind = numbers()[flag].kind
    for read in (kind.read, kind.check):
        value: Any = text if read == kind.read or not isinstance(kind, Count) else int(HUGE) * 10**5000
        with pytest.raises(InvalidValue) as caught:
            read(value)
        assert 0 < len(caught.value.what) < 80


def test_the_largest_numbers() -> None:
    for least, most in ((1, LARGEST), (0, 10**9 - 1)):
        kind = Count(least, most)
        assert kind.read(str(most)) == most
        with pytest.raises(InvalidValue, match=f"must be at most {most}"):
            kind.read(str(most + 1))
    assert LARGEST == 2147483647
    assert known_options()["iteration"].kind.is_like(Count(0, 10**9 - 1))
    assert SizeText().check(2**63 - 1025) == str(2**63 - 1025)
    for size in (2**63, "8388608T", "9223372036854775808"):
        with pytest.raises(InvalidValue, match="more than a file can have"):
            SizeText().check(size)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("plan", BLOOM, "--tp", HUGE), f"--tp {'9' * 57}...: must be at most 2147483647"),
        (("plan", BLOOM, "--tp", ENDLESS), f"--tp {'9' * 57}...: a number of 5000 digits"),
        (("plan", BLOOM, "--max-ram", HUGE), f"--max-ram {'9' * 57}...: more than a file can have"),
        (("plan", BLOOM, "--block-size", ENDLESS), f"--block-size {'9' * 57}...: more than a file can have"),
        (("inspect", BLOOM, "--target-tp", HUGE), f"--target-tp {'9' * 57}...: must be at most 2147483647"),
    ],
)
def test_a_number_beyond_all_is_a_usage_error(words: tuple[object, ...], error: str) -> None:
    done = run_main(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {error}\n")


# -- values of numpy and torch ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", [np.array([1, 2]), torch.tensor([1, 2])], ids=["numpy", "torch"])
def test_an_array_is_no_number(values: Any) -> None:
    for name in ("tp", "vocab_size", "max_ram", "iteration"):
        with pytest.raises(streamconv.UsageError, match=f"^{name}=.*: a list, not a (whole number|size)"):
            streamconv.plan(BLOOM, **{name: values})


def test_a_number_of_any_library_is_one() -> None:
    numbers: list[Any] = [np.int8(1), np.uint64(1), np.array(1), torch.tensor(1)]
    for number in numbers:
        assert streamconv.plan(BLOOM, tp=number).target_layout.tp == 1
    switched: list[Any] = [True, np.True_, torch.tensor(True)]
    one, *others = (streamconv.inspect(BLOOM, check=each).checked for each in switched)
    assert others == [one, one]
    assert one is not None


def test_entries_of_numpy_are_entries(tmp_path: Path) -> None:
    config = {"bos_token_id": np.int64(7), "initializer_range": np.float32(0.5), "use_cache": np.True_}
    config |= {"keys": np.array([1, 2]), "nested": {"pad": np.int64(3), "some": (np.int64(1), "x")}}
    streamconv.convert(BLOOM, tmp_path / "hf", to="hf", config=config)
    written = (tmp_path / "hf" / "config.json").read_text()
    for entry in ('"bos_token_id": 7', '"use_cache": true'):
        assert entry in written
    # Among the training arguments they were dropped.
    streamconv.convert(BLOOM, tmp_path / "legacy", config={"seed": np.int64(77)})
    first = next((tmp_path / "legacy").rglob("model_optim_rng.pt"))
    assert torch.load(first, weights_only=False)["args"].seed == 77


def test_an_entry_that_holds_itself_is_a_usage_error() -> None:
    entries: dict[str, Any] = {"seed": 1}
    entries["nested"] = [entries]
    with pytest.raises(streamconv.UsageError, match=r"^config=.*: entries that hold themselves"):
        streamconv.plan(BLOOM, config=entries)


@pytest.mark.parametrize("value", [object(), b"x", {1, 2}, torch.float16, 10**5000], ids=lambda value: str(type(value)))
def test_an_entry_that_json_has_no_word_for_is_a_usage_error(value: object) -> None:
    for entries in ({"seed": value}, {"seed": [{"x": value}]}):
        with pytest.raises(streamconv.UsageError, match=r"^config=.*: seed is an? .*(no word|bits)"):
            streamconv.plan(BLOOM, config=entries)
