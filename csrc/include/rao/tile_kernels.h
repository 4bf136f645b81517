// The two tile operations of the CPU backend: problems on raw pointers, and their entry points.
//
// Legend: N rows, V vocabulary, D hidden size, W words of a tile, G = kGroup. All arrays are
// row-major and, unless a stride says otherwise, contiguous.
#pragma once

#include <cstddef>
#include <cstdint>

#include "rao/parallel.h"

namespace rao {

enum class DType : int { kFloat32, kBFloat16, kFloat16 };

// Words that share one maximum in a retained tile.
constexpr int kGroup = 256;

// logits = softcap * tanh((hidden @ weight^T + bias) / softcap) * scale, of the words
// [first_word, first_word + W).
struct HeadTile {
  DType dtype;                 // of hidden and weight
  const void* hidden;          // [N, D]
  const void* weight;          // [W, D], or with weight_rows any number of rows
  const int64_t* weight_rows;  // [W] the row of weight of each word, or null: word i is row i
  const float* bias;           // [W] or null
  const int64_t* targets;      // [N]
  int64_t rows;                // N
  int64_t words;               // W
  int64_t size;                // D
  int64_t first_word;
  float scale;
  float softcap;  // 0 = none
};

// Running statistics, each [N]; the last three may be null.
struct RowState {
  float* row_max;
  float* row_sum;
  float* target_logit;
  float* entropy_sum;
  float* square_sum;
  float* logit_sum;
};

// A tile's products before bias, softcap and scale, group by group: product minus the maximum of
// the row's group. What lies beyond the words of the last group is of no account.
struct RetainedTile {
  void* values;   // [ceil(W / G), rows, G] in the operands' dtype, or null
  float* maxima;  // [ceil(W / G), rows]
  int64_t rows;   // of the pass that retained it
};

// dz_v = logp_grad (onehot_v - p_v) + p_v (mass_grad + log_mass_grad log p_v), each [N];
// mass_grad and log_mass_grad may both be null. retained_row may be null: row n is row n.
struct RowGradients {
  const float* row_max;
  const float* log_sum;
  const float* logp;
  const float* logp_grad;
  const float* mass_grad;
  const float* log_mass_grad;
  const int64_t* retained_row;
};

// Outputs; null = not wanted. dhidden [N, D] is added to; dweight [W, D] and dbias [W] are written.
// The rows of the pass and the words of the tile may lie elsewhere in them: row n in
// dhidden_rows[n] and word i in dweight_rows[i], where these are not null.
struct Gradients {
  float* dhidden;
  const int64_t* dhidden_rows;
  const int64_t* dweight_rows;
  void* dweight;
  DType dweight_dtype;
  float* dbias;
  float unscale;  // factor of dweight and dbias
};

// Buffers that one pass reuses for every tile; sizes in bytes from TileKernels::*_scratch.
struct Scratch {
  std::byte* packed_weight;
  std::byte* packed_hidden;  // backward: filled once by TileKernels::pack_hidden
  std::byte* rows;           // forward: statistics of each group; backward: the logit gradient
  std::byte* threads;        // one block for each part of the work
  int64_t thread_bytes;
};

struct ScratchSizes {
  int64_t packed_weight;
  int64_t packed_hidden;
  int64_t rows;
  int64_t thread;
};

enum class Isa : int { kPortable, kAvx2, kAvx512, kAvx512Bf16 };
constexpr int kIsaCount = 4;

struct TileKernels {
  ScratchSizes (*score_scratch)(DType dtype, int64_t rows, int64_t words, int64_t size);
  ScratchSizes (*grad_scratch)(DType dtype, int64_t rows, int64_t words, int64_t size);
  void (*pack_hidden)(DType dtype, const void* hidden, int64_t rows, int64_t size,
                      std::byte* packed, const Parallel& parallel);
  void (*score_tile)(const HeadTile& head, const RowState& state, const RetainedTile& retained,
                     const Scratch& scratch, const Parallel& parallel);
  void (*grad_tile)(const HeadTile& head, const RowGradients& rows, const RetainedTile& retained,
                    const Gradients& out, const Scratch& scratch, const Parallel& parallel);
};

// Whether this processor (and this build) can run `isa`.
bool host_has(Isa isa);

// The kernels built for `isa`, which the host must have.
const TileKernels& kernels_for(Isa isa);

}  // namespace rao
