// score_tile: a tile's logits, block by block in cache, folded into the statistics of the rows.
#include "retained_tile.h"
#include "tile_kernels_isa.h"

namespace rao::RAO_ISA {
namespace {

constexpr float kInfinity = __builtin_inff();

// Statistics of a row over one group of words, or over all words so far.
struct Sums {
  Floats max;
  Floats sum;          // of e = exp(z - max)
  Floats entropy_sum;  // of e (z - max)
  Floats square_sum;   // of e^2
};

// One row of floats for each of the five statistics of each group: [groups][5][stride].
class GroupStatistics {
 public:
  static constexpr int kCount = 5;

  GroupStatistics(std::byte* memory, int64_t rows)
      : data_(reinterpret_cast<float*>(memory)), stride_(padded(rows)) {}

  static int64_t padded(int64_t rows) { return round_up(rows, 16); }
  static int64_t bytes(int64_t groups, int64_t rows) { return 4 * kCount * groups * padded(rows); }

  float* max(int64_t group) const { return at(group, 0); }
  float* sum(int64_t group) const { return at(group, 1); }
  float* entropy_sum(int64_t group) const { return at(group, 2); }
  float* square_sum(int64_t group) const { return at(group, 3); }
  float* logit_sum(int64_t group) const { return at(group, 4); }

 private:
  float* at(int64_t group, int which) const { return data_ + (group * kCount + which) * stride_; }

