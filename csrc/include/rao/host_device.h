// RAO_SHARED: a function that CPU and CUDA kernels share.
#pragma once

// Always inline: on a CPU the linker could otherwise give one instruction set another's copy.
#if defined(__CUDACC__)
#define RAO_SHARED __host__ __device__ __forceinline__
#else
#define RAO_SHARED inline __attribute__((always_inline))
#endif

namespace rao {

// a * b, rounded: a later addition is not contracted with it to a fused multiply-add on a GPU.
RAO_SHARED float rounded_product(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}

}  // namespace rao
