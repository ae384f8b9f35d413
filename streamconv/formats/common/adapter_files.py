"""The files of an adapter's folder, as PEFT names them [``peft/utils/constants.py``]."""

from __future__ import annotations

__all__ = ["ADAPTER_CONFIG", "ADAPTER_WEIGHTS"]

ADAPTER_CONFIG = "adapter_config.json"
"""The adapter's kind, rank and scale."""

ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
"""Its tensors, in one file; the first that is there is read."""
