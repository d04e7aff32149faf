#!/usr/bin/env bash
# The checks that need a GPU: run.sh FOLDER, a folder with the programs, plans and models that `--build` puts there. It prints a
# line for each check and a table at the end; the folder is all that it needs.
#
#   tests/gpu/run.sh --build FOLDER    builds programs and plans into FOLDER first, without a GPU
#
# Exit status: 0 all passed, 1 something failed, 3 there is no GPU (every line says SKIPPED).
# The libraries of CUDA are looked for where galvatron does, and in the packages of `python3`. NCCL 2.30 or later runs several
# ranks on one GPU. With `compute-sanitizer` on the path memory accesses are checked, with PyTorch in `python3` steps are
# compared with its own. GALVATRON_BENCH_MODELS names some of the models to time, between commas; empty: none.
set -uo pipefail

if [ "${1:-}" = --build ]; then
    set -e
    folder=${2:?usage: run.sh --build FOLDER}
    root=$(cd "$(dirname "$0")/../.." && pwd)
    mkdir -p "$folder/plans"
    folder=$(cd "$folder" && pwd)
    cd "$root"
    for name in cuda_gpu cuda_kernels; do
        built=$(cargo test --test "$name" --no-run --message-format=json-render-diagnostics |
            sed -n "s/.*\"executable\":\"\([^\"]*\/$name-[^\"]*\)\".*/\1/p" | tail -1)
        [ -n "$built" ] || exit 1
        strip -o "$folder/$name" "$built"
    done
    cargo build --release --bins
    strip -o "$folder/galvatron-exec" target/release/galvatron-exec
    cp -r tests/gpu/models tests/gpu/bench.py tests/gpu/run.sh tests/fixtures "$folder"
    while read -r name batch sequence; do
        target/release/galvatronc "tests/gpu/models/$name.json" --cluster examples/clusters/h100-80gb-1.toml \
            --set "batch.global=$batch" --set "batch.sequence=$sequence" --set 'precision.compute="bf16"' \
            -o "$folder/plans/$name.gir"
    done < <(sed -n 's/.*"\([^"]*\)": *{ *"batch": *\([0-9]*\), *"sequence": *\([0-9]*\).*/\1 \2 \3/p' tests/gpu/models/bench.json)
    exit 0
fi
folder=$(cd "${1:?usage: run.sh FOLDER}" && pwd)

lines=()
n_failed=0
note() { # outcome, name, detail
    printf '%-8s %-64s %s\n' "$1" "$2" "${3:-}"
    lines+=("$(printf '| %-7s | %-64s | %s |' "$1" "$2" "${3:-}")")
    [ "$1" = FAIL ] && n_failed=$((n_failed + 1))
    return 0
}

# Runs one test of a program. A test that says SKIPPED is skipped; lines with FIGURE are results of their own.
one() { # label, program, test, command…
    local label=$1 program=$2 name=$3 start=$SECONDS output status
    shift 3
    output=$("$@" "$folder/$program" --exact "$name" --nocapture --test-threads 1 2>&1)
    status=$?
    if [ $status -ne 0 ]; then
        note FAIL "$label" "$(grep -m1 -A1 'panicked at\|ERROR' <<<"$output" | tail -1 | cut -c1-120)"
        printf '%s\n' "$output" | sed 's/^/    /'
    elif grep -q SKIPPED <<<"$output"; then
        note SKIPPED "$label" "$(grep -m1 -o 'SKIPPED.*' <<<"$output" | cut -c10-120)"
    else
        note PASS "$label" "$((SECONDS - start)) s"
        while read -r figure; do
            note PASS "${figure%%:*}" "${figure#*: }"
        done < <(sed -n 's/^.*FIGURE //p' <<<"$output")
    fi
}

all() { # program, command…
    local program=$1
    shift
    if [ ! -x "$folder/$program" ]; then
        note SKIPPED "$program" "not in $folder"
        return
    fi
    while read -r name; do
        one "${1:+$(basename "$1"): }$program: $name" "$program" "$name" "$@"
    done < <("$folder/$program" --list 2>/dev/null | sed -n 's/: test$//p')
}

echo "== the machine"
has_gpu=no
if command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | grep -q GPU; then
    has_gpu=yes
    nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
else
    echo "no GPU"
fi

# The folders of CUDA's libraries among the packages of python3.
packaged() {
    python3 - <<'PYTHON' 2>/dev/null
import glob, os, sys
found = {os.path.dirname(f) for p in sys.path for f in glob.glob(os.path.join(p, "nvidia", "*", "lib", "lib*.so*"))}
print(":".join(sorted(found)))
PYTHON
}
GALVATRON_CUDA_LIBRARIES=${GALVATRON_CUDA_LIBRARIES:-$(packaged)}
export GALVATRON_CUDA_LIBRARIES
if [ -z "${GALVATRON_NVRTC:-}" ] && [ -n "$GALVATRON_CUDA_LIBRARIES" ]; then
    nvrtc=$(tr ':' '\n' <<<"$GALVATRON_CUDA_LIBRARIES" | while read -r f; do ls "$f"/libnvrtc.so.* 2>/dev/null; done | grep -v builtins | head -1)
    [ -n "$nvrtc" ] && export GALVATRON_NVRTC=$(dirname "$nvrtc")
fi

export RUST_BACKTRACE=0
[ -d "$folder/fixtures" ] && export GALVATRON_FIXTURES=${GALVATRON_FIXTURES:-$folder/fixtures}
if [ $has_gpu = yes ]; then
    export GALVATRON_NEEDS_GPU=1
    export NCCL_MULTI_RANK_GPU_ENABLE=${NCCL_MULTI_RANK_GPU_ENABLE:-1} GALVATRON_GPU_RANKS=${GALVATRON_GPU_RANKS-1}
fi
echo "== every source compiles"
all cuda_kernels
echo "== ops and training"
all cuda_gpu
echo "== memory accesses"
if [ $has_gpu = yes ] && command -v compute-sanitizer >/dev/null 2>&1 && [ -x "$folder/cuda_gpu" ]; then
    one "memcheck: every sample" cuda_gpu every_sample_agrees_with_the_reference compute-sanitizer --error-exitcode 9
    one "racecheck: every sample" cuda_gpu every_sample_agrees_with_the_reference \
        compute-sanitizer --tool racecheck --error-exitcode 9
else
    note SKIPPED "compute-sanitizer" "no GPU, or it is not on the path"
fi

echo "== steps"
if [ ! -f "$folder/bench.py" ] || ! command -v python3 >/dev/null 2>&1; then
    note SKIPPED "steps beside PyTorch" "no python3, or no bench.py in $folder"
elif [ "${GALVATRON_BENCH_MODELS-all}" != "" ]; then
    while IFS=$'\t' read -r outcome label detail; do
        note "$outcome" "$label" "$detail"
    done < <(python3 "$folder/bench.py" "$folder")
fi

echo
echo "| outcome | check | detail |"
echo "|---|---|---|"
printf '%s\n' "${lines[@]}"
[ $n_failed -eq 0 ] || exit 1
[ $has_gpu = yes ] || exit 3
