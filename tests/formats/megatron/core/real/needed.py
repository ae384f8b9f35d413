"""The mark of tests that want Megatron-Core, which is found without importing it."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

HERE = find_spec("megatron") is not None and find_spec("megatron.core") is not None
MEGATRON_CORE = [pytest.mark.slow, pytest.mark.skipif(not HERE, reason="megatron-core is not installed")]
