"""``streamconv digest`` and ``verify --against digests.json`` as a person or a script meets them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from streamconv import convert
from tests.places import REAL
from tests.processes import run_main

BLOOM = REAL[1].folder


@pytest.fixture
def digests(tmp_path: Path) -> Path:
    done = run_main("digest", BLOOM, "-o", tmp_path / "digests.json", "-q")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return tmp_path / "digests.json"


def test_what_is_printed_is_a_summary_and_each_digest(digests: Path) -> None:
    data = json.loads(digests.read_text())
    done = run_main("digest", BLOOM)
    assert done.returncode == 0
    assert done.stdout.startswith("digests\n  path        ")
    for name, each in data["tensors"].items():
        assert re.search(rf"^  {re.escape(name)} +float32 .* {each['digest']}$", done.stdout, re.M)
    assert "digesting: " in done.stderr


def test_json_is_the_file(digests: Path) -> None:
    done = run_main("digest", BLOOM, "--json")
    assert (done.returncode, done.stdout, done.stderr) == (0, digests.read_text(), "")


def test_a_file_that_cannot_be_written_is_an_error_in_words(tmp_path: Path) -> None:
    for place, words in ((tmp_path, "a folder"), (tmp_path / "no" / "x.json", "in a folder that is not there")):
        done = run_main("digest", BLOOM, "--output", place)
        assert (done.returncode, done.stdout) == (8, "")
        assert f"cannot write to it: {words}" in done.stderr
    done = run_main("digest", BLOOM, "--output", "/dev/full")
    assert (done.returncode, "cannot write the digests: No space left on device" in done.stderr) == (4, True)


@pytest.mark.parametrize("words", [("digest", "--output"), ("inspect", "--html")])
def test_nothing_but_a_report_is_replaced_by_one(words: tuple[str, str], tmp_path: Path) -> None:
    verb, option = words
    place = tmp_path / "x"
    for data in (b"{}", next(BLOOM.rglob("layer_03*")).read_bytes()):
        place.write_bytes(data)
        done = run_main(verb, BLOOM, option, place)
        assert (done.returncode, done.stdout) == (8, "")
        assert "it holds something else, which would be replaced" in done.stderr
        assert place.read_bytes() == data
    place.write_bytes(b"")
    assert [run_main(verb, BLOOM, option, place, "-q").returncode for _ in range(2)] == [0, 0]


def test_verify_says_what_is_the_same_and_what_is_not(digests: Path, tmp_path: Path) -> None:
    convert(BLOOM, tmp_path / "hf", to="huggingface", max_ram="2G")
    done = run_main("verify", tmp_path / "hf", "--against", digests)
    assert done.returncode == 0
    assert f"the digests are the same\n  digests     {digests} (xxh3-128)" in done.stdout
    data = json.loads(digests.read_text())
    data["tensors"]["final_layernorm.bias"]["digest"] = "0" * 32
    del data["tensors"]["final_layernorm.weight"]
    digests.write_text(json.dumps(data))
    done = run_main("verify", tmp_path / "hf", "--against", digests)
    assert done.returncode == 7
    assert "\n\ndifferent\n" in done.stdout
    assert "different: 1\n  tensor\n  final_layernorm.bias\n" in done.stdout
    assert "in the checkpoint alone: 1\n  tensor\n  final_layernorm.weight\n" in done.stdout
    plain = json.loads(run_main("verify", tmp_path / "hf", "--against", digests, "--json").stdout)
    assert (plain["exit_code"], plain["comparison"]) == (7, None)
    assert {key: plain["digests"][key] for key in ("different", "missing", "extra", "compared", "not_compared")} == {
        "different": ["final_layernorm.bias"],
        "missing": [],
        "extra": ["final_layernorm.weight"],
        "compared": 68,
        "not_compared": [],
    }


def test_another_type_is_refused_by_name(digests: Path, tmp_path: Path) -> None:
    convert(BLOOM, tmp_path / "half", to="huggingface", dtype="bf16", max_ram="2G")
    done = run_main("verify", tmp_path / "half", "--against", digests)
    assert done.returncode == 3
    assert done.stdout.startswith("container: whole\n")
    assert "not compared: 69, the first 40\n" in done.stdout
    assert re.search(r"final_layernorm.bias +bfloat16, and the digest is of the bytes of a float32", done.stdout)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["digest", "{none}"], 3, "no such file"),
        (["digest", BLOOM, "--max-ram", "9M"], 4, "say --max-ram"),
        (["digest", BLOOM, "--jobs", "0"], 2, "--jobs 0"),
        (["digest", BLOOM, "--to", "hf"], 2, "--to"),
        (["verify", BLOOM, "--against", "{none}"], 3, "no such file"),
        (["verify", BLOOM, "--against", "{config}"], 3, "JSON of the schema None"),
        (["verify", BLOOM, "--against", "{digests}", "--replicated", "mean"], 2, "has no meaning with"),
        (["diff", BLOOM, "{digests}"], 3, "JSON"),
    ],
)
def test_what_cannot_be_done_is_refused(
    words: list[object], code: int, message: str, digests: Path, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text("{}")
    places = {"{none}": tmp_path / "none", "{config}": tmp_path / "config.json", "{digests}": digests}
    done = run_main(*(places.get(str(word), word) for word in words))
    assert (done.returncode, done.stdout) == (code, "")
    assert message in done.stderr


def test_names_with_control_characters_are_harmless(tmp_path: Path) -> None:
    torch.save({"\x1b[31m": torch.ones(2), "é": torch.ones(3)}, tmp_path / "x.pt")
    done = run_main("digest", tmp_path / "x.pt", "-o", tmp_path / "d.json")
    assert done.returncode == 0
    assert "\x1b" not in run_main("digest", tmp_path / "x.pt").stdout
    assert (tmp_path / "d.json").read_bytes().isascii()
    assert run_main("verify", tmp_path / "x.pt", "--against", tmp_path / "d.json").returncode == 0
