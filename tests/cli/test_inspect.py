"""``streamconv inspect`` as a person or a script meets it: text, colours, JSON, exit codes."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.inspection.samples import BLOOM, GPT, Attack, changed, copied, cut_off, step_of
from tests.places import FRAMEWORKS
from tests.processes import STREAMCONV, run_main, start

KEYS: dict[str, set[str]] = {
    "evidence": {"what", "evidence"},
    "files": {"path", "nbytes", "kind", "tensors"},
    "tensors": {"name", "file", "dtype", "shape", "nbytes", "offset", "layer", "parameter", "shares"}
    | {"rank", "stage", "parts"},
    "globals": {"name", "verdict", "called", "files"},
    "statistics": {"name", "layer", "parameter", "dtype", "shape", "numel", "min", "max", "mean", "std", "norm"}
    | {"zeros", "nan", "inf", "flags"},
    "findings": {"severity", "what", "where", "remedy"},
}
TOP = {"schema", "path", "kind", "nbytes", "what", "model", "dtypes", "parallel", "target", "optimizer", "values"}
TOP |= {"args", "storage", "checked", *KEYS}
MODEL = {"family", "iteration", "num_layers", "hidden", "ffn", "heads", "kv_groups", "vocabulary", "positions"}
MODEL |= {"parameters", "parameters_per_layer"}


def run(*words: object, anew: bool = False) -> subprocess.CompletedProcess[str]:
    done = start(STREAMCONV, "inspect", *words) if anew else run_main("inspect", *words)
    assert "Traceback" not in done.stderr
    assert "unexpected" not in done.stderr
    return done


def parsed(text: str) -> dict[str, Any]:
    def refused(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    found: dict[str, Any] = json.loads(text, parse_constant=refused)
    return found


def rows_of(text: str, title: str) -> list[str]:
    """The lines below a block's title."""
    lines = text.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(title))
    block = []
    for line in lines[start + 1 :]:
        if not line:
            break
        block.append(line)
    return block


def test_the_summary_of_a_folder_is_aligned_text() -> None:
    done = run(BLOOM)
    assert done.returncode == 0
    assert done.stderr == ""
    assert "\x1b" not in done.stdout
    assert re.search(r"^  family +BLOOM$", done.stdout, re.MULTILINE)
    assert re.search(r"^  parameters +54,528$", done.stdout, re.MULTILINE)
    grid = rows_of(done.stdout, "ranks and stages: TP 2 x PP 2")
    assert grid[0].split() == ["stage", "layers", "rank", "files"]
    assert [line.split()[:4] for line in grid[1:]] == [
        ["0", "0-1", "0", "4"],
        ["0", "0-1", "1", "4"],
        ["1", "2-3", "0", "4"],
        ["1", "2-3", "1", "4"],
    ]
    assert len({line.index("layer_") for line in grid[1:]}) == 1
    assert "layer_[03-04]-model_01-model_states.pt" in grid[2]
    evidence = rows_of(done.stdout, "known from")
    assert len({re.search(r"(?<=\S)  +(?=\S)", line.strip()).end() for line in evidence}) == 1  # type: ignore[union-attr]


def test_names_of_single_files_are_the_real_ones() -> None:
    grid = "\n".join(rows_of(run(GPT).stdout, "ranks and stages"))
    assert "zero_pp_rank_0_mp_rank_00_optim_states.pt" in grid


def test_the_tree_lists_every_tensor_file_argument() -> None:
    text = run(BLOOM, "--tree").stdout
    report = parsed(run(BLOOM, "--json").stdout)
    for row in report["tensors"]:
        assert any(row["name"] in line and f" {row['offset']}" in line for line in text.splitlines())
    for row in report["files"]:
        assert row["path"] in text
    for name in report["args"]:
        assert re.search(rf"^  {re.escape(name)} ", text, re.MULTILINE)


def test_a_pattern_and_globals() -> None:
    done = run(step_of(GPT) / "mp_rank_00_model_states.pt", "--tensors", "cuda*", "--globals")
    tensors = rows_of(done.stdout, "tensors")
    assert [line.split()[0] for line in tensors[1:]] == ["cuda_rng_state"]
    named = rows_of(done.stdout, "classes and functions")
    assert any("megatron.enums.PositionEmbeddingType" in line and "refuses" in line for line in named)
    assert any("torch.Size" in line and "plain torch loads it" in line for line in named)


