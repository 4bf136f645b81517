// score_tile: computes a tile's logits block by block in cache and merges their statistics into the
// rows'. Blocks are [rows][kGroup]; statistics.h and retained_tile.h have the other layouts.
#include "retained_tile.h"
#include "statistics.h"
#include "tile_kernels_isa.h"

namespace rao::RAO_ISA {
namespace {

template <class Source>
void retain_row(const float* row, const RetainedTile& retained, int64_t group, int64_t n) {
  Floats max = broadcast(-kInfinity);
  for (int i = 0; i < kGroup; i += kLanes) {
    max = maximum(load<Floats>(row + i), max);
  }
  const float largest_logit = largest(max);
  // 0 where all logits are -inf: -inf - -inf is NaN.
  const float top = largest_logit == -kInfinity ? 0.0f : largest_logit;
  const int64_t at = group * retained.rows + n;
  auto* values = static_cast<typename Source::Storage*>(retained.values) + at * kGroup;
  retained.maxima[at] = top;
  for (int i = 0; i < kGroup; i += kLanes) {
    Source::store(values + i, load<Floats>(row + i) - top);
  }
}

void transform_row(float* row, int width, const Transform& transform) {
  if (!transform.identity()) {
    for (int i = 0; i < kGroup; i += kLanes) {
      Floats slope{};
      store(row + i, transform(load<Floats>(row + i), i, &slope));
    }
  }
  fill_tail(row, width, -kInfinity);
}

// Statistics of one row of logits, which is -inf beyond its width. kMore: also entropy_sum and
// sum_sq_probs.
template <bool kMore>
RAO_INLINE void reduce_row(const float* row, const GroupStatistics& out, int64_t group, int64_t n) {
  Floats max = load<Floats>(row);
  for (int i = kLanes; i < kGroup; i += kLanes) {
    max = maximum(load<Floats>(row + i), max);
  }
  const float top = largest(max);
  // 0 where all logits are -inf: -inf - -inf is NaN.
  const float shift = top == -kInfinity ? 0.0f : top;
  Floats total{}, entropy_sum{}, sum_sq_probs{};
#pragma GCC unroll 4
  for (int i = 0; i < kGroup; i += kLanes) {
    const Floats centred = load<Floats>(row + i) - shift;
    const Floats e = exponential(centred);
    total += e;
    if (kMore) {
      entropy_sum += e == 0.0f ? Floats{} : e * centred;
      sum_sq_probs += e * e;
    }
  }
  out.max(group)[n] = top;
  out.sum(group)[n] = sum(total);
  if (kMore) {
    out.entropy_sum(group)[n] = sum(entropy_sum);
    out.sum_sq_probs(group)[n] = sum(sum_sq_probs);
  }
}

float sum_row(const float* row, int width) {
  Floats total{};
  int i = 0;
  for (; i + kLanes <= width; i += kLanes) {
    total += load<Floats>(row + i);
  }
  return sum(total + load_some(row + i, width - i, 0.0f));
}

// Retained values, target logits and statistics of one block of products.
template <class Source>
void reduce_block(const HeadTile& head, const Group& group, int64_t first_row, int64_t rows,
                  float* block, const RowState& state, const RetainedTile& retained,
                  const GroupStatistics& out) {
  const Transform transform(head, group);
  const bool more = state.entropy_sum != nullptr || state.sum_sq_probs != nullptr;
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t n = first_row + i;
    float* row = block + i * kGroup;
    transform_row(row, group.width, transform);
    if (retained.values != nullptr) {
      retain_row<Source>(row, retained, group.index, n);
    }
    const int64_t target = head.targets[n] - head.first_entry - group.first;
    if (target >= 0 && target < group.width) {
      state.target_logit[n] = row[target];
    }
    if (more) {
      reduce_row<true>(row, out, group.index, n);
    } else {
      reduce_row<false>(row, out, group.index, n);
    }
    if (state.logit_sum != nullptr) {
      out.logit_sum(group.index)[n] = sum_row(row, group.width);
    }
  }
}

template <class Product, class Source>
void score(const HeadTile& head, const RowState& state, const RetainedSlot& slot,
           const Scratch& scratch, const Parallel& parallel) {
  using Storage = typename Source::Storage;
  const RetainedTile retained = retained_on<Source>(slot, head.entries);
  auto* packed = reinterpret_cast<uint32_t*>(scratch.packed_weight);
  pack_transposed<Product, Source>(weight_rows<Storage>(head), head.entries, packed, parallel);
  const int64_t groups = ceil_div(head.entries, kGroup);
  const GroupStatistics statistics(scratch.rows, head.rows);
  parallel([&](int part) {
    const auto bench = Workbench<Product>::of(scratch, part);
    for_share<Product>(
        part, parallel.parts, head.rows, groups, [&](int64_t g, int64_t first, int64_t end) {
          const Group group = group_of(head, g);
          for (int64_t row = first; row < end; row += Product::kRowBlock) {
            const int64_t rows = smaller<int64_t>(Product::kRowBlock, end - row);
            multiply_group<Product, Source>(head, group, row, rows, packed, bench);
            reduce_block<Source>(head, group, row, rows, bench.block, state, retained, statistics);
          }
        });
  });
  fold_all(state, statistics, groups, head.rows, parallel);
}

}  // namespace

int64_t retained_bytes(DType dtype, int64_t rows, int64_t entries) {
  const int64_t maxima = ceil_div(entries, kGroup) * rows * static_cast<int64_t>(sizeof(float));
  int64_t values = 0;
  with_types(dtype,
             [&](auto, auto source) { values = values_bytes<decltype(source)>(rows, entries); });
  return values + maxima;
}

ScratchSizes score_scratch(DType dtype, int64_t rows, int64_t entries, int64_t size) {
  ScratchSizes sizes{};
  with_types(dtype, [&](auto product, auto) {
    using Product = decltype(product);
    sizes.packed_weight = 4 * packed_lanes<Product>(size, entries);
    sizes.thread = Workbench<Product>::bytes(Product::kRowBlock * kGroup);
  });
  sizes.rows = GroupStatistics::bytes(ceil_div(entries, kGroup), rows);
  return sizes;
}

void score_tile(const HeadTile& head, const RowState& state, const RetainedSlot& retained,
                const Scratch& scratch, const Parallel& parallel) {
  with_types(head.dtype, [&](auto product, auto source) {
    score<decltype(product), decltype(source)>(head, state, retained, scratch, parallel);
  });
}

}  // namespace rao::RAO_ISA
