"""Plans and refusals of what was given for a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from streamconv import Plan, StreamconvError, plan


def planned(path: Path, **options: Any) -> Plan:
    how: dict[str, Any] = {"to": "safetensors", "max_ram": "1G", **options}
    return plan(path, **how)


def refused(path: Path, kind: type[StreamconvError], what: str, where: Path | None = None, **options: Any) -> str:
    """The error has the words and the place; its remedy."""
    with pytest.raises(StreamconvError) as caught:
        planned(path, **options)
    assert type(caught.value) is kind
    assert caught.value.what == what
    assert caught.value.where == str(where or path)
    return caught.value.remedy or ""
