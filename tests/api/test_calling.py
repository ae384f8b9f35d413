"""The verbs as a program in Python calls them: what they take, what they return, and how they refuse."""

from __future__ import annotations

import ast
import inspect
import json
import os
import pickle
import pydoc
import re
import shutil
import sys
import typing
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import streamconv
from streamconv.api.options import VERBS, known_options, options_of_verb
from streamconv.api.words import in_keywords, result_in_keywords
from streamconv.cli.options import OWN_OPTIONS
from streamconv.core.kinds import Count, Counts
from streamconv.core.options import Option, all_options
from streamconv.core.result import LONGEST_LINE, Result
from streamconv.memory.options import SizeText
from tests.places import FRAMEWORKS, ROOT
from tests.processes import run_main, start

SRC = FRAMEWORKS / "bs_bloom_tp2pp2_fp32_z0"
LAYER = SRC / "global_step3" / "layer_03-model_00-model_states.pt"
OTHER_LAYER = SRC / "global_step3" / "layer_04-model_00-model_states.pt"

Call = Callable[[Path], Result]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished conversion of SRC."""
    folder = tmp_path_factory.mktemp("calling") / "out"
    streamconv.convert(SRC, folder, tp=1, pp=3)
    return folder


# -- results -----------------------------------------------------------------------------------------------------------

RESULTS: dict[str, Call] = {
    "Plan": lambda _: streamconv.plan(SRC),
    "ConversionReport": lambda _: streamconv.convert(SRC, None),
    "InspectionReport": lambda _: streamconv.inspect(SRC),
    "Verification": lambda out: streamconv.verify(out, SRC),
    "Comparison": lambda out: streamconv.diff(SRC, out),
    "Digests": lambda _: streamconv.digest(SRC),
    "DiskReport": lambda out: streamconv.bench(out.parent, size="1M"),
    "FamilyTable": lambda _: streamconv.families(),
}


@pytest.mark.parametrize("name", RESULTS)
def test_a_result_is_one_line_in_a_console(name: str, out: Path) -> None:
    result = RESULTS[name](out)
    line = repr(result)
    assert isinstance(result, getattr(streamconv, name))
    assert line.startswith(f"<{name}: ")
    assert line.endswith(">")
    assert len(line) <= LONGEST_LINE == 200
    assert line.isprintable()


def test_a_table_of_families_is_pickled_by_names() -> None:
    table = streamconv.families()
    again = pickle.loads(pickle.dumps(table))
    assert again == table
    assert all(mine.family is its.family for mine, its in zip(table.cells, again.cells, strict=True))


def test_the_line_stays_short_and_harmless_whatever_a_path_is_called(tmp_path: Path) -> None:
    path = tmp_path / f"\x1b[31m\n{'x' * 200}.pt"
    shutil.copy(LAYER, path)
    results = (streamconv.inspect(path), streamconv.diff(path, path), streamconv.verify(path))
    for result in results:
        line = repr(result)
        assert re.fullmatch(r"<[A-Z][A-Za-z]+: .+\.\.\.>", line)
        assert len(line) == LONGEST_LINE
        assert line.isprintable()


@dataclass(frozen=True)
class Pair:
    """The same call in Python and on the command line; OUT stands for the finished conversion."""

    call: Call
    words: tuple[object, ...]
    code: int = 0


SAME = {
    "plan": Pair(
        lambda _: streamconv.plan(SRC, tp=1, pp_layers=(1, 3), dtype="bf16", max_ram="1G"),
        ("plan", SRC, "--tp", 1, "--pp-layers", "1,3", "--dtype", "bf16", "--max-ram", "1G"),
    ),
    "plan, switches": Pair(
        lambda _: streamconv.plan(SRC, to="deepspeed", keep_args=False, for_release=False, max_ram=2**30),
        ("plan", SRC, "--to", "deepspeed", "--no-args", "--max-ram", 2**30),
    ),
    "inspect": Pair(lambda _: streamconv.inspect(SRC), ("inspect", SRC)),
    "inspect, a file": Pair(lambda _: streamconv.inspect(LAYER), ("inspect", LAYER)),
    "inspect, tensors": Pair(
        lambda _: streamconv.inspect(SRC, tensors="*dense*", stats=True),
        ("inspect", SRC, "--tensors", "*dense*", "--stats"),
    ),
    "inspect, tensors of a file": Pair(
        lambda _: streamconv.inspect(LAYER, tensors="*dense*"), ("inspect", LAYER, "--tensors", "*dense*")
    ),
    "inspect, a target": Pair(
        lambda _: streamconv.inspect(SRC, target_tp=1, target_pp=1, check=True),
        ("inspect", SRC, "--target-tp", 1, "--target-pp", 1, "--check"),
    ),
    "verify": Pair(lambda out: streamconv.verify(out), ("verify", "OUT")),
    "verify, against": Pair(
        lambda out: streamconv.verify(out, against=SRC, jobs=1), ("verify", "OUT", "--against", SRC, "--jobs", 1)
    ),
    "diff": Pair(lambda out: streamconv.diff(SRC, out, a_num_heads=4), ("diff", SRC, "OUT", "--a-num-heads", 4)),
    "diff, different": Pair(lambda _: streamconv.diff(LAYER, OTHER_LAYER), ("diff", LAYER, OTHER_LAYER), code=7),
    "digest": Pair(lambda _: streamconv.digest(SRC, sha256=True), ("digest", SRC, "--sha256")),
    "families": Pair(lambda _: streamconv.families(), ("families",)),
}


def said(pair: Pair, out: Path, *more: str) -> str:
    """What the command line prints."""
    done = run_main(*(out if word == "OUT" else word for word in pair.words), *more)
    assert done.returncode == pair.code, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", SAME)
def test_the_text_of_a_result_is_what_the_command_line_prints(name: str, out: Path) -> None:
    def settled(text: str) -> str:
        return re.sub(r"(?<=workable floor ).*", "...", text)  # it has this process's memory in it

    assert settled(f"{SAME[name].call(out)}\n") == settled(in_keywords(said(SAME[name], out)))


def test_tensors_that_were_asked_for_are_shown_one_by_one(out: Path) -> None:
    report = streamconv.inspect(out, tensors="*.mlp.dense_h_to_4h.bias")
    assert len(report.tensors) == 4
    for row in report.tensors:
        assert f"\n  {row.name} " in str(report)
        assert f">{row.name}<" in report._repr_html_()


def in_words(entry: dict[str, Any]) -> dict[str, Any]:
    """An object of JSON whose texts have keywords for flags."""
    return {name: result_in_keywords(value) for name, value in entry.items()}


@pytest.mark.parametrize("name", SAME)
def test_the_data_of_a_result_is_what_the_command_line_prints_with_json(name: str, out: Path) -> None:
    mine = json.loads(json.dumps(SAME[name].call(out).to_dict()))
    printed = result_in_keywords(json.loads(said(SAME[name], out, "--json"), object_hook=in_words))
    if name == "families":
        mine = mine["conversions"]
    elif name.startswith("plan"):
        assert mine["memory"].pop("floor_nbytes") > 0
        assert printed["memory"].pop("floor_nbytes") > 0
    assert mine == printed


def test_the_data_of_a_conversion_is_what_the_command_line_prints_with_json(tmp_path: Path) -> None:
    mine = streamconv.convert(SRC, tmp_path / "out", tp=1, max_ram="1G").to_dict()
    done = run_main("convert", SRC, tmp_path / "out", "--tp", 1, "--max-ram", "1G", "--overwrite", "--json")
    printed = json.loads(done.stdout, object_hook=in_words)
    varying = {"seconds", "nbytes_per_second", "peak_nbytes"}
    assert varying < set(mine)
    assert mine.keys() == printed.keys()
    mine = json.loads(json.dumps(mine))
    for name in set(mine) - varying:
        assert mine[name] == printed[name], name


def test_the_data_of_a_disk_is_what_the_command_line_prints_with_json(tmp_path: Path) -> None:
    mine = json.loads(json.dumps(streamconv.bench(tmp_path, src=SRC, size="1M").to_dict()))
    printed = json.loads(run_main("bench", tmp_path, "--src", SRC, "--size", "1M", "--json").stdout)
    assert mine.keys() == printed.keys()
    assert mine["prediction"].keys() == printed["prediction"].keys()
    for name in ("folder", "nbytes", "threads", "io", "engine"):
        assert mine[name] == printed[name]
    for name in ("read_nbytes", "write_nbytes", "same_disk"):
        assert mine["prediction"][name] == printed["prediction"][name]


# -- types -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*(verb for verb in VERBS), "open_checkpoint"])
def test_the_types_of_a_function_can_be_asked_for(name: str) -> None:
    function = getattr(streamconv, name)
    hints = typing.get_type_hints(function)
    parameters = inspect.signature(function).parameters
    assert hints.keys() == {*parameters, "return"}
    result = hints["return"]
    for each in typing.get_args(result) or [result]:  # an iterator of one class, or one of two classes
        assert getattr(streamconv, each.__name__) is each
    for option in options_of_verb(name).values() if name in VERBS else ():
        assert type(None) in typing.get_args(hints[option.name])
        assert typing.get_args(hints[option.name])[0] is not Any


def test_help_says_what_a_keyword_takes() -> None:
    text = " ".join(pydoc.plain(pydoc.render_doc(streamconv.plan)).split())
    for words in ("src: str | os.PathLike[str], *, ", "tp: int | None = None", "-> 'streamconv.Plan'"):
        assert words in text
    assert "AnyPath" not in text


def test_a_type_is_imported_when_it_is_asked_for() -> None:
    program = (
        "import sys, streamconv\n"
        "names = [getattr(streamconv, name) for name in ('plan', 'inspect', 'stream')]\n"
        "assert 'numpy' not in sys.modules\n"
    )
    done = start([sys.executable, "-c", program])
    assert done.returncode == 0, done.stderr


# -- values ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tp": "2"}, "tp='2': a str, not a whole number"),
        ({"tp": 1.5}, "tp=1.5: a float, not a whole number"),
        ({"tp": True}, "tp=True: a bool, not a whole number"),
        ({"tp": 0}, "tp=0: must be at least 1"),
        ({"dtype": 5}, "dtype=5: an int, not one of the words bf16, fp16, fp32, fp64"),
        ({"dtype": "fp23"}, "dtype='fp23': no such choice\n  remedy: did you mean fp32?"),
        ({"to": 3}, "to=3: an int, not one of the words megatron, deepspeed, "),
        ({"pp_layers": 4}, "pp_layers=4: an int, not a list of numbers"),
        ({"pp_layers": (1.5, 2)}, "pp_layers=(1.5, 2): a float, not a whole number"),
        ({"pp_layers": b"13"}, "pp_layers=b'13': a bytes, not a list of numbers"),
        ({"config": 5}, "config=5: 5, not entries by their names"),
        ({"config": {1: 2}}, "config={1: 2}: entries that are not called by names"),
        ({"max_ram": 1.5}, "max_ram=1.5: a float, not a size"),
        ({"max_ram": True}, "max_ram=True: a bool, not a size"),
        ({"max_ram": 0}, "max_ram=0: must be more than 0"),
        ({"max_ram": "lots"}, "max_ram='lots': not a size\n  remedy: write 32G, 32GiB, 32GB, 50% or auto"),
        ({"tokenizer": 3}, "tokenizer=3: an int, not a path"),
        ({"tag": 5}, "tag=5: an int, not text"),
        ({"tag": ""}, "tag='': empty"),
        ({"io": 3}, "io=3: an int, not one of the words direct, pread"),
        ({"overwrite": "yes"}, "overwrite='yes': a str, neither True nor False"),
        ({"keep_args": 0}, "keep_args=0: an int, neither True nor False"),
        ({"progress": 5}, "progress=5: not a function"),
        ({"max_rem": "1G"}, "max_rem: no such option\n  remedy: did you mean max_ram=?"),
        ({"target_tp": 2}, "target_tp: no such option"),
        ({"zzz": 1}, "zzz: no such option\n  remedy: choose among replicated, to, dtype, tp, "),
    ],
    ids=lambda value: ", ".join(f"{name}={each!r}" for name, each in value.items()) if isinstance(value, dict) else "",
)
def test_a_wrong_value_is_a_usage_error(options: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(streamconv.UsageError) as caught:
        streamconv.convert(SRC, tmp_path / "out", **options)
    assert str(caught.value).startswith(words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_of_every_verb_refuses_what_it_cannot_be(verb: str) -> None:
    more: dict[str, tuple[Any, ...]] = {"convert": (None,), "diff": (SRC,), "extract": ("name", "out.npy")}
    paths = SRC, *more.get(verb, ())
    for name in options_of_verb(verb):
        with pytest.raises(streamconv.UsageError, match=f"^{name}="):
            getattr(streamconv, verb)(*paths, **{name: object()})


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: streamconv.plan(None), "src=None: None, not a path"),  # type: ignore[arg-type]
        (lambda: streamconv.plan(3), "src=3: an int, not a path"),  # type: ignore[arg-type]
        (lambda: streamconv.plan(b"bytes"), "src=b'bytes': a bytes, not a path"),  # type: ignore[arg-type]
        (lambda: streamconv.plan(""), "src='': an empty path"),
        (lambda: streamconv.convert(SRC, 3), "dst=3: an int, not a path"),  # type: ignore[arg-type]
        (lambda: streamconv.stream(3), "src=3: an int, not a path"),  # type: ignore[arg-type]
        (lambda: streamconv.inspect(3), "path=3: an int, not a path"),  # type: ignore[arg-type]
        (lambda: streamconv.verify(SRC, 3), "against=3: an int, not a path"),  # type: ignore[arg-type]
        (lambda: streamconv.diff(SRC, None), "b=None: None, not a path"),  # type: ignore[arg-type]
        (lambda: streamconv.bench(3), "folder=3: an int, not a path"),  # type: ignore[arg-type]
        (lambda: streamconv.bench(ROOT, src=3), "src=3: an int, not a path"),  # type: ignore[arg-type]
        (lambda: streamconv.open_checkpoint(3), "path=3: an int, not a path"),  # type: ignore[call-overload]
        (lambda: streamconv.open_checkpoint(SRC, tag=5), "tag=5: an int, not text"),  # type: ignore[call-overload]
    ],
)
def test_a_path_that_is_none_is_a_usage_error(call: Callable[[], object], words: str) -> None:
    with pytest.raises(streamconv.UsageError) as caught:
        call()
    assert str(caught.value).startswith(words)


def stable(plan: streamconv.Plan) -> dict[str, Any]:
    """A plan's data without the memory, which is measured."""
    return {name: value for name, value in plan.to_dict().items() if name != "memory"}


