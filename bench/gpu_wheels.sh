#!/usr/bin/env bash
# Fetches what bench/gpu_check.sh needs on a GPU machine that has torch but no network.
#
#     bench/gpu_wheels.sh [GROUP ...]     the groups: tools trl plots text cutlass; all but cutlass by default
#
# Each group but `text` becomes one archive of unpacked wheels in .gpu_wheels/ beside bench/, which git
# ignores and gpu_check.sh finds there. They are for PYTHON (3.12), x86-64, glibc 2.28 or later, of the
# versions in constraints.txt. torch, triton and numpy are taken to be on the machine, transformers
# and accelerate too for `trl`, cuda-bindings (torch brings it) and protobuf for `cutlass`.
# `text` is the hidden states of real text and their head, from the folder SHARED (default ../shared).
# `cutlass` has quack, and what Liger's kernels for Hopper need. It is larger than one call to a lent
# machine may carry, and so comes in parts, which two calls bring one after the other.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON_VERSION:-3.12}
shared=${SHARED:-../shared}
folder=.gpu_wheels
part_mib=36  # of an archive; beside it a call carries the checkout and the other groups

declare -A packages=(
  [tools]="setuptools wheel pytest pytest-xdist execnet iniconfig pluggy packaging Pygments
           rich markdown-it-py mdurl safetensors liger-kernel cut-cross-entropy"
  [trl]="trl datasets pyarrow pandas python-dateutil six tzdata multiprocess dill xxhash Jinja2
         MarkupSafe psutil"
  [plots]="matplotlib contourpy cycler fonttools kiwisolver pillow pyparsing python-dateutil six"
  [cutlass]="quack-kernels==0.6.5 nvidia-cutlass-dsl==4.7.1 nvidia-cutlass-dsl-libs-base==4.7.1
             nvidia-cutlass-dsl-libs-core==4.7.1 nvidia-cutlass-dsl-libs-cu13==4.7.1
             apache-tvm-ffi==0.1.12 torch-c-dlpack-ext==0.1.5 einops==0.8.2"
)

platforms=()
for glibc in 2014 1 _2_17 _2_24 _2_26 _2_27 _2_28; do
  platforms+=(--platform "manylinux${glibc}_x86_64")
done

fetch() {
  local group=$1 site
  site=$(mktemp -d)
  # shellcheck disable=SC2086  # a list of words
  python3 -m pip --disable-pip-version-check install --quiet --no-deps --no-compile \
    --only-binary=:all: --implementation cp --python-version "$python" "${platforms[@]}" \
    --constraint constraints.txt --target "$site" ${packages[$group]}
  # Half the size, and nothing that runs.
  find "$site" -type d \( -name tests -o -name include -o -name iket \) -prune -exec rm -rf {} +
  rm -f "$folder/$group.tar.xz"*
  XZ_OPT=-6T0 tar -cJf "$folder/$group.tar.xz" -C "$site" .
  rm -rf "$site"
  if [ "$(stat -c %s "$folder/$group.tar.xz")" -gt $((part_mib << 20)) ]; then
    split -b "${part_mib}M" -d -a 1 "$folder/$group.tar.xz" "$folder/$group.tar.xz.part"
    rm "$folder/$group.tar.xz"
  fi
}

text() {
  local to=$folder/shared head=models/smollm2-135m-instruct
  mkdir -p "$to/data" "$to/$head"
  cp "$shared/data/probe_train.safetensors" "$to/data"
  cp "$shared/$head/embed.safetensors" "$to/$head"
}

groups=("$@")
if [ ${#groups[@]} = 0 ]; then
  groups=(tools trl plots)
  [ ! -e "$shared/data/probe_train.safetensors" ] || groups+=(text)
fi
mkdir -p "$folder"
for group in "${groups[@]}"; do
  if [ "$group" != text ] && [ -z "${packages[$group]:-}" ]; then
    echo "gpu_wheels.sh: there is no group '$group'; there are: text ${!packages[*]}" >&2
    exit 2
  fi
  echo "== $group"
  if [ "$group" = text ]; then text; else fetch "$group"; fi
done
chmod -R u+w "$folder"
du -m "$folder"/*
