// Statistics of the rows over groups of entries, and their merge into the running statistics.
#pragma once

#include "elementary.h"
#include "product.h"

namespace rao::RAO_ISA {

constexpr float kInfinity = __builtin_inff();

// Statistics of a row over one group of entries, or over all entries so far.
struct Sums {
  Floats max;
  Floats sum;           // of e = exp(z - max)
  Floats entropy_sum;   // of e (z - max)
  Floats sum_sq_probs;  // of e^2
};

// The groups' statistics, [groups][5 statistics][stride rows].
class GroupStatistics {
 public:
  static constexpr int kCount = 5;

  GroupStatistics(std::byte* memory, int64_t rows)
      : data_(reinterpret_cast<float*>(memory)), stride_(padded(rows)) {}

  static int64_t padded(int64_t rows) { return round_up(rows, 32); }
  static int64_t bytes(int64_t groups, int64_t rows) { return 4 * kCount * groups * padded(rows); }

  float* max(int64_t group) const { return at(group, 0); }
  float* sum(int64_t group) const { return at(group, 1); }
  float* entropy_sum(int64_t group) const { return at(group, 2); }
  float* sum_sq_probs(int64_t group) const { return at(group, 3); }
  float* logit_sum(int64_t group) const { return at(group, 4); }

 private:
  float* at(int64_t group, int which) const { return data_ + (group * kCount + which) * stride_; }

  float* data_;
  int64_t stride_;
};

// The maximum, or 0 where all logits are -inf: -inf - -inf is NaN.
RAO_INLINE Floats shift_of(Floats max) { return max == -kInfinity ? Floats{} : max; }

// Rescales `sums` to a maximum that is at least its own.
RAO_INLINE Sums with_max(const Sums& sums, Floats max) {
  const Floats moved = sums.max == -kInfinity ? Floats{} : sums.max - shift_of(max);
  const Floats decay = exponential(moved);
  return {max, sums.sum * decay, (sums.entropy_sum + sums.sum * moved) * decay,
          sums.sum_sq_probs * (decay * decay)};
}

// The statistics of a's and b's entries together.
RAO_INLINE Sums merge(const Sums& a, const Sums& b) {
  const Floats max = maximum(a.max, b.max);
  const Sums first = with_max(a, max), second = with_max(b, max);
  return {max, first.sum + second.sum, first.entropy_sum + second.entropy_sum,
          first.sum_sq_probs + second.sum_sq_probs};
}

// Merges the groups, in order, into the running statistics of kLanes rows.
inline void fold_rows(const RowState& state, const GroupStatistics& groups, int64_t count,
                      int64_t n, int lanes) {
  const bool more = state.entropy_sum != nullptr || state.sum_sq_probs != nullptr;
  const auto read = [&](const float* source, float fill) {
    return source == nullptr ? Floats{} : load_some(source + n, lanes, fill);
  };
  const auto write = [&](float* target, Floats value) {
    if (target != nullptr) {
      store_some(target + n, lanes, value);
    }
  };
  Sums sums{read(state.row_max, 0.0f), read(state.row_sum, 0.0f), read(state.entropy_sum, 0.0f),
            read(state.sum_sq_probs, 0.0f)};
  for (int64_t g = 0; g < count; ++g) {
    Sums group{read(groups.max(g), 0.0f), read(groups.sum(g), 0.0f), Floats{}, Floats{}};
    if (more) {
      group.entropy_sum = read(groups.entropy_sum(g), 0.0f);
      group.sum_sq_probs = read(groups.sum_sq_probs(g), 0.0f);
    }
    sums = merge(sums, group);
  }
  write(state.row_max, sums.max);
  write(state.row_sum, sums.sum);
  write(state.entropy_sum, sums.entropy_sum);
  write(state.sum_sq_probs, sums.sum_sq_probs);
  if (state.logit_sum != nullptr) {
    Floats total = read(state.logit_sum, 0.0f);
    for (int64_t g = 0; g < count; ++g) {
      total += read(groups.logit_sum(g), 0.0f);
    }
    write(state.logit_sum, total);
  }
}

// Merges the groups into the running statistics of all rows.
inline void fold_all(const RowState& state, const GroupStatistics& groups, int64_t count,
                     int64_t rows, const Parallel& parallel) {
  parallel([&](int part) {
    const Range mine = share(ceil_div(rows, kLanes), part, parallel.parts);
    for (int64_t i = mine.begin; i < mine.end; ++i) {
      const int64_t n = i * kLanes;
      fold_rows(state, groups, count, n, static_cast<int>(smaller<int64_t>(kLanes, rows - n)));
    }
  });
}

}  // namespace rao::RAO_ISA
