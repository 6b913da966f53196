#!/usr/bin/env bash
# The papers' rows on a machine that can be used for a few minutes at a time, with little going in and out.
#
#   benchmarks/gpu_day.sh pack MIRROR INBOX        here: what that machine lacks, in pieces
#   benchmarks/gpu_day.sh window MINUTES INBOX OUT there: takes pieces in, trains on, leaves pieces of what is new
#   benchmarks/gpu_day.sh unpack OUT MIRROR        here: takes back what came out
#   benchmarks/gpu_day.sh list MIRROR              here: how far every row is
#
# A window goes on where the last one stopped: each row is a run folder that train.py resumes at the epoch it was in.
# MIRROR is the copy of those folders here; with it a new machine goes on from what the last one sent. Bring as many
# pieces of INBOX as go in at a time, in any order and in as many windows as it takes; nothing runs before the data is
# whole. `window 0` only moves pieces. Packed files, reports and curves come back first, then the checkpoints that an
# unfinished row needs to go on; what does not fit into one window comes with the next, so bring all of OUT home. A row
# that fails leaves NAME.failed and NAME.log behind and is passed over until NAME.failed is deleted.
#
# Settings, as environment variables:
#   DATA        pack: the data set's folder (default: data/cifar-10-batches-bin)
#   QUEUE       file of rows, a line each: NAME of an experiment, then overrides of its own (default: the list below)
#   OVERRIDES   overrides of all rows (default: trainer=gpu trainer.deterministic=false)
#   STORE       what outlasts a window on that machine: data and run folders (default: ~/gpu_day)
#   JOBS        rows that run side by side (default: 1)
#   MARGIN      seconds at a window's end for stopping and packing up (default: 60)
#   PIECE_MIB   size of a piece (default: 15)
#   OUT_PIECES  pieces that come out of one window (default: 4)
#   PYTHON      a Python with the dependencies of pyproject.toml (default: python)

set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
STORE=${STORE:-$HOME/gpu_day}
PYTHON=${PYTHON:-python}
export STORE PYTHON OVERRIDES=${OVERRIDES-trainer=gpu trainer.deterministic=false}

# Rows that decide most first; 300 + 300 epochs and the like, as their papers have them.
rows() {
    if [[ -n ${QUEUE:-} ]]; then
        grep -v -e '^ *#' -e '^ *$' "$QUEUE"
        return
    fi
    cat << 'ROWS'
stq_a_resnet18_cifar10_fbin
stq_b_resnet18_cifar10_fbin
stq_a_vgg11_cifar10_fbin
stq_b_vgg11_cifar10_fbin
stq_a_nin_cifar10_fbin
stq_b_nin_cifar10_fbin
stq_a_vgg11_cifar10_wbin
stq_a_resnet18_cifar10_wbin
stq_a_nin_cifar10_wbin
wpc_ternary_resnet20_cifar10
wpc_resnet20_cifar10
ptq_resnet20_cifar10
baseline_msf_resnet18_cifar10
baseline_msf_vgg11_cifar10
baseline_msf_nin_cifar10
stq_a_resnet18_cifar10_fbin_pfr23
stq_a_resnet18_cifar10_fbin_pfr33
baseline_subsidiary_vgg11_cifar10
baseline_subsidiary_nin_cifar10
baseline_subsidiary_resnet18_cifar10
ROWS
}

carrier() {
    "$PYTHON" "$ROOT/benchmarks/gpu_day.py" "$@"
}

# Trains one row until the window's end (END, in seconds since 1970). What it has reached by then lies in its folder.
one() {
    local name=$1 runs=$STORE/runs left status=0
    shift
    local run=$runs/$name
    left=$((END - $(date +%s)))
    if [[ -f $run/report.json && -f $run/model.sparsign ]] || [[ -e $runs/$name.failed ]] || ((left < 1)); then
        return
    fi
    local place=hydra.run.dir=$run
    [[ -f $run/config.yaml ]] && place=resume=$run
    local -a common
    read -ra common <<< "$OVERRIDES"
    echo "$name: up to $left s"
    timeout --signal=TERM --kill-after=20 "$left" "$PYTHON" "$ROOT/train.py" "experiment=$name" "$place" \
        "dataset.root=$STORE/data" dataset.download=false trainer.progress=false "${common[@]}" "$@" \
        >> "$runs/$name.log" 2>&1 || status=$?
    case $status in
        0) echo "$name: finished" ;;
        124 | 130 | 137 | 143) echo "$name: stopped, goes on in the next window" ;;
        *)
            tail -n 1 "$runs/$name.log" | tee "$runs/$name.failed"
            ;;
    esac
}

window() {
    local minutes=$1 inbox=$2 out=$3
    if ! [[ $minutes =~ ^[0-9]+$ ]]; then
        echo "error: MINUTES=$minutes: expected a whole number" >&2
        exit 1
    fi
    END=$(($(date +%s) + minutes * 60 - ${MARGIN:-60}))
    export END
    mkdir -p "$STORE/runs" "$STORE/path" "$out"
    ln -sfn "$ROOT" "$STORE/path/sparsign" # the package's name for the repository
    export PYTHONPATH=$STORE/path${PYTHONPATH:+:$PYTHONPATH}
    if carrier take "$inbox" "$STORE" && [[ -d $STORE/data ]]; then
        rows | xargs -P "${JOBS:-1}" -L 1 "$BASH" "$ROOT/benchmarks/gpu_day.sh" one
    else
        echo "nothing runs before all pieces are there"
    fi
    carrier give "$STORE" "$out" --piece "${PIECE_MIB:-15}" --count "${OUT_PIECES:-4}"
}

main() {
    case ${1:-} in
        pack) carrier pack "${2:?MIRROR}" "${3:?INBOX}" --data "${DATA:-data/cifar-10-batches-bin}" --piece "${PIECE_MIB:-15}" ;;
        window) window "${2:?MINUTES}" "${3:?INBOX}" "${4:?OUT}" ;;
        one) one "${@:2}" ;;
        unpack) carrier take "${2:?OUT}" "${3:?MIRROR}" || (($? == 3)) ;; # 3: pieces are missing, which the next window brings
        list) rows | cut -d ' ' -f 1 | xargs "$PYTHON" "$ROOT/benchmarks/gpu_day.py" list "${2:?MIRROR}" ;;
        *)
            sed -n '2,/^$/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
            [[ ${1:---help} == --help || $1 == -h ]]
            ;;
    esac
}

main "$@"
exit # what is read to its end can be edited while it runs
