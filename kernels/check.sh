#!/usr/bin/env bash
# Runs the kernels' own tests on a build for checks. The working tree's own build is left alone.
#   kernels/check.sh KIND FOLDER [pytest arguments]
# KIND:
#   sanitized            address and undefined-behaviour sanitizers: no access outside a buffer
#   emulated             AVX-512 compiled to AVX2 by SIMDe (Debian: libsimde-dev), for a CPU that lacks it: results, no speed
#   sanitized,emulated   both
#   aarch64              the portable path under qemu (Debian: g++-aarch64-linux-gnu qemu-user): kernels/csrc/selftest.cpp
# FOLDER holds the build and is kept between runs.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
[ $# -ge 2 ] || { sed -n '2,9s/^# \?//p' "$0" >&2; exit 2; }
kind=$1 folder=$2
shift 2
mkdir -p "$folder"

if [ "$kind" = aarch64 ]; then
  cd "$root/kernels/csrc"
  aarch64-linux-gnu-g++ -std=c++17 -O2 -Wall -Wextra -ffp-contract=off -static -o "$folder/selftest" \
    selftest.cpp network.cpp geometry.cpp lookup.cpp isa_generic.cpp
  exec qemu-aarch64 "$folder/selftest"
fi

options=() preload=
for part in ${kind//,/ }; do
  case $part in
    sanitized)
      options+=(-DSPARSIGN_SANITIZE=ON)
      preload="$(g++ -print-file-name=libasan.so) $(g++ -print-file-name=libstdc++.so)" ;;
    emulated) options+=(-DSPARSIGN_EMULATE=ON) ;;
    *) echo "KIND '$kind': expected sanitized, emulated, sanitized,emulated or aarch64" >&2; exit 2 ;;
  esac
done
python=$(command -v python)
mkdir -p "$folder/package/sparsign/kernels"
for part in "$root"/*; do
  [ "$(basename "$part")" = kernels ] || ln -sfn "$part" "$folder/package/sparsign/$(basename "$part")"
done
ln -sf "$root"/kernels/*.py "$folder/package/sparsign/kernels/"
cmake -S "$root" -B "$folder/build" -G Ninja -DPython_EXECUTABLE="$python" "${options[@]}" \
  -DSPARSIGN_OUTPUT="$folder/package/sparsign/kernels" >"$folder/configure.log"
cmake --build "$folder/build" --target _native

cd "$root"
PYTHONPATH="$folder/package" LD_PRELOAD="$preload" ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
  "$python" -m pytest -n 0 -p no:cacheprovider -q "${@:-tests/test_kernels.py}"
