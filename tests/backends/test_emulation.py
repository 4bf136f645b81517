"""The emulated CUDA of cuda_on_cpu shows races, misaligned accesses and barriers that hang."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest

from .build_script import SETUP
from .emulation import ALIGNED, FLAGS

# The last thread of a block of 8 warps adds what the first lane of each has written.
PROGRAM = """
#include <cuda_runtime.h>

alignas(16) unsigned words[8];

__global__ void add_warps(float* sums) {
  __shared__ float parts[8];
  if (threadIdx.x % 32 == 0) {
    parts[threadIdx.x / 32] = blockIdx.x;
  }
  BARRIER;
  if (threadIdx.x == 255) {
    sums[blockIdx.x] = 0;
    for (float part : parts) {
      sums[blockIdx.x] += part;
    }
  }
}

__global__ void load(const unsigned* from) {
  volatile unsigned x = reinterpret_cast<const uint4*>(from)->x;
  (void)x;
}

int main(int count, char**) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(64);
  config.blockDim = dim3(256);
  float sums[64];
  cudaLaunchKernelEx(&config, add_warps, static_cast<float*>(sums));
  for (int x = 0; x < 64; ++x) {
    if (sums[x] != 8 * x) {
      return 1;
    }
  }
  cudaLaunchKernelEx(&config, load, static_cast<const unsigned*>(words + OFFSET));
  return 0;
}
"""


def run(folder: Path, barrier: str = "__syncthreads()", offset: int = 4) -> int:
    """Return the exit status of the program, with this barrier and offset of its load."""
    source, program = folder / "program.cu", folder / "program"
    source.write_text(PROGRAM)
    defined = [f"-DBARRIER={barrier}", f"-DOFFSET={offset}"]
    command = [SETUP.compiler(), "-std=c++17", *FLAGS, *ALIGNED, *defined]
    SETUP.run([*command, str(source), "-o", str(program)])
    return subprocess.run([program], capture_output=True, check=False).returncode


def test_a_correct_kernel_runs(tmp_path: Path) -> None:
    assert run(tmp_path) == 0


def test_a_missing_barrier_gives_a_wrong_result(tmp_path: Path) -> None:
    assert run(tmp_path, barrier="") == 1


def test_a_barrier_that_not_all_threads_reach_aborts(tmp_path: Path) -> None:
    barrier = "if (threadIdx.x > 0) __syncthreads()"
    assert run(tmp_path, barrier=barrier) == -signal.SIGABRT


@pytest.mark.parametrize("offset", [1, 2, 3])
def test_a_misaligned_access_ends_the_process(tmp_path: Path, offset: int) -> None:
    assert run(tmp_path, offset=offset) in (-signal.SIGILL, -signal.SIGTRAP)