def test_none_is_not_given() -> None:
    nothing: Any = dict.fromkeys(options_of_verb("plan"))
    plan = streamconv.plan(SRC, **nothing)
    assert stable(plan) == stable(streamconv.plan(SRC))
    assert plan.memory is not None
    assert plan.memory.budget.source == "auto: half of what is available"


def test_numbers_of_numpy_are_numbers() -> None:
    numbers: Any = {"tp": np.int64(1), "pp_layers": [np.int32(1), np.uint8(3)], "max_ram": np.int64(2**30)}
    plan = streamconv.plan(SRC, **numbers)
    assert stable(plan) == stable(streamconv.plan(SRC, tp=1, pp_layers=(1, 3)))
    assert plan.memory is not None
    assert plan.memory.budget.nbytes == 2**30
    assert '"pp_layers": [1, 3]' in json.dumps(plan.to_dict())


def test_a_size_is_text_or_a_number_of_bytes() -> None:
    for size in ("1G", "1GiB", "1024M", 2**30, str(2**30)):
        memory = streamconv.plan(SRC, max_ram=size).memory
        assert memory is not None
        assert memory.budget.nbytes == 2**30


def test_a_path_is_text_or_whatever_has_a_path(tmp_path: Path) -> None:
    class Place:
        def __fspath__(self) -> str:
            return str(SRC)

    expected = stable(streamconv.plan(SRC))
    assert stable(streamconv.plan(str(SRC))) == stable(streamconv.plan(Place())) == expected
    streamconv.convert(str(SRC), str(tmp_path / "out"), progress=False)
    assert streamconv.verify(str(tmp_path / "out"), os.path.relpath(SRC)).exit_code == 0
    assert list(streamconv.open_checkpoint(str(LAYER))) == list(streamconv.open_checkpoint(LAYER))


