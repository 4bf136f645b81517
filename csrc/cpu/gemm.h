// C[rows, columns] = A[rows, K] B[K, columns] over blocks of rows that stay in a core's cache.
#pragma once

#include "product.h"

namespace rao::RAO_ISA {

constexpr int kMicroRows = 6;              // 6 x kPanelVectors sums fill the registers
constexpr int kRowBlock = 96;              // rows of A that meet a panel of B while it is in cache
constexpr int kDepthBlock = 512;           // at most so many words of K between two visits to C
constexpr int64_t kBlockElements = 98304;  // of C: 384 KiB of the second-level cache
constexpr int64_t kLeftStride = kDepthBlock + 16;  // of A's buffer; off a power of two

// Rows of A, as words of K.
struct Left {
  const uint32_t* data;
  int64_t stride;
};

template <class Product, int kRows>
void multiply_micro(Left left, const uint32_t* panel, int64_t depth, float* c, int64_t stride,
                    bool add) {
  Floats sums[kRows][kPanelVectors];
#pragma GCC unroll 6
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < kPanelVectors; ++j) {
      sums[i][j] = Floats{};
    }
  }
  for (int64_t k = 0; k < depth; ++k) {
    Words b[kPanelVectors];
#pragma GCC unroll 4
    for (int j = 0; j < kPanelVectors; ++j) {
      b[j] = load<Words>(panel + k * kPanel + j * kLanes);
    }
#pragma GCC unroll 6
    for (int i = 0; i < kRows; ++i) {
      const uint32_t a = left.data[i * left.stride + k];
#pragma GCC unroll 4
      for (int j = 0; j < kPanelVectors; ++j) {
        sums[i][j] = Product::multiply_add(sums[i][j], a, b[j]);
      }
    }
  }
#pragma GCC unroll 6
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < kPanelVectors; ++j) {
      float* target = c + i * stride + j * kLanes;
      store(target, add ? load<Floats>(target) + sums[i][j] : sums[i][j]);
    }
  }
}

template <class Product>
void multiply_rows(int64_t rows, Left left, const uint32_t* panel, int64_t depth, float* c,
                   int64_t stride, bool add) {
  switch (rows) {
    case 1:
      return multiply_micro<Product, 1>(left, panel, depth, c, stride, add);
    case 2:
      return multiply_micro<Product, 2>(left, panel, depth, c, stride, add);
    case 3:
      return multiply_micro<Product, 3>(left, panel, depth, c, stride, add);
    case 4:
      return multiply_micro<Product, 4>(left, panel, depth, c, stride, add);
    case 5:
      return multiply_micro<Product, 5>(left, panel, depth, c, stride, add);
    default:
      return multiply_micro<Product, kMicroRows>(left, panel, depth, c, stride, add);
  }
}

// One block of C: `panels` panels of B, packed one after the other with `depth` words each.
// load_left(k, count) gives A's words [k, k + count).
template <class Product, class LoadLeft>
void multiply_block(const LoadLeft& load_left, int64_t rows, const uint32_t* packed, int64_t depth,
                    int64_t panels, float* c, int64_t stride) {
  // Blocks of equal size: a short last one would spend its time on loading and storing C.
  // Each is summed by itself, and fp32 in shorter ones: rounding grows with the length of a sum,
  // and there it is all the error there is.
  constexpr int64_t kLongest = Product::kPerWord == 1 ? kDepthBlock / 4 : kDepthBlock;
  const int64_t step = round_up(ceil_div(depth, ceil_div(depth, kLongest)), kLanes);
  for (int64_t k = 0; k < depth; k += step) {
    const int64_t count = smaller(step, depth - k);
    const Left left = load_left(k, count);
    for (int64_t panel = 0; panel < panels; ++panel) {
      const uint32_t* b = packed + (panel * depth + k) * kPanel;
      for (int64_t row = 0; row < rows; row += kMicroRows) {
        multiply_rows<Product>(smaller<int64_t>(kMicroRows, rows - row),
                               {left.data + row * left.stride, left.stride}, b, count,
                               c + row * stride + panel * kPanel, stride, k > 0);
      }
    }
  }
}

// A = rows of a [., size] matrix in memory, used where they are if they are whole words already.
template <class Product, class Source>
class MatrixRows {
 public:
  using Storage = typename Source::Storage;

  MatrixRows(const Storage* first, int64_t rows, int64_t size, uint32_t* buffer)
      : first_(first), rows_(rows), size_(size), buffer_(buffer) {}

  Left operator()(int64_t k, int64_t count) const {
    constexpr bool kSame = sizeof(Storage) * Product::kPerWord == sizeof(uint32_t);
    if (kSame && size_ % Product::kPerWord == 0) {
      return {reinterpret_cast<const uint32_t*>(first_) + k, size_ / Product::kPerWord};
    }
    for (int64_t row = 0; row < rows_; ++row) {
      for (int64_t i = 0; i < count; i += kLanes) {
        store(buffer_ + row * kLeftStride + i,
              words_along<Product, Source>(first_ + row * size_, size_, k + i));
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

// The part's share of the blocks of a [rows, columns] product, columns in chunks, rows in steps of
// kMicroRows: body(chunk, first_row, end_row). Chunk by chunk, so that its panels stay in cache.
template <class Body>
RAO_INLINE void for_share(int part, int parts, int64_t rows, int64_t chunks, const Body& body) {
  const int64_t steps = ceil_div(rows, kMicroRows);
  const Range mine = share(steps * chunks, part, parts);
  for (int64_t at = mine.begin; at < mine.end;) {
    const int64_t chunk = at / steps;
    const int64_t first = at % steps;
    const int64_t end = smaller(steps, first + mine.end - at);
    body(chunk, first * kMicroRows, smaller(rows, end * kMicroRows));
    at += end - first;
  }
}

}  // namespace rao::RAO_ISA
