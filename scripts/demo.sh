#!/usr/bin/env bash
# Install what is needed and run the embedded default: a real small encoder learns generated reviews, CPU, no network.
# Usage: bash scripts/demo.sh [OVERRIDES ...]     such as: bash scripts/demo.sh method=seq_ft seed=1
# With backbone=smollm2_135m it brings that language model as well.
set -euo pipefail

model=
for word in "$@"; do
    case "$word" in backbone=*smollm2_135m | backbone=*smollm2_135m[,\]]*) model=smollm2 ;; esac
done
. "$(dirname "${BASH_SOURCE[0]}")/install.sh" embedded $model
exec "$python" -m cl_runner "$@"