def test_a_configuration_is_a_mapping_or_a_file(tmp_path: Path) -> None:
    entries = {"bos_token_id": 7}
    (tmp_path / "config.json").write_text(json.dumps(entries))
    plans = [streamconv.plan(SRC, to="hf", config=way) for way in (entries, tmp_path / "config.json")]
    assert stable(plans[0]) == stable(plans[1])
    assert plans[0].texts == plans[1].texts
    assert json.loads(plans[0].texts["config.json"])["bos_token_id"] == 7


# -- words -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tp": 3}, "remedy: choose a tp that divides 4"),
        ({"pp_layers": (1, 2)}, "pp_layers=(1, 2) adds up to 3 layers"),
        ({"pp": 2, "pp_layers": (4,)}, "pp=2 and 1 stages in pp_layers"),
        ({"max_ram": "8M"}, '(max_ram="8M") is below the workable floor of '),
        ({"engine": "serial", "jobs": 2}, "jobs=2: the engine serial "),
        ({"block_size": "100"}, 'block_size="100'),
        ({"tokenizer": ROOT}, 'has no meaning with to="megatron-legacy", which to="megatron" is for this model'),
        ({"vocab_size": 2}, "vocab_size=2 would drop true rows"),
        ({"tag": "none"}, "remedy: name one with tag: global_step3"),
        ({"to": "null"}, 'to="null" discards the result, and takes no dst'),
        ({}, "remedy: choose another folder, or overwrite=True to replace it"),
    ],
)
def test_a_refusal_speaks_of_keywords(options: dict[str, Any], words: str, out: Path) -> None:
    with pytest.raises(streamconv.StreamconvError) as caught:
        streamconv.convert(SRC, out, **options)
    assert words in str(caught.value)
    assert "--" not in str(caught.value)
    assert caught.value.args == (caught.value.what,)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("say --pp-layers N,N,.. adding up to 4", "say pp_layers=(N, N, ..) adding up to 4"),
        ("--pp-layers 1,3 adds up", "pp_layers=(1, 3) adds up"),
        ("--pp-layers 4: one stage", "pp_layers=(4,): one stage"),
        ("choose another --vpp, --pp or --pp-layers", "choose another vpp, pp or pp_layers"),
        ("say --num-heads N", "say num_heads=N"),
        ("say --vocab-size N, or --vocab-padding keep", 'say vocab_size=N, or vocab_padding="keep"'),
        ("--tp 2", "tp=2"),
        ("--tp=2.", "tp=2."),
        ("choose a --tp that divides 4", "choose a tp that divides 4"),
        ("say --max-ram 57M or more", 'say max_ram="57M" or more'),
        ("8.00 MiB (--max-ram 8M) is too little", '8.00 MiB (max_ram="8M") is too little'),
        ("say a smaller --size", "say a smaller size"),
        ("say --restart to begin anew", "say restart=True to begin anew"),
        ("write for that loader with --no-args", "write for that loader with keep_args=False"),
        ("or --overwrite to replace it", "or overwrite=True to replace it"),
        ("convert --to deepspeed, or --to huggingface", 'convert to="deepspeed", or to="huggingface"'),
        ("leave out --target-tp, --target-pp", "leave out target_tp, target_pp"),
        ('say {"tied": true} in --config FILE', 'say {"tied": true} in config'),
        ('--config FILE with {"tied": true}', 'config with {"tied": true}'),
        ("say --dtype bf16", 'say dtype="bf16"'),
        ("name one with --tag: a, b", "name one with tag: a, b"),
        ("--a-tag, --dst-config FILE", "a_tag, dst_config"),
        ("start with --no-load-optim --finetune", "start with --no-load-optim --finetune"),
        ("a run with --vocab-file compares it", "a run with --vocab-file compares it"),
        ("with --tokenizer-type, --tpx and x--tp", "with --tokenizer-type, --tpx and x--tp"),
        ("the --to's own words", "the to's own words"),
        ("two dashes -- and one - stay", "two dashes -- and one - stay"),
    ],
)
def test_flags_become_keywords(text: str, words: str) -> None:
    assert in_keywords(text) == words
    assert in_keywords(words) == words


