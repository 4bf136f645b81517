// The row kernels of the CUDA backend: statistics of the vendor's products, and their gradient.
//
// Legend: N rows, W entries of a tile, G = kGroup. All pointers are device memory; arrays without a
// stride are contiguous.
#pragma once

#include <cstdint>

#include "rao/rows.h"

namespace rao {

// Entries that a thread loads or stores at once.
constexpr int kPack = 8;

// Most entries of a tile: int can index them.
constexpr int kMaxEntries = 1 << 30;

// logits = softcap * tanh((hidden @ weight^T + bias) / softcap) * scale, of the entries
// [first_entry, first_entry + W). Rows of products and of dz begin on 16 bytes and their strides
// are multiples of kPack: the padding between W and the stride may be read and overwritten, but its
// values do not matter.
struct LogitsTile {
  const float* products;  // [N, stride] hidden @ weight^T, or null where a retained tile has them
  int64_t stride;
  const float* bias;       // [W] or null
  const int64_t* targets;  // [N]
  int64_t rows;            // N
  int entries;             // W, at most kMaxEntries
  int64_t first_entry;
  float scale;
  float softcap;  // 0 = none
  DType dtype;    // of the retained values and of dz
};

// The gradient of the products, [N, stride].
struct ProductGradient {
  void* values;
  int64_t stride;
};

// Each launch enqueues one kernel on `stream`, a cudaStream_t of the current device, and returns an
// error message, or null.
//
// Folds the tile's logits into `state` and fills `retained` where it is not null. first: `state` is
// uninitialised, and all of it is written.
const char* launch_score_rows(const LogitsTile& tile, const RowState& state, bool first,
                              const RetainedTile& retained, void* stream);

// Writes dz, from tile.products where they are not null, else from `retained`.
const char* launch_grad_rows(const LogitsTile& tile, const RowGradients& rows,
                             const RetainedTile& retained, const ProductGradient& dz, void* stream);

// The reason why the kernels cannot run on the current device, or null.
const char* row_kernels_problem();

// The compiler, then the compute capabilities it compiled for: "nvcc 13.0.88 800,900,1000".
const char* row_kernels_build();

}  // namespace rao
