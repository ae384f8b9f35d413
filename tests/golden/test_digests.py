"""What streamconv writes and says is what it wrote and said when the digests were taken.

A change that is meant: ``python -m tests.golden.test_digests`` takes them anew; CHANGELOG says what changed.
"""

from __future__ import annotations

import json
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import pytest

from tests import hf_models
from tests.golden import taking
from tests.places import FIXTURES

PATH = Path(__file__).with_name("digests.json")
STORED = json.loads(PATH.read_text()) if PATH.exists() else {}
# transformers writes the config.json of the sources.
PINNED = {name: version(name) for name in ("transformers",)}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        STORED.get("versions") != PINNED, reason=f"the digests are those of {STORED.get('versions')}, not of {PINNED}"
    ),
]


@pytest.mark.parametrize("family", sorted(hf_models.CONFIGS))
def test_every_conversion_writes_the_same_bytes(family: str, tmp_path: Path) -> None:
    rows = [row for row in taking.cells() if row["family"] == family]
    found = dict(taking.take_conversions(tmp_path, rows))
    assert found == {name: digest for name, digest in STORED["conversions"].items() if name.split()[0] == family}


def test_plan_and_inspect_say_the_same_of_every_fixture() -> None:
    assert dict(taking.take_words(FIXTURES)) == STORED["words"]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as work:
        taken = {
            "versions": PINNED,
            "conversions": dict(taking.take_conversions(Path(work), taking.cells())),
            "words": dict(taking.take_words(FIXTURES)),
        }
    PATH.write_text(json.dumps(taken, indent=1, sort_keys=True) + "\n")
    sys.stdout.write(f"{len(taken['conversions'])} conversions, {len(taken['words'])} texts\n")