SPEAKING: dict[str, Call] = {
    **RESULTS,
    "a plan with options": lambda _: streamconv.plan(
        SRC, qkv_layout="interleaved", iteration=5, config={"seed": 3}, max_ram="1G"
    ),
    "a conversion with a budget": lambda _: streamconv.convert(SRC, None, max_ram="1G", iteration=5),
    "findings": lambda _: streamconv.inspect(SRC, num_heads=3, config={"seed": 3}, iteration=7),
    "findings of a verification": lambda _: streamconv.verify(SRC, num_heads=3, iteration=7),
    "a folder without latest": lambda out: streamconv.inspect(without_latest(out.parent)),
}


def without_latest(folder: Path) -> Path:
    """A root of two checkpoints, of which nothing says which is meant."""
    for name in ("global_step3", "global_step4"):
        shutil.copytree(SRC / "global_step3", folder / "lost" / name, dirs_exist_ok=True)
    return folder / "lost"


@pytest.mark.parametrize("name", SPEAKING)
def test_a_result_speaks_of_keywords(name: str, out: Path) -> None:
    result = SPEAKING[name](out)
    for text in (str(result), repr(result), json.dumps(result.to_dict()), result._repr_html_()):
        assert [match[0] for match in FLAG.finditer(text) if match[0] in BY_FLAG] == []


