// The two kinds of product (of fp32 elements, of pairs of bf16), and the layout of their operands.
//
// Every matrix product is C[rows, columns] = A[rows, K] B[K, columns] with fp32 sums. K is walked
// in steps of one 32-bit lane: one fp32 element, or a pair of bf16 elements where the processor
// multiplies pairs. A lane of A is broadcast; B is packed in panels of kPanel columns:
// [columns / kPanel][lanes of K][kPanel].
#pragma once

#include "elements.h"
#include "rao/tile_kernels.h"

namespace rao::RAO_ISA {

constexpr int kPanel = kLanes * kPanelVectors;

RAO_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
RAO_INLINE int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }
template <class T>
RAO_INLINE T smaller(T a, T b) {
  return a < b ? a : b;
}

// fp32 elements; half-precision operands are widened as they are packed.
struct FloatProduct {
  using Element = Float32;
  static constexpr int kPerLane = 1;  // elements of K in a lane
  // Rows of a micro-tile: kMicroRows x kPanelVectors sums fill the registers.
  static constexpr int kMicroRows = 6;
  // Rows of A that are multiplied by a panel of B while it is in cache.
  static constexpr int kRowBlock = 96;

  static RAO_INLINE Floats multiply_add(Floats sum, uint32_t a, Uints b) {
    float scalar;
    std::memcpy(&scalar, &a, sizeof(scalar));
    return sum + as_floats(b) * scalar;
  }
  template <class Source>
  static RAO_INLINE Uints along(const typename Source::Storage* row) {
    return as_uints(Source::load(row));
  }
  template <class Source>
  static RAO_INLINE Uints across(const typename Source::Storage* row,
                                 const typename Source::Storage*) {
    return as_uints(Source::load(row));
  }
};

#if defined(__AVX512BF16__)
// Pairs of bf16 elements.
struct PairProduct {
  using Element = BFloat16;
  static constexpr int kPerLane = 2;
  static constexpr int kMicroRows = 6;
  static constexpr int kRowBlock = 96;

  static RAO_INLINE Floats multiply_add(Floats sum, uint32_t a, Uints b) {
    return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_set1_epi32(static_cast<int>(a)), (__m512bh)b);
  }
  template <class Source>
  static RAO_INLINE Uints along(const uint16_t* row) {
    return load<Uints>(row);
  }
  template <class Source>
  static RAO_INLINE Uints across(const uint16_t* row, const uint16_t* next) {
    return widen(load<Halves>(row)) | (widen(load<Halves>(next)) << 16);
  }
};
#endif

// Lanes that hold so many elements of K.
template <class Product>
RAO_INLINE int64_t lanes_of(int64_t elements) {
  return ceil_div(elements, Product::kPerLane);
}

// Calls body(product, source) with the kind of product and the element type of operands of `dtype`.
template <class Body>
RAO_INLINE void with_types(DType dtype, const Body& body) {
  switch (dtype) {
    case DType::kFloat32:
      return body(FloatProduct{}, Float32{});
    case DType::kBFloat16:
#if defined(__AVX512BF16__)
      return body(PairProduct{}, BFloat16{});
#else
      return body(FloatProduct{}, BFloat16{});
#endif
    case DType::kFloat16:
      return body(FloatProduct{}, Float16{});
  }
}

// One vector of a row, from lane `k` on; zero beyond its `size` elements.
template <class Product, class Source>
RAO_INLINE Uints load_along(const typename Source::Storage* row, int64_t size, int64_t k) {
  constexpr int64_t kElements = kLanes * Product::kPerLane;
  const int64_t first = k * Product::kPerLane;
  if (first + kElements <= size) {
    return Product::template along<Source>(row + first);
  }
  typename Source::Storage padded[kElements] = {};
  if (first < size) {
    std::memcpy(padded, row + first, (size - first) * sizeof(padded[0]));
  }
  return Product::template along<Source>(padded);
}

// Rows of a row-major matrix with `size` columns; row i is stored at index[i] if there is an index.
template <class Storage>
struct Rows {
  const Storage* data;
  int64_t size;
  const int64_t* index;

  RAO_INLINE const Storage* operator[](int64_t i) const {
    return data + (index == nullptr ? i : index[i]) * size;
  }
};

