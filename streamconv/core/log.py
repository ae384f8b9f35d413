"""The logger ``streamconv``: what a run does, for whoever listens. Without a listener nothing is printed."""

from __future__ import annotations

import logging

__all__ = ["log"]

log = logging.getLogger("streamconv")
log.addHandler(logging.NullHandler())
