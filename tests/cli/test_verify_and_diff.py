"""``streamconv diff`` and ``streamconv verify`` as a person or a script meets them: words, JSON and exit codes."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch

from streamconv import convert
from streamconv.cli.main import main
from tests import oracle
from tests.damage import cut, flip, mend, records
from tests.places import FRAMEWORKS, LLAMA, REAL

GPT, BLOOM = REAL[2], REAL[1]
DISTCP = FRAMEWORKS / "mcore_llama_dist_tp2pp2"
TRANSLATED = {DISTCP, *(source.folder for source in (*REAL, LLAMA))}
# A Trainer's output has its checkpoint below it: a model of a translated family, or an adapter.
UNTRANSLATED = sorted(
    folder
    for folder in set(FRAMEWORKS.iterdir()) - TRANSLATED
    if folder.is_dir() and not folder.name.startswith("ds_trainer_")
)
DIFF_KEYS = ["schema", "equal", "a", "b", "up_to_cast", "names", "compared", "nbytes", "only_a", "only_b", "shapes",
             "dtypes", "values", "notes", "not_compared"]  # fmt: skip
VERIFY_KEYS = [
    "schema",
    "exit_code",
    "path",
    "what",
    "checked",
    "findings",
    "drift",
    "comparison",
    "digests",
    "reference",
]
MIB = 1 << 20


def no_constant(word: str) -> float:
    raise AssertionError(f"{word} is no JSON")


class Shell:
    """The command line in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def __call__(self, *words: object) -> tuple[int, str, str]:
        code = main([str(word) for word in words])
        return code, *self.capsys.readouterr()

    def json(self, *words: object) -> tuple[int, dict[str, Any]]:
        code, out, err = self(*words, "--json")
        assert err == ""
        return code, json.loads(out, parse_constant=no_constant)


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(capsys)


@pytest.fixture
def gpt(tmp_path: Path) -> Path:
    convert(GPT.folder, tmp_path / "gpt", max_ram="2G", to="megatron-legacy")
    return tmp_path / "gpt"


def model_file(root: Path, place: str = "00_000") -> Path:
    return root / "iter_0000003" / f"mp_rank_{place}" / "model_optim_rng.pt"


def pair(folder: Path, a: Any, b: Any) -> tuple[Path, Path]:
    torch.save(a, folder / "a.pt")
    torch.save(b, folder / "b.pt")
    return folder / "a.pt", folder / "b.pt"


# -- verify --------------------------------------------------------------------------------------------------------


def test_verify_says_what_it_checked(shell: Shell, gpt: Path) -> None:
    code, out, err = shell("verify", gpt, "--against", GPT.folder)
    assert (code, "error" in err) == (0, False)
    assert out.startswith("container: whole\n")
    assert re.search(r"CRC-32 +\d+ records, ", out)
    assert "the values are the same" in out
    assert f"{GPT.folder}/global_step3 (Megatron-DeepSpeed, pipeline engine: GPT, TP 2 x PP 2)" in out
    assert re.search(r"compared +68 tensors, .* by canonical names", out)


