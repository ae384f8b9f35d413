"""Options by flags and by variables: where they come from, where they have no effect, and what was meant."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import streamconv
from tests.formats.deepspeed.test_source import UNEVEN, edit_ranks
from tests.formats.gpt_neox.test_source import Run, made_model, without_config, write
from tests.places import FRAMEWORKS, ROOT
from tests.processes import run_main as run

BLOOM = FRAMEWORKS / "bs_bloom_tp2pp2_fp32_z0"
GPT = FRAMEWORKS / "dsp_gptuntied_tp2pp1_fp32_z0"
# What a GPT-NeoX folder without its configuration files does not say, as config.json says it.
NEOX = {
    "use_parallel_residual": True,
    "rotary_pct": 1.0,
    "rotary_emb_base": 10000,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
    "max_position_embeddings": 32,
    "bos_token_id": 0,
    "eos_token_id": 0,
}


# -- sources that do not say all --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def neox(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-NeoX folder without configuration files, the configuration, and what was converted with it."""
    root = tmp_path_factory.mktemp("neox")
    model = Run(2, pp=2)
    without_config(write(root / "src", made_model(model), model))
    (root / "config.json").write_text(json.dumps(NEOX))
    words = ("--to", "huggingface", "--config", root / "config.json", "--vocab-size", 20, "--vocab-padding", "strip")
    done = run("convert", root / "src", root / "hf", *words, "--max-ram", "1G")
    assert done.returncode == 0, done.stderr
    return root


def test_what_converts_with_a_configuration_verifies_with_it(neox: Path) -> None:
    without = run("verify", neox / "hf", "--against", neox / "src")
    assert without.returncode == 3
    assert "depends on gpt_j_residual" in without.stderr
    words = ("--config", neox / "config.json", "--vocab-size", 20)
    with_it = run("verify", neox / "hf", "--against", neox / "src", *words)
    assert with_it.returncode == 0, with_it.stderr
    assert "the values are the same" in with_it.stdout
    assert re.search(r"compared +52 tensors", with_it.stdout)
    alone = run("verify", neox / "src", "--config", neox / "config.json")
    assert alone.returncode == 0
    assert "cannot be known" not in alone.stdout


def test_the_configuration_decides_what_the_values_are(neox: Path) -> None:
    """Whether two ranks' biases are summed or copies: with the wrong word the values differ."""
    (neox / "wrong.json").write_text(json.dumps({**NEOX, "use_parallel_residual": False}))
    words = ("--config", neox / "wrong.json", "--vocab-size", 20)
    done = run("verify", neox / "hf", "--against", neox / "src", *words)
    assert done.returncode == 7
    assert "dense_4h_to_h.bias" in done.stdout


@pytest.mark.parametrize("flag", ["--config", "--a-config"])
def test_what_converts_with_a_configuration_is_compared_with_it(flag: str, neox: Path) -> None:
    assert run("diff", neox / "src", neox / "hf").returncode == 3
    done = run("diff", neox / "src", neox / "hf", flag, neox / "config.json", "--vocab-size", 20)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("the parameters are equal")
    swapped = flag.replace("--a-", "--b-")
    assert run("diff", neox / "hf", neox / "src", swapped, neox / "config.json").returncode == 0


def test_what_converts_with_a_configuration_is_inspected_with_it(neox: Path) -> None:
    without = json.loads(run("inspect", neox / "src", "--json").stdout)
    assert without["model"]["ffn"] is None
    assert "cannot be known" in json.dumps(without["findings"])
    words = ("--config", neox / "config.json", "--vocab-size", 20, "--iteration", 77)
    with_it = json.loads(run("inspect", neox / "src", *words, "--json").stdout)
    assert with_it["model"]["ffn"] == 64
    assert with_it["model"]["vocabulary"] == {"stored": 24, "true": 20, "padding": 4}
    assert with_it["model"]["iteration"] == 77
    assert with_it["parallel"]["stages"] == [[0, 1], [2]]
    assert "cannot be known" not in json.dumps(with_it["findings"])


def test_stages_that_a_source_does_not_record_are_said_to_inspect(tmp_path: Path) -> None:
    shutil.copytree(UNEVEN.folder, tmp_path / "src")
    edit_ranks(tmp_path / "src", lambda state: setattr(state["args"], "pp_partition_method", "profile"))
    unknown = json.loads(run("inspect", tmp_path / "src", "--json").stdout)
    assert unknown["parallel"]["stages"] is None
    said = json.loads(run("inspect", tmp_path / "src", "--pp-layers", "1,5,1", "--json").stdout)
    assert [len(layers) for layers in said["parallel"]["stages"]] == [1, 5, 1]


