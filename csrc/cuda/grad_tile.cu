// grad_rows: computes the gradient of a tile's products, from them or from retained logits. One
// block of threads a row; launch.cuh has the layout.
#include "launch.cuh"
#include "rao/logit.h"

namespace rao::cuda {
namespace {

// The products of one row, read from the vendor's fp32 matrix.
class VendorRow {
 public:
  static constexpr bool kHoldsLogits = false;

  struct Loaded {
    Pack pack;

    __device__ __forceinline__ Pack values() const { return pack; }
  };

  __device__ __forceinline__ VendorRow(const LogitsTile& tile, const RetainedTile&, int64_t n,
                                       const int64_t*)
      : row_(tile.products + n * tile.stride) {}

  template <bool kWhole>
  __device__ __forceinline__ Loaded load(const PackPosition& position) const {
    return {kWhole || position.count > 0 ? load_pack(row_ + position.entry) : Pack{}};
  }

 private:
  const float* row_;
};

// The logits of one row, restored from retained values and group maxima.
template <class T>
class RetainedRow {
 public:
  static constexpr bool kHoldsLogits = true;

  struct Loaded {
    Pack pack;
    float max;

    __device__ __forceinline__ Pack values() const {
      Pack sums;
#pragma unroll
      for (int i = 0; i < kPack; ++i) {
        sums.at[i] = pack.at[i] + max;
      }
      return sums;
    }
  };

  __device__ __forceinline__ RetainedRow(const LogitsTile&, const RetainedTile& retained, int64_t n,
                                         const int64_t* retained_row)
      : retained_(retained), row_(retained_row == nullptr ? n : retained_row[n]) {}

  template <bool kWhole>
  __device__ __forceinline__ Loaded load(const PackPosition& position) const {
    if (!kWhole && position.count == 0) {
      return {};
    }
    const int64_t index = retained_index(retained_, position.entry, row_);
    const T* values = static_cast<const T*>(retained_.values);
    return {load_pack(values + index * kGroup + lane_index() * kPack), retained_.maxima[index]};
  }

 private:
  const RetainedTile& retained_;
  int64_t row_;
};

// kHoldsLogits: the pack holds logits, not products.
template <bool kEntropy, bool kPlain, bool kHoldsLogits>
__device__ __forceinline__ void differentiate(Pack& pack, const RowFactors& factors,
                                              const LogitTransform& transform, const float* bias,
                                              const PackPosition& position) {
  if (!kPlain && !kHoldsLogits && bias != nullptr) {
    add_bias(pack, bias, position);
  }
#pragma unroll
  for (int i = 0; i < kPack; ++i) {
    float z = pack.at[i], slope = 1.0f;
    if (!kHoldsLogits) {
      z = transform.logit<!kPlain>(z, &slope);
    } else if (!kPlain) {
      slope = transform.softcap_slope_at(z);
    }
    pack.at[i] = product_gradient<kEntropy>(z, factors) * slope;
  }
}

// Overwrites the target's element of dz, if the target is in the tile.
template <class T>
__device__ __forceinline__ void write_target(const LogitsTile& tile, const RowGradients& rows,
                                             const LogitTransform& transform, int64_t n, T* dz) {
  const int64_t target = tile.targets[n] - tile.first_entry;
  if (target >= 0 && target < tile.entries) {
    const float slope = transform.slope_at(target_logit(rows, n));
    dz[target] = from_float<T>(target_gradient(rows, n) * transform.scale() * slope);
  }
}

// T: element type of dz. kPlain: there is no softcap, nor a bias to add to products.
template <class T, class Source, bool kEntropy, bool kPlain>
__global__ void __launch_bounds__(kMaxWarps* kWarp, kBlocks)
    grad_rows(LogitsTile tile, LogitTransform transform, RowGradients rows, RetainedTile retained,
              ProductGradient gradient) {
  const int64_t n = blockIdx.x;
  const Source source(tile, retained, n, rows.retained_row);
  const RowFactors factors(rows, n, tile.scale);
  T* dz = static_cast<T*>(gradient.values) + n * gradient.stride;
  for_each_batch(tile.entries, [&](int first, auto whole) {
    constexpr bool kWhole = decltype(whole)::value;
    typename Source::Loaded loaded[kBatchGroups];
#pragma unroll
    for (int g = 0; g < kBatchGroups; ++g) {
      loaded[g] = source.template load<kWhole>(PackPosition(first, g, tile.entries));
    }
#pragma unroll
    for (int g = 0; g < kBatchGroups; ++g) {
      const PackPosition position(first, g, tile.entries);
      if (kWhole || position.count > 0) {
        Pack pack = loaded[g].values();
        differentiate<kEntropy, kPlain, Source::kHoldsLogits>(pack, factors, transform, tile.bias,
                                                              position);
        store_pack(dz + position.entry, pack);
      }
    }
  });
  __syncthreads();
  if (threadIdx.x == 0) {
    write_target(tile, rows, transform, n, dz);
  }
}

}  // namespace
}  // namespace rao::cuda

namespace rao {

const char* launch_grad_rows(const LogitsTile& tile, const RowGradients& rows,
                             const RetainedTile& retained, const ProductGradient& dz,
                             void* stream) {
  using namespace cuda;
  const LogitTransform transform(tile.scale, tile.softcap);
  const bool adds_bias = tile.products != nullptr && tile.bias != nullptr;
  const bool plain = tile.softcap == 0.0f && !adds_bias;
  return with_element(tile.dtype, [&](auto element) {
    using T = decltype(element);
    const auto launch = [&](auto vendor, auto entropy, auto plain) {
      using Source = std::conditional_t<decltype(vendor)::value, VendorRow, RetainedRow<T>>;
      const auto kernel = grad_rows<T, Source, decltype(entropy)::value, decltype(plain)::value>;
      return launch_rows(kernel, tile, stream, tile, transform, rows, retained, dz);
    };
    return with_flags(launch, tile.products != nullptr, rows.p_factor != nullptr, plain);
  });
}

const char* row_kernels_problem() {
  cudaFuncAttributes attributes;
  const auto kernel = cuda::grad_rows<float, cuda::VendorRow, false, true>;
  return cuda::problem_of(cudaFuncGetAttributes(&attributes, kernel));
}

#define RAO_TEXT(...) #__VA_ARGS__
#define RAO_TEXT_OF(...) RAO_TEXT(__VA_ARGS__)
#define RAO_NVCC __CUDACC_VER_MAJOR__.__CUDACC_VER_MINOR__.__CUDACC_VER_BUILD__

const char* row_kernels_build() {
  return "nvcc " RAO_TEXT_OF(RAO_NVCC) " " RAO_TEXT_OF(__CUDA_ARCH_LIST__);
}

}  // namespace rao
