"""What an error says to do can be done: the words are those of the command, and of the side, that is meant."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

import streamconv
from tests.places import FRAMEWORKS
from tests.processes import run_main as run

BLOOM = FRAMEWORKS / "bs_bloom_tp2pp2_fp32_z0"
SCRIPT = "streamconv.bigscience.deepspeed_to_megatron"
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z_-]*[a-z]")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """BLOOM as a Hugging Face folder."""
    folder = tmp_path_factory.mktemp("remedies") / "plain"
    streamconv.convert(BLOOM, folder, to="huggingface")
    return folder


@pytest.fixture(scope="module")
def adapted(plain: Path) -> Path:
    """The same with an adapter beside the model."""
    folder = Path(shutil.copytree(plain, plain.parent / "adapted"))
    (folder / "adapter_config.json").write_text("{}")
    return folder


@pytest.mark.parametrize("side", ["a", "b"])
def test_what_one_side_alone_has_is_ignored_on_that_side(side: str, plain: Path, adapted: Path) -> None:
    sides = (adapted, plain) if side == "a" else (plain, adapted)
    refused = run("diff", *sides)
    assert refused.returncode == 3
    remedy = re.search(r"remedy: .*, or go without it: (--.*)\n", refused.stderr)
    assert remedy
    assert remedy[1] == f"--{side}-ignore adapter"
    followed = run("diff", *sides, *remedy[1].split())
    assert followed.returncode == 0, followed.stderr
    with pytest.raises(streamconv.AmbiguousError) as caught:
        streamconv.diff(*sides)
    assert str(caught.value.remedy).endswith(f'go without it: {side}_ignore="adapter"')


def test_the_tag_of_each_side_is_named_by_its_own_flag() -> None:
    for words, flag in (
        (("verify", BLOOM, "--against", BLOOM, "--dst-tag", "x"), "--dst-tag"),
        (("verify", BLOOM, "--against", BLOOM, "--tag", "x"), "--tag"),
        (("verify", BLOOM, "--tag", "x"), "--tag"),
        (("diff", BLOOM, BLOOM, "--a-tag", "x"), "--a-tag"),
        (("diff", BLOOM, BLOOM, "--b-tag", "x"), "--b-tag"),
        (("inspect", BLOOM, "--tag", "x"), "--tag"),
    ):
        done = run(*words)
        assert done.returncode == 3
        assert done.stderr.endswith(f"remedy: name one with {flag}: global_step3\n")


def test_the_options_that_stages_need_are_named_for_their_side(tmp_path: Path) -> None:
    lost = Path(shutil.copytree(FRAMEWORKS / "dsp_gpt_nopipe_tp2_fp32_z0", tmp_path / "lost"))
    (lost / "latest").write_text("nothing")
    for words, flag in ((("diff", BLOOM, lost), "--b-tag"), (("diff", lost, BLOOM), "--a-tag")):
        assert f"name one with {flag}: global_step3" in run(*words).stderr


def test_a_finding_about_dst_names_dsts_option(tmp_path: Path) -> None:
    for name in ("global_step3", "global_step4"):
        shutil.copytree(BLOOM / "global_step3", tmp_path / "root" / name)
    for words, flag in ((("--against", BLOOM), "--dst-tag"), ((), "--tag")):
        done = run("verify", tmp_path / "root", *words)
        assert f"remedy: choose with {flag}\n" in done.stdout
        chosen = run("verify", tmp_path / "root", *words, flag, "global_step3")
        assert chosen.returncode == 0, chosen.stderr
        assert "choose with" not in chosen.stdout


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("--target_tp", 3), "remedy: choose a --target_tp that divides 4\n"),
        (("--target_pp", 9), "error: --target_pp 9: the model has 4 layers\n"),
        (("--target_tp", 0), "error: --target_tp 0: must be at least 1\n"),
        (("--max-ram", "8M"), "error: 8.00 MiB (--max-ram 8M) is below"),
        ((), "remedy: choose another folder, or --overwrite to replace it"),
    ],
)
def test_bigsciences_command_names_its_own_flags(words: tuple[object, ...], error: str, tmp_path: Path) -> None:
    (tmp_path / "out" / "iter_0000003").mkdir(parents=True)
    (tmp_path / "out" / "latest_checkpointed_iteration.txt").write_text("3")
    done = run("--input_folder", BLOOM, "--output_folder", tmp_path / "out", *words, module=SCRIPT)
    assert done.returncode in (2, 3, 4, 8)
    said = done.stderr[done.stderr.index("error: ") :]
    assert error in said
    has = set(FLAG.findall(run("--help", module=SCRIPT).stdout))
    assert set(FLAG.findall(said)) <= has


def test_bigsciences_command_says_where_a_flag_is_that_it_lacks(tmp_path: Path) -> None:
    lost = Path(shutil.copytree(BLOOM, tmp_path / "lost"))
    (lost / "latest").write_text("nothing")
    done = run("--input_folder", lost, "--output_folder", tmp_path / "out", module=SCRIPT)
    assert done.stderr.endswith("remedy: name one with --tag: global_step3 (`streamconv convert` has --tag)\n")


def test_a_flag_that_is_said_as_a_keyword_is_answered_with_the_keyword() -> None:
    with pytest.raises(streamconv.UsageError) as caught:
        streamconv.plan(BLOOM, no_args=True)  # type: ignore[call-arg]
    assert str(caught.value) == "no_args: no such option\n  remedy: say keep_args=False"
    assert streamconv.plan(BLOOM, keep_args=False).warnings == ()