# -- options without effect -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("plan", GPT, "--fork", "2021", "--to", "megatron-legacy"), "--fork 2021: no such choice"),
        (("plan", GPT, "--fork", "bigscience", "--to", "megatron-legacy"), "--fork (the code that loads a Megatron-"),
        (("plan", GPT, "--fork", "bigscience", "--to", "gpt-neox"), "--fork bigscience: no such choice"),
        (("plan", GPT, "--dialect", "bigscience", "--to", "deepspeed"), "--dialect bigscience: no such choice"),
        (("plan", GPT, "--dialect", "2021", "--to", "deepspeed"), "--dialect (the names in a legacy Megatron-LM"),
        (("inspect", GPT / "global_step3", "--a-config", "x"), "--a-config: an option of diff"),
        (("verify", GPT, "--replicated", "median"), "--replicated median: no such choice"),
        (("verify", GPT, "--replicated", "mean"), "--replicated (which copy of a replicated parameter counts) has no"),
        (("bench", ".", "--tp", 2), "--tp (the ranks of a training checkpoint) has no meaning without --src"),
        (("bench", ".", "--to", "hf"), "--to (the format of the result) has no meaning without --src"),
    ],
)  # fmt: skip
def test_an_option_that_would_do_nothing_is_refused(words: tuple[object, ...], error: str) -> None:
    done = run(*words)
    assert done.returncode == 2
    assert f"error: {error}" in done.stderr


def test_an_option_of_a_source_is_refused_where_no_side_has_a_use_for_it(neox: Path) -> None:
    for verb, words in (
        ("verify", (neox / "hf", "--tag", "x")),
        ("inspect", (neox / "hf", "--qkv-layout", "blocks")),
        ("diff", (neox / "hf", neox / "hf", "--glu-order", "gate-up")),
        ("diff", (neox / "hf", neox / "src", "--a-tag", "x")),
        ("verify", (neox / "hf", "--against", neox / "src", "--dst-tag", "x")),
    ):
        done = run(verb, *words)
        assert done.returncode == 2, (verb, words, done.stdout)
        assert "has no meaning for a Hugging Face source" in done.stderr
        assert str(words[-2]) in done.stderr
    lone = run("inspect", next((neox / "hf").glob("*.safetensors")), "--config", neox / "config.json")
    assert lone.returncode == 2
    assert "has no meaning for a lone file" in lone.stderr


# -- the environment --------------------------------------------------------------------------------------------------


def test_every_option_is_also_a_variable() -> None:
    variables = {"STREAMCONV_TP": "1", "STREAMCONV_PP": "3", "STREAMCONV_TO": "Megatron-Legacy", "STREAMCONV_JSON": "1"}
    work = json.loads(run("plan", BLOOM, variables=variables).stdout)["target"]
    assert (work["format"], work["tp"], work["pp"]) == ("megatron-legacy", 1, 3)
    flags_win = json.loads(run("plan", BLOOM, "--pp", 2, variables=variables).stdout)["target"]
    assert (flags_win["tp"], flags_win["pp"]) == (1, 2)
    off = run("plan", BLOOM, variables={**variables, "STREAMCONV_JSON": "0"})
    assert off.stdout.startswith("to      megatron-legacy")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("TP", "two", "STREAMCONV_TP=two: not a whole number"),
        ("TO", "deepspeeed", "did you mean deepspeed?"),
        ("MAX_RAM", "lots", "STREAMCONV_MAX_RAM=lots: not a size"),
        ("NO_ARGS", "perhaps", "STREAMCONV_NO_ARGS=perhaps: neither on nor off"),
    ],
)
def test_a_variable_that_makes_no_sense_is_refused(name: str, value: str, words: str) -> None:
    done = run("plan", BLOOM, variables={f"STREAMCONV_{name}": value})
    assert done.returncode == 2
    assert words in done.stderr


