// A row's softmax statistics, updated a few entries at a time (online softmax).
#pragma once

#include <cmath>

#include "rao/host_device.h"

namespace rao {

constexpr float kMinusInfinity = -__builtin_huge_valf();

// Sums over the logits z so far, with e = exp(z - max). The last three are optional.
struct RowSums {
  float max;
  float sum;           // of e
  float entropy_sum;   // of e (z - max)
  float sum_sq_probs;  // of e^2
  float logit_sum;     // of z
};

RAO_SHARED RowSums no_sums() { return {kMinusInfinity, 0.0f, 0.0f, 0.0f, 0.0f}; }

// The number subtracted from logits: the maximum, or 0 where all are -inf (-inf - -inf is NaN).
RAO_SHARED float shift_of(float max) { return max == kMinusInfinity ? 0.0f : max; }

// Adds a logit that is at most sums.max.
template <bool kMore>
RAO_SHARED void add_logit(RowSums& sums, float z) {
  const float centred = z - shift_of(sums.max);
  const float e = expf(centred);
  sums.sum += e;
  if (kMore) {
    sums.entropy_sum += e == 0.0f ? 0.0f : e * centred;
    sums.sum_sq_probs += e * e;
    sums.logit_sum += z;
  }
}

// Rescales the sums to a larger maximum; sums with the same maximum can be added.
template <bool kMore>
RAO_SHARED void raise_max(RowSums& sums, float max) {
  const float moved = sums.max == kMinusInfinity ? 0.0f : sums.max - shift_of(max);
  const float decay = expf(moved);
  if (kMore) {
    sums.entropy_sum = (sums.entropy_sum + sums.sum * moved) * decay;
    sums.sum_sq_probs *= decay * decay;
  }
  sums.sum *= decay;
  sums.max = max;
}

}  // namespace rao
