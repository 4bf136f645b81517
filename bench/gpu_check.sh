#!/usr/bin/env bash
# Tests and measures rao_kernels on a GPU machine, with nothing from the network.
#
#     OUT=FOLDER bench/gpu_check.sh STEP [STEP ...]
#
#     first     errors against float64, bare GEMMs, a large head by backend and plan, peaked logits,
#               few rows, a profile of one step; at most 4 minutes, in one process
#     tests     the backends' tests on the GPU
#     peers     log-probs at Llama 3 8B's head beside plain torch, torch.compile and every library
#               that is installed, forward and backward first; each provider in a process of its own
#     peaked    the same head on peaked logits, and its SFT loss
#     heads     real text, Qwen3 0.6B, Gemma 2 2B (softcap)
#     growth    from few rows to many, and over sizes of the vocabulary
#     losses    RAO, DPO and SFT end to end, and a step of TRL's trainer
#     profile   counters of the four kernels, by ncu
#     sanitize  compute-sanitizer's memcheck and racecheck, on the fused and the unfused kernels
#
# Each step takes at most STEP_SECONDS (420; `tests` 90 more). Results are written as they come, so that
# a step that is ended leaves those it has. FOLDER (default build/gpu_check) gets at most six files, none
# deeper than one folder: check.log (all output), build.log, rows/*.jsonl, first_profile.txt and two
# pictures.
#
# Needs: torch with CUDA, triton, nvcc, a C++ compiler. The other packages come from the archives
# that bench/gpu_wheels.sh made (folder WHEELS, default .gpu_wheels), where the machine lacks them.
# SHARED: folder with the hidden states of real text (default .gpu_wheels/shared, from the same
# script); without it those cases are left out. RAO_BENCH_COMMIT: the commit that results name, where
# the checkout comes without its repository.
set -uo pipefail
cd "$(dirname "$0")/.."

steps=(first tests peers peaked heads growth losses profile sanitize)

usage() {
  echo "usage: OUT=FOLDER bench/gpu_check.sh STEP [STEP ...]; steps: ${steps[*]}" >&2
  exit 2
}

