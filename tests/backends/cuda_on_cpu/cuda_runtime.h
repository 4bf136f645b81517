// The part of CUDA that runs the kernels of csrc/cuda on one CPU thread, for tests.
//
// The threads of a block are fibers that run in turn, in another order in each block, so that a
// result that depends on it is wrong in some; a fiber that waits for others yields. When all of
// them wait, the kernel would hang on a GPU: the program aborts. Blocks run in random order too.
//
// Compiled with -fsanitize=thread, ThreadSanitizer takes each fiber for a thread, and only
// __syncthreads and the ends of a block order their accesses to memory: it reports two accesses of
// one address that nothing orders, one of them a write, in whatever order they ran.
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
#ifdef __SANITIZE_THREAD__
#include <sanitizer/tsan_interface.h>
#define EMULATION_UNCHECKED __attribute__((no_sanitize_thread))
#else
#define EMULATION_UNCHECKED
#endif
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

// Where a fiber, or the loop that runs them, goes on.
#ifdef __SANITIZE_THREAD__
struct Place {
  ucontext_t context;
  void* thread = nullptr;  // of ThreadSanitizer
};

EMULATION_UNCHECKED inline void prepare(Place& place) {
  if (place.thread == nullptr) {
    place.thread = __tsan_create_fiber(0);
  }
}

EMULATION_UNCHECKED inline void go(Place& from, Place& to) {
  __tsan_switch_to_fiber(to.thread, __tsan_switch_to_fiber_no_sync);
  swapcontext(&from.context, &to.context);
}

EMULATION_UNCHECKED inline void release(void* order) { __tsan_release(order); }
EMULATION_UNCHECKED inline void acquire(void* order) { __tsan_acquire(order); }
EMULATION_UNCHECKED inline void* this_thread() { return __tsan_get_current_fiber(); }
#else
struct Place {
  ucontext_t context;
  jmp_buf jump;
  bool entered = true;
};

inline void prepare(Place& place) { place.entered = false; }

// setjmp and longjmp switch without a system call.
inline void go(Place& from, Place& to) {
  if (_setjmp(from.jump) == 0) {
    if (to.entered) {
      _longjmp(to.jump, 1);
    }
    to.entered = true;
    setcontext(&to.context);
  }
}

inline void release(void*) {}
inline void acquire(void*) {}
#endif

struct Barrier {
  int waiting = 0;
  int generation = 0;
};

class Block {
 public:
  EMULATION_UNCHECKED void run(int threads, const std::function<void()>& body) {
    body_ = &body;
    threads_ = threads;
    running_ = threads;
#ifdef __SANITIZE_THREAD__
    scheduler_.thread = this_thread();
#endif
    release(&begun_);
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
    acquire(&ended_);
  }

  // Orders memory between the threads. Two marks in turn: a thread that has passed a barrier may
  // reach the next before others have left this one.
  EMULATION_UNCHECKED void wait_for_block() {
    char* mark = &barrier_marks_[block_.generation % 2];
    release(mark);
    wait(block_, threads_);
    acquire(mark);
  }

  // Does not order memory, as on a GPU.
  EMULATION_UNCHECKED float exchange(float value, int distance) {
    const int warp = current_ / kWarpSize;
    values_[current_] = value;
    wait(warps_[warp], kWarpSize);
    const float other = values_[warp * kWarpSize + (current_ % kWarpSize ^ distance)];
    wait(warps_[warp], kWarpSize);
    return other;
  }

 private:
  struct Fiber {
    Place place;
    std::unique_ptr<char[]> stack;
    bool done;
  };

  EMULATION_UNCHECKED void start(int i) {
    Fiber& fiber = fibers_[i];
    if (!fiber.stack) {
      fiber.stack.reset(new char[kStack]);
    }
    ucontext_t& context = fiber.place.context;
    getcontext(&context);
    context.uc_stack.ss_sp = fiber.stack.get();
    context.uc_stack.ss_size = kStack;
    context.uc_link = nullptr;
    makecontext(&context, enter, 0);
    prepare(fiber.place);
    fiber.done = false;
  }

  EMULATION_UNCHECKED static void enter();

  EMULATION_UNCHECKED void resume(int i) {
    Fiber& fiber = fibers_[i];
    if (fiber.done) {
      return;
    }
    current_ = i;
    threadIdx.x = static_cast<unsigned>(i);
    go(scheduler_, fiber.place);
  }

  EMULATION_UNCHECKED void wait(Barrier& barrier, int count) {
    progress_ = true;
    const int generation = barrier.generation;
    if (++barrier.waiting == count) {
      barrier.waiting = 0;
      ++barrier.generation;
      return;
    }
    while (barrier.generation == generation) {
      go(fibers_[current_].place, scheduler_);
    }
  }

  const std::function<void()>* body_;
  int threads_, running_, current_;
  bool progress_;
  Place scheduler_;
  Barrier block_, warps_[kMaxThreads / kWarpSize];
  char begun_, ended_, barrier_marks_[2];  // their addresses name orders of memory
  float values_[kMaxThreads];
  int order_[kMaxThreads];
  std::minstd_rand random_;
  Fiber fibers_[kMaxThreads];
};

EMULATION_UNCHECKED inline Block& block() {
  static Block the_one;
  return the_one;
}

inline void Block::enter() {
  Block& self = block();
  acquire(&self.begun_);
  (*self.body_)();
  release(&self.ended_);
  Fiber& fiber = self.fibers_[self.current_];
  fiber.done = true;
  self.progress_ = true;
  --self.running_;
  go(fiber.place, self.scheduler_);
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
EMULATION_UNCHECKED cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config,
                                                   void (*kernel)(Parameters...),
                                                   const Arguments&... arguments) {
  blockDim.x = config->blockDim.x;
  std::vector<unsigned> blocks(config->gridDim.x);
  std::iota(blocks.begin(), blocks.end(), 0u);
  static std::minstd_rand random;
  std::shuffle(blocks.begin(), blocks.end(), random);
  for (unsigned x : blocks) {
    blockIdx.x = x;
    emulation::block().run(static_cast<int>(blockDim.x), [&] { kernel(arguments...); });
  }
  return cudaSuccess;
}
