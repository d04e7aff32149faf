#!/usr/bin/env bash
# Fetches NVRTC from the Python package index into FOLDER and prints the folder that holds libnvrtc.so.*; no GPU is needed to
# compile with it. Fetched once: later calls print at once.
#
#   export GALVATRON_NVRTC=$(tests/gpu/fetch_nvrtc.sh target/nvrtc)
set -euo pipefail
folder=${1:?usage: fetch_nvrtc.sh FOLDER}

find_library() {
    find "$folder" -name 'libnvrtc.so.*' -not -name '*builtins*' -print -quit 2>/dev/null | xargs -r dirname
}

mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
found=$(find_library)
if [ -z "$found" ]; then
    python3 -m pip --version >/dev/null 2>&1 || {
        echo "SKIPPED: no python3 with pip, NVRTC is not fetched" >&2
        exit 3
    }
    python3 -m pip install --quiet --disable-pip-version-check --no-deps --target "$folder" \
        'nvidia-cuda-nvrtc>=13,<14' >&2 || {
        echo "SKIPPED: the package nvidia-cuda-nvrtc cannot be fetched" >&2
        exit 3
    }
    found=$(find_library)
fi
[ -n "$found" ] || {
    echo "error: the package has no libnvrtc.so" >&2
    exit 1
}
echo "$found"
