"""``python -m streamconv``."""

from __future__ import annotations

import sys

from streamconv.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