def test_a_variable_without_effect_is_no_mistake() -> None:
    variables = {"STREAMCONV_VPP": "2", "STREAMCONV_FORK": "gpt-neox", "STREAMCONV_DIALECT": "2023-09"}
    for to in ("huggingface", "deepspeed"):
        assert run("plan", GPT, "--to", to, variables=variables).returncode == 0
    assert run("inspect", GPT, variables=variables).returncode == 0
    # Its reader cuts stages as it likes.
    assert run("plan", GPT, "--to", "megatron-core", variables={"STREAMCONV_VPP": "2"}).returncode == 0
    assert run("plan", GPT, "--to", "megatron-core", "--vpp", 2).returncode == 2
    # Only the variable that does not fit is passed over.
    both = {"STREAMCONV_VPP": "2", "STREAMCONV_TP": "1", "STREAMCONV_PP": "2", "STREAMCONV_JSON": "1"}
    target = json.loads(run("plan", GPT, "--to", "megatron-core", variables=both).stdout)["target"]
    assert (target["tp"], target["pp"], target["vpp"]) == (1, 2, 1)
    plain = {"STREAMCONV_TOKENIZER": "no/such/folder", "STREAMCONV_JSON": "1"}
    assert json.loads(run("plan", GPT, "--to", "megatron-core", variables=plain).stdout)["copied"] == []


def test_a_variable_that_does_not_go_with_what_is_said_is_passed_over(tmp_path: Path) -> None:
    def stages(*words: object, **variables: str) -> list[int]:
        said = {f"STREAMCONV_{name}": value for name, value in variables.items()}
        target = json.loads(run("plan", BLOOM, "--json", *words, variables=said).stdout)["target"]
        return list(target["pp_layers"])

    assert stages("--pp-layers", "1,3", PP="3") == [1, 3]
    assert stages("--pp", 3, PP_LAYERS="1,3") == [2, 1, 1]
    assert stages(PP="3", PP_LAYERS="1,3") == [1, 3]
    assert run("plan", BLOOM, "--pp", 3, "--pp-layers", "1,3").returncode == 2
    done = run("convert", BLOOM, tmp_path / "out", variables={"STREAMCONV_TO": "null"})
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "latest_checkpointed_iteration.txt").read_text() == "3"
    assert "nowhere" in run("convert", BLOOM, variables={"STREAMCONV_TO": "null"}).stdout
    picture = {"STREAMCONV_PLOT": str(tmp_path / "x.png"), "STREAMCONV_TARGET_TP": "1", "STREAMCONV_TARGET_PP": "1"}
    layer = BLOOM / "global_step3" / "layer_03-model_00-model_states.pt"
    assert run("inspect", layer, variables=picture).returncode == 0
    assert not (tmp_path / "x.png").exists()
    assert run("inspect", layer, "--target-tp", 1).returncode == 2


