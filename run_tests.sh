#!/usr/bin/env bash
# Make .venv if need be, then run the tests (style and types: make lint).
#
#     ./run_tests.sh                    everything, one process per core
#     ./run_tests.sh tests/xnn -x       only these, pytest's arguments
set -euo pipefail
cd "$(dirname "$0")"
. tools/setup_env.sh

if [ $# -eq 0 ]; then
    # Each process computes with one thread: they would take the cores from each other.
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
    set -- -n auto --dist worksteal
fi
exec "$PYTHON" -m pytest "$@"
