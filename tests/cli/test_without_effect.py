"""Options that would do nothing with what is opened: each is refused, and the remedy names the one that would do it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import streamconv
from streamconv.core.options import options_of
from streamconv.formats.megatron.core.options import SOURCE_OPTIONS as OF_MEGATRON_CORE
from streamconv.formats.options import SourceOptions
from tests.places import FRAMEWORKS
from tests.processes import run_main as run

BLOOM = FRAMEWORKS / "bs_bloom_tp2pp2_fp32_z0"
TORCH_DIST = FRAMEWORKS / "mcore_llama_dist_tp2pp2"
ZERO = FRAMEWORKS / "z1_bf16"
# A value that each option of a source can have.
VALUES = {"config": {}, "pp_layers": (1, 3), "qkv_layout": "blocks", "glu_order": "gate-up", "iteration": 7}
VALUES |= {"vocab_size": 20, "num_heads": 4}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """BLOOM as a Hugging Face folder."""
    folder = tmp_path_factory.mktemp("whole") / "hf"
    streamconv.convert(BLOOM, folder, to="huggingface")
    return folder


@pytest.mark.parametrize(
    ("name", "value"), [("tag", "global_step3"), ("qkv_layout", "interleaved"), ("pp_layers", (2, 2))]
)
def test_an_option_that_only_dst_has_is_refused_with_the_name_of_dsts_own(
    name: str, value: object, whole: Path
) -> None:
    options: dict[str, Any] = {name: value}
    words = rf"^{name} \(.*\) has no meaning for a Hugging Face source"
    with pytest.raises(streamconv.UsageError, match=words) as caught:
        streamconv.verify(BLOOM, whole, **options)
    assert caught.value.remedy == f"leave it out, or say dst_{name} for DST"
    of_dst: dict[str, Any] = {f"dst_{name}": value}
    assert streamconv.verify(BLOOM, whole, **of_dst).exit_code == 0


def test_what_is_true_of_both_is_refused_by_neither(whole: Path) -> None:
    for dst, src in ((BLOOM, whole), (whole, BLOOM)):
        assert streamconv.verify(dst, src, num_heads=4, vocab_size=100).exit_code == 0
    assert streamconv.diff(whole, BLOOM, num_heads=4, qkv_layout="interleaved").is_equal


@pytest.mark.parametrize("verb", ["inspect", "verify"])
def test_a_tag_that_is_said_gives_the_evidence_that_latest_gives(verb: str) -> None:
    def seen(**options: str) -> dict[str, object]:
        result: dict[str, object] = json.loads(json.dumps(getattr(streamconv, verb)(BLOOM, **options).to_dict()))
        return result

    assert seen(tag="global_step3") == seen()


@pytest.mark.parametrize("verb", ["inspect", "verify"])
@pytest.mark.parametrize("name", [each.name for each in options_of(OF_MEGATRON_CORE) if each.name != "tag"])
def test_a_torch_dist_folder_is_shown_as_it_is_stored(verb: str, name: str) -> None:
    _refused(verb, TORCH_DIST, name)


@pytest.mark.parametrize("verb", ["inspect", "verify"])
@pytest.mark.parametrize("name", [each.name for each in options_of(SourceOptions)])
def test_a_hugging_face_folder_is_shown_as_it_is_stored(verb: str, name: str, whole: Path) -> None:
    _refused(verb, whole, name)


@pytest.mark.parametrize("name", sorted(VALUES.keys() - {"config"}))
def test_a_run_of_deepspeed_is_shown_by_its_own_names(name: str) -> None:
    _refused("inspect", ZERO, name)


def _refused(verb: str, path: Path, name: str) -> None:
    with pytest.raises(
        streamconv.UsageError,
        match=rf"^{name} \(.*\) has no (effect: .* is shown|meaning (without|for a plain DeepSpeed))",
    ):
        getattr(streamconv, verb)(path, **{name: VALUES[name]})


@pytest.mark.parametrize(("name", "value"), [("max_ram", "1G"), ("io", "pread"), ("jobs", 2)])
def test_how_values_are_read_says_nothing_where_none_are(name: str, value: object) -> None:
    options: dict[str, Any] = {name: value}
    with pytest.raises(streamconv.UsageError, match=rf"^{name} \(.*\) has no meaning without stats=True or check=True"):
        streamconv.inspect(BLOOM, **options)
    assert streamconv.inspect(BLOOM, check=True, **options).exit_code == 0


@pytest.mark.parametrize("name", ["vocab_size", "dst_vocab_size", "replicated"])
def test_what_only_a_comparison_reads_is_refused_without_one(name: str) -> None:
    options: dict[str, Any] = {name: "mean" if name == "replicated" else 100}
    with pytest.raises(streamconv.UsageError, match=rf"^{name} \(.*\) has no meaning without against"):
        streamconv.verify(BLOOM, **options)


def test_variables_are_passed_over_whatever_side_they_are_for(whole: Path) -> None:
    variables = {"STREAMCONV_A_TAG": "x", "STREAMCONV_B_QKV_LAYOUT": "blocks", "STREAMCONV_DST_VOCAB_SIZE": "3"}
    variables |= {"STREAMCONV_DST_NUM_HEADS": "4", "STREAMCONV_JOBS": "2", "STREAMCONV_VOCAB_SIZE": "100"}
    assert run("diff", whole, whole, variables=variables).returncode == 0
    for verb, path in (("inspect", whole), ("inspect", TORCH_DIST), ("verify", TORCH_DIST), ("inspect", ZERO)):
        done = run(verb, path, variables=variables)
        assert done.returncode == 0, done.stderr
