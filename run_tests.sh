#!/usr/bin/env bash
# Make .venv if need be, then run style checks and tests.
#
#     ./run_tests.sh                    everything
#     ./run_tests.sh tests/xnn -x       only these, pytest's arguments
set -euo pipefail
cd "$(dirname "$0")"
. tools/setup_env.sh

if [ $# -gt 0 ]; then
    exec "$PYTHON" -m pytest "$@"
fi
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
"$PYTHON" -m mypy
exec "$PYTHON" -m pytest