@pytest.mark.parametrize(
    "words", [(BLOOM, "--stats", "--check"), (BLOOM, "--target-tp", 1, "--target-pp", 3), (FRAMEWORKS / "z1_bf16",)]
)
def test_json_has_the_documented_keys_and_is_the_same_again(words: tuple[object, ...]) -> None:
    first, second = run(*words, "--json"), run(*words, "--json", *(("--jobs", 1) if "--stats" in words else ()))
    assert first.stdout == second.stdout
    assert first.stderr == ""
    report = parsed(first.stdout)
    assert report["schema"] == "streamconv.inspect/1"
    assert set(report) == TOP
    for key, keys in KEYS.items():
        assert all(set(row) == keys for row in report[key] or [])
    assert set(report["model"]) == MODEL
    assert set(report["model"]["vocabulary"]) == {"stored", "true", "padding"}
    assert set(report["optimizer"]) == {"present", "files", "nbytes", "what"}
    assert set(report["parallel"]) == {"tp", "pp", "dp", "stages", "grid"}
    assert all(set(cell) == {"stage", "rank", "files"} for cell in report["parallel"]["grid"])
    assert (report["statistics"] is None) == ("--stats" not in words)
    assert (report["checked"] is None) == ("--check" not in words)
    if report["target"] is not None:
        assert set(report["target"]) == {"tp", "pp", "stages", "grid"}
        assert all(set(cell) == {"stage", "rank", "sources"} for cell in report["target"]["grid"])


def test_json_has_no_nan_wherever_one_comes_from(tmp_path: Path) -> None:
    nan, inf = float("nan"), float("inf")
    tree = {"w": torch.tensor([nan, inf, 1.0]), "n": torch.tensor([nan]), "loss": nan, "deep": {"best": [inf, -inf]}}
    tree["huge"] = torch.tensor([1e308, -1e308], dtype=torch.float64)
    torch.save(tree, tmp_path / "t.pt")
    report = parsed(run(tmp_path / "t.pt", "--json", "--stats").stdout)
    assert report["values"]["loss"] is None
    assert report["values"]["deep.best"] == [None, None]
    by_name = {row["name"]: row for row in report["statistics"]}
    assert (by_name["w"]["nan"], by_name["w"]["inf"], by_name["w"]["mean"]) == (1, 1, 1.0)
    assert by_name["n"]["mean"] is None


@pytest.mark.slow
def test_strict_gives_the_exit_codes(tmp_path: Path) -> None:
    root = copied(BLOOM, tmp_path)
    key = "mlp.dense_h_to_4h.weight"
    for rank in (0, 1):
        path = step_of(root) / f"layer_05-model_0{rank}-model_states.pt"
        changed(path, mlp__dense_h_to_4h__weight=torch.load(path, weights_only=True)[key] * 100)
    assert run(BLOOM, "--strict", "--check").returncode == 0
    assert run(root, "--strict").returncode == 0
    assert run(root, "--stats").returncode == 0
    done = run(root, "--stats", "--strict")
    assert done.returncode == 7
    assert any(line.startswith(" !layers.2.mlp.dense_h_to_4h.weight") for line in done.stdout.splitlines())
    (step_of(root) / "layer_04-model_01-model_states.pt").unlink()
    assert run(root).returncode == 0
    done = run(root, "--stats", "--strict")
    assert done.returncode == 6
    assert any("layer_04-model_01-model_states.pt" in line for line in rows_of(done.stdout, "findings"))


@pytest.mark.slow
def test_refusals_have_their_codes(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(30)}, tmp_path / "t.pt")
    cut_off(tmp_path / "t.pt")
    (tmp_path / "words.txt").write_text("words")
    for words, code, said in (
        ((tmp_path / "none",), 3, "no such file"),
        ((tmp_path / "words.txt",), 3, "words.txt"),
        ((tmp_path / "t.pt",), 6, "t.pt"),
        ((BLOOM, "--target-pp", "9"), 2, "--target-pp 9"),
        ((BLOOM, "--plot", tmp_path / "x.png"), 2, "--stats"),
        ((BLOOM, "--stats", "--max-ram", "20M"), 4, "M or more"),
    ):
        done = run(*words)
        assert (done.returncode, said in done.stderr) == (code, True), done.stderr
        assert done.stdout == ""


