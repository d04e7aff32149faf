#!/usr/bin/env bash
# Builds the emulator of the CUDA kernels: build.sh FOLDER. Needs a C++ compiler only; prints the path of the program.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
kernels=$here/../../../backends/src/cuda/kernels
out=$1
mkdir -p "$out"
cxx=${CXX:-c++}
{
    echo "#include \"$kernels/prelude.cu\""
    for source in "$kernels"/*.cu; do
        name=$(basename "$source" .cu)
        [ "$name" = prelude ] || printf 'namespace %s_cu {\n#include "%s"\n}\nusing namespace %s_cu;\n' "$name" "$source" "$name"
    done
} >"$out/kernels.inc"
printf '#include "shim.hpp"\n#include "kernels.inc"\n' >"$out/all.cpp"
# Contracted multiplications are what GPUs do too, but not what makes a result right.
flags=(-std=c++17 -O2 -ffp-contract=off -fno-strict-aliasing -Wno-attributes -I "$here" -I "$out")
"$cxx" "${flags[@]}" -E -P "$out/all.cpp" | grep -oE 'extern "C" +void +[a-z0-9_A-Z]+' | sed 's/.* /KERNEL_NAME(/; s/$/)/' >"$out/names.inc"
"$cxx" "${flags[@]}" "$here/emulate.cpp" -o "$out/emulate"
echo "$out/emulate"
