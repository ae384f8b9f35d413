#!/bin/sh
# The short set: a 1 GB checkpoint, three rounds, TP 4 kept and TP 4 to 1, beside cp and plain torch.
set -eu
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
WORK=${WORK:-$(mktemp -d)}
trap 'rm -rf "$WORK"' EXIT
"$PYTHON" benchmarks/make_checkpoint.py "$WORK/src" --preset 1g
"$PYTHON" benchmarks/compare.py "$WORK/src" --work "$WORK" --tp 4 --pp 1 --rounds 3
"$PYTHON" benchmarks/compare.py "$WORK/src" --work "$WORK" --tp 1 --pp 1 --rounds 3
