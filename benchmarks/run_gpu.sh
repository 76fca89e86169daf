#!/usr/bin/env bash
# The GPU benchmarks: resolution × precision × eager, compiled or as CUDA graphs, each at batches 1, 64 and 256, dense
# against random, EViT, Shannon and Rényi pruning.
#
#   benchmarks/run_gpu.sh [FOLDER]
#
# Needs `pip install '.[bench]'`, a CUDA build of PyTorch, and a GPU with nothing else to do. Writes Markdown, CSV and
# JSON for each combination into FOLDER, by default benchmarks/results/<device>. What does not fit in memory is a row
# with the note "out of memory"; a combination with such rows, or without a result, stands in FOLDER/incomplete.txt with
# the reason. A combination whose result exists is not measured again, so an interrupted run goes on where it stopped.
#
# A part of the matrix, by environment: SIZES="224 1024" PRECISIONS="bfloat16 amp" MODES="eager graphs" BATCHES="1,256"
# METHODS="dense,random,renyi-2" KEEP_RATES="0.7" REPEATS=20 LIMIT=1800 (seconds per combination) DEVICE="cuda".
set -uo pipefail
here="$(cd "$(dirname "$0")" && pwd)"

device="${DEVICE:-cuda}"
folder="${1:-$here/results/$(python "$here/device_name.py" "$device")}"
methods="${METHODS:-dense,random,evit,shannon,renyi-2,renyi-inf}"
batches="${BATCHES:-1,64,256}"
limit="${LIMIT:-1800}"
mkdir -p "$folder" || exit 1

model_of() { # DeiT-S has patches of 16 px; 518 px is the size of DINOv2, with patches of 14 px
    case "$1" in
        518) echo vit_small_patch14_dinov2 ;;
        *) echo deit_small_patch16_224 ;;
    esac
}

repeats_of() { # attention over 4096 patches takes seconds per batch
    case "$1" in
        1024) echo 5 ;;
        518) echo 10 ;;
        *) echo 20 ;;
    esac
}

flags_of() {
    case "$1" in
        amp) echo --dtype bfloat16 --amp ;;
        *) echo --dtype "$1" ;;
    esac
}

incomplete() { # name, reason; one line per combination, the latest
    touch "$folder/incomplete.txt"
    grep -v "^$1:" "$folder/incomplete.txt" >"$folder/.incomplete" || true
    [ -z "$2" ] || echo "$1: $2" >>"$folder/.incomplete"
    mv "$folder/.incomplete" "$folder/incomplete.txt"
    [ -s "$folder/incomplete.txt" ] || rm "$folder/incomplete.txt"
}

measure() { # size, precision, mode
    local name="$1-$2-$3" mode="" rates="${KEEP_RATES:-0.7,0.5,0.3}" status=0
    case "$3" in
        compiled) mode=--compile ;;
        graphs) mode="--runtimes torch,cuda-graphs" ;;
    esac
    if [ -n "$mode" ]; then
        rates="${KEEP_RATES:-0.7}" # every row and batch size is a compilation of its own
    fi
    if [ -e "$folder/$name.json" ]; then
        echo "== $name: measured before"
        return
    fi
    echo "== $name"
    # shellcheck disable=SC2046,SC2086
    timeout "$limit" entropatch bench --device "$device" --output "$folder" --name "$name" \
        --model "$(model_of "$1")" --image-size "$1" $(flags_of "$2") $mode --methods "$methods" \
        --keep-rates "$rates" --batch-sizes "$batches" --repeats "${REPEATS:-$(repeats_of "$1")}" || status=$?
    case "$status" in
        0) incomplete "$name" "" ;;
        1) if [ -e "$folder/$name.json" ]; then
            incomplete "$name" "some rows could not be measured; their notes say why"
        else
            incomplete "$name" "not measured, status 1"
        fi ;;
        124) incomplete "$name" "not measured: longer than $limit s" ;;
        *) incomplete "$name" "not measured: status $status" ;;
    esac
}

for size in ${SIZES:-224 384 518 1024}; do
    for precision in ${PRECISIONS:-bfloat16 float16 float32 amp}; do
        for mode in ${MODES:-eager compiled graphs}; do
            measure "$size" "$precision" "$mode"
        done
    done
done
[ ! -e "$folder/incomplete.txt" ] || { echo "Incomplete:" && cat "$folder/incomplete.txt"; }
