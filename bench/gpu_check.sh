#!/usr/bin/env bash
# Tests and measures rao_kernels on a GPU machine, with nothing from the network.
#
#     bench/gpu_check.sh OUT [PART ...]
#
# OUT: folder of logs, results and pictures. Parts, each at most PART_SECONDS (450); all by default:
#     tests            the backends on the GPU against float64
#     sanitize         compute-sanitizer's memcheck and racecheck on a small case
#     bench-op         log-probs at Llama 3 8B's head: bare GEMMs, plain torch, torch.compile, every
#                      peer that is installed
#     bench-heads      the same at other heads, and on real hidden states
#     bench-rows       from few rows to many
#     bench-vocabulary over sizes of the vocabulary
#     bench-loss       RAO, DPO and SFT end to end, and a step of TRL's trainer
#     profile          counters of each kernel, by ncu
# Results are written as they come: a part that runs out of time leaves those it has.
#
# Needs: torch with CUDA, triton, nvcc, a C++ compiler. The other packages come from the archives
# that bench/gpu_wheels.sh made (folder WHEELS, default .gpu_wheels), where the machine lacks them.
# SHARED: folder with the hidden states of real text (default ../shared); without it those cases are left out.
set -uo pipefail
cd "$(dirname "$0")/.."

all_parts=(tests sanitize bench-op bench-heads bench-rows bench-vocabulary bench-loss profile)

usage() {
  echo "usage: bench/gpu_check.sh OUT [${all_parts[*]}]" >&2
  exit 2
}

