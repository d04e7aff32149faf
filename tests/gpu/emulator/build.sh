#!/usr/bin/env bash
# Builds the emulator of the CUDA kernels: build.sh FOLDER. Needs a C++ compiler only; prints the path of the program.
# With a name, build.sh FOLDER NAME, it builds FOLDER/NAME.cu, a source with one kernel of that name, as a library for it.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
kernels=$here/../../../backends/src/cuda/kernels
out=$1
mkdir -p "$out"
cxx=${CXX:-c++}
# Contracted multiplications are what GPUs do too, but not what makes a result right.
flags=(-std=c++17 -O2 -ffp-contract=off -fno-strict-aliasing -Wno-attributes -I "$here" -I "$out")
if [ $# -gt 1 ]; then
    source=$out/$2.cpp
    printf '#include "entry.hpp"\n#include "shim.hpp"\n#include "%s.cu"\n' "$2" >"$source"
    printf 'extern "C" Entry generated_entry() { return entry_of(%s); }\n' "$2" >>"$source"
    "$cxx" "${flags[@]}" -Wno-return-type-c-linkage -fPIC -shared "$source" -o "$out/$2.so.new"
    mv "$out/$2.so.new" "$out/$2.so"
    exit
fi
{
    # What stands in front of other sources, in this order, then the sources.
    shared="prelude functions tensor_core attention_tile"
    for name in $shared; do printf '#include "%s"\n' "$kernels/$name.cu"; done
    for source in "$kernels"/*.cu "$here/primitives.cu"; do
        name=$(basename "$source" .cu)
        case " $shared " in *" $name "*) continue ;; esac
        printf 'namespace %s_cu {\n#include "%s"\n}\nusing namespace %s_cu;\n' "$name" "$source" "$name"
    done
} >"$out/kernels.inc"
printf '#include "shim.hpp"\n#include "kernels.inc"\n' >"$out/all.cpp"
"$cxx" "${flags[@]}" -E -P "$out/all.cpp" | grep -oE 'extern "C" +void +[a-z0-9_A-Z]+' | sed 's/.* /KERNEL_NAME(/; s/$/)/' >"$out/names.inc"
"$cxx" "${flags[@]}" -rdynamic "$here/emulate.cpp" "$here/tensor_core.cpp" -o "$out/emulate" -ldl
echo "$out/emulate"