def test_verify_without_checksums_says_so(shell: Shell, tmp_path: Path) -> None:
    torch.save({"w": torch.ones(3)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    code, out, _ = shell("verify", tmp_path / "old.pt")
    assert (code, "1 records have none" in out) == (0, True)


def test_verify_names_what_is_wrong(shell: Shell, gpt: Path) -> None:
    state = oracle.load_plain(model_file(gpt, "01_001"))
    state["model"]["language_model"]["encoder"]["layers.0.mlp.dense_h_to_4h.weight"][3, 4] += 1
    state["model"]["language_model"]["encoder"]["final_layernorm.bias"] += 1
    torch.save(state, model_file(gpt, "01_001"))
    code, out, _ = shell("verify", gpt, "--against", GPT.folder)
    assert (code, out.startswith("container: whole\n")) == (7, True)
    assert re.search(r"layers\.2\.mlp\.dense_h_to_4h\.weight +1 +8,192 .* \[67, 4\] ", out) or "[67, 4]" in out
    assert "final_layernorm.bias  ranks or copies 1 differ from the first in 32 elements" in out
    assert str(model_file(gpt, "01_001")) in out
    code, plain = shell.json("verify", gpt, "--against", GPT.folder)
    assert (code, plain["exit_code"]) == (7, 7)
    assert list(plain) == VERIFY_KEYS
    assert list(plain["comparison"]) == DIFF_KEYS
    assert [(row["name"], row["ranks"], row["elements"]) for row in plain["drift"]] == [
        ("final_layernorm.bias", [1], 32)
    ]


def test_verify_names_the_broken_file_and_does_not_compare_it(shell: Shell, gpt: Path) -> None:
    path = model_file(gpt, "01_000")
    start, nbytes = records(path)["data/4"]
    flip(path, start + 1, 7)
    code, out, _ = shell("verify", gpt, "--against", GPT.folder)
    assert (code, out.startswith("container: not whole\n")) == (6, True)
    assert f"{path}, bytes {start} to {start + nbytes}" in out
    assert "record data/4" in out
    code, plain = shell.json("verify", gpt, "--against", GPT.folder)
    assert (code, plain["exit_code"], plain["comparison"]) == (6, 6, None)
    assert [list(row) for row in plain["findings"]] == [["severity", "what", "where", "remedy"]]


def test_verify_blames_a_broken_source(shell: Shell, gpt: Path, tmp_path: Path) -> None:
    shutil.copytree(GPT.folder, tmp_path / "source")
    (path,) = tmp_path.glob("source/global_step3/layer_05-model_01*")
    cut(path, 5000)
    code, out, err = shell("verify", gpt, "--against", tmp_path / "source")
    assert (code, out) == (6, "")
    assert str(path) in err


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["verify", "{gpt}", "--replicated", "best"], 2, "--replicated best"),
        (["verify", "{gpt}", "--qkv-layout", "best"], 2, "--qkv-layout best"),
        (["verify", "{gpt}", "--io", "telepathy"], 2, "--io telepathy"),
        (["verify", "{gpt}", "--jobs", "0"], 2, "--jobs 0"),
        (["diff", "{gpt}", "{gpt}", "--jobs", "1000"], 2, "--jobs 1000"),
        (["diff", "{gpt}", "{gpt}", "--num-heads", "0"], 2, "--num-heads 0"),
        (["diff", "{gpt}", "{gpt}", "--vocab-size", "0"], 2, "--vocab-size 0"),
        (["diff", "{gpt}", "{gpt}", "--max-ram", "lots"], 2, "--max-ram lots"),
        (["verify", "{gpt}", "--against", "{none}"], 3, "none"),
        (["verify", "{none}"], 3, "none"),
        (["diff", "{gpt}", "{none}"], 3, "none"),
        (["verify", "{gpt}", "--max-ram", "9M"], 4, "say --max-ram"),
        (["diff", "{gpt}", "{gpt}", "--max-ram", "9M"], 4, "say --max-ram"),
    ],
)
def test_refusals(words: list[str], code: int, message: str, shell: Shell, gpt: Path, tmp_path: Path) -> None:
    done = shell(*(word.format(gpt=gpt, none=tmp_path / "none") for word in words))
    assert done[:2] == (code, "")
    assert message in done[2]


# -- diff ----------------------------------------------------------------------------------------------------------


def test_diff_of_equal_ones(shell: Shell, gpt: Path) -> None:
    code, out, _ = shell("diff", GPT.folder, gpt)
    assert (code, out.startswith("the parameters are equal\n")) == (0, True)
    code, plain = shell.json("diff", GPT.folder, gpt)
    assert (code, list(plain)) == (0, DIFF_KEYS)
    assert plain["schema"] == "streamconv.diff/1"
    assert (plain["equal"], plain["compared"], plain["names"], plain["values"]) == (True, 68, "canonical", [])
    assert list(plain["a"]) == list(plain["b"]) == ["path", "what"]


def test_diff_tells_other_dtypes_and_verify_allows_them(shell: Shell, tmp_path: Path) -> None:
    convert(BLOOM.folder, tmp_path / "out", dtype="bf16", max_ram="2G", to="megatron-legacy")
    code, plain = shell.json("diff", BLOOM.folder, tmp_path / "out")
    assert (code, plain["equal"], len(plain["dtypes"])) == (7, False, plain["compared"])
    assert plain["dtypes"][0].items() >= {"a": "float32", "b": "bfloat16"}.items()
    assert all(0 < row["max_rel"] <= 2**-8 for row in plain["values"])
    assert shell("verify", tmp_path / "out", "--against", BLOOM.folder)[0] == 0


