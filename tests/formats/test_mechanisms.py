"""What no format lists, no format takes: every source and target against every family, with one mechanism more."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from itertools import chain

import pytest

from streamconv.formats.common.refusals import Run, Runs, refusal_of
from streamconv.formats.deepspeed.forks import FORKS
from streamconv.formats.gpt_neox.refusals import RUNS as GPT_NEOX
from streamconv.formats.megatron.core.refusals import RUNS as CORE
from streamconv.formats.megatron.legacy.refusals import AGES, BIGSCIENCE, MEGATRON_LM
from streamconv.formats.registry import known_sources, known_targets
from streamconv.formats.source import SourceFormat
from streamconv.formats.target import TargetFormat
from streamconv.models.family import ModelFamily
from streamconv.models.mechanisms import EXCLUSIVE, KNOWN, NORMS_LESS_ONE, Mechanism
from streamconv.models.registry import known_families
from tests.places import ROOT

INVENTED = Mechanism("invented", "wheels within wheels")
# transformers runs every family by definition: it is transformers' model whose mechanisms a family states.
EXEMPT = {"huggingface", "deepspeed-zero", "safetensors", "pytorch-bin"}
FORMATS: list[SourceFormat | TargetFormat] = [
    *(source for source in known_sources() if source.holds_models),
    *known_targets(),
]
TABLES: Mapping[str, Runs] = {
    "megatron-core": CORE,
    "megatron-legacy": MEGATRON_LM,
    "megatron-legacy for bigscience": BIGSCIENCE,
    "gpt-neox": GPT_NEOX,
    **{fork.name: fork.runs for fork in FORKS.values()},
}


@pytest.mark.parametrize("family", known_families(), ids=lambda family: family.name)
@pytest.mark.parametrize("one", FORMATS, ids=lambda one: f"{type(one).__name__}-{one.name}")
def test_a_mechanism_that_is_not_listed_is_refused_in_its_words(
    one: SourceFormat | TargetFormat, family: ModelFamily
) -> None:
    stranger = replace(family, mechanisms=family.mechanisms | {INVENTED})
    refusal = one.refusal(stranger)
    if one.name in EXEMPT:
        assert refusal is None
    else:
        assert refusal is not None
        assert f"no {INVENTED.words}" in refusal


def test_of_several_codes_the_one_that_lacks_least_is_spoken_of() -> None:
    (family,) = [family for family in known_families() if family.name == "llama"]
    most = {mechanism: Run("1", "a.py") for mechanism in family.mechanisms}
    first, *_ = sorted(family.mechanisms, key=KNOWN.index)
    fewer = {mechanism: run for mechanism, run in most.items() if mechanism != first}
    assert refusal_of("It", family, {}, fewer) == f"It has no {first.words}"
    assert refusal_of("It", family, {}, most) is None


def test_every_known_mechanism_is_stated_or_listed() -> None:
    stated = set(chain.from_iterable(family.mechanisms for family in known_families()))
    assert set(KNOWN) == stated | set(chain.from_iterable(TABLES.values()))


@pytest.mark.parametrize("runs", TABLES.values(), ids=TABLES)
def test_a_table_can_hold_a_whole_block_and_says_where_it_was_read(runs: Runs) -> None:
    assert all(not runs.keys().isdisjoint(group) for _, group in EXCLUSIVE)
    assert runs.keys() <= set(KNOWN)
    assert all(re.search(r"\.py\b", run.where) and run.code for run in runs.values())


def test_the_legacy_models_ages_are_those_of_its_table() -> None:
    assert {run.code for run in MEGATRON_LM.values()} == set(AGES)


def test_norms_less_one_are_listed_only_where_rmsnorm_may_have_them() -> None:
    """LayerNorm has them in more codes; no family here has such a LayerNorm."""
    assert [name for name, runs in TABLES.items() if NORMS_LESS_ONE in runs] == ["megatron-core"]


def test_no_shared_code_asks_for_a_familys_name() -> None:
    """Families find their file by name, the user and a configuration name one; nothing is decided by it."""
    package = ROOT / "streamconv"
    asks = re.compile(r"family\.name\s*(==|!=|in\b|not in\b)|FAMILY\.name\s*(==|!=)")
    found = [str(path.relative_to(package)) for path in package.rglob("*.py") if asks.search(path.read_text())]
    assert found == []
