// C[rows, columns] = A[rows, K] B[K, columns], by blocks of rows that stay in a core's cache.
//
// A block of C is [rows][stride] floats. Micro-tiles of kMicroRows rows by one panel are summed in
// registers. product.h has the layouts of A and B.
#pragma once

#include "product.h"

namespace rao::RAO_ISA {

constexpr int kDepthBlock = 512;           // most lanes of K between two updates of C
constexpr int64_t kBlockElements = 98304;  // of a block of C: 384 KiB of the L2 cache
// Lanes between rows of A's buffer; not a power of two, so that rows fall in different cache sets.
constexpr int64_t kLeftStride = kDepthBlock + 16;

// Rows of A: [rows][lanes of K], `stride` lanes apart.
struct Left {
  const uint32_t* data;
  int64_t stride;
};

// Computes kRows rows of one panel of C. add: adds them to C.
template <class Product, int kRows>
void multiply_micro(Left left, const uint32_t* panel, int64_t depth, float* c, int64_t stride,
                    bool add) {
  Floats sums[kRows][kPanelVectors];
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < kPanelVectors; ++j) {
      sums[i][j] = Floats{};
    }
  }
  for (int64_t k = 0; k < depth; ++k) {
    Uints b[kPanelVectors];
#pragma GCC unroll 4
    for (int j = 0; j < kPanelVectors; ++j) {
      b[j] = load<Uints>(panel + k * kPanel + j * kLanes);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      const uint32_t a = left.data[i * left.stride + k];
#pragma GCC unroll 4
      for (int j = 0; j < kPanelVectors; ++j) {
        sums[i][j] = Product::multiply_add(sums[i][j], a, b[j]);
      }
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < kPanelVectors; ++j) {
      float* target = c + i * stride + j * kLanes;
      store(target, add ? load<Floats>(target) + sums[i][j] : sums[i][j]);
    }
  }
}

// multiply_micro of `rows` rows, at most kRows, with their number a compile-time constant.
template <class Product, int kRows = Product::kMicroRows>
void multiply_rows(int64_t rows, Left left, const uint32_t* panel, int64_t depth, float* c,
                   int64_t stride, bool add) {
  if constexpr (kRows > 1) {
    if (rows < kRows) {
      return multiply_rows<Product, kRows - 1>(rows, left, panel, depth, c, stride, add);
    }
  }
  multiply_micro<Product, kRows>(left, panel, depth, c, stride, add);
}

// Computes one block of C: `panels` panels of B, packed one after the other with `depth` lanes
// each. load_left(k, count) returns A's lanes [k, k + count).
template <class Product, class LoadLeft>
void multiply_block(const LoadLeft& load_left, int64_t rows, const uint32_t* packed, int64_t depth,
                    int64_t panels, float* c, int64_t stride) {
  // Blocks of K of equal length: a short last one would spend its time on loading and storing C.
  // Each block is summed separately, because rounding grows with the length of a sum; fp32, whose
  // only error is that of the sums, has shorter blocks.
  constexpr int64_t kLongest = Product::kPerLane == 1 ? kDepthBlock / 4 : kDepthBlock;
  const int64_t step = round_up(ceil_div(depth, ceil_div(depth, kLongest)), kLanes);
  for (int64_t k = 0; k < depth; k += step) {
    const int64_t count = smaller(step, depth - k);
    const Left left = load_left(k, count);
    for (int64_t panel = 0; panel < panels; ++panel) {
      const uint32_t* b = packed + (panel * depth + k) * kPanel;
      for (int64_t row = 0; row < rows; row += Product::kMicroRows) {
        multiply_rows<Product>(smaller<int64_t>(Product::kMicroRows, rows - row),
                               {left.data + row * left.stride, left.stride}, b, count,
                               c + row * stride + panel * kPanel, stride, k > 0);
      }
    }
  }
}

// A = rows of a [., size] matrix in memory; used in place where they are whole lanes already, else
// copied to `buffer`.
template <class Product, class Source>
class MatrixRows {
 public:
  using Storage = typename Source::Storage;

  MatrixRows(const Storage* first, int64_t rows, int64_t size, uint32_t* buffer)
      : first_(first), rows_(rows), size_(size), buffer_(buffer) {}

  Left operator()(int64_t k, int64_t count) const {
    constexpr bool kSame = sizeof(Storage) * Product::kPerLane == sizeof(uint32_t);
    if (kSame && size_ % Product::kPerLane == 0) {
      return {reinterpret_cast<const uint32_t*>(first_) + k, size_ / Product::kPerLane};
    }
    for (int64_t row = 0; row < rows_; ++row) {
      for (int64_t i = 0; i < count; i += kLanes) {
        store(buffer_ + row * kLeftStride + i,
              load_along<Product, Source>(first_ + row * size_, size_, k + i));
      }
    }
    return {buffer_, kLeftStride};
  }

 private:
  const Storage* first_;
  int64_t rows_;
  int64_t size_;
  uint32_t* buffer_;
};

// Calls body(chunk, first_row, end_row) for the part's share of a [rows, columns] product, with
// columns in chunks and rows in steps of kMicroRows. Chunk by chunk, so that its panels stay
// cached.
template <class Product, class Body>
RAO_INLINE void for_share(int part, int parts, int64_t rows, int64_t chunks, const Body& body) {
  constexpr int64_t kStep = Product::kMicroRows;
  const int64_t steps = ceil_div(rows, kStep);
  const Range mine = share(steps * chunks, part, parts);
  for (int64_t at = mine.begin; at < mine.end;) {
    const int64_t chunk = at / steps;
    const int64_t first = at % steps;
    const int64_t end = smaller(steps, first + mine.end - at);
    body(chunk, first * kStep, smaller(rows, end * kStep));
    at += end - first;
  }
}

}  // namespace rao::RAO_ISA
