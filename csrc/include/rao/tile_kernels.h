// The two tile operations of the CPU backend on raw pointers, and the table of their entry points.
//
// Legend: N rows, V vocabulary, D hidden size, W entries of a tile, G = kGroup. All arrays are
// row-major and, unless a stride says otherwise, contiguous.
#pragma once

#include <cstddef>
#include <cstdint>

#include "rao/parallel.h"
#include "rao/rows.h"

namespace rao {

// logits = softcap * tanh((hidden @ weight^T + bias) / softcap) * scale, of the entries
// [first_entry, first_entry + W).
struct HeadTile {
  DType dtype;                 // of hidden and weight
  const void* hidden;          // [N, D]
  const void* weight;          // [W, D], or with weight_rows any number of rows
  const int64_t* weight_rows;  // [W] each entry's row of weight, or null: entry i is row i
  const float* bias;           // [W] or null
  const int64_t* targets;      // [N]
  int64_t rows;                // N
  int64_t entries;             // W
  int64_t size;                // D
  int64_t first_entry;
  float scale;
  float softcap;  // 0 = none
};

// Outputs; null = not wanted. dhidden [N, D] is added to; dweight [W, D] and dbias [W] are written.
// Row n of the pass is row dhidden_rows[n] of dhidden, and entry i of the tile is row
// dweight_rows[i] of dweight and dbias, where these indices are not null.
struct Gradients {
  float* dhidden;
  const int64_t* dhidden_rows;
  const int64_t* dweight_rows;
  void* dweight;
  DType dweight_dtype;
  float* dbias;
  float unscale;  // factor of dweight and dbias
};

// Memory in which a tile is retained from forward to backward: TileKernels::retained_bytes long,
// aligned to 64 bytes. Each instruction set has its own layout.
struct RetainedSlot {
  std::byte* memory;  // null: none
  int64_t rows;       // of the pass that retained it
};

// Buffers that one pass reuses for every tile; sizes in bytes from TileKernels::*_scratch.
struct Scratch {
  std::byte* packed_weight;
  std::byte* packed_hidden;  // filled once a pass by pack_hidden; of one size for every tile
  std::byte* rows;           // forward: statistics of each group; backward: the logit gradient
  std::byte* threads;        // one block for each part of the work, thread_bytes apart
  int64_t thread_bytes;
};

// Bytes of the buffers of Scratch; thread: of each part of the work.
struct ScratchSizes {
  int64_t packed_weight;
  int64_t packed_hidden;
  int64_t rows;
  int64_t thread;
};

// Instruction sets, in the order of ISAS in rao_kernels/_native.py.
enum class Isa : int { kPortable, kAvx2, kAvx512, kAvx512Bf16, kAvx512Amx };
constexpr int kIsaCount = 5;

// The kernels of one instruction set.
struct TileKernels {
  // Bytes of a RetainedSlot for a tile of so many entries.
  int64_t (*retained_bytes)(DType dtype, int64_t rows, int64_t entries);
  // The scratch of a pass forward, or backward, over tiles of at most so many entries.
  ScratchSizes (*score_scratch)(DType dtype, int64_t rows, int64_t entries, int64_t size);
  ScratchSizes (*grad_scratch)(DType dtype, int64_t rows, int64_t entries, int64_t size);
  // Called before the first tile of a pass, and when its rows have changed.
  void (*pack_hidden)(DType dtype, const void* hidden, int64_t rows, int64_t size, bool backward,
                      std::byte* packed, const Parallel& parallel);
  // Adds the tile's logits to `state`; fills `retained` if it has memory.
  void (*score_tile)(const HeadTile& head, const RowState& state, const RetainedSlot& retained,
                     const Scratch& scratch, const Parallel& parallel);
  // Adds or writes the tile's gradients, from `retained` or from products computed again.
  void (*grad_tile)(const HeadTile& head, const RowGradients& rows, const RetainedSlot& retained,
                    const Gradients& out, const Scratch& scratch, const Parallel& parallel);
};

// True if this processor (and this build) can run `isa`.
bool host_has(Isa isa);

// The reason why this processor (or this build) cannot run kAvx512Amx, or null.
const char* amx_problem();

// The kernels built for `isa`, which the host must have.
const TileKernels& kernels_for(Isa isa);

}  // namespace rao
