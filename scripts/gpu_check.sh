#!/usr/bin/env bash
# scripts/gpu_check.sh OUT_DIR: build, test and benchmark on a machine with a Hopper GPU, offline.
#
# Needs python3 with torch, numpy, safetensors, pytest, pybind11, cmake, ninja and
# scikit-build-core, and nvcc 13; installs nothing else and reaches for no network.
#
#   PYTHON=...               the interpreter (default: python3)
#   BENCHMARK_ARGUMENTS=...  passed on to `python -m benchmarks`
#   REHEARSE=1               without a GPU: the same steps with the reference; proves the script only
#
# Leaves three files in OUT_DIR, whatever fails:
#   gpu_check.json   each step, each test, the benchmarks, versions and clocks
#   goldens.npz      what the kernels computed; copy it to tests/goldens/
#   logs.tar         the output of every step
# Exits with 0 only if every step succeeded.

set -u
if [ $# -ne 1 ]; then
  echo "usage: scripts/gpu_check.sh OUT_DIR" >&2
  exit 2
fi
mkdir -p "$1" || exit 2
out=$(cd "$1" && pwd)
cd "$(dirname "$0")/.." || exit 2
python=${PYTHON:-python3}
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
rm -f "$out"/gpu_check.json "$out"/goldens.npz "$out"/logs.tar
failed=0
select=(-m gpu) backend=cuda benchmark=(${BENCHMARK_ARGUMENTS:-})
if [ -n "${REHEARSE:-}" ]; then
  touch "$logs/rehearsal"
  select=() backend=reference benchmark=(--rehearse --quick)
fi
microkernels=(tests/hopper/test_gpu.py)
[ -n "${REHEARSE:-}" ] && microkernels=(tests/hopper/test_gpu.py tests/hopper/test_emulator.py)

# step NAME SECONDS COMMAND...: runs the command within the time, keeps its output and outcome.
step() {
  local name=$1 seconds=$2 begin=$SECONDS code=0
  shift 2
  echo "== $name"
  timeout --kill-after=10 "$seconds" "$@" >"$logs/$name.log" 2>&1 || code=$?
  printf '%s\t%s\t%s\n' "$name" "$code" "$((SECONDS - begin))" >>"$logs/steps.tsv"
  tail -n 12 "$logs/$name.log"
  [ "$code" -eq 0 ] && return
  echo "== $name failed with code $code$([ "$code" -eq 124 ] && echo " (out of time: $seconds s)")"
  failed=1
  return "$code"
}

finish() {
  "$python" -m scripts.gpu_check_summary "$logs" "$out/gpu_check.json" || failed=1
  tar -C "$logs" -cf "$out/logs.tar" .
  echo "== $([ $failed -eq 0 ] && echo "all steps succeeded" || echo "something FAILED"): $out"
  exit $failed
}

PROBE='
import sys, torch
print("python", sys.version.split()[0], "torch", torch.__version__)
if sys.argv[1] == "cuda" and not torch.cuda.is_available():
    sys.exit("torch sees no GPU on this machine")
'
step probe 60 "$python" -c "$PROBE" "$backend" || finish

# What can be counted on is installed; pip must not look for anything else.
export CMAKE_BUILD_PARALLEL_LEVEL=${CMAKE_BUILD_PARALLEL_LEVEL:-$(nproc)}
step build 200 "$python" -m pip install --no-build-isolation --no-deps --editable . || finish
# shellcheck disable=SC2016 # expanded by the inner shell
step env 60 bash -c '"$0" -m abyssal env && "$0" -m abyssal env --json >"$1"' \
  "$python" "$logs/env.json" || finish

# The folders whose tests need a GPU, or nothing beyond what can be counted on.
step tests 280 "$python" -m pytest "${select[@]}" -p no:cacheprovider \
  --junitxml "$logs/tests.xml" tests/ops tests/goldens
# A run in which every test was skipped proves nothing, and pytest calls it a success.
step tests_ran 10 "$python" -m scripts.gpu_check_summary --require-passed "$logs/tests.xml"
step static_gate 150 "$python" -m pytest -p no:cacheprovider tests/kernels tests/runtime \
  tests/hopper/test_compiles.py
step microkernels 300 "$python" -m pytest "${select[@]}" -p no:cacheprovider \
  --junitxml "$logs/microkernels.xml" "${microkernels[@]}"
step microkernels_ran 10 \
  "$python" -m scripts.gpu_check_summary --require-passed "$logs/microkernels.xml"
step goldens 200 "$python" -m scripts.record_goldens "$out/goldens.npz" --backend "$backend"
step benchmarks 400 "$python" -m benchmarks --out "$logs/benchmarks.json" "${benchmark[@]}"
# Cycles of single instructions; there is nothing to rehearse without a GPU.
[ -n "${REHEARSE:-}" ] ||
  step timings 200 "$python" -m benchmarks.bench_microkernels --out "$logs/timings.json"
finish