def test_findings_and_warnings_name_keywords(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    findings = streamconv.inspect(without_latest(tmp_path)).findings
    assert [finding.remedy for finding in findings] == ["choose with tag"]
    plan = streamconv.plan(SRC, iteration=5, max_ram="1G")
    assert "iteration=5 against the recorded 3" in plan.warnings
    assert plan.warnings[-1].endswith("write for that loader with keep_args=False")
    assert plan.memory is not None
    assert plan.memory.budget.source == 'max_ram="1G"'
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [f"{SRC}: {warning}" for warning in plan.warnings] == warned


def test_the_command_line_logs_flags_though_python_was_there_before() -> None:
    streamconv.plan(SRC)
    assert "write for that loader with --no-args" in run_main("plan", SRC, "-v").stderr


BY_FLAG = {each.flag: each for each in known_options().values()}
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]*[a-z]")
ONLY_THERE = ("cli", "bigscience")
"""The rooms whose words nobody meets in Python."""


# Flags for paths, which are arguments in Python.
PATHS = re.compile(r"--(against|src)\b")


def value_of(each: Option) -> str:
    """A value of an option as the command line takes it."""
    if each.kind.words:
        return each.kind.words[0]
    kinds = ((Count, "3"), (Counts, "1,3"), (SizeText, "64"))
    return next((value for kind, value in kinds if isinstance(each.kind, kind)), "name")


