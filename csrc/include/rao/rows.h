// Per-row inputs and outputs of the two tile operations, on any device.
//
// The Python data classes RowState and RowGradients have the same fields in the same order.
//
// Legend: N rows, W entries of a tile, G = kGroup. All arrays are row-major and contiguous.
#pragma once

#include <cstdint>

namespace rao {

enum class DType : int { kFloat32, kBFloat16, kFloat16 };

// Entries that share one maximum in a retained tile.
constexpr int kGroup = 256;

// Running statistics over the tiles so far, each [N]; the last three may be null. With
// e = exp(z - row_max): row_sum of e, entropy_sum of e (z - row_max), sum_sq_probs of e^2,
// logit_sum of z.
struct RowState {
  float* row_max;
  float* row_sum;
  float* target_logit;
  float* entropy_sum;
  float* sum_sq_probs;
  float* logit_sum;
};

// A tile's logits, group by group: logit minus the maximum of the row's group, or minus 0 where all
// are -inf. Values beyond the last entry do not matter. Logits and not products: a softcap's
// derivative magnifies an error of its argument, but follows from its result with the error of
// that.
struct RetainedTile {
  void* values;   // [ceil(W / G), rows, G] in the operands' dtype, or null
  float* maxima;  // [ceil(W / G), rows]
  int64_t rows;   // of the pass that retained it
};

// dz_v = logp_grad (onehot_v - p_v) + p_v (p_factor + p_log_p_factor log p_v), each [N];
// p_factor and p_log_p_factor may both be null. retained_row: the retained tile's row of each row;
// null: row n.
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
