#!/usr/bin/env bash
# Repeats the experiment of docs/lab_log.md with the project's own commands. Every stage goes on where it was.
#
#     scripts/experiment.sh data REDPAJAMA    make tokenizer and shards from <domain>/*.jsonl
#     scripts/experiment.sh list 2m           list the runs of a size: recipe, and what is changed
#     scripts/experiment.sh train 2m [RUN …]  train every run of a size (2m, 6m), or those that are named
#                                             (llama-seed17), JOBS at once (default: 2)
#     scripts/experiment.sh measure 2m        measure perplexity of every finished run on all held-out documents
#     scripts/experiment.sh analyse 2m AQUA   see which tokens think; take gradients of easy and hard problems
#     scripts/experiment.sh report 2m         write a page and a table of all runs, and the main rows' figures as PNG
set -euo pipefail
cd "$(dirname "$0")/.."

PARTS=yamls/experiments
RUNS=runs/experiments
MAIN="llama itt_x4 loop_x4 itt_x3 itt_x2 loop_x3"

# row NAME SEED [SUFFIX key=value …]: a row of the paper's tables with the experiment's size, data
# and schedule, and with one seed of weights and order of the data.
row() {
    local run=$1-seed$2${3:-}
    case $1 in itt_x4_*) local recipe=itt_x4_162m_${1#itt_x4_} ;; *) local recipe=${1}_162m ;; esac
    echo "yamls/pretrain/$recipe.yaml parts.model=$PARTS/llama_$size.yaml parts.data=$PARTS/data.yaml" \
        "parts.train=$PARTS/train.yaml run_name=$run run_folder=$RUNS/$size/$run" \
        "seed=$2 data.shuffle_seed=$2 ${*:4}"
}

main_rows() { for name in $MAIN; do row "$name" "$1"; done; }

at_rate() { row "$1" "$2" "-lr$3" "optimizer.decoupled_adamw.lr=$3"; }

runs_of_2m() {
    main_rows 17
    for name in elastic no_rtc no_routing no_step_encoding top_p tanh symmetric; do row itt_x4_$name 17; done
    main_rows 18
    # Other peak rates than the main rows' 2e-3.
    for lr in 1.0e-3 4.0e-3 8.0e-3; do at_rate llama 17 $lr; done
    for lr in 1.0e-3 4.0e-3; do at_rate itt_x4 17 $lr; done
    at_rate loop_x4 17 1.0e-3
    # Second seeds of what came out best.
    at_rate llama 18 4.0e-3
    for name in symmetric no_routing; do row itt_x4_$name 18; done
    # Hardly a token thinks, but all states grow as they do under symmetric reweighting.
    for seed in 17 18; do row itt_x4_symmetric $seed -1percent "thinking.select_ratios=[0.01,0.01,0.01]"; done
    # Tokens think, but a step adds only what the layer adds, from nothing.
    row itt_x4 17 -increment thinking.thinking_update=increment thinking.step_encoding_init=0.0
    # Is depth what they lack?
    for name in llama itt_x4; do row $name 17 -4layers model.num_hidden_layers=4; done
    # The dense model with as much executed compute as ITT x4, and as Loop x4.
    for batches in 1600 2450; do row llama 17 "-${batches}ba" train.max_duration=${batches}ba; done
    row llama 17 -lr4.0e-3-1600ba optimizer.decoupled_adamw.lr=4.0e-3 train.max_duration=1600ba
}

# Own ratios, by the rule of training and by thresholds; of two models of 2M, every setting.
measure() {
    local run=$1 suite=perplexity.yaml options=()
    case ${run#"$RUNS"/} in
    2m/itt_x4-seed17 | 2m/itt_x4_elastic-*) suite=elastic.yaml ;;
    */*top_p*) options=("router_selection=[top_p,threshold]") ;;
    */*no_routing*) ;;
    */itt_*) options=("router_selection=[top_k,threshold]") ;;
    esac
    [ "$run/perplexity.json" -nt "$run/summary.json" ] ||
        itt eval eval/suites/$suite "model=$run" data=$RUNS/shards "output=$run/perplexity.json" "${options[@]}"
}

