"""Options by the words that a user says, for tests of the parts that take them."""

from __future__ import annotations

from typing import Any

from streamconv.api.options import known_options
from streamconv.core.options import Given
from streamconv.formats.options import RowOrderOptions


def given(**options: Any) -> Given:
    """Options that a caller in Python gave."""
    return Given.keywords(known_options(), options)


def source_options(**options: Any) -> RowOrderOptions:
    """The options of a training checkpoint."""
    return given(**options).take(RowOrderOptions)
