// Functions that the kernels of every device share.
#pragma once

// Always inline: on a CPU the linker must not hand one instruction set's copy to another.
#if defined(__CUDACC__)
#define RAO_SHARED __host__ __device__ __forceinline__
#else
#define RAO_SHARED inline __attribute__((always_inline))
#endif