[ $# -ge 1 ] || usage
mkdir -p "$1" || usage
out=$(cd "$1" && pwd)
shift
parts=("$@")
[ ${#parts[@]} -gt 0 ] || parts=("${all_parts[@]}")
for part in "${parts[@]}"; do
  [[ " ${all_parts[*]} " == *" $part "* ]] || usage
done

python=${PYTHON:-python3}
wheels=${WHEELS:-.gpu_wheels}
shared=${SHARED:-../shared}
seconds=${PART_SECONDS:-450}
site=${TMPDIR:-/tmp}/rao_gpu_site
rows=$out/rows
export PYTHONPATH=$PWD:$site PYTHONUNBUFFERED=1
failed=()

stop() {
  echo "gpu_check.sh: $*" >&2
  exit 1
}

# Runs a command for at most the time of a part; its output also goes to a log.
logged() {
  local log=$1
  shift
  timeout --signal=INT --kill-after=15 "$seconds" "$@" 2>&1 | tee -a "$out/$log"
  return "${PIPESTATUS[0]}"
}

unpack() {
  mkdir -p "$site"
  local archive
  for archive in "$wheels"/*.tar.xz; do
    [ -e "$archive" ] || continue
    [ -e "$site/.$(basename "$archive")" ] && continue
    "$python" -m tarfile -e "$archive" "$site" || stop "cannot unpack $archive"
    touch "$site/.$(basename "$archive")"
  done
}

check_machine() {
  "$python" - <<'PY' || exit 1
import importlib.util
import sys

missing = [name for name in ("torch", "triton", "pytest") if importlib.util.find_spec(name) is None]
if missing:
    sys.exit(f"gpu_check.sh: {sys.executable} lacks {', '.join(missing)}; see bench/gpu_wheels.sh")
import torch

if not torch.cuda.is_available():
    sys.exit(f"gpu_check.sh: torch {torch.__version__} finds no GPU")
PY
  command -v c++ >/dev/null || stop "there is no C++ compiler"
}

# The libraries, for this GPU alone, unless they are newer than every source.
build() {
  local library=rao_kernels/_native_cuda.so
  if [ -e "$library" ] &&
    [ -z "$(find csrc python_bindings setup.py -newer "$library" -type f -print -quit)" ]; then
    return
  fi
  TORCH_CUDA_ARCH_LIST=$("$python" -c \
    "import torch; print('%d.%d' % torch.cuda.get_device_capability())")
  export TORCH_CUDA_ARCH_LIST
  RAO_BUILD_CPU=1 RAO_BUILD_CUDA=1 "$python" setup.py -q build_ext --inplace >"$out/build.log" 2>&1 ||
    { tail -30 "$out/build.log" >&2; stop "the libraries do not build; see build.log"; }
}

tests() {
  logged tests.log "$python" -m pytest -q -p no:cacheprovider tests/backends/test_*gpu.py \
    tests/backends/test_row_arithmetic.py
}

# Every allocation by itself, so that a read past one's end is seen.
sanitize() {
  command -v compute-sanitizer >/dev/null || { echo "there is no compute-sanitizer"; return 1; }
  local tool status=0
  for tool in memcheck racecheck; do
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 logged sanitize.log compute-sanitizer --tool "$tool" \
      --error-exitcode 9 --print-limit 20 "$python" bench/gpu_small.py || status=1
  done
  return $status
}

# Names of the providers whose packages are there, one a line.
providers() {
  "$python" - <<'PY'
import torch
from rao_kernels.bench import providers

for name, one in providers.registry(torch.device("cuda")).items():
    lacking = providers.missing({name: one.packages})
    if lacking:
        import sys

        print(f"left out: {name}, {', '.join(lacking)} is not installed", file=sys.stderr)
    else:
        print(name)
PY
}

bench() {
  local log=$1
  shift
  local names
  mapfile -t names < <(providers)
  [ ${#names[@]} -gt 0 ] || return 1
  logged "$log" "$python" -m rao_kernels.bench --device cuda --shared "$shared" --out "$rows" --limit 5 \
    --providers "${names[@]}" --suites "$@"
}

bench-op() {
  bench bench-op.log heads --dtypes bf16 --cases "Llama 3" --budget 10
}

bench-heads() {
  bench bench-heads.log readme heads --dtypes bf16 --budget 5 \
    --cases "real text" "random N" Qwen3
}

bench-rows() {
  bench bench-rows.log rows --budget 5
}

bench-vocabulary() {
  bench bench-vocabulary.log vocabulary --budget 5
}

bench-loss() {
  local suites=(readme)
  "$python" -c "import trl, datasets, transformers" 2>/dev/null && suites+=(trl)
  bench bench-loss.log "${suites[@]}" --dtypes bf16 --budget 5 \
    --cases "RAO, " "DPO, " "SFT, " "TRL DPO step"
}

profile() {
  command -v ncu >/dev/null || { echo "there is no ncu"; return 1; }
  logged profile.log ncu --clock-control none --target-processes all \
    --section SpeedOfLight --section LaunchStats --section Occupancy \
    --kernel-name 'regex:score_rows|grad_rows|_kernel$' --launch-count 24 \
    "$python" bench/gpu_small.py --rows 8192 --vocabulary 16384 --size 4096
}

pictures() {
  [ -d "$rows" ] || return 0
  "$python" -c "import matplotlib" 2>/dev/null ||
    { echo "no pictures: matplotlib is not installed; python -m rao_kernels.bench plot draws them"
      return 0; }
  "$python" -m rao_kernels.bench plot "$rows" --out "$out"
}

summary() {
  [ -d "$rows" ] || return 0
  "$python" - "$rows" <<'PY'
import sys
from pathlib import Path

from rao_kernels.bench import record

found = {}
for row in record.read(Path(sys.argv[1])):
    found[tuple(row[part] for part in record.KEY)] = row
for row in found.values():
    if "median_s" in row:
        text = f"{row['median_s'] * 1e3:9.3f} ms {row['ratio_to_gemms']:6.2f} x GEMMs"
    else:
        text = f"{row['status']}: {row.get('reason', '')}"[:60]
    about = f"{row['case'][:40]:<40} {row['dtype']:<8} {row['direction']:<7}"
    print(about, f"{row['provider'][:30]:<30} {text}")
PY
}

unpack
check_machine
build
"$python" -m rao_kernels.cli doctor | tee "$out/doctor.txt"
for part in "${parts[@]}"; do
  echo "== $part"
  started=$SECONDS
  "$part" || failed+=("$part")
  echo "== $part: $((SECONDS - started)) s"
done
pictures
summary | tee "$out/summary.txt"
if [ ${#failed[@]} -gt 0 ]; then
  stop "failed: ${failed[*]}"
fi
echo "all parts passed: ${parts[*]}"
