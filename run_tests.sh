#!/usr/bin/env bash
# Make .venv if need be, then check style, types and imports as `make lint` does, and run the tests.
#
#     ./run_tests.sh                    everything; the tests in one process per core
#     ./run_tests.sh tests/xnn -x       only these tests, pytest's arguments
set -euo pipefail
cd "$(dirname "$0")"
. tools/setup_env.sh

run() {
    echo "== $*"
    "$@"
}

if [ $# -eq 0 ]; then
    run "$PYTHON" -m ruff check .
    run "$PYTHON" -m ruff format --check .
    run "$PYTHON" -m mypy
    run "$PYTHON" -c "from importlinter.cli import lint_imports_command as lint; lint()"
    # Each process computes with one thread: they would take the cores from each other.
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
    set -- -n auto --dist worksteal
fi
run "$PYTHON" -m pytest "$@"
