"""The emulated CUDA of cuda_on_cpu shows races, misaligned accesses and barriers that hang.

ThreadSanitizer watches the row kernels on it.
"""

from __future__ import annotations

import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from .build_script import ROOT, SETUP
from .emulation import ALIGNED, FLAGS, HEADERS

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


SANITIZED = [*FLAGS, "-g1", "-fsanitize=thread", f"-I{ROOT / 'csrc' / 'cuda'}"]
KERNELS = ("score_tile", "grad_tile")
RACE = 66  # exit status of a program in which ThreadSanitizer saw one


class Races:
    """The program races.cu with the row kernels, or changed copies of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        sources = [HEADERS / "races.cu", *(ROOT / "csrc" / "cuda" / f"{k}.cu" for k in KERNELS)]
        with ThreadPoolExecutor(2) as pool:
            self.objects = {path.stem: path for path in pool.map(self._compile, sources)}

    def _compile(self, source: Path) -> Path:
        target = self.folder / f"{source.stem}.o"
        SETUP.compile_cpp(str(source), target, SANITIZED)
        return target

    def without_barrier(self, kernel: str) -> subprocess.CompletedProcess[str]:
        """Run it with the one barrier of a kernel left out."""
        text = (ROOT / "csrc" / "cuda" / f"{kernel}.cu").read_text()
        assert text.count("__syncthreads();") == 1
        changed = self.folder / f"{kernel}_without_barrier.cu"
        changed.write_text(text.replace("__syncthreads();", ""))
        return self.run({**self.objects, kernel: self._compile(changed)})

    def run(self, objects: dict[str, Path] | None = None) -> subprocess.CompletedProcess[str]:
        program = str(self.folder / "races")
        linked = map(str, (objects or self.objects).values())
        SETUP.run([SETUP.compiler(), "-fsanitize=thread", *linked, "-lstdc++", "-o", program])
        result = subprocess.run(
            [program],
            capture_output=True,
            text=True,
            check=False,
            env={"TSAN_OPTIONS": "halt_on_error=1"},
        )
        if "unexpected memory mapping" in result.stderr:
            pytest.skip(
                "ThreadSanitizer does not start: Linux randomizes too many bits of addresses"
            )
        return result


@pytest.fixture(scope="module")
def races(tmp_path_factory: pytest.TempPathFactory) -> Races:
    """Compile the program; skip where the compiler comes without ThreadSanitizer."""
    folder = tmp_path_factory.mktemp("races")
    empty = folder / "empty.cpp"
    empty.write_text("int main() { return 0; }")
    command = [SETUP.compiler(), "-fsanitize=thread", str(empty), "-o", str(folder / "empty")]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    if found.returncode:
        pytest.skip(f"the compiler has no ThreadSanitizer: {found.stderr}")
    return Races(folder)


def test_threads_of_the_row_kernels_do_not_race(races: Races) -> None:
    result = races.run()
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_race_is_seen_where_a_barrier_is_left_out(races: Races, kernel: str) -> None:
    result = races.without_barrier(kernel)
    assert result.returncode == RACE
    assert "data race" in result.stderr and f"{kernel}_without_barrier.cu" in result.stderr
