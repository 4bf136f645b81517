// dhidden from the logit gradient of a tile, in blocks of 32 rows by 32 columns.
#pragma once

#include "grad_memory.h"

namespace rao::RAO_ISA {

// dhidden += dz @ weight. The packed weight of some columns stays in the L2 cache and is
// streamed; for these columns dz and dhidden are read once.
template <class Source>
class HiddenGradient {
 public:
  static constexpr int kParts = kPartsOf<Source>;

  HiddenGradient(const HeadTile& head, const Gradients& out, const Packed<kParts>& dz,
                 const Packed<kParts>& weight, const Scratch& scratch)
      : head_(head), out_(out), dz_(dz), weight_(weight), scratch_(scratch) {}

  void operator()(const Parallel& parallel) const {
    const int64_t strips = blocks_of(head_.rows), all = blocks_of(head_.size);
    const int64_t fitting = GradMemory<Source>::columns(dz_.depth, head_.size);
    // Where there are few strips, fewer columns at a time give every part some work.
    const int64_t shared = larger(1, all * strips / (4 * parallel.parts));
    const int64_t columns = smaller(fitting, shared);
    const int64_t slabs = ceil_div(all, columns);
    parallel([&](int part) {
      const TileScope tiles;
      float* sums =
          GradMemory<Source>::of(scratch_.threads + part * scratch_.thread_bytes, head_).sums;
      const Range mine = share(slabs * strips, part, parallel.parts);
      for (int64_t at = mine.begin; at < mine.end; ++at) {
        const int64_t first = at / strips * columns;
        add(at % strips, {first, smaller(all, first + columns)}, at + 1 < mine.end, sums);
      }
    });
  }

 private:
  // more: the part goes on, with the next strip of the same columns if there is one.
  void add(int64_t strip, Range columns, bool more, float* sums) const {
    constexpr int64_t kLongest = 19 / kParts;
    const int64_t depth = dz_.depth, step = ceil_div(depth, ceil_div(depth, kLongest));
    const int64_t count = columns.end - columns.begin;
    more = more && (strip + 1) * kBlock < head_.rows;
    Fetch next_dz =
        more ? Fetch(dz_.tile(strip + 1, 0, 0), Packed<kParts>::bytes(1, depth), depth * count)
             : Fetch();
    for (int64_t k = 0; k < depth; k += step) {
      const int64_t tiles = smaller(step, depth - k);
      const Operand left = dz_.operand(strip).from(k);
      for (int64_t column = columns.begin; column < columns.end; ++column) {
        const Operand right = weight_.operand(column).from(k);
        const bool fetches = more && k == 0 && in_place(strip + 1, column);
        const int64_t each = ceil_div(kBlock, tiles);
        float* block = sums + (column - columns.begin) * kBlockFloats;
        const float* from = k == 0 ? nullptr : block;
        if (k == 0 && in_place(strip, column)) {
          load_sums(target(strip * kBlock, column), head_.size);
        } else {
          open_sums<kParts>(from);
        }
        multiply_tiles<kParts, Streamed::kRight>(left, right, tiles, [&](int64_t i) {
          next_dz();
          if (fetches) {
            prefetch_sums(strip + 1, column, i * each, smaller<int64_t>(kBlock, (i + 1) * each));
          }
        });
        if (k + tiles == depth && in_place(strip, column)) {
          store_sums(target(strip * kBlock, column), head_.size);
          continue;
        }
        close_sums<kParts>(from, block);
        if (k + tiles == depth) {
          add_rows(strip, column, block);
        }
      }
    }
  }

  // True if a block is summed in dhidden itself: a whole block, of one part. Sums over parts start
  // from zero and are added, because rounding grows with the length of a sum and is their only
  // error.
  RAO_INLINE bool in_place(int64_t strip, int64_t column) const {
    return kParts == 1 && out_.dhidden_rows == nullptr && (strip + 1) * kBlock <= head_.rows &&
           (column + 1) * kBlock <= head_.size;
  }
  RAO_INLINE float* target(int64_t row, int64_t column) const {
    return out_.dhidden + row_at(out_.dhidden_rows, row) * head_.size + column * kBlock;
  }

  RAO_INLINE void prefetch_sums(int64_t strip, int64_t column, int64_t first, int64_t end) const {
    for (int64_t i = first; i < end; ++i) {
      const float* row = target(strip * kBlock + i, column);
      __builtin_prefetch(row, 1, 2);
      __builtin_prefetch(row + kLanes, 1, 2);
    }
  }
  RAO_INLINE void add_rows(int64_t strip, int64_t column, const float* block) const {
    const int64_t rows = smaller<int64_t>(kBlock, head_.rows - strip * kBlock);
    const int64_t count = smaller<int64_t>(kBlock, head_.size - column * kBlock);
    for (int64_t i = 0; i < rows; ++i) {
      float* sums = target(strip * kBlock + i, column);
      for (int64_t j = 0; j < count; ++j) {
        sums[j] += block[i * kBlock + j];
      }
    }
  }

  const HeadTile& head_;
  const Gradients& out_;
  const Packed<kParts>& dz_;
  const Packed<kParts>& weight_;
  const Scratch& scratch_;
};

}  // namespace rao::RAO_ISA
