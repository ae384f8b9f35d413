"""A mechanism that Megatron-Core lists is in its arguments and flags, and where one spec lacks it, refused there."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from streamconv import convert, plan
from streamconv.core.errors import UnsupportedError
from streamconv.models import families
from streamconv.models.registry import known_families
from tests.formats.megatron import rank_files as files
from tests.formats.megatron.models import CORE, MULTIPLE, Case, case_of, check_hugging_face, to_torch
from tests.formats.megatron.rank_files import even

# Llama with norms that are stored less 1, which no family here is.
LESS_ONE = """
from dataclasses import replace
from streamconv.models.config.settings import Fixed
from streamconv.models.families import llama
from streamconv.models.mechanisms import NORMS_LESS_ONE

_LLAMA = llama.FAMILY.huggingface
_OTHERS = [setting for setting in _LLAMA.settings if getattr(setting, "arg", None) != "apply_layernorm_1p"]
FAMILY = replace(
    llama.FAMILY,
    name="less_one",
    title="Less One",
    mechanisms=llama.MECHANISMS | {NORMS_LESS_ONE},
    huggingface=replace(_LLAMA, model_type="less_one", settings=(*_OTHERS, Fixed("apply_layernorm_1p", True))),
    only_named=True,
)
"""


@pytest.fixture
def case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Case]:
    folder = tmp_path / "families"
    folder.mkdir()
    (folder / "less_one.py").write_text(LESS_ONE)
    monkeypatch.setattr(families, "__path__", [*families.__path__, str(folder)])
    known_families.cache_clear()
    found = case_of("less_one", head=True)
    found.save(tmp_path / "hf")
    yield found
    sys.modules.pop("streamconv.models.families.less_one")
    known_families.cache_clear()


def test_norms_less_one_are_said_and_come_back(case: Case, tmp_path: Path) -> None:
    to_torch(tmp_path / "hf", tmp_path / "out", even(2, 2), config=MULTIPLE)
    args = files.read_ranks(tmp_path / "out", even(2, 2))[0, 0]["args"]
    assert (args.apply_layernorm_1p, args.normalization) == (True, "RMSNorm")
    check_hugging_face(tmp_path / "out", tmp_path / "back", case, config=tmp_path / "hf" / "config.json")


def test_the_flags_say_what_args_would(case: Case, tmp_path: Path) -> None:
    (flags,) = [
        note.what for note in plan(tmp_path / "hf", to="megatron-core", keep_args=False).notes if "flags" in note.what
    ]
    assert " --apply-layernorm-1p " in flags


@pytest.mark.parametrize("container", ["torch", "torch_dist"])
def test_the_local_specs_rmsnorm_has_no_such_norms(container: str, case: Case, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"spec=\"local\": .* has no norms stored less 1") as caught:
        plan(tmp_path / "hf", to="megatron-core", container=container, spec="local")
    assert caught.value.remedy == 'say spec="te"'


def test_without_a_name_such_a_folder_is_no_llama(case: Case, tmp_path: Path) -> None:
    convert(tmp_path / "hf", tmp_path / "out", config=MULTIPLE, **CORE)
    words = r"norms stored less 1 \(args.apply_layernorm_1p is True\): not translated for the family Llama"
    with pytest.raises(UnsupportedError, match=words):
        plan(tmp_path / "out", to="huggingface")


@pytest.mark.parametrize("target", ["megatron-legacy", "deepspeed"])
def test_others_do_not_run_it(target: str, case: Case, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="has no norms stored less 1"):
        plan(tmp_path / "hf", to=target)
