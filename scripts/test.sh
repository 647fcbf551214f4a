#!/usr/bin/env bash
# Install what is needed and run the test suite.
# Usage: bash scripts/test.sh [PYTEST ARGUMENTS ...]     such as: bash scripts/test.sh -m "not slow"
set -euo pipefail

. "$(dirname "${BASH_SOURCE[0]}")/install.sh" embedded,test
# Two processes, each test file in one of them, the longest first (tests/conftest.py); a later -n 0 runs all in this one,
# as a debugger needs it.
exec "$python" -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@"
