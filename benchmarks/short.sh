#!/bin/sh
# The short set, a few minutes: a 1 GB checkpoint, TP 4 kept and TP 4 to 1 beside cp and plain torch, and a few memory
# budgets. Reports go to benchmarks/results, their tables into docs/benchmarks.md.
# ROUNDS=3 is shorter; WORK=DIR measures another disk than that of the folder for temporary files. Exits with 1 when a
# run did not finish; the tables say which.
set -eu
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
ROUNDS=${ROUNDS:-5}
RESULTS=${RESULTS:-benchmarks/results}
DOCUMENT=${DOCUMENT:-docs/benchmarks.md}
WORK=$(mktemp -d "${WORK:-${TMPDIR:-/tmp}}/streamconv-bench-XXXXXX")
trap 'rm -rf "$WORK"' EXIT
trap 'exit 130' INT TERM
code=0
bench() {
    script=$1 report=$2
    shift 2
    "$PYTHON" "benchmarks/$script" "$WORK/src" --work "$WORK" --pp 1 --rounds "$ROUNDS" --json "$RESULTS/$report" "$@" ||
        code=1
}
rm -f "$RESULTS"/short-*.json
"$PYTHON" benchmarks/make_checkpoint.py "$WORK/src" --preset 1g
bench compare.py short-1-tp4.json --tp 4
bench compare.py short-2-tp1.json --tp 1
bench budget_curve.py short-3-budget.json --tp 1 --budgets 1G,128M,64M,48M
"$PYTHON" benchmarks/table.py "$DOCUMENT" "$RESULTS"/short-*.json || code=1
exit $code
