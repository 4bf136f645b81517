#!/usr/bin/env bash
# Fetches what bench/gpu_check.sh needs on a GPU machine that has torch but no network.
#
#     bench/gpu_wheels.sh [GROUP ...]        the groups: tools trl quack plots; all but quack by default
#
# Each group becomes one archive of unpacked wheels in .gpu_wheels/ beside bench/, which git ignores
# and gpu_check.sh finds there. They are for PYTHON (3.12), x86-64, glibc 2.28 or later, of the
# versions in constraints.txt. torch, triton and numpy are taken to be on the machine, transformers
# and accelerate too for `trl`, cuda-bindings (torch brings it) for `quack`.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON_VERSION:-3.12}
folder=.gpu_wheels
limit_mib=60  # leaves some for a checkout that travels with it

declare -A packages=(
  [tools]="setuptools wheel pytest iniconfig pluggy packaging Pygments
           rich markdown-it-py mdurl safetensors liger-kernel cut-cross-entropy"
  [trl]="trl datasets pyarrow pandas python-dateutil six tzdata multiprocess dill xxhash Jinja2
         MarkupSafe psutil"
  # The newest of both that fits; later ones are three times the size.
  [quack]="quack-kernels==0.2.4 nvidia-cutlass-dsl==4.3.5 apache-tvm-ffi==0.1.6
           torch-c-dlpack-ext==0.1.5 einops==0.8.2 cuda-python==13.0.3"
  [plots]="matplotlib contourpy cycler fonttools kiwisolver pillow pyparsing python-dateutil six"
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
  find "$site" -type d \( -name tests -o -name include \) -prune -exec rm -rf {} +
  XZ_OPT=-6T0 tar -cJf "$folder/$group.tar.xz" -C "$site" .
  rm -rf "$site"
}

groups=("$@")
if [ ${#groups[@]} = 0 ]; then
  groups=(tools trl plots)
fi
mkdir -p "$folder"
for group in "${groups[@]}"; do
  if [ -z "${packages[$group]:-}" ]; then
    echo "gpu_wheels.sh: there is no group '$group'; there are: ${!packages[*]}" >&2
    exit 2
  fi
  echo "== $group"
  fetch "$group"
done

du -m "$folder"/*.tar.xz
total=$(du -cm "$folder"/*.tar.xz | tail -1 | cut -f1)
echo "$total MiB in $folder"
if [ "$total" -gt "$limit_mib" ]; then
  echo "gpu_wheels.sh: more than $limit_mib MiB; remove an archive and carry it another time" >&2
  exit 1
fi
