// The layout of operands as tiles, and their packing.
//
// Legend: a strip is 32 rows of hidden or 32 of its columns, a panel 32 entries of the vocabulary;
// the last of each is padded with zeros. A tile is 1 KiB; the parts of a tile of K are adjacent.
#pragma once

#include "fetch.h"
#include "parts.h"

namespace rao::RAO_ISA {

constexpr int64_t kInPlaceAlignment = 64;
constexpr int64_t kPageStride = 4096;  // rows this far apart share one set of the L1 cache

RAO_INLINE int64_t blocks_of(int64_t elements) { return ceil_div(elements, kBlock); }

// The addresses of the tiles of 32 rows of a left operand, or of 32 columns of a right one.
struct Operand {
  const std::byte* first;
  int64_t half;                             // bytes to the tiles of rows (or columns) 16 to 31
  int64_t step;                             // bytes to the next tile of K
  int64_t stride = kTileBytes / kTileRows;  // bytes between rows of a tile

  RAO_INLINE Operand from(int64_t k) const { return {first + k * step, half, step, stride}; }
};

// [blocks][2][depth][parts] tiles: 32 rows (or columns) by `depth` tiles of K in each block.
template <int kParts>
struct Packed {
  std::byte* data;
  int64_t depth;

  static int64_t bytes(int64_t blocks, int64_t depth) {
    return 2 * blocks * depth * kParts * kTileBytes;
  }
  RAO_INLINE std::byte* tile(int64_t block, int half, int64_t k) const {
    return data + ((2 * block + half) * depth + k) * kParts * kTileBytes;
  }
  RAO_INLINE Operand operand(int64_t block) const {
    return {tile(block, 0, 0), depth * kParts * kTileBytes, kParts * kTileBytes};
  }
};

// Packs a left operand of `count` tiles of K, from tile `k` on: rows [first, first + 32).
template <class Source>
RAO_INLINE void pack_rows(const Rows<typename Source::Storage>& matrix, int64_t rows, int64_t first,
                          int64_t k, int64_t count, std::byte* target) {
  constexpr int kParts = kPartsOf<Source>;
  for (int i = 0; i < kBlock; ++i) {
    std::byte* row = target + i / kTileRows * count * kParts * kTileBytes + i % kTileRows * 64;
    for (int64_t tile = 0; tile < count; ++tile) {
      Uints parts[kParts] = {};
      if (first + i < rows) {
        split_row<Source>(matrix[first + i], matrix.size, (k + tile) * kTileDepth, parts);
      }
#pragma GCC unroll 3
      for (int part = 0; part < kParts; ++part) {
        store(row + (tile * kParts + part) * kTileBytes, parts[part]);
      }
    }
  }
}

// Packs a right operand whose columns are the matrix's rows, and K its columns: rows [16 unit, 16
// unit + 16).
template <class Source>
void pack_columns_of(const Rows<typename Source::Storage>& matrix, int64_t rows, int64_t unit,
                     const Packed<kPartsOf<Source>>& packed) {
  constexpr int kParts = kPartsOf<Source>;
  for (int64_t k = 0; k < packed.depth; ++k) {
    Uints pairs[kParts][kTileRows] = {};
    for (int i = 0; i < kTileRows; ++i) {
      const int64_t row = unit * kTileRows + i;
      if (row < rows) {
        Uints parts[kParts];
        split_row<Source>(matrix[row], matrix.size, k * kTileDepth, parts);
        for (int part = 0; part < kParts; ++part) {
          pairs[part][i] = parts[part];
        }
      }
    }
    std::byte* tile = packed.tile(unit / 2, unit % 2, k);
    for (int part = 0; part < kParts; ++part) {
      transpose(pairs[part]);
#pragma GCC unroll 16
      for (int i = 0; i < kTileRows; ++i) {
        store(tile + part * kTileBytes + i * 64, pairs[part][i]);
      }
    }
  }
}

// Packs a right operand whose columns are the matrix's columns, and K its rows:
// rows [32 k, 32 k + 32).
template <class Source>
void pack_rows_of(const Rows<typename Source::Storage>& matrix, int64_t rows, int64_t k,
                  const Packed<kPartsOf<Source>>& packed) {
  constexpr int kParts = kPartsOf<Source>;
  const int64_t first = k * kBlock;
  // Tile by tile: stores a power of two apart would be slow.
  for (int64_t block = 0; block < blocks_of(matrix.size); ++block) {
    for (int i = 0; i < kTileRows; ++i) {
      Uints even[kParts] = {}, odd[kParts] = {};
      if (first + 2 * i < rows) {
        split_row<Source>(matrix[first + 2 * i], matrix.size, block * kBlock, even);
      }
      if (first + 2 * i + 1 < rows) {
        split_row<Source>(matrix[first + 2 * i + 1], matrix.size, block * kBlock, odd);
      }
#pragma GCC unroll 3
      for (int part = 0; part < kParts; ++part) {
        Uints low, high;
        interleave_rows(even[part], odd[part], &low, &high);
        store(packed.tile(block, 0, k) + part * kTileBytes + i * 64, low);
        store(packed.tile(block, 1, k) + part * kTileBytes + i * 64, high);
      }
    }
  }
}

// Hidden, packed once a pass: a header, then one or two layouts.
template <int kParts>
struct PackedHidden {
  static constexpr int64_t kHeader = 64;

