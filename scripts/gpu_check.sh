#!/usr/bin/env bash
# scripts/gpu_check.sh OUT_DIR: build, test and benchmark on a machine with a Hopper GPU, offline.
#
# Needs python3 with torch, numpy, safetensors, pytest, pybind11, cmake, ninja and
# scikit-build-core, and nvcc 13; installs nothing else and reaches for no network.
#
#   PYTHON=...               the interpreter (default: python3)
#   BENCHMARK_ARGUMENTS=...  passed on to `python -m benchmarks`
#   REHEARSE=1               without a GPU: the same steps with the reference; proves the script only
#   TEST_SECONDS=290         by then, build and tests have ended or are ended
#   ALL_SECONDS=570          by then, everything has; ending what does not obey takes 10 more
#
# Leaves three files in OUT_DIR, whatever fails:
#   gpu_check.json   each step, each test, the benchmarks, versions and clocks
#   goldens.npz      what the kernels computed; copy it to tests/goldens/
#   logs.tar         the output of every step
# JSON and tar are written anew after every step, so that a run which is killed leaves them, too, and
# what the running step had printed in OUT_DIR/logs. Exits with 0 only if every step succeeded.

set -u
if [ $# -ne 1 ]; then
  echo "usage: scripts/gpu_check.sh OUT_DIR" >&2
  exit 2
fi
mkdir -p "$1" || exit 2
out=$(cd "$1" && pwd)
cd "$(dirname "$0")/.." || exit 2
python=${PYTHON:-python3} test_seconds=${TEST_SECONDS:-290} all_seconds=${ALL_SECONDS:-570}
logs=$out/logs
rm -rf "$out"/gpu_check.json "$out"/goldens.npz "$out"/logs.tar "$logs"
mkdir "$logs" || exit 2
failed=0 name='' begin=0 child=''
select=(-m gpu) backend=cuda benchmark=(${BENCHMARK_ARGUMENTS:-})
if [ -n "${REHEARSE:-}" ]; then
  touch "$logs/rehearsal"
  select=() backend=reference benchmark=(--rehearse --quick)
fi
microkernels=(tests/hopper/test_gpu.py)
[ -n "${REHEARSE:-}" ] && microkernels=(tests/hopper/test_gpu.py tests/hopper/test_emulator.py)

# step NAME DEADLINE COMMAND...: runs the command until so many seconds after the script's begin,
# keeps its output and outcome.
step() {
  local deadline=$2 code=0
  name=$1 begin=$SECONDS
  shift 2
  echo "== $name"
  if [ "$SECONDS" -lt "$deadline" ]; then
    timeout --kill-after=10 "$((deadline - SECONDS))" "$@" >"$logs/$name.log" 2>&1 &
    child=$!
    wait "$child" || code=$?
    child=''
  else
    echo "not begun: no time was left" >"$logs/$name.log"
    code=124
  fi
  [ "$code" -eq 0 ] || failed=1
  record "$code"
  tail -n 12 "$logs/$name.log"
  [ "$code" -eq 0 ] && return
  echo "== $name failed with code $code$([ "$code" -eq 124 ] && echo " (out of time)")"
  return "$code"
}

# record CODE: the current step's outcome. What has been learnt so far is in OUT_DIR afterwards.
record() {
  printf '%s\t%s\t%s\n' "$name" "$1" "$((SECONDS - begin))" >>"$logs/steps.tsv"
  report
}

report() {
  "$python" -m scripts.gpu_check_summary "$logs" "$out/gpu_check.json" || failed=1
  tar -C "$logs" -cf "$out/logs.tar.partial" . && mv "$out/logs.tar.partial" "$out/logs.tar"
}

# The seconds from the begin at which so many percent of a part's time are over.
in_tests() { echo "$((test_seconds * $1 / 100))"; }
after_tests() { echo "$((test_seconds + (all_seconds - test_seconds) * $1 / 100))"; }

finish() {
  touch "$logs/finished"
  report
  rm -rf "$logs"
  echo "== $([ $failed -eq 0 ] && echo "all steps succeeded" || echo "something FAILED"): $out"
  exit $failed
}

# stop CODE: a signal's. The child is `timeout`, which passes it on to all that it runs.
stop() {
  trap '' TERM INT
  if [ -n "$child" ]; then
    kill -TERM "$child"
    wait "$child"
    record "$1"
  fi
  rm -rf "$logs"
  echo "== stopped during $name: $out"
  exit "$1"
}
trap 'stop 143' TERM
trap 'stop 130' INT

PROBE='
import sys, torch
print("python", sys.version.split()[0], "torch", torch.__version__)
if sys.argv[1] == "cuda" and not torch.cuda.is_available():
    sys.exit("torch sees no GPU on this machine")
'
step probe "$(in_tests 20)" "$python" -c "$PROBE" "$backend" || finish

# What can be counted on is installed; pip must not look for anything else.
export CMAKE_BUILD_PARALLEL_LEVEL=${CMAKE_BUILD_PARALLEL_LEVEL:-$(nproc)}
step build "$(in_tests 60)" \
  "$python" -m pip install --no-build-isolation --no-deps --editable . || finish
# shellcheck disable=SC2016 # expanded by the inner shell
step env "$(in_tests 65)" bash -c '"$0" -m abyssal env && "$0" -m abyssal env --json >"$1"' \
  "$python" "$logs/env.json" || finish

# The folders whose tests need a GPU, or nothing beyond what can be counted on.
step tests "$(in_tests 75)" "$python" -m pytest "${select[@]}" -p no:cacheprovider \
  --junitxml "$logs/tests.xml" tests/ops tests/goldens
# A run in which every test was skipped proves nothing, and pytest calls it a success.
step tests_ran "$(in_tests 100)" "$python" -m scripts.gpu_check_summary \
  --require-passed "$logs/tests.xml"
step microkernels "$(in_tests 90)" "$python" -m pytest "${select[@]}" -p no:cacheprovider \
  --junitxml "$logs/microkernels.xml" "${microkernels[@]}"
step microkernels_ran "$(in_tests 100)" "$python" -m scripts.gpu_check_summary \
  --require-passed "$logs/microkernels.xml"
step static_gate "$(in_tests 100)" "$python" -m pytest -p no:cacheprovider tests/kernels \
  tests/runtime tests/hopper/test_compiles.py

step goldens "$(after_tests 30)" "$python" -m scripts.record_goldens "$out/goldens.npz" \
  --backend "$backend"
step benchmarks "$(after_tests 75)" "$python" -m benchmarks --out "$logs/benchmarks.json" \
  "${benchmark[@]}"
# Cycles of single instructions; there is nothing to rehearse without a GPU.
[ -n "${REHEARSE:-}" ] ||
  step timings "$(after_tests 100)" "$python" -m benchmarks.bench_microkernels \
    --out "$logs/timings.json"
finish
