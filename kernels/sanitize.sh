#!/usr/bin/env bash
# Runs the kernels' own tests on a build with the address and undefined-behaviour sanitizers: no access outside a buffer.
#   kernels/sanitize.sh [FOLDER] [pytest arguments]
# FOLDER holds the build and is kept between runs. The working tree's own build is left alone.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
folder=${1:-$(mktemp -d)}
shift || true
python=$(command -v python)

mkdir -p "$folder/package/sparsign"
for part in "$root"/*; do
  [ "$(basename "$part")" = kernels ] || ln -sfn "$part" "$folder/package/sparsign/$(basename "$part")"
done
mkdir -p "$folder/package/sparsign/kernels"
ln -sf "$root"/kernels/*.py "$folder/package/sparsign/kernels/"
cmake -S "$root" -B "$folder/build" -G Ninja -DPython_EXECUTABLE="$python" -DSPARSIGN_SANITIZE=ON \
  -DSPARSIGN_OUTPUT="$folder/package/sparsign/kernels" >"$folder/configure.log"
cmake --build "$folder/build" --target _native

asan=$(g++ -print-file-name=libasan.so)
cpp=$(g++ -print-file-name=libstdc++.so)
cd "$root"
PYTHONPATH="$folder/package" LD_PRELOAD="$asan $cpp" ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
  "$python" -m pytest -n 0 -p no:cacheprovider -q "${@:-tests/test_kernels.py}"