// kLanes columns, from `column` on, of the rows that make up lane `k` of K; zero outside the
// [length, columns] matrix.
template <class Product, class Source>
RAO_INLINE Uints load_across(const Rows<typename Source::Storage>& matrix, int64_t length,
                             int64_t k, int64_t column) {
  using Storage = typename Source::Storage;
  const int64_t columns = matrix.size;
  const int64_t row = k * Product::kPerLane;
  const bool paired = Product::kPerLane == 2 && row + 1 < length;
  const Storage* first = matrix[row] + column;
  const Storage* second = paired ? matrix[row + 1] + column : first;
  if (column + kLanes <= columns && (paired || Product::kPerLane == 1)) {
    return Product::template across<Source>(first, second);
  }
  Storage padded[2][kLanes] = {};
  const int64_t count = smaller<int64_t>(kLanes, columns - column);
  if (count > 0) {
    std::memcpy(padded[0], first, count * sizeof(Storage));
    if (paired) {
      std::memcpy(padded[1], second, count * sizeof(Storage));
    }
  }
  return Product::template across<Source>(padded[0], padded[1]);
}

// Lanes that B[length, columns] takes when packed.
template <class Product>
RAO_INLINE int64_t packed_lanes(int64_t length, int64_t columns) {
  return lanes_of<Product>(length) * round_up(columns, kPanel);
}

// Packs B = matrix^T, where the matrix has `columns` rows.
template <class Product, class Source>
void pack_transposed(const Rows<typename Source::Storage>& matrix, int64_t columns,
                     uint32_t* packed, const Parallel& parallel) {
  const int64_t length = matrix.size;
  const int64_t depth = lanes_of<Product>(length);
  const int64_t strips = ceil_div(columns, kPanel) * kPanelVectors;
  parallel([&](int part) {
    const Range mine = share(strips, part, parallel.parts);
    for (int64_t strip = mine.begin; strip < mine.end; ++strip) {
      uint32_t* target =
          packed + strip / kPanelVectors * depth * kPanel + strip % kPanelVectors * kLanes;
      for (int64_t k = 0; k < depth; k += kLanes) {
        Uints block[kLanes];
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) {
          const int64_t column = strip * kLanes + i;
          block[i] =
              column < columns ? load_along<Product, Source>(matrix[column], length, k) : Uints{};
        }
        transpose(block);
        const int64_t count = smaller<int64_t>(kLanes, depth - k);
        for (int i = 0; i < count; ++i) {
          store(target + (k + i) * kPanel, block[i]);
        }
      }
    }
  });
}

// Prefetches one panel of the rows that make up lane `k` of K.
template <class Product, class Storage>
RAO_INLINE void prefetch_rows(const Rows<Storage>& matrix, int64_t length, int64_t k,
                              int64_t column) {
  constexpr int64_t kLine = 64 / sizeof(Storage);
  const int64_t end = smaller(length, (k + 1) * Product::kPerLane);
  for (int64_t row = k * Product::kPerLane; row < end; ++row) {
    for (int64_t i = 0; i < kPanel; i += kLine) {
      __builtin_prefetch(matrix[row] + column + i);
    }
  }
}

// Packs B = matrix, where the matrix has `length` rows.
template <class Product, class Source>
void pack(const Rows<typename Source::Storage>& matrix, int64_t length, uint32_t* packed,
          const Parallel& parallel) {
  // A few lanes of K at a time: their rows stay in cache for every panel, and each panel is written
  // a few cache lines at a time.
  constexpr int64_t kStep = 16;
  const int64_t depth = lanes_of<Product>(length);
  const int64_t panels = ceil_div(matrix.size, kPanel);
  parallel([&](int part) {
    const Range mine = share(depth, part, parallel.parts);
    for (int64_t start = mine.begin; start < mine.end; start += kStep) {
      const int64_t end = smaller(mine.end, start + kStep);
      for (int64_t panel = 0; panel < panels; ++panel) {
        for (int64_t k = start; k < end; ++k) {
          prefetch_rows<Product>(matrix, length, k + kStep, panel * kPanel);
          uint32_t* target = packed + (panel * depth + k) * kPanel;
          for (int j = 0; j < kPanel; j += kLanes) {
            store(target + j, load_across<Product, Source>(matrix, length, k, panel * kPanel + j));
          }
        }
      }
    }
  });
}

}  // namespace rao::RAO_ISA
