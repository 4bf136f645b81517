// Parts of both row kernels: the layout of threads over entries, 16-byte accesses, and the launch.
//
// A block of threads computes one row. A warp computes batches of two groups of entries; in each
// group a lane has kPack consecutive entries, so that a group is one pack of every lane of a warp.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <type_traits>

#include "rao/row_kernels.h"

namespace rao::cuda {

constexpr int kWarp = 32;
constexpr int kMaxWarps = 8;
constexpr int kBlocks = 4;       // resident on a multiprocessor: 64 registers a thread
constexpr int kBatchGroups = 2;  // packs that a lane loads before it uses the first
constexpr int kBatch = kBatchGroups * kGroup;
constexpr unsigned kAllLanes = 0xffffffffu;
static_assert(kGroup == kWarp * kPack, "a group is one pack of every lane");

__device__ __forceinline__ int lane_index() { return threadIdx.x % kWarp; }
__device__ __forceinline__ int warp_index() { return threadIdx.x / kWarp; }
__device__ __forceinline__ int warp_count() { return blockDim.x / kWarp; }

__device__ __forceinline__ float warp_max(float value) {
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    value = fmaxf(value, __shfl_xor_sync(kAllLanes, value, distance));
  }
  return value;
}

__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    value += __shfl_xor_sync(kAllLanes, value, distance);
  }
  return value;
}

// The entries of one pack, in fp32 registers.
struct Pack {
  float at[kPack];
};

__device__ __forceinline__ float to_float(float value) { return value; }
__device__ __forceinline__ float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }
__device__ __forceinline__ float to_float(__half value) { return __half2float(value); }

template <class T>
__device__ __forceinline__ T from_float(float value);
template <>
__device__ __forceinline__ float from_float(float value) {
  return value;
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_float(float value) {
  return __float2bfloat16_rn(value);
}
template <>
__device__ __forceinline__ __half from_float(float value) {
  return __float2half_rn(value);
}

// A pack in memory, loaded and stored 16 bytes at a time.
template <class T>
struct Stored {
  static constexpr int kVectors = kPack * sizeof(T) / sizeof(uint4);
  uint4 vectors[kVectors];
};

template <class T>
__device__ __forceinline__ Pack load_pack(const T* source) {
  Stored<T> stored;
#pragma unroll
  for (int i = 0; i < stored.kVectors; ++i) {
    stored.vectors[i] = reinterpret_cast<const uint4*>(source)[i];
  }
  T values[kPack];
  memcpy(values, &stored, sizeof(stored));
  Pack pack;
#pragma unroll
  for (int i = 0; i < kPack; ++i) {
    pack.at[i] = to_float(values[i]);
  }
  return pack;
}

// Bypasses L1. The compiler may split a plain store, but not this one.
template <class T>
__device__ __forceinline__ void store_pack(T* target, const Pack& pack) {
  T values[kPack];
#pragma unroll
  for (int i = 0; i < kPack; ++i) {
    values[i] = from_float<T>(pack.at[i]);
  }
  Stored<T> stored;
  memcpy(&stored, values, sizeof(stored));
#pragma unroll
  for (int i = 0; i < stored.kVectors; ++i) {
    __stcg(reinterpret_cast<uint4*>(target) + i, stored.vectors[i]);
  }
}

// The position of a lane's pack in one group of a batch.
struct PackPosition {
  int entry;
  int count;  // its entries inside the tile

  __device__ __forceinline__ PackPosition(int batch, int group, int entries)
      : entry(batch + group * kGroup + lane_index() * kPack),
        count(min(max(entries - entry, 0), kPack)) {}
};

__device__ __forceinline__ void add_bias(Pack& pack, const float* bias,
                                         const PackPosition& position) {
#pragma unroll
  for (int i = 0; i < kPack; ++i) {
    pack.at[i] += i < position.count ? bias[position.entry + i] : 0.0f;
  }
}

// Calls batch(first_entry, whole) for each batch of this warp; `whole`, a compile-time constant,
// is true if all of it lies inside the tile.
template <class Batch>
__device__ __forceinline__ void for_each_batch(int entries, Batch&& batch) {
  const int step = warp_count() * kBatch;
  int first = warp_index() * kBatch;
  for (; first + kBatch <= entries; first += step) {
    batch(first, std::true_type{});
  }
  if (first < entries) {
    batch(first, std::false_type{});
  }
}

// The index of a row's group in a retained tile.
__device__ __forceinline__ int64_t retained_index(const RetainedTile& retained, int entry,
                                                  int64_t row) {
  return entry / kGroup * retained.rows + row;
}

// The error message of a status; null for success.
inline const char* problem_of(cudaError_t status) {
  if (status == cudaSuccess) {
    return nullptr;
  }
  cudaGetLastError();  // clears the error, so that it is not reported again
  return cudaGetErrorString(status);
}

// Launches one block of threads a row, with a warp for each batch, at most kMaxWarps.
template <class... Parameters, class... Arguments>
const char* launch_rows(void (*kernel)(Parameters...), const LogitsTile& tile, void* stream,
                        const Arguments&... arguments) {
  if (tile.rows == 0) {
    return nullptr;
  }
  const int64_t batches = (tile.entries + kBatch - 1) / kBatch;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(tile.rows));
  config.blockDim =
      dim3(static_cast<unsigned>(kWarp * (batches < kMaxWarps ? batches : kMaxWarps)));
  config.stream = static_cast<cudaStream_t>(stream);
  return problem_of(cudaLaunchKernelEx(&config, kernel, arguments...));
}

// Calls body with a value of the element type.
template <class Body>
const char* with_element(DType dtype, const Body& body) {
  switch (dtype) {
    case DType::kFloat32:
      return body(float{});
    case DType::kBFloat16:
      return body(__nv_bfloat16{});
    case DType::kFloat16:
      return body(__half{});
  }
  return "unknown dtype";
}

// Calls body with each flag as a compile-time constant.
template <class Body>
const char* with_flags(const Body& body) {
  return body();
}
template <class Body, class... Flags>
const char* with_flags(const Body& body, bool flag, Flags... flags) {
  if (flag) {
    return with_flags([&](auto... rest) { return body(std::true_type{}, rest...); }, flags...);
  }
  return with_flags([&](auto... rest) { return body(std::false_type{}, rest...); }, flags...);
}

}  // namespace rao::cuda