def test_what_destroys_is_not_read_from_the_environment(tmp_path: Path) -> None:
    """Nor is a name that is nearly an option; both are said."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "latest_checkpointed_iteration.txt").write_text("3")
    (tmp_path / "out" / "iter_0000003").mkdir()
    variables = {"STREAMCONV_OVERWRITE": "1", "STREAMCONV_RESTART": "1", "STREAMCONV_TPP": "2"}
    done = run("convert", BLOOM, tmp_path / "out", "--max-ram", "1G", variables=variables)
    assert done.returncode == 8
    assert "STREAMCONV_OVERWRITE is not read: say --overwrite on the command line" in done.stderr
    assert "STREAMCONV_RESTART is not read" in done.stderr
    assert "STREAMCONV_TPP is no option: did you mean STREAMCONV_TP?" in done.stderr


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("XYZ", ""),
        ("HOME", ""),
        ("AGAINST", ""),
        ("TPP", ": did you mean STREAMCONV_TP?"),
        ("MAXRAM", ": did you mean STREAMCONV_MAX_RAM?"),
        ("OVERWRITTE", ": did you mean --overwrite?"),
    ],
)
def test_a_variable_is_compared_by_what_tells_it_from_others(name: str, meant: str) -> None:
    """All begin with ``STREAMCONV_``, which makes any two of them alike."""
    variables = {f"STREAMCONV_{name}": "1"}
    assert run("families", variables=variables).stderr == f"warning: STREAMCONV_{name} is no option{meant}\n"
    assert run("families", "-q", variables=variables).stderr == ""


# -- what was meant ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (("pln", BLOOM), "did you mean plan?"),
        (("convrt", "A", "B"), "did you mean convert?"),
        (("-v", "Inspekt", "A"), "did you mean inspect?"),
        (("plan", BLOOM, "--tpp", 2), "did you mean --tp"),
        (("plan", BLOOM, "--to", "deepspeeed"), "did you mean deepspeed?"),
        (("plan", BLOOM, "--dtype", "bf61"), "did you mean bf16?"),
        (("convert", BLOOM, "out", "--overwirte"), "did you mean --overwrite"),
        (("plan", BLOOM, "--overwrite"), "--overwrite: an option of convert"),
        (("families", "--stats"), "--stats: an option of inspect"),
        (("--json", "pln", BLOOM), "did you mean plan?"),
        (("plan",), "see streamconv plan --help"),
        (("diff", "A"), "see streamconv diff --help"),
    ],
)
def test_what_is_nearly_right_is_answered_with_what_was_meant(words: tuple[object, ...], meant: str) -> None:
    done = run(*words)
    assert done.returncode == 2
    assert meant in done.stderr
    assert done.stdout == ""


def test_short_and_large_words_are_taken() -> None:
    for words, said in ((("--to", "hf"), "to      huggingface"), (("--dtype", "BF16"), "cast to bfloat16")):
        done = run("plan", BLOOM, *words)
        assert done.returncode == 0
        assert said in done.stdout


@pytest.mark.parametrize("name", ["plan", "inspect", "pln", "convrt"])
def test_a_folder_that_is_called_as_a_verb_still_converts(name: str, tmp_path: Path) -> None:
    """A word that is a verb is one; the folder beside it is ``./plan``, or stands after the verb."""
    shutil.copytree(BLOOM, tmp_path / name)
    ways = [("convert", tmp_path / name), (f"{tmp_path}/./{name}",)]
    for number, words in enumerate(ways):
        done = run(*words, tmp_path / f"out{number}", "--max-ram", "1G")
        assert done.returncode == 0, done.stderr
        assert (tmp_path / f"out{number}" / "latest_checkpointed_iteration.txt").read_text() == "3"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--json", "plan", BLOOM), '{\n  "source"'),
        (("--tp", 1, "--json", "plan", BLOOM), '{\n  "source"'),
        (("--tp=1", "plan", BLOOM), "to      megatron-legacy"),
        (("-v", "--tensors", "*bias*", "inspect", BLOOM), "Megatron-DeepSpeed"),
        (("--config", "plan", "plan", BLOOM), "no such file"),
    ],
)
def test_options_may_stand_before_the_verb(words: tuple[object, ...], says: str) -> None:
    done = run(*words)
    assert says in f"{done.stdout}{done.stderr}"
    assert done.returncode == (2 if says == "no such file" else 0)


def test_the_remedy_for_a_dst_that_is_discarded_is_one() -> None:
    done = run("convert", BLOOM, "out", "--to", "null")
    assert done.returncode == 2
    assert "discards the result, and takes no DST\n  remedy: leave out DST, or choose another --to\n" in done.stderr


def test_a_folder_whose_name_is_nearly_a_verb_converts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(BLOOM, tmp_path / "pln")
    monkeypatch.chdir(tmp_path)
    assert run("pln", "out", "--max-ram", "1G").returncode == 0
    assert run("plan", "pln").returncode == 0


# -- quiet and help ---------------------------------------------------------------------------------------------------


def test_quiet_prints_nothing_but_errors(tmp_path: Path) -> None:
    done = run("convert", BLOOM, tmp_path / "out", "-q", "--max-ram", "1G")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    for words in (("plan", BLOOM), ("inspect", BLOOM), ("verify", tmp_path / "out", "--against", BLOOM), ("families",)):
        done = run("-q", *words)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    different = run("diff", BLOOM, GPT, "--quiet")
    assert (different.returncode, different.stdout, different.stderr) == (7, "", "")
    wrong = run("plan", tmp_path / "nothing", "-q")
    assert (wrong.returncode, wrong.stdout) == (3, "")
    assert "nothing" in wrong.stderr


@pytest.mark.parametrize("words", [("-q", "-v"), ("-qv",), ("-vvq",), ("--quiet", "--verbose")])
def test_quiet_and_verbose_contradict_each_other(words: tuple[str, ...]) -> None:
    done = run("plan", BLOOM, *words)
    assert done.returncode == 2
    assert "error: -q says nothing and -v says more\n  remedy: say one of them\n" in done.stderr


def test_a_flag_outweighs_the_variable_that_contradicts_it() -> None:
    quiet = run("plan", BLOOM, "-q", variables={"STREAMCONV_VERBOSE": "1"})
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")
    verbose = run("plan", BLOOM, "-v", variables={"STREAMCONV_QUIET": "1"})
    assert "planned <Plan: BLOOM" in verbose.stderr
    assert verbose.stdout.startswith("to      megatron-legacy")


@pytest.mark.parametrize("words", [("-vv",), ("-vvv",), ("-v", "-v"), ("--verbose", "-v")])
def test_twice_verbose_prints_tracebacks_however_it_is_said(words: tuple[str, ...]) -> None:
    assert "Traceback" in run("plan", "nothing", *words).stderr
    assert "Traceback" in run(*words, "plan", "nothing").stderr
    assert "Traceback" not in run("plan", "nothing", *words[:-1], *(["-v"] if words[1:] == () else [])).stderr


def test_the_variable_of_verbosity_prints_tracebacks_too() -> None:
    for value, says in (("2", True), ("3", True), ("1", False), ("0", False)):
        done = run("plan", "nothing", variables={"STREAMCONV_VERBOSE": value})
        assert done.returncode == 3
        assert ("Traceback" in done.stderr) == says, value
    assert "not a whole number" in run("plan", "nothing", variables={"STREAMCONV_VERBOSE": "lots"}).stderr


def test_every_verb_says_what_it_did(tmp_path: Path) -> None:
    for words, said in (
        (("inspect", BLOOM), "inspected <InspectionReport: "),
        (("verify", BLOOM), "verified <Verification: whole"),
        (("diff", BLOOM, BLOOM), "compared <Comparison: the parameters are equal"),
        (("bench", tmp_path, "--size", "1M"), "measured <DiskReport: "),
        (("families",), "listed <FamilyTable: "),
    ):
        assert said in run(*words, "-v").stderr
        assert said not in run(*words).stderr


def test_verbose_says_what_happens_meanwhile(tmp_path: Path) -> None:
    said = run("-v", "convert", BLOOM, tmp_path / "out", "--max-ram", "1G").stderr
    assert "planned <Plan: BLOOM" in said
    assert "converted <ConversionReport: megatron-legacy" in said
    assert "planned" not in run("convert", BLOOM, "--to", "null", "--max-ram", "1G").stderr


def section(text: str, title: str) -> set[str]:
    """The flags in a section of a help."""
    lines = text.partition(f"{title}:\n")[2].partition("\n\n")[0].splitlines()
    return {word for line in lines if (words := line.split()) for word in words[:2] if word.startswith("--")}


def test_help_shows_what_matters_first_and_a_targets_own_with_it() -> None:
    plain = run("convert", "--help").stdout
    assert section(plain, "Options that matter first") == {
        *(
            "--to",
            "--dtype",
            "--tp",
            "--pp",
            "--config",
            "--max-ram",
            "--overwrite",
            "--restart",
            "--dry-run",
            "--json",
        ),
        *("--weights", "--tensors", "--skip"),
    }
    for flag in ("--container", "--fork", "--dialect", "--tokenizer", "--vpp"):
        assert flag not in plain
    core = run("convert", "--to", "megatron-core", "--help").stdout
    assert {"--container", "--spec", "--megatron-version", "--vpp"} < section(core, "Options of --to megatron-core")
    assert "--fork" not in core
    deepspeed = run("plan", "--help", "--to=deepspeed").stdout
    assert "--fork" in section(deepspeed, "Options of --to deepspeed")
    assert "gpt-neox-2024-08" not in deepspeed


@pytest.mark.parametrize(
    ("words", "target"),
    [
        (("convert", "--help", "--to", "hf"), "huggingface"),
        (("plan", "-h", "--to=mcore"), "megatron-core"),
        (("--to", "NEOX", "convert", "--help"), "gpt-neox"),
        (("--help", "--to", "hf"), "huggingface"),
        (("--help", "plan", "--to", "transformers"), "huggingface"),
        (("convert", "--help", "--to", "deepspeeed"), "deepspeed"),
    ],
)
def test_help_knows_a_target_by_all_its_names(words: tuple[str, ...], target: str) -> None:
    done = run(*words)
    assert done.returncode == 0
    assert section(done.stdout, f"Options of --to {target}")
    assert done.stdout.startswith(f"Usage: streamconv {'plan' if 'plan' in words else 'convert'} ")


def test_help_of_a_verb_may_be_asked_before_it() -> None:
    assert run("--help", "inspect").stdout == run("inspect", "--help").stdout
    assert run("-v", "-h").stdout == run("--help", "no/such/folder").stdout == run().stdout


# -- one field --------------------------------------------------------------------------------------------------------

FIELD = """    colour: str | None = option(
        Choice(("red", "green")), "the colour of the result", purpose="the colour of a Megatron-DeepSpeed folder"
    )
