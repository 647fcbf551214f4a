#!/usr/bin/env bash
# Install what is needed and run the demo: a small encoder learns reviews of one kind of product after the other, in
# which words of praise become faults. CPU, no network in the run, two minutes of two cores. What is typed wins.
# Usage: bash scripts/demo.sh [OVERRIDES ...]     such as: bash scripts/demo.sh method=seq_ft seed=1
#
# With backbone=smollm2_135m it brings that language model as well and runs a small study of ten minutes: plain
# fine-tuning, PIECE-S and the normalisation weights at two rates each, on one page. With method=NAME it is one run.
set -euo pipefail

model= method= order= study=yes
for word in "$@"; do
    case "$word" in
        backbone=*smollm2_135m | backbone=*smollm2_135m[,\]]*) model=smollm2 ;;
        method=*) method=typed study= ;;
        task_order=*) order=typed ;;
        experiment=*) method=typed order=typed study= ;;
        -*) study= ;;
    esac
done
. "$(dirname "${BASH_SOURCE[0]}")/install.sh" embedded $model

case "${1:-}" in
    [a-z]*=* | -* | "") ;;
    *) exec "$python" -m cl_runner "$@" ;; # a command, such as plan
esac
if [ "$model$study" = smollm2yes ]; then
    root=outputs/demo_language
    for word in "$@"; do
        shift
        case "$word" in root=*) root=${word#root=} ;; *) set -- "$@" "$word" ;; esac
    done
    study() { "$python" -m cl_runner -m experiment=demo_language "root=$root" "$@"; }
    study method=seq_ft training.base.learning_rate=3e-5,1e-4 "$@"
    study method=piece_s,layer_norm training.base.learning_rate=1e-3,3e-3 "$@"
    exec "$python" -m cl_runner report "$root"
fi
[ -n "$method" ] || set -- method=piece_s method.piece.first_task=whole method.piece.learning_rate=2e-3 "$@"
[ -n "$order$model" ] || set -- task_order=reviews_plain "$@"
exec "$python" -m cl_runner "$@"