def filled(parts: ast.JoinedStr) -> str:
    """A text with values in the place of its expressions."""
    text = ""
    for part in parts.values:
        named = re.search(r"(--[a-z-]+)[ =]$", text)
        each = BY_FLAG.get(named[1]) if named else None
        text += str(part.value) if isinstance(part, ast.Constant) else "name" if each is None else value_of(each)
    return text


@cache
def texts() -> list[tuple[str, str]]:
    """The texts in the package that have a flag in them, with the rooms that they are in; without docstrings."""
    found = []
    for path in sorted((ROOT / "streamconv").rglob("*.py")):
        room = path.relative_to(ROOT / "streamconv").parts[0]
        tree = ast.parse(path.read_text())
        described = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            constant = node.value if isinstance(node, ast.Constant) else None
            text = filled(node) if isinstance(node, ast.JoinedStr) else constant
            if isinstance(text, str) and FLAG.search(text) and id(node) not in described:
                found.append((room, text))
    return found


def squeezed(text: str) -> str:
    """A text without what a keyword has more than a flag, or less."""

    def keyword(match: re.Match[str]) -> str:
        each, stand_in = BY_FLAG.get(match[1]), match[2] or ""
        if each is None:
            return match[0]
        has_stand_in = not each.kind.words and stand_in.rstrip(",;:.") == f" {each.kind.metavar}"
        if isinstance(each.kind, Count | Counts) or not has_stand_in:
            return f"{each.name}{not each.default if each.is_switch else ''}{stand_in}"
        return f"{each.name}{stand_in.removeprefix(f' {each.kind.metavar}')}"

    text = re.sub(rf"({FLAG.pattern})( [^\s-]\S*)?", keyword, PATHS.sub(r"\1", text))
    return re.sub(r'[ =,()"]', "", text)


def test_no_text_of_the_package_has_a_flag_left_or_is_mangled() -> None:
    assert len(texts()) > 150
    for _, text in texts():
        words = in_keywords(text)
        assert not set(FLAG.findall(words)) & set(BY_FLAG), words
        assert squeezed(words) == squeezed(text)
        assert in_keywords(words) == words
        if not set(FLAG.findall(text)) & set(BY_FLAG):
            assert words == PATHS.sub(r"\1", text)


def test_no_message_sends_a_caller_to_what_only_the_command_line_has() -> None:
    """But what is printed there and shown by ``str`` may: the room ``report``."""
    only = {each.flag for each in all_options(OWN_OPTIONS).values()}
    for room, text in texts():
        if room not in (*ONLY_THERE, "report"):
            assert not set(FLAG.findall(text)) & only, text
