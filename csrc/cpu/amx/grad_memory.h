// The sizes of grad_tile's chunks and blocks, and the layout of a thread's memory.
#pragma once

#include "fallback.h"
#include "logit_gradient.h"

namespace rao::RAO_ISA {

// Shares of the L2 cache. For dweight: dz of a block of panels, and strips of hidden
// beside it. For dhidden: the packed weight of some columns.
constexpr int64_t kGradientBytes = 1310720;
constexpr int64_t kHiddenBytes = 1 << 18;
constexpr int64_t kWeightBytes = 1228800;
// Partial sums of dweight that are kept in memory until the next chunk of rows.
constexpr int64_t kWaitingBytes = 2621440;

// The sizes into which rows and entries are cut for dweight.
struct Cut {
  int64_t strips;  // of a chunk, whose dz is formed before it is multiplied
  int64_t chunks;  // of all rows
  int64_t panels;  // of a block, at most

  // Most strips of a chunk.
  template <int kParts>
  static int64_t fitting(int64_t rows) {
    return smaller(blocks_of(rows), kGradientBytes / LogitGradient<kParts>::bytes(kGroupPanels, 1));
  }
  template <int kParts>
  static Cut of(int64_t rows, int64_t size) {
    const int64_t all = blocks_of(rows);
    const int64_t chunks = all == 0 ? 0 : ceil_div(all, fitting<kParts>(rows));
    const int64_t panels = kWaitingBytes / (blocks_of(size) * kBlockFloats * 4);
    const bool waits = chunks > 1 && panels < kGroupPanels;
    return {chunks == 0 ? 0 : ceil_div(all, chunks), chunks,
            waits ? larger(1, panels) : kGroupPanels};
  }
};

// A thread's memory, in the order of the fields.
template <class Source>
struct GradMemory {
  static constexpr int kParts = kPartsOf<Source>;
  static constexpr int64_t kPairs = GradBlock<Source, true, true>::kPairBytes;
  static constexpr int64_t kRestored = RestoredBlock<Source>::kBytes;

  std::byte* blocks;
  std::byte* pairs;
  std::byte* restored;
  float* sums;  // a block for each panel or column strip of a product
  std::byte* logit_gradient;
  float* waiting;  // partial sums of dweight between chunks: [column strips][panels] blocks

  // Column strips of the weight that stay in cache together for dhidden.
  static int64_t columns(int64_t panels, int64_t size) {
    const int64_t fitting = kWeightBytes / Packed<kParts>::bytes(1, panels);
    return smaller(blocks_of(size), larger(1, fitting));
  }
  static int64_t sum_blocks(int64_t panels, int64_t size) {
    return larger(kGroupPanels, columns(panels, size));
  }
  // Does not shrink as rows grow: passes over fewer rows use the same memory.
  static int64_t bytes(int64_t rows, int64_t entries, int64_t size) {
    const Cut cut = Cut::of<kParts>(rows, size);
    const int64_t waiting = cut.chunks > 1 ? blocks_of(size) * cut.panels : 0;
    return BlockMemory::bytes<kParts>(blocks_of(size)) + kPairs + kRestored +
           4 * kBlockFloats * (sum_blocks(blocks_of(entries), size) + waiting) +
           LogitGradient<kParts>::bytes(kGroupPanels, Cut::fitting<kParts>(rows));
  }
  static GradMemory of(std::byte* memory, const HeadTile& head) {
    GradMemory found;
    found.blocks = memory;
    found.pairs = memory + BlockMemory::bytes<kParts>(blocks_of(head.size));
    found.restored = found.pairs + kPairs;
    found.sums = reinterpret_cast<float*>(found.restored + kRestored);
    float* end = found.sums + kBlockFloats * sum_blocks(blocks_of(head.entries), head.size);
    found.logit_gradient = reinterpret_cast<std::byte*>(end);
    const int64_t bytes =
        LogitGradient<kParts>::bytes(kGroupPanels, Cut::fitting<kParts>(head.rows));
    found.waiting = reinterpret_cast<float*>(found.logit_gradient + bytes);
    return found;
  }
};

// The row of an output that belongs to row i.
RAO_INLINE int64_t row_at(const int64_t* index, int64_t i) {
  return index == nullptr ? i : index[i];
}

}  // namespace rao::RAO_ISA