@pytest.mark.slow
def test_the_floor_that_is_named_is_enough() -> None:
    done = run(BLOOM, "--stats", "--check", "--max-ram", "20M", anew=True)
    number = re.search(r"--max-ram (\d+)M or more", done.stderr)
    assert number
    # The refused process measured itself: the next one may be a few pages larger.
    assert run(BLOOM, "--stats", "--check", "--max-ram", f"{int(number[1]) + 4}M", anew=True).returncode == 0


@pytest.mark.slow
@pytest.mark.disk
def test_values_larger_than_the_budget_are_streamed_inside_it(tmp_path: Path) -> None:
    tensor = torch.zeros(3000, 20_000)
    torch.save({"a": tensor, "b": tensor.t()[5:], "c": tensor[:1].expand(2000, 20_000)}, tmp_path / "t.pt")
    refused = run(tmp_path / "t.pt", "--stats", "--max-ram", "20M", anew=True)
    floor = re.search(r"--max-ram (\d+)M or more", refused.stderr)
    assert floor
    budget = int(floor[1]) + 4
    assert budget < tensor.numel() * 4 >> 20
    code = (
        "import sys; from pathlib import Path; from streamconv.cli.main import main; code = main(sys.argv[1:]); "
        "status = Path('/proc/self/status').read_text(); "
        "print(code, int(status.split('VmHWM:')[1].split()[0]) >> 10, file=sys.stderr)"
    )
    words = ["inspect", str(tmp_path / "t.pt"), "--stats", "--check", "--json", "--max-ram", f"{budget}M"]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    exit_code, peak = map(int, done.stderr.split()[-2:])
    assert exit_code == 0
    assert peak <= budget
    assert [row["zeros"] for row in parsed(done.stdout)["statistics"]] == [60_000_000, 59_985_000, 40_000_000]


HOSTILE = "w\x1b[31m\x07\r\n\u202eevil\x9b2J[bold]"


def saved_hostile(path: Path) -> None:
    torch.save({HOSTILE: torch.ones(3), "note": f"{HOSTILE}!", "k" + HOSTILE: 1}, path)


@pytest.mark.slow
def test_control_characters_in_names_are_replaced(tmp_path: Path) -> None:
    saved_hostile(tmp_path / "t.pt")
    for words in ((), ("--tree",), ("--stats",), ("--globals",)):
        text = run(tmp_path / "t.pt", *words).stdout
        assert "[bold]" in text
        assert not [c for c in text if c != "\n" and not c.isprintable()]
    assert parsed(run(tmp_path / "t.pt", "--json").stdout)["tensors"][0]["name"] == HOSTILE


def on_terminal(width: int, *words: object) -> str:
    """What a terminal of some width receives."""
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 40, width, 0, 0))
    settings = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLUMNS", "LINES")}
    with subprocess.Popen(
        [*STREAMCONV, "inspect", *map(str, words)],
        stdout=child,
        stderr=subprocess.PIPE,
        env=settings | {"TERM": "xterm-256color"},
    ) as process:
        os.close(child)
        received = b""
        while True:
            try:
                more = os.read(parent, 65536)
            except OSError:
                break
            if not more:
                break
            received += more
        os.close(parent)
        assert process.wait() == 0, process.stderr and process.stderr.read()
    return received.decode()


@pytest.mark.slow
@pytest.mark.parametrize("width", [60, 100])
def test_a_terminal_gets_colours_and_lines_that_fit(width: int, tmp_path: Path) -> None:
    root = copied(BLOOM, tmp_path)
    (step_of(root) / "layer_04-model_01-model_states.pt").unlink()
    text = on_terminal(width, root, "--stats")
    assert "\x1b[1;31m" in text
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    assert max(len(line.rstrip("\r")) for line in plain.split("\n")) <= width
    folded = re.sub(r"\s+", "", plain)
    assert "layer_04-model_01-model_states.pt" in folded
    assert "remedy:" in folded


def test_a_terminal_is_not_at_the_mercy_of_names(tmp_path: Path) -> None:
    saved_hostile(tmp_path / "t.pt")
    torch.save({"x": Attack(tmp_path / "trace"), HOSTILE: torch.ones(2)}, tmp_path / "u.pt")
    for name in ("t.pt", "u.pt"):
        text = on_terminal(90, tmp_path / name, "--tree", "--globals")
        rest = re.sub(r"\x1b\[[0-9;]*m", "", text).replace("\r\n", "\n")
        assert not [c for c in rest if c != "\n" and not c.isprintable()]
        assert "\x1b[31m\x07" not in text
        assert "[bold]" in re.sub(r"\s+", "", rest)
    assert not (tmp_path / "trace").exists()
