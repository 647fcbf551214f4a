#!/usr/bin/env bash
# Install what is needed and run the embedded default: a real small encoder learns generated reviews, CPU, no network.
# Usage: bash scripts/demo.sh [OVERRIDES ...]     such as: bash scripts/demo.sh method=seq_ft seed=1
set -euo pipefail

. "$(dirname "${BASH_SOURCE[0]}")/install.sh" embedded
exec "$python" -m cl_runner "$@"