[ $# -ge 1 ] || usage
for step in "$@"; do
  [[ " ${steps[*]} " == *" $step "* ]] || usage
done
mkdir -p "${OUT:=build/gpu_check}" || usage
out=$(cd "$OUT" && pwd)

python=${PYTHON:-python3}
wheels=${WHEELS:-.gpu_wheels}
shared=${SHARED:-$wheels/shared}
seconds=${STEP_SECONDS:-420}
# quack takes functions of a folder of this name as a library's, and does not import without it.
site=${TMPDIR:-/tmp}/rao_gpu/site-packages
rows=$out/rows
# nvidia-cutlass-dsl adds its second folder by a .pth file, which PYTHONPATH does not read.
export PYTHONPATH=$PWD:$site:$site/nvidia_cutlass_dsl/dsl_packages PYTHONUNBUFFERED=1
failed=()
exec > >(tee -a "$out/check.log") 2>&1

stop() {
  echo "gpu_check.sh: $*" >&2
  exit 1
}

# Runs a command for at most so many seconds.
within() {
  timeout --signal=INT --kill-after=15 "$@"
}

# Archives come whole, or in parts that several calls brought.
unpack() {
  mkdir -p "$site"
  local archive name
  for archive in "$wheels"/*.tar.xz "$wheels"/*.tar.xz.part0; do
    [ -e "$archive" ] || continue
    archive=${archive%.part0} name=$(basename "${archive%.part0}")
    [ -e "$site/.$name" ] && continue
    if [ -e "$archive.part0" ]; then
      [ -e "$archive.part1" ] || { echo "left out, there is no $archive.part1 yet"; continue; }
      cat "$archive".part? >"$site/$name"
      archive=$site/$name
    fi
    "$python" -m tarfile -e "$archive" "$site" || stop "cannot unpack $archive"
    touch "$site/.$name"
  done
}

check_machine() {
  "$python" - <<'PY' || exit 1
import importlib.util
import sys

missing = [name for name in ("torch", "triton") if importlib.util.find_spec(name) is None]
if missing:
    sys.exit(f"gpu_check.sh: {sys.executable} lacks {', '.join(missing)}; see bench/gpu_wheels.sh")
import torch

if not torch.cuda.is_available():
    sys.exit(f"gpu_check.sh: torch {torch.__version__} finds no GPU")
PY
  command -v c++ >/dev/null || stop "there is no C++ compiler"
}

# The CUDA library, for this GPU alone, unless it is newer than every source.
build() {
  local library=rao_kernels/_native_cuda.so
  if [ -e "$library" ] &&
    [ -z "$(find csrc python_bindings setup.py -newer "$library" -type f -print -quit)" ]; then
    return
  fi
  TORCH_CUDA_ARCH_LIST=$("$python" -c \
    "import torch; print('%d.%d' % torch.cuda.get_device_capability())")
  export TORCH_CUDA_ARCH_LIST
  RAO_BUILD_CPU=0 RAO_BUILD_CUDA=1 "$python" setup.py -q build_ext --inplace >"$out/build.log" 2>&1 ||
    { tail -30 "$out/build.log"; stop "the CUDA library does not build; see build.log"; }
}

first() {
  within 240 "$python" -m rao_kernels.bench.first_look --out "$out" --seconds 200
}

# Those that fill the GPU's memory run alone. The fused Triton kernels in fp32 are never selected.
tests() {
  local run=("$python" -m pytest -q -p no:cacheprovider) files status=0
  mapfile -t files < <(ls tests/backends/test_*gpu.py)
  within "$seconds" "${run[@]}" -n 8 "${files[@]}" \
    -k "not 2_to_the_31 and not (test_contract and float32 and not unfused)" || status=1
  within 90 "${run[@]}" "${files[@]}" -k 2_to_the_31 || status=1
  return $status
}

# Names of the providers whose packages are there, one a line.
providers() {
  "$python" - <<'PY'
import sys

import torch
from rao_kernels.bench import providers

for name, one in providers.registry(torch.device("cuda")).items():
    lacking = providers.missing({name: one.packages})
    if lacking:
        print(f"left out: {name}, {', '.join(lacking)} is not installed", file=sys.stderr)
    else:
        print(name)
PY
}

bench() {
  local names
  mapfile -t names < <(providers)
  [ ${#names[@]} -gt 0 ] || return 1
  within "$seconds" "$python" -m rao_kernels.bench --device cuda --shared "$shared" --out "$rows" \
    --limit 5 --dtypes bf16 --providers "${names[@]}" "$@"
}

peers() {
  bench --suites heads --cases "random Llama 3" --directions both forward --budget 20
}

peaked() {
  bench --suites heads --cases "peaked Llama 3" "SFT, Llama 3" --directions both --budget 20
}

heads() {
  bench --suites readme heads --cases "real text" "Gemma 2" Qwen3 --directions both forward \
    --budget 20
}

growth() {
  bench --suites rows vocabulary --budget 10
}

losses() {
  local suites=(readme)
  "$python" -c "import trl, datasets, transformers" 2>/dev/null && suites+=(trl)
  bench --suites "${suites[@]}" --budget 10 --cases "RAO, " "DPO, " "SFT, " "TRL DPO step"
}

# D = 4096 takes the unfused kernels of Triton, D = 1024 the fused.
profile() {
  command -v ncu >/dev/null || { echo "there is no ncu"; return 1; }
  local size status=0
  for size in 4096 1024; do
    within $((seconds / 2)) ncu --clock-control none --target-processes all \
      --section SpeedOfLight --section LaunchStats --section Occupancy --launch-count 48 \
      --kernel-name 'regex:^(score_rows|grad_rows|_score_tile.*|_grad_tile.*)$' \
      "$python" bench/gpu_small.py --rows 8192 --vocabulary 16384 --size "$size" || status=1
  done
  return $status
}

# Every allocation by itself, so that a read past one's end is seen.
sanitize() {
  command -v compute-sanitizer >/dev/null || { echo "there is no compute-sanitizer"; return 1; }
  local tool size status=0
  for tool in memcheck racecheck; do
    for size in 64 4096; do
      PYTORCH_NO_CUDA_MEMORY_CACHING=1 within $((seconds / 4)) compute-sanitizer --tool "$tool" \
        --error-exitcode 9 --print-limit 20 "$python" bench/gpu_small.py --size "$size" || status=1
    done
  done
  return $status
}

pictures() {
  compgen -G "$rows/*.jsonl" >/dev/null || return 0
  "$python" -c "import matplotlib" 2>/dev/null ||
    { echo "no pictures: matplotlib is not installed; python -m rao_kernels.bench plot draws them"
      return 0; }
  "$python" -m rao_kernels.bench plot "$rows" --out "$out"
}

summary() {
  compgen -G "$rows/*.jsonl" >/dev/null || return 0
  "$python" - "$rows" <<'PY'
import sys
from pathlib import Path

from rao_kernels.bench import look, record

for row in record.read(Path(sys.argv[1])):
    print(look.line(row))
PY
}

unpack
check_machine
build
"$python" -m rao_kernels.cli doctor
for step in "$@"; do
  echo "== $step"
  started=$SECONDS
  "$step" || failed+=("$step")
  echo "== $step: $((SECONDS - started)) s"
done
pictures
summary
if [ ${#failed[@]} -gt 0 ]; then
  stop "failed: ${failed[*]}"
fi
echo "all steps passed: $*"
