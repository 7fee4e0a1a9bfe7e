#!/usr/bin/env bash
# Make .venv if need be, then run the tests (style and types: make lint).
#
#     ./run_tests.sh                    everything
#     ./run_tests.sh tests/xnn -x       only these, pytest's arguments
set -euo pipefail
cd "$(dirname "$0")"
. tools/setup_env.sh

exec "$PYTHON" -m pytest "$@"
