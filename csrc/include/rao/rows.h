// What the two tile operations know of each row, on any device.
//
// Legend: N rows, W entries of a tile, G = kGroup. All arrays are row-major and contiguous.
#pragma once

#include <cstdint>

namespace rao {

enum class DType : int { kFloat32, kBFloat16, kFloat16 };

// Entries that share one maximum in a retained tile.
constexpr int kGroup = 256;

// Running statistics, each [N]; the last three may be null.
struct RowState {
  float* row_max;
  float* row_sum;
  float* target_logit;
  float* entropy_sum;
  float* sum_sq_probs;
  float* logit_sum;
};

// A tile's products before bias, softcap and scale, group by group: product minus the maximum of
// the row's group. What lies beyond the entries of the last group is of no account.
struct RetainedTile {
  void* values;   // [ceil(W / G), rows, G] in the operands' dtype, or null
  float* maxima;  // [ceil(W / G), rows]
  int64_t rows;   // of the pass that retained it
};

// dz_v = logp_grad (onehot_v - p_v) + p_v (p_factor + p_log_p_factor log p_v), each [N];
// p_factor and p_log_p_factor may both be null. retained_row may be null: row n is row n.
struct RowGradients {
  const float* row_max;
  const float* log_sum;
  const float* logp;
  const float* logp_grad;
  const float* p_factor;
  const float* p_log_p_factor;
  const int64_t* retained_row;
};

}  // namespace rao
