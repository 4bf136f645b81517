// score_rows: merges the statistics of a tile's logits into the rows', and retains the logits
// where asked. One block of threads a row; launch.cuh has the layout.
#include "launch.cuh"
#include "rao/logit.h"
#include "rao/online_lse.h"

namespace rao::cuda {
namespace {

// One lane's packs of a batch.
struct Batch {
  Pack packs[kBatchGroups];
};

template <bool kWhole>
__device__ __forceinline__ Batch load_products(const float* row, int first, int entries) {
  Batch batch;
#pragma unroll
  for (int g = 0; g < kBatchGroups; ++g) {
    const PackPosition position(first, g, entries);
    batch.packs[g] = kWhole || position.count > 0 ? load_pack(row + position.entry) : Pack{};
  }
  return batch;
}

template <bool kWhole>
__device__ __forceinline__ float max_of(const Pack& pack, const PackPosition& position) {
  float max = kMinusInfinity;
#pragma unroll
  for (int i = 0; i < kPack; ++i) {
    max = kWhole || i < position.count ? fmaxf(max, pack.at[i]) : max;
  }
  return max;
}

template <class T, bool kWhole>
__device__ __forceinline__ void retain(const Batch& batch, int first, int entries, int64_t n,
                                       const RetainedTile& retained) {
#pragma unroll
  for (int g = 0; g < kBatchGroups; ++g) {
    const PackPosition position(first, g, entries);
    const float top = warp_max(max_of<kWhole>(batch.packs[g], position));
    const float max = top == kMinusInfinity ? 0.0f : top;  // -inf - -inf is NaN
    if (!kWhole && position.count == 0) {
      continue;
    }
    Pack centred;
#pragma unroll
    for (int i = 0; i < kPack; ++i) {
      centred.at[i] = batch.packs[g].at[i] - max;
    }
    const int64_t index = retained_index(retained, position.entry, n);
    store_pack(static_cast<T*>(retained.values) + index * kGroup + lane_index() * kPack, centred);
    if (lane_index() == 0) {
      retained.maxima[index] = max;
    }
  }
}

// Turns products into logits.
template <bool kPlain>
__device__ __forceinline__ void transform_batch(Batch& batch, const LogitTransform& transform,
                                                const float* bias, int first, int entries) {
#pragma unroll
  for (int g = 0; g < kBatchGroups; ++g) {
    Pack& pack = batch.packs[g];
    if (!kPlain && bias != nullptr) {
      add_bias(pack, bias, PackPosition(first, g, entries));
    }
#pragma unroll
    for (int i = 0; i < kPack; ++i) {
      float slope;
      pack.at[i] = transform.logit<!kPlain>(pack.at[i], &slope);
    }
  }
}

// Adds the logits of a batch to the lane's sums. All lanes of a warp have the same maximum.
template <bool kMore, bool kWhole>
__device__ __forceinline__ void fold(RowSums& sums, const Batch& batch, int first, int entries) {
  float max = sums.max;
#pragma unroll
  for (int g = 0; g < kBatchGroups; ++g) {
    max = fmaxf(max, max_of<kWhole>(batch.packs[g], PackPosition(first, g, entries)));
  }
  raise_max<kMore>(sums, warp_max(max));
#pragma unroll
  for (int g = 0; g < kBatchGroups; ++g) {
    const PackPosition position(first, g, entries);
#pragma unroll
    for (int i = 0; i < kPack; ++i) {
      if (kWhole || i < position.count) {
        add_logit<kMore>(sums, batch.packs[g].at[i]);
      }
    }
  }
}

// Lane 0 of warp 0 continues the statistics so far, if any; every other lane starts from zero.
template <bool kMore>
__device__ __forceinline__ RowSums initial_sums(const RowState& state, bool first, int64_t n) {
  RowSums sums = no_sums();
  if (first || warp_index() > 0) {
    return sums;
  }
  sums.max = state.row_max[n];
  if (lane_index() == 0) {
    sums.sum = state.row_sum[n];
    if (kMore) {
      sums.entropy_sum = state.entropy_sum == nullptr ? 0.0f : state.entropy_sum[n];
      sums.sum_sq_probs = state.sum_sq_probs == nullptr ? 0.0f : state.sum_sq_probs[n];
      sums.logit_sum = state.logit_sum == nullptr ? 0.0f : state.logit_sum[n];
    }
  }
  return sums;
}

// Adds the sums of a warp's lanes, which have the same maximum; every lane gets the result.
template <bool kMore>
__device__ __forceinline__ void add_lanes(RowSums& sums) {
  sums.sum = warp_sum(sums.sum);
  if (kMore) {
    sums.entropy_sum = warp_sum(sums.entropy_sum);
    sums.sum_sq_probs = warp_sum(sums.sum_sq_probs);
    sums.logit_sum = warp_sum(sums.logit_sum);
  }
}

// Adds the sums of all threads, always in the same order; warp 0 gets the result.
template <bool kMore>
__device__ __forceinline__ void add_threads(RowSums& sums) {
  __shared__ RowSums of_warps[kMaxWarps];
  add_lanes<kMore>(sums);
  if (lane_index() == 0) {
    of_warps[warp_index()] = sums;
  }
  __syncthreads();
  if (warp_index() == 0) {
    sums = lane_index() < warp_count() ? of_warps[lane_index()] : no_sums();
    raise_max<kMore>(sums, warp_max(sums.max));
    add_lanes<kMore>(sums);
  }
}

template <bool kMore>
__device__ __forceinline__ void write_state(const RowState& state, int64_t n, const RowSums& sums) {
  state.row_max[n] = sums.max;
  state.row_sum[n] = sums.sum;
  if (kMore && state.entropy_sum != nullptr) {
    state.entropy_sum[n] = sums.entropy_sum;
  }
  if (kMore && state.sum_sq_probs != nullptr) {
    state.sum_sq_probs[n] = sums.sum_sq_probs;
  }
  if (kMore && state.logit_sum != nullptr) {
    state.logit_sum[n] = sums.logit_sum;
  }
}

__device__ __forceinline__ void write_target_logit(const LogitsTile& tile, const float* row,
                                                   const LogitTransform& transform,
                                                   const RowState& state, bool first, int64_t n) {
  const int64_t target = tile.targets[n] - tile.first_entry;
  if (target >= 0 && target < tile.entries) {
    float slope;
    const float bias = tile.bias == nullptr ? 0.0f : tile.bias[target];
    state.target_logit[n] = transform.logit<true>(row[target] + bias, &slope);
  } else if (first) {
    state.target_logit[n] = nanf("");
  }
}

// kMore: any of the last three statistics is wanted. kPlain: logits are products times the scale.
template <class T, bool kRetain, bool kMore, bool kPlain>
__global__ void __launch_bounds__(kMaxWarps* kWarp, kBlocks)
    score_rows(LogitsTile tile, LogitTransform transform, RowState state, bool first_tile,
               RetainedTile retained) {
  const int64_t n = blockIdx.x;
  const float* row = tile.products + n * tile.stride;
  RowSums sums = initial_sums<kMore>(state, first_tile, n);
  for_each_batch(tile.entries, [&](int first, auto whole) {
    constexpr bool kWhole = decltype(whole)::value;
    Batch batch = load_products<kWhole>(row, first, tile.entries);
    transform_batch<kPlain>(batch, transform, tile.bias, first, tile.entries);
    if (kRetain) {
      retain<T, kWhole>(batch, first, tile.entries, n, retained);
    }
    fold<kMore, kWhole>(sums, batch, first, tile.entries);
  });
  add_threads<kMore>(sums);
  if (threadIdx.x == 0) {
    write_state<kMore>(state, n, sums);
    write_target_logit(tile, row, transform, state, first_tile, n);
  }
}

}  // namespace
}  // namespace rao::cuda

namespace rao {

const char* launch_score_rows(const LogitsTile& tile, const RowState& state, bool first,
                              const RetainedTile& retained, void* stream) {
  using namespace cuda;
  const bool more =
      state.entropy_sum != nullptr || state.sum_sq_probs != nullptr || state.logit_sum != nullptr;
  const bool plain = tile.bias == nullptr && tile.softcap == 0.0f;
  const LogitTransform transform(tile.scale, tile.softcap);
  const auto launch = [&](auto element, auto retain, auto more, auto plain) {
    using T = decltype(element);
    const auto kernel =
        score_rows<T, decltype(retain)::value, decltype(more)::value, decltype(plain)::value>;
    return launch_rows(kernel, tile, stream, tile, transform, state, first, retained);
  };
  if (retained.values == nullptr) {
    return with_flags(
        [&](auto more, auto plain) { return launch(float{}, std::false_type{}, more, plain); },
        more, plain);
  }
  return with_element(tile.dtype, [&](auto element) {
    return with_flags(
        [&](auto more, auto plain) { return launch(element, std::true_type{}, more, plain); }, more,
        plain);
  });
}

}  // namespace rao