def test_diff_s_json_has_no_words_for_what_is_no_number(shell: Shell, tmp_path: Path) -> None:
    ones = torch.ones(2, 2)
    a = {"w": torch.tensor([[1.0, float("nan")], [2.0, float("inf")]]), "x": ones, "s": ones, "d": ones}
    b = {"w": torch.tensor([[1.0, 3.0], [float("-inf"), float("inf")]]), "y": ones, "s": ones[0], "d": ones.long()}
    paths = pair(tmp_path, a, b)
    code, plain = shell.json("diff", *paths)
    assert (code, plain["equal"], plain["compared"]) == (7, False, 2)
    assert (plain["only_a"], plain["only_b"]) == (["x"], ["y"])
    assert plain["shapes"] == [{"name": "s", "a": "[2, 2]", "b": "[2]"}]
    assert plain["dtypes"] == [{"name": "d", "a": "float32", "b": "int64"}]
    (row,) = plain["values"]
    assert list(row) == ["name", "elements", "numel", "max_abs", "max_rel", "first", "a", "b"]
    places = [{"value": value, "file": str(path), "offset": records(path)["data/0"][0] + 4}
              for path, value in zip(paths, (None, 3.0), strict=True)]  # fmt: skip
    assert row == {"name": "w", "elements": 2, "numel": 4, "max_abs": None, "max_rel": None, "first": [0, 1],
                   "a": places[0], "b": places[1]}  # fmt: skip
    code, out, _ = shell("diff", *paths)
    assert code == 7
    for words in ("only in a: 1", "only in b: 1", "shapes differ: 1", "dtypes differ: 1", "values differ: 1", "inf"):
        assert words in out


@pytest.mark.parametrize("folder", UNTRANSLATED, ids=lambda folder: folder.name)
def test_folders_that_are_not_translated_are_compared_by_stored_names(
    folder: Path, shell: Shell, tmp_path: Path
) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    code, plain = shell.json("diff", folder, tmp_path / "copy")
    assert (code, plain["equal"], plain["names"], plain["compared"] > 0) == (0, True, "stored", True)
    assert "compared by stored names" in plain["notes"][0]
    paths = [path for path in (tmp_path / "copy").rglob("*") if path.suffix in (".pt", ".bin")]
    sizes = {(path, name): at for path in paths for name, at in records(path).items()
             if name.startswith("data/") and "optim_states" not in path.name}  # fmt: skip
    path, name = max(sizes, key=lambda place: sizes[place][1])
    flip(path, sizes[path, name][0] + 8, 0)
    mend(path)
    code, plain = shell.json("diff", folder, tmp_path / "copy")
    assert (code, {row["b"]["file"] for row in plain["values"]}) == (7, {str(path)})
    assert plain["values"][0]["b"]["offset"] in range(sizes[path, name][0] + 5, sizes[path, name][0] + 9)


def test_a_changed_torch_dist_folder(shell: Shell, tmp_path: Path) -> None:
    """The first tensor's zip is searched by its signatures, and its checksum replaced wherever it stands."""
    shutil.copytree(DISTCP, tmp_path / "copy")
    path = tmp_path / "copy" / "__1_0.distcp"
    data = bytearray(path.read_bytes())
    header = data.index(b"archive/data/0FB") - 30
    start = header + 30 + sum(int.from_bytes(data[header + at : header + at + 2], "little") for at in (26, 28))
    end = data.index(b"PK\x07\x08", start)
    old = zlib.crc32(data[start:end]).to_bytes(4, "little")
    data[start + 5] ^= 1
    path.write_bytes(data)
    code, out, err = shell("diff", DISTCP, tmp_path / "copy", "--num-heads", 4)
    assert (code, out, str(path) in err) == (6, "", True)
    assert shell("verify", tmp_path / "copy")[0] == 6
    assert data.count(old) == 2
    path.write_bytes(data.replace(old, zlib.crc32(data[start:end]).to_bytes(4, "little")))
    code, plain = shell.json("diff", DISTCP, tmp_path / "copy", "--num-heads", 4)
    (row,) = plain["values"]
    assert (code, row["elements"], row["b"]["file"]) == (7, 1, str(path))
    assert start + 5 - row["b"]["offset"] in range(4)
    assert shell("verify", tmp_path / "copy")[0] == 0
    assert shell("verify", tmp_path / "copy", "--against", DISTCP, "--num-heads", 4)[0] == 7