"""
ASK = """
import sys
sys.path.insert(0, {root!r})
import json, streamconv
from streamconv.cli.main import main
from docs import options
errors = []
for to, colour in (("deepspeed", "Red"), ("deepspeed", "blue"), ("hf", "red")):
    try:
        streamconv.plan({source!r}, to=to, colour=colour)
        errors.append(None)
    except streamconv.UsageError as error:
        errors.append(error.what)
parameters = list(streamconv.plan.__signature__.parameters)
answer = {{"errors": errors, "parameters": parameters, "page": options.page(), "types": options.types()}}
print(json.dumps({{**answer, "doc": streamconv.convert.__doc__}}))
"""


@pytest.fixture(scope="module")
def coloured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package with one field more, and no other change."""
    root = tmp_path_factory.mktemp("coloured")
    shutil.copytree(ROOT / "streamconv", root / "streamconv", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "docs", root / "docs", ignore=shutil.ignore_patterns("__pycache__"))
    path = root / "streamconv" / "formats" / "deepspeed" / "options.py"
    text = path.read_text()
    before = "\n\nSOURCE_OPTIONS"
    assert text.count(before) == 1
    path.write_text(text.replace(before, f"{FIELD}{before}"))
    return root


def asked(root: Path, *words: object, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "streamconv", *map(str, words)]
    environment = {**os.environ, "PYTHONPATH": str(root), **variables}
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_an_option_is_one_field(coloured: Path) -> None:
    """It is a flag, a variable, a keyword, a row of the table, a type and a completion, and refused where useless."""
    assert asked(coloured, "plan", GPT, "--to", "deepspeed", "--colour", "GREEN").returncode == 0
    wrong = asked(coloured, "plan", GPT, "--to", "deepspeed", "--colour", "gren")
    assert (wrong.returncode, "did you mean green?" in wrong.stderr) == (2, True)
    useless = asked(coloured, "plan", GPT, "--to", "huggingface", "--colour", "green")
    assert useless.returncode == 2
    assert "--colour (the colour of a Megatron-DeepSpeed folder) has no meaning with --to huggingface" in useless.stderr
    ambient = asked(coloured, "plan", GPT, "--to", "deepspeed", STREAMCONV_COLOUR="blue")
    assert (ambient.returncode, "STREAMCONV_COLOUR=blue: no such choice" in ambient.stderr) == (2, True)
    assert asked(coloured, "plan", GPT, "--to", "huggingface", STREAMCONV_COLOUR="red").returncode == 0
    assert "--colour" in asked(coloured, "convert", "--to", "deepspeed", "--help").stdout
    words = {"COMP_WORDS": "streamconv plan X --colour g", "COMP_CWORD": "4"}
    completed = asked(coloured, _STREAMCONV_COMPLETE="bash_complete", **words)
    assert completed.stdout.split() == ["plain,green"]
    code = ASK.format(root=str(coloured), source=str(GPT))
    done = subprocess.run([sys.executable, "-c", code], cwd=coloured, capture_output=True, text=True, check=True)
    answer = json.loads(done.stdout)
    assert answer["errors"][0] is None
    assert answer["errors"][1] == "colour='blue': no such choice"
    assert answer["errors"][2].startswith("colour (the colour of a Megatron-DeepSpeed folder) has no meaning with")
    assert "colour" in answer["parameters"]
    assert (
        "| `--colour WORD` | `colour` | `STREAMCONV_COLOUR` | the colour of the result: `red`, `green` |"
        in answer["page"]
    )
    assert "    colour: str | None\n" in answer["types"]
    assert "        colour: the colour of the result." in answer["doc"]


def test_the_table_and_the_types_are_those_of_the_declarations() -> None:
    """``python docs/options.py`` writes them."""
    from docs import options

    assert options.PAGE.read_text() == options.page()
    assert options.TYPES.read_text() == options.types()


def test_python_reads_no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAMCONV_TP", "1")
    assert streamconv.plan(BLOOM).target_layout.tp == 2
