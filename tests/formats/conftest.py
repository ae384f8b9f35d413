"""Folders that several tests convert, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.making.families import Case, Stored


@pytest.fixture(scope="session")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Stored:
    """The folder of a case as transformers has it."""
    made: dict[str, Path] = {}

    def folder(case: Case) -> Path:
        if str(case) not in made:
            place = tmp_path_factory.mktemp("stored") / str(case)
            case.save(place)
            made[str(case)] = place
        return made[str(case)]

    return folder