# -- memory --------------------------------------------------------------------------------------------------------


PEAK = """
import re, sys
from streamconv.cli.main import main
code = main(sys.argv[1:])
print("peak", re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1], file=sys.stderr)
sys.exit(code)
"""


def measured(*words: object) -> tuple[int, str, str, int]:
    """Exit code, output and peak resident set of a process."""
    command = [sys.executable, "-c", PEAK, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    err, _, peak = done.stderr.rpartition("peak ")
    return done.returncode, done.stdout, err, int(peak) * 1024


@pytest.mark.slow
@pytest.mark.disk
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8])
def test_the_floor_that_is_named_works_even_if_everything_differs(dtype: torch.dtype, tmp_path: Path) -> None:
    a = torch.arange(12 * MIB).to(dtype).reshape(-1, 4096)
    paths = pair(tmp_path, {"w": a, "t": a.T}, {"w": a + 1, "t": a.T + 1})
    code, out, err, _ = measured("diff", *paths, "--max-ram", "1M")
    assert (code, out) == (4, "")
    floor = re.search(r"say --max-ram (\d+)M or more", err)
    assert floor
    results = []
    for budget, jobs in ((int(floor[1]) + 2, 1), (int(floor[1]) + 60, 2), (1000, 3)):
        code, out, err, peak = measured("diff", *paths, "--max-ram", f"{budget}M", "--jobs", jobs, "--json")
        assert code == 7, err
        assert peak <= budget * MIB
        results.append(json.loads(out))
    assert results[0] == results[1] == results[2]
    assert [row["first"] for row in results[0]["values"]] == [[0, 0], [0, 0]]


def test_jobs_and_budget_and_io_change_nothing(shell: Shell, gpt: Path, tmp_path: Path) -> None:
    shutil.copytree(gpt, tmp_path / "other")
    for place in ("00_000", "01_000", "01_001"):
        state = oracle.load_plain(model_file(tmp_path / "other", place))
        for tensor in state["model"]["language_model"]["encoder"].values():
            tensor.view(-1)[7:23] += 1
        torch.save(state, model_file(tmp_path / "other", place))
    ways = [("--jobs", "1"), ("--jobs", "3", "--io", "direct"), ("--max-ram", "900M", "--io", "pread"), ()]
    results = [shell.json("diff", gpt, tmp_path / "other", *way) for way in ways]
    assert len(results[0][1]["values"]) > 40
    assert all(result == results[0] for result in results)


# -- the formats' own readers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "mode"),
    [
        (["{gpt}", "--reference"], "sample"),
        (["--reference", "{gpt}"], "sample"),
        (["--reference", "-q", "{gpt}"], "sample"),
        (["{gpt}", "--reference", "all"], "all"),
        (["--reference=ALL", "{gpt}"], "all"),
    ],
    ids=" ".join,
)
def test_reference_takes_a_word_or_none(words: list[str], mode: str, shell: Shell, gpt: Path) -> None:
    code, plain = shell.json("verify", *(gpt if word == "{gpt}" else word for word in words))
    assert (code, plain["reference"]["mode"], plain["reference"]["files"]) == (0, mode, {"torch.load": 4})
    assert list(plain["reference"]) == ["mode", "files", "tensors", "compared", "nbytes", "different", "refused"]


def test_the_reference_is_a_block_of_its_own(shell: Shell, gpt: Path, tmp_path: Path) -> None:
    code, out, _ = shell("verify", gpt, "--reference", "--against", GPT.folder)
    assert code == 0
    assert re.search(
        r"\n\nreference: agrees\n  torch.load  4 files\n  compared    a sample: \d+ of \d+ tensors, .* of them\n\n", out
    )
    torch.save({"w": torch.ones(3)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    code, out, _ = shell("verify", tmp_path / "old.pt", "--reference")
    assert code == 3
    assert "reference: not everything could be compared\n" in out
    assert re.search(
        r"not compared with the reference: 1\n  file    tensor  why\n  old.pt +torch.load refuses it: mmap can", out
    )
    code, _, err = shell("verify", "--", "--reference")
    assert (code, "no such file" in err, "where: --reference\n" in err) == (3, True, True)
    code, _, err = shell("verify", gpt, "--reference=some")
    assert (code, "--reference some: no such choice" in err) == (2, True)
