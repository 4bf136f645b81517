// The part of CUDA that runs the kernels of csrc/cuda on one CPU thread, for tests.
//
// The threads of a block are fibers that run in turn, in another order in each block, so that a
// result that depends on it is wrong in some; a fiber that waits for others yields. When all of
// them wait, the kernel would hang on a GPU: the program aborts.
#pragma once

#include <math.h>
#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __shared__ static
#define __launch_bounds__(...)
#define __forceinline__ inline
#define __CUDACC_VER_MAJOR__ 0
#define __CUDACC_VER_MINOR__ 0
#define __CUDACC_VER_BUILD__ 0
#define __CUDA_ARCH_LIST__ 0

using std::max;
using std::min;

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

inline dim3 threadIdx, blockIdx, blockDim;

namespace emulation {

constexpr int kWarpSize = 32;
constexpr int kMaxThreads = 1024;
constexpr size_t kStack = 128 * 1024;

struct Barrier {
  int waiting = 0;
  int generation = 0;
};

class Block {
 public:
  void run(int threads, const std::function<void()>& body) {
    body_ = &body;
    threads_ = threads;
    running_ = threads;
    for (int i = 0; i < threads; ++i) {
      start(i);
    }
    std::iota(order_, order_ + threads, 0);
    std::shuffle(order_, order_ + threads, random_);
    while (running_ > 0) {
      progress_ = false;
      for (int i = 0; i < threads; ++i) {
        resume(order_[i]);
      }
      if (!progress_) {
        fprintf(stderr, "deadlock: all threads of a block wait at barriers\n");
        abort();
      }
    }
  }

  void wait_for_block() { wait(block_, threads_); }

  float exchange(float value, int distance) {
    const int warp = current_ / kWarpSize;
    values_[current_] = value;
    wait(warps_[warp], kWarpSize);
    const float other = values_[warp * kWarpSize + (current_ % kWarpSize ^ distance)];
    wait(warps_[warp], kWarpSize);
    return other;
  }

 private:
  struct Fiber {
    ucontext_t context;
    jmp_buf place;
    std::unique_ptr<char[]> stack;
    bool started, done;
  };

  void start(int i) {
    Fiber& fiber = fibers_[i];
    if (!fiber.stack) {
      fiber.stack.reset(new char[kStack]);
    }
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStack;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, enter, 0);
    fiber.started = fiber.done = false;
  }

  static void enter();

  // setjmp and longjmp switch without a system call.
  void resume(int i) {
    Fiber& fiber = fibers_[i];
    if (fiber.done) {
      return;
    }
    current_ = i;
    threadIdx = dim3(static_cast<unsigned>(i));
    if (_setjmp(scheduler_) == 0) {
      if (fiber.started) {
        _longjmp(fiber.place, 1);
      }
      fiber.started = true;
      setcontext(&fiber.context);
    }
  }

  void wait(Barrier& barrier, int count) {
    progress_ = true;
    const int generation = barrier.generation;
    if (++barrier.waiting == count) {
      barrier.waiting = 0;
      ++barrier.generation;
      return;
    }
    while (barrier.generation == generation) {
      if (_setjmp(fibers_[current_].place) == 0) {
        _longjmp(scheduler_, 1);
      }
    }
  }

  const std::function<void()>* body_;
  int threads_, running_, current_;
  bool progress_;
  jmp_buf scheduler_;
  Barrier block_, warps_[kMaxThreads / kWarpSize];
  float values_[kMaxThreads];
  int order_[kMaxThreads];
  std::minstd_rand random_;
  Fiber fibers_[kMaxThreads];
};

inline Block& block() {
  static Block the_one;
  return the_one;
}

inline void Block::enter() {
  Block& self = block();
  (*self.body_)();
  self.fibers_[self.current_].done = true;
  self.progress_ = true;
  --self.running_;
  _longjmp(self.scheduler_, 1);
}

}  // namespace emulation

inline void __syncthreads() { emulation::block().wait_for_block(); }
inline float __shfl_xor_sync(unsigned, float value, int distance) {
  return emulation::block().exchange(value, distance);
}
inline void __stcg(uint4* target, uint4 value) { *target = value; }

using cudaError_t = int;
using cudaStream_t = void*;
constexpr cudaError_t cudaSuccess = 0;
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
};
struct cudaFuncAttributes {};

inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return "no error"; }
template <class Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes*, Kernel) {
  return cudaSuccess;
}

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               const Arguments&... arguments) {
  blockDim = config->blockDim;
  for (unsigned x = 0; x < config->gridDim.x; ++x) {
    blockIdx = dim3(x);
    emulation::block().run(static_cast<int>(blockDim.x), [&] { kernel(arguments...); });
  }
  return cudaSuccess;
}