  float* data_;
  int64_t stride_;
};

template <class Source>
void retain_row(const float* row, const RetainedTile& retained, int64_t group, int64_t n) {
  Floats max = broadcast(-kInfinity);
  for (int i = 0; i < kGroup; i += kLanes) {
    max = maximum(load<Floats>(row + i), max);
  }
  const float top = largest(max);
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

// Statistics of one row of logits, -inf beyond its width; entropy and square sums where wanted.
template <bool kMore>
RAO_INLINE void reduce_row(const float* row, const GroupStatistics& out, int64_t group, int64_t n) {
  Floats max = load<Floats>(row);
  for (int i = kLanes; i < kGroup; i += kLanes) {
    max = maximum(load<Floats>(row + i), max);
  }
  const float top = largest(max);
  // A row of -inf has no probabilities: shift it by 0, not by -inf.
  const float shift = top == -kInfinity ? 0.0f : top;
  Floats total{}, entropy{}, squares{};
#pragma GCC unroll 4
  for (int i = 0; i < kGroup; i += kLanes) {
    const Floats centred = load<Floats>(row + i) - shift;
    const Floats e = exponential(centred);
    total += e;
    if (kMore) {
      entropy += e == 0.0f ? Floats{} : e * centred;
      squares += e * e;
    }
  }
  out.max(group)[n] = top;
  out.sum(group)[n] = sum(total);
  if (kMore) {
    out.entropy_sum(group)[n] = sum(entropy);
    out.square_sum(group)[n] = sum(squares);
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

// Everything that one block of products gives.
template <class Source>
void reduce_block(const HeadTile& head, const Group& group, int64_t first_row, int64_t rows,
                  float* block, const RowState& state, const RetainedTile& retained,
                  const GroupStatistics& out) {
  const Transform transform(head, group);
  const bool more = state.entropy_sum != nullptr || state.square_sum != nullptr;
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t n = first_row + i;
    float* row = block + i * kGroup;
    if (retained.values != nullptr) {
      fill_tail(row, group.width, -kInfinity);
      retain_row<Source>(row, retained, group.index, n);
    }
    transform_row(row, group.width, transform);
    const int64_t target = head.targets[n] - head.first_word - group.first;
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

// a and b over disjoint words, as one.
RAO_INLINE Sums merge(const Sums& a, const Sums& b) {
  const Floats max = maximum(a.max, b.max);
  const Floats shift = max == -kInfinity ? Floats{} : max;
  const Floats a_moved = a.max == -kInfinity ? Floats{} : a.max - shift;
  const Floats b_moved = b.max == -kInfinity ? Floats{} : b.max - shift;
  const Floats a_decay = exponential(a_moved);
  const Floats b_decay = exponential(b_moved);
  return {
      max,
      a.sum * a_decay + b.sum * b_decay,
      (a.entropy_sum + a.sum * a_moved) * a_decay + (b.entropy_sum + b.sum * b_moved) * b_decay,
      a.square_sum * (a_decay * a_decay) + b.square_sum * (b_decay * b_decay),
  };
}

// Folds the groups, in order, into kLanes rows of the running statistics.
void fold_rows(const RowState& state, const GroupStatistics& groups, int64_t count, int64_t n,
               int lanes) {
  const bool more = state.entropy_sum != nullptr || state.square_sum != nullptr;
  const auto read = [&](const float* source, float fill) {
    return source == nullptr ? Floats{} : load_some(source + n, lanes, fill);
  };
  const auto write = [&](float* target, Floats value) {
    if (target != nullptr) {
      store_some(target + n, lanes, value);
    }
  };
  Sums sums{read(state.row_max, 0.0f), read(state.row_sum, 0.0f), read(state.entropy_sum, 0.0f),
            read(state.square_sum, 0.0f)};
  for (int64_t g = 0; g < count; ++g) {
    Sums group{read(groups.max(g), 0.0f), read(groups.sum(g), 0.0f), Floats{}, Floats{}};
    if (more) {
      group.entropy_sum = read(groups.entropy_sum(g), 0.0f);
      group.square_sum = read(groups.square_sum(g), 0.0f);
    }
    sums = merge(sums, group);
  }
  write(state.row_max, sums.max);
  write(state.row_sum, sums.sum);
  write(state.entropy_sum, sums.entropy_sum);
  write(state.square_sum, sums.square_sum);
  if (state.logit_sum != nullptr) {
    Floats total = read(state.logit_sum, 0.0f);
    for (int64_t g = 0; g < count; ++g) {
      total += read(groups.logit_sum(g), 0.0f);
    }
    write(state.logit_sum, total);
  }
}

template <class Product, class Source>
void score(const HeadTile& head, const RowState& state, const RetainedSlot& slot,
           const Scratch& scratch, const Parallel& parallel) {
  using Storage = typename Source::Storage;
  const RetainedTile retained = retained_on<Source>(slot, head.words);
  auto* packed = reinterpret_cast<uint32_t*>(scratch.packed_weight);
  pack_transposed<Product, Source>(weight_rows<Storage>(head), head.words, packed, parallel);
  const int64_t groups = ceil_div(head.words, kGroup);
  const GroupStatistics statistics(scratch.rows, head.rows);
  parallel([&](int part) {
    const Workbench bench = Workbench::of(scratch, part);
    for_share(part, parallel.parts, head.rows, groups, [&](int64_t g, int64_t first, int64_t end) {
      const Group group = group_of(head, g);
      for (int64_t row = first; row < end; row += kRowBlock) {
        const int64_t rows = smaller<int64_t>(kRowBlock, end - row);
        multiply_group<Product, Source>(head, group, row, rows, packed, bench);
        reduce_block<Source>(head, group, row, rows, bench.block, state, retained, statistics);
      }
    });
  });
  parallel([&](int part) {
    const Range mine = share(ceil_div(head.rows, kLanes), part, parallel.parts);
    for (int64_t i = mine.begin; i < mine.end; ++i) {
      const int64_t n = i * kLanes;
      fold_rows(state, statistics, groups, n,
                static_cast<int>(smaller<int64_t>(kLanes, head.rows - n)));
    }
  });
}

}  // namespace

int64_t retained_bytes(DType dtype, int64_t rows, int64_t words) {
  const int64_t maxima = ceil_div(words, kGroup) * rows * static_cast<int64_t>(sizeof(float));
  int64_t values = 0;
  with_types(dtype,
             [&](auto, auto source) { values = values_bytes<decltype(source)>(rows, words); });
  return values + maxima;
}

ScratchSizes score_scratch(DType dtype, int64_t rows, int64_t words, int64_t size) {
  ScratchSizes sizes{};
  with_types(dtype, [&](auto product, auto) {
    sizes.packed_weight = 4 * packed_words<decltype(product)>(size, words);
  });
  sizes.rows = GroupStatistics::bytes(ceil_div(words, kGroup), rows);
  sizes.thread = Workbench::bytes(kRowBlock * kGroup);
  return sizes;
}

void score_tile(const HeadTile& head, const RowState& state, const RetainedSlot& retained,
                const Scratch& scratch, const Parallel& parallel) {
  with_types(head.dtype, [&](auto product, auto source) {
    score<decltype(product), decltype(source)>(head, state, retained, scratch, parallel);
  });
}

}  // namespace rao::RAO_ISA
