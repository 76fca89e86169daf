#!/usr/bin/env bash
# The CPU benchmarks: speed and memory relative to random pruning and to dense, and the cost of the import.
#
#   benchmarks/run_cpu.sh [FOLDER]
#
# Needs `pip install '.[bench]'` and a machine with nothing else to do. On two cores it takes about half an hour. Writes
# Markdown, CSV and JSON into FOLDER, by default benchmarks/results/<processor>. REPEATS (default 20) sets the rounds.
set -uo pipefail
here="$(cd "$(dirname "$0")" && pwd)"

# Threads of OpenMP that spin while they wait take the cores from the one that works.
export OMP_WAIT_POLICY=PASSIVE
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$(nproc)}"

folder="${1:-$here/results/$(python "$here/device_name.py" cpu)}"
repeats="${REPEATS:-20}"
status=0

bench() {
    echo "== $*"
    entropatch bench --output "$folder" --repeats "$repeats" "$@" || status=1
}

bench --name 224-float32 --batch-sizes 1,16 --table 3
bench --name 224-bfloat16-amp --batch-sizes 1,16 --dtype bfloat16 --amp
bench --name 1024-float32 --image-size 1024 --batch-sizes 1 --repeats "$(((repeats + 1) / 2))"
python "$here/import_cost.py" "$folder" || status=1
exit "$status"
