"""What the tests of this folder begin with: conversions to go wrong, and two that race."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.conftest import MEMORY
from tests.faults.cases import TARGETS, Case, prepare
from tests.faults.points import LATE, NO_EXCHANGE
from tests.faults.race import Run, at_once
from tests.faults.rivals import CONVERSIONS, OTHERWISE, Rivals
from tests.trees import tree

Prepare = Callable[[str, bool, str], Case]
NAMED = {target.name: target for target in TARGETS}
OVER = ", over an older one"
VARIABLES = {"": {}, "stepwise": NO_EXCHANGE, "late": LATE}


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prepare]:
    """Prepares a conversion once: to a target, over an older checkpoint or not, with the variables of a name.

    A kill needs no disk, so it is in memory.
    """
    place = MEMORY if MEMORY.is_dir() else tmp_path_factory.mktemp("cases")
    with TemporaryDirectory(dir=place) as folder:

        @cache
        def prepared(name: str, overwrite: bool, variables: str) -> Case:
            own = Path(folder, f"{name}-{overwrite}-{variables}")
            return prepare(NAMED[name], own, overwrite=overwrite, variables=VARIABLES[variables])

        yield prepared


@pytest.fixture(params=[f"{name}{over}" for name in NAMED for over in ("", OVER)])
def case(request: pytest.FixtureRequest, prepared: Prepare) -> Case:
    """A conversion to each target, fresh and over an older checkpoint."""
    return prepared(request.param.removesuffix(OVER), request.param.endswith(OVER), "")


@pytest.fixture(params=NAMED)
def fresh(request: pytest.FixtureRequest, prepared: Prepare) -> Case:
    """A conversion to each target, into a new folder."""
    return prepared(request.param, False, "")


@pytest.fixture(params=NAMED)
def stepwise(request: pytest.FixtureRequest, prepared: Prepare) -> Case:
    """A conversion to each target over an older checkpoint, where two names cannot be exchanged."""
    return prepared(request.param, True, "stepwise")


@pytest.fixture(params=NAMED)
def late(request: pytest.FixtureRequest, prepared: Prepare) -> Case:
    """A conversion to each target, in which no tile is journaled before the end, or before an error."""
    return prepared(request.param, False, "late")


@pytest.fixture(scope="module", params=CONVERSIONS)
def rivals(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Rivals:
    source, options = CONVERSIONS[request.param]
    options = {"to": request.param, **options}
    outs = [tmp_path_factory.mktemp("alone") / "out" for _ in range(2)]
    first, second = (Run(str(source), str(out), {**options, **o}) for out, o in zip(outs, ({}, OTHERWISE), strict=True))
    assert at_once(first)[0].code == 0
    assert at_once(second)[0].code == 0
    began = time.monotonic()
    assert at_once(replace(second, destination=f"{outs[1]}-again"))[0].code == 0
    seconds = time.monotonic() - began
    results = tree(outs[0]), tree(outs[1])
    assert results[0] != results[1]
    return Rivals((first, second), results, seconds)