  bool* exact;              // the parts represent hidden exactly
  Packed<kParts> by_rows;   // columns are rows of hidden: for products with the weight
  Packed<kParts> by_depth;  // K is rows of hidden: for dweight

  static int64_t bytes(int64_t rows, int64_t size, bool backward) {
    const int64_t one = Packed<kParts>::bytes(blocks_of(rows), blocks_of(size));
    return kHeader + (backward ? 2 : 1) * one;
  }
  static PackedHidden of(std::byte* memory, int64_t rows, int64_t size) {
    const int64_t strips = blocks_of(rows), depth = blocks_of(size);
    std::byte* data = memory + kHeader;
    return {reinterpret_cast<bool*>(memory),
            {data, depth},
            {data + Packed<kParts>::bytes(strips, depth), strips}};
  }
};

// The weight's rows of a tile. A panel of them is a left operand, used in place or packed.
template <class Source>
class WeightPanels {
 public:
  using Storage = typename Source::Storage;
  static constexpr int kParts = kPartsOf<Source>;

  explicit WeightPanels(const HeadTile& head)
      : rows_{static_cast<const Storage*>(head.weight), head.size, head.weight_rows},
        entries_(head.entries) {
    const int64_t bytes = head.size * static_cast<int64_t>(sizeof(Storage));
    const auto address = reinterpret_cast<uintptr_t>(head.weight);
    in_place_ = kParts == 1 && head.weight_rows == nullptr && head.size % kTileDepth == 0 &&
                bytes % kPageStride != 0 && address % kInPlaceAlignment == 0;
  }

  // `count` tiles of K from tile k on; copy: memory for them.
  RAO_INLINE Operand operand(int64_t panel, int64_t k, int64_t count, std::byte* copy) const {
    const int64_t first = panel * kBlock;
    if (in_place_ && first + kBlock <= entries_) {
      const int64_t stride = rows_.size * static_cast<int64_t>(sizeof(Storage));
      const auto* data = reinterpret_cast<const std::byte*>(rows_[first]) + k * 64;
      return {data, kTileRows * stride, 64, stride};
    }
    pack_rows<Source>(rows_, entries_, first, k, count, copy);
    return {copy, count * kParts * kTileBytes, kParts * kTileBytes};
  }

  const Rows<Storage>& rows() const { return rows_; }
  int64_t entries() const { return entries_; }

  // True if the rows of a panel are adjacent in memory.
  bool contiguous() const { return rows_.index == nullptr; }
  // A prefetch of a panel, spread over so many calls.
  RAO_INLINE Fetch fetch(int64_t panel, int64_t calls) const {
    const int64_t rows = smaller<int64_t>(kBlock, entries_ - panel * kBlock);
    return {rows_[panel * kBlock], rows * rows_.size * static_cast<int64_t>(sizeof(Storage)),
            calls};
  }
  // Prefetches tiles of K of some of a panel's rows into the L2 cache.
  RAO_INLINE void prefetch(int64_t panel, Range rows, int64_t k, int64_t tiles) const {
    const int64_t first = panel * kBlock;
    const int64_t columns = smaller(tiles * kTileDepth, rows_.size - k * kTileDepth);
    const int64_t end = smaller(first + rows.end, entries_);
    for (int64_t row = first + rows.begin; row < end; ++row) {
      const Storage* data = rows_[row] + k * kTileDepth;
      for (int64_t i = 0; i < columns; i += 64 / static_cast<int64_t>(sizeof(Storage))) {
        __builtin_prefetch(data + i, 0, 2);
      }
    }
  }

 private:
  Rows<Storage> rows_;
  int64_t entries_;
  bool in_place_;
};

}  // namespace rao::RAO_ISA