runs_of_6m() { main_rows 17; main_rows 18; }

# chosen [RUN …]: the lines of these runs, in this order; of all, if none is named.
chosen() {
    local all lines run
    all=$("runs_of_$size")
    [ $# -gt 0 ] || lines=$all
    for run in "$@"; do
        lines+=$(grep -F " run_name=$run " <<<"$all")$'\n' || {
            fail "$run is not a run of $size; 'scripts/experiment.sh list $size' has them"
        }
    done
    printf '%s\n' "${lines%$'\n'}"
}

fail() {
    echo "scripts/experiment.sh: $*" >&2
    exit 1
}

# Mistakes are reported before any work.
case ${1:-} in
data) [ -d "${2:-}" ] || fail "data takes the folder of the text, and '${2:-}' is not one" ;;
list | train | measure | analyse | report)
    case ${2:-} in 2m | 6m) ;; *) fail "$1 takes a size, 2m or 6m, not '${2:-}'" ;; esac
    ;;
*)
    sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0"
    case ${1:-} in -h | --help) exit ;; *) exit 1 ;; esac
    ;;
esac
most=2
[ "$1" != analyse ] || most=3
[ "$1" = train ] || [ $# -le $most ] || fail "$1 takes no '${*:$((most + 1))}'"
[ "$1" != analyse ] || [ -f "${3:-}" ] || fail "analyse takes AQuA's problems as well, and '${3:-}' is not a file"
case $1 in
measure | analyse | report)
    compgen -G "$RUNS/$2/*/recipe.yaml" >/dev/null ||
        fail "nothing is trained in $RUNS/$2; 'scripts/experiment.sh train $2' does it"
    ;;
esac
# The environment that make setup has made, unless another is active.
if [ -z "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ] && [ -f .venv/bin/activate ]; then . .venv/bin/activate; fi

case $1 in
data)
    itt train-tokenizer "$2" --out $RUNS/tokenizer --vocab-size 4096
    itt convert "$2" --out $RUNS/shards --tokenizer $RUNS/tokenizer --seq-len 256
    ;;
list)
    size=$2
    "runs_of_$size"
    ;;
train)
    size=$2
    lines=$(chosen "${@:3}")
    mkdir -p "$RUNS/$size"
    OMP_NUM_THREADS=1 xargs -P "${JOBS:-2}" -I{} sh -c 'composer -n 1 -m itt_composer.train {}' <<<"$lines"
    ;;
analyse)
    for run in "$RUNS/$2"/itt_*/ "$RUNS/$2"/llama-seed{17,18}/; do
        [ ! -f "$run/summary.json" ] || [ "$run/analysis/thinking.json" -nt "$run/summary.json" ] ||
            itt analyse tokens "${run%/}"
    done
    for run in "$RUNS/$2"/{llama,itt_x4}-seed{17,18}; do
        [ ! -f "$run/summary.json" ] || [ "$run/analysis/gradients.json" -nt "$run/summary.json" ] ||
            itt analyse gradients "$run" --problems "$3"
    done
    ;;
report)
    page="$RUNS/report_$2" table="$RUNS/summary_$2.md" main=()
    for name in $MAIN; do
        for seed in 17 18; do [ ! -d "$RUNS/$2/$name-seed$seed" ] || main+=("$RUNS/$2/$name-seed$seed"); done
    done
    itt report "$RUNS/$2"/*/ --title "The paper's comparison at $2 parameters" \
        --out "$page.html" --markdown "$table"
    [ ${#main[@]} -eq 0 ] || itt report "${main[@]}" \
        --title "The paper's main rows at $2 parameters" --out "${page}_main.html" --figures "$RUNS/figures_$2"
    ;;
measure)
    for run in "$RUNS/$2"/*/; do [ ! -f "$run/summary.json" ] || measure "${run%/}"; done
    ;;
esac
