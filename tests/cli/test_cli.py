"""The command line as a person or a script meets it: real processes, their output and exit codes."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from streamconv.core.work_folder import RECEIPT
from tests import oracle
from tests.places import FRAMEWORKS, REAL
from tests.processes import STREAMCONV, start
from tests.processes import run_main as run
from tests.trees import tree

BLOOM = REAL[1]
NAMES = ["iter_0000003", "latest_checkpointed_iteration.txt", RECEIPT]
SCRIPT = "streamconv.bigscience.deepspeed_to_megatron"
PROGRAM = [sys.executable, "-c"]


def test_without_a_verb_it_converts(tmp_path: Path) -> None:
    done = start(STREAMCONV, "--max-ram", "1G", BLOOM.folder, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"wrote   {tmp_path / 'out'}")
    assert "peak" in done.stdout
    assert "source  " in done.stderr
    model = oracle.result_model(oracle.result_files(tmp_path / "out", 2, 2))
    oracle.assert_same_model(model, oracle.source_model(BLOOM.folder))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == NAMES


def test_plan_and_dry_run_print_the_same_and_write_nothing(tmp_path: Path) -> None:
    options = ("--to", "megatron-legacy", "--tp", "2", "--pp", "3", "--max-ram", "1G")
    planned = run("plan", BLOOM.folder, *options)
    dry = run("convert", BLOOM.folder, tmp_path / "out", *options, "--dry-run")
    assert planned.returncode == dry.returncode == 0
    assert "TP 2 x PP 3 (stages of 2,1,1 layers)" in planned.stdout
    assert not (tmp_path / "out").exists()

    def settled(text: str) -> list[str]:
        return [line for line in text.splitlines() if not line.startswith("memory")]

    assert settled(planned.stdout) == settled(dry.stdout)


def test_json_is_for_machines(tmp_path: Path) -> None:
    planned = json.loads(run("plan", BLOOM.folder, "--json", "--tp", 1).stdout)
    assert planned["target"]["tp"] == 1
    assert planned["source"]["family"] == "BLOOM"
    assert planned["coverage"]["consumed"] + planned["coverage"]["left_out"] == 106
    assert {"name", "nbytes", "reason"} == set(planned["dropped"][0])
    done = run("convert", BLOOM.folder, tmp_path / "out", "--json", "--max-ram", "1G")
    report = json.loads(done.stdout)
    assert done.stderr == ""
    assert report["write_nbytes"] == sum(
        path.stat().st_size for path in (tmp_path / "out").rglob("*") if path.is_file() and path.name != RECEIPT
    )
    assert 0 < report["peak_nbytes"] < report["budget_nbytes"] == 1 << 30


def test_the_engine_that_is_asked_for_is_the_one_that_runs(tmp_path: Path) -> None:
    for engine, threads in (("serial", {1}), ("threads", {2, 4})):
        done = run("convert", BLOOM.folder, "--to", "null", "--engine", engine, "--max-ram", "1G", "--json")
        report = json.loads(done.stdout)
        assert report["engine"] == engine
        assert report["threads"] in threads
    assert "1 thread, blocks of" in run(BLOOM.folder, tmp_path / "out", "--engine", "serial").stdout


def test_the_old_scripts_command_keeps_its_defaults_and_says_so(tmp_path: Path) -> None:
    words = ("--input_folder", BLOOM.folder, "--output_folder", tmp_path / "out", "--for_release")
    done = run(*words, module=SCRIPT)
    assert done.returncode == 0, done.stderr
    assert "TP 1 and PP 1, this script's defaults" in done.stderr
    files = oracle.result_files(tmp_path / "out", 1, 1)
    assert files[0, 0]["args"].consumed_train_samples == 0
    again = run(*words, "--target_tp", 2, "--target_pp", 2, "--overwrite", module=SCRIPT)
    assert again.returncode == 0, again.stderr
    assert "defaults" not in again.stderr
    oracle.result_files(tmp_path / "out", 2, 2)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["plan"], 2, "SRC"),
        (["plan", "{bloom}", "--tp", "0"], 2, "--tp 0"),
        (["plan", "{bloom}", "--iteration", "-1"], 2, "--iteration -1"),
        (["plan", "{bloom}", "--dtype", "int4"], 2, "--dtype int4"),
        (["plan", "{bloom}", "--max-ram", "lots"], 2, "--max-ram lots"),
        (["plan", "{bloom}", "--to", "onnx"], 2, "--to onnx"),
        (["plan", "{bloom}", "--dialect", "1999"], 2, "--dialect 1999"),
        (["plan", "{bloom}", "--pp", "5"], 2, "4 layers"),
        (["plan", "{bloom}", "--pp-layers", "1,2"], 2, "adds up to 3"),
        (["plan", "{bloom}", "--pp-layers", "1;3"], 2, "list of numbers"),
        (["convert", "{bloom}", "{out}", "--io", "telepathy"], 2, "--io telepathy"),
        (["convert", "{bloom}", "{out}", "--io", "mmap"], 2, "choose one of direct, pread"),
        (["convert", "{bloom}", "{out}", "--engine", "gpu"], 2, "choose one of serial, threads"),
        (["convert", "{bloom}", "{out}", "--engine", "serial", "--jobs", "2"], 2, "--jobs 2: the engine serial"),
        (["plan", "{out}"], 3, "no such folder"),
        (["plan", "{core}"], 3, "number of attention heads is unknown"),
        (["plan", "{bloom}", "--tp", "3"], 3, "do not divide"),
        (["convert", "{bloom}", "{out}", "--max-ram", "8M"], 4, "workable floor"),
        (["convert", "{bloom}", "{bloom}"], 8, "never written"),
    ],
)
def test_exit_codes_and_messages(words: list[str], code: int, message: str, tmp_path: Path) -> None:
    places = {"bloom": BLOOM.folder, "core": FRAMEWORKS / "mcore_llama_dist_tp2pp2", "out": tmp_path / "out"}
    done = run(*(word.format(**places) for word in words))
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.disk
def test_the_floor_that_is_said_is_a_floor_that_works(tmp_path: Path) -> None:
    refused = start(STREAMCONV, BLOOM.folder, tmp_path / "out", "--max-ram", "8M")
    floor = refused.stderr.split("say --max-ram ")[1].split()[0]
    done = start(STREAMCONV, BLOOM.folder, tmp_path / "out", "--max-ram", floor, "--json")
    if "below the workable floor" in done.stderr:  # the interpreter itself varies by a page or two
        floor = f"{int(floor[:-1]) + 1}M"
        done = start(STREAMCONV, BLOOM.folder, tmp_path / "out", "--max-ram", floor, "--json")
    report = json.loads(done.stdout)
    assert report["peak_nbytes"] <= int(floor[:-1]) << 20


def test_damage_is_exit_code_6_and_leaves_nothing(tmp_path: Path) -> None:
    root = Path(shutil.copytree(BLOOM.folder, tmp_path / "copy"))
    path = root / "global_step3" / "layer_03-model_00-model_states.pt"
    path.write_bytes(path.read_bytes()[:-3000])
    done = run(root, tmp_path / "out")
    assert done.returncode == 6
    assert path.name in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_traceback_only_with_vv() -> None:
    assert "Traceback" in run("plan", FRAMEWORKS / "z1_bf16", "-vv").stderr
    assert "Traceback" in run("-vv", "plan", FRAMEWORKS / "z1_bf16").stderr
    assert "Traceback" not in run("plan", FRAMEWORKS / "z1_bf16", "-v").stderr


def test_verbose_lists_every_file() -> None:
    assert run("plan", BLOOM.folder, "-v").stdout.count("model_optim_rng.pt") == 4


def test_an_existing_checkpoint_is_replaced_only_with_overwrite(tmp_path: Path) -> None:
    assert run(BLOOM.folder, tmp_path / "out").returncode == 0
    before = tree(tmp_path / "out")
    refused = run(BLOOM.folder, tmp_path / "out", "--tp", 1)
    assert refused.returncode == 8
    assert "--overwrite" in refused.stderr
    assert before == tree(tmp_path / "out")
    assert run(BLOOM.folder, tmp_path / "out", "--tp", 1, "--pp", 1, "--overwrite").returncode == 0
    oracle.result_files(tmp_path / "out", 1, 1)


def test_a_failed_overwrite_keeps_the_old_checkpoint(tmp_path: Path) -> None:
    assert run(BLOOM.folder, tmp_path / "out").returncode == 0
    before = tree(tmp_path / "out")
    root = Path(shutil.copytree(BLOOM.folder, tmp_path / "copy"))
    path = root / "global_step3" / "layer_06-model_00-model_states.pt"
    data = bytearray(path.read_bytes())
    data[20000] ^= 1
    path.write_bytes(data)
    assert run(root, tmp_path / "out", "--overwrite").returncode == 6
    assert before == tree(tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_an_interrupted_run_publishes_nothing_and_the_next_goes_on(number: int, code: int, tmp_path: Path) -> None:
    program = (
        "import signal, sys, time\n"
        "from streamconv.execution.tile_worker import TileWorker\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a background shell starts us with it ignored
        "work = TileWorker.run\n"
        "TileWorker.run = lambda self, *rest: (time.sleep(0.2), work(self, *rest))[1]\n"
        "from streamconv.cli.main import main\n"
        "sys.exit(main())\n"
    )
    command = [*PROGRAM, program, str(BLOOM.folder), str(tmp_path / "out")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "out" / ".streamconv" / "journal").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert "the same command goes on where this ended" in errors
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".streamconv"]
    assert run(BLOOM.folder, tmp_path / "out").returncode == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == NAMES


@pytest.mark.slow
def test_converting_never_imports_torch(tmp_path: Path) -> None:
    program = (
        "import sys\nfrom streamconv.cli.main import main\n"
        "assert main() == 0\n"
        "assert 'torch' not in sys.modules and 'deepspeed' not in sys.modules\n"
    )
    done = start([*PROGRAM, program], BLOOM.folder, tmp_path / "out", "--tp", 1, "--dtype", "bf16")
    assert done.returncode == 0, done.stderr


def test_help_does_not_wait_for_numpy() -> None:
    program = (
        "import sys\nfrom streamconv.cli.main import main\ntry:\n main()\nfinally:\n assert 'numpy' not in sys.modules"
    )
    for words in ((), ("--help",), ("convert", "--help"), ("plan", "--help"), ("--version",)):
        done = start([*PROGRAM, program], *words)
        assert done.returncode == 0, done.stderr
        assert done.stdout


def test_null_runs_all_and_writes_nothing(tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    done = run("convert", BLOOM.folder, "--to", "null", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["destination"] is None
    assert report["read_nbytes"] > 200_000
    assert report["records"]["checked"] > 70
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("words", [("--to", "null", "out"), ()])
def test_a_destination_is_said_or_not_wanted(words: tuple[str, ...], tmp_path: Path) -> None:
    done = run("convert", BLOOM.folder, *(str(tmp_path / word) if word == "out" else word for word in words))
    assert done.returncode == 2
    assert "DST" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.disk
@pytest.mark.parametrize("io", ["direct", "pread"])
def test_a_disk_is_measured_and_a_conversion_predicted(io: str, tmp_path: Path) -> None:
    words = ("bench", tmp_path, "--size", "1M", "--src", BLOOM.folder, "--io", io, "--jobs", "1", "--json")
    done = run(*words)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["nbytes"], report["io"], report["threads"]) == (1 << 20, io, 1)
    assert min(report["read"], report["write"], report["copy"]) > 0
    moved = report["prediction"]["read_nbytes"], report["prediction"]["write_nbytes"]
    planned = json.loads(run("plan", BLOOM.folder, "--json").stdout)
    assert moved == (planned["read_nbytes"], planned["write_nbytes"])
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_none_is_not_measured(tmp_path: Path) -> None:
    assert run("bench", tmp_path / "nowhere").returncode == 8
    done = run("bench", tmp_path, "--size", "9000T")
    assert done.returncode == 4
    assert "say a smaller --size" in done.stderr


@pytest.mark.slow
def test_options_may_stand_between_source_and_destination(tmp_path: Path) -> None:
    assert run("convert", BLOOM.folder, "--tp", "1", tmp_path / "out").returncode == 0
    assert run("convert", BLOOM.folder, tmp_path / "out", "--tpp", "1").returncode == 2
    assert run("convert", BLOOM.folder, "--tp", "1", tmp_path / "a", tmp_path / "b").returncode == 2
