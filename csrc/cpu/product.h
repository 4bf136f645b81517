// The two kinds of product, and how operands are laid out for them.
//
// Every matrix product is C[rows, columns] = A[rows, K] B[K, columns] with fp32 sums, and K is
// walked in 32-bit words: one fp32 element, or a pair of bf16 elements where the processor
// multiplies pairs. A's words are broadcast, B's are packed in panels of kPanel columns:
// [columns / kPanel][words of K][kPanel].
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
  static constexpr int kPerWord = 1;

  static RAO_INLINE Floats multiply_add(Floats sum, uint32_t a, Words b) {
    float scalar;
    std::memcpy(&scalar, &a, sizeof(scalar));
    return sum + as_floats(b) * scalar;
  }
  template <class Source>
  static RAO_INLINE Words along(const typename Source::Storage* row) {
    return as_words(Source::load(row));
  }
  template <class Source>
  static RAO_INLINE Words across(const typename Source::Storage* row,
                                 const typename Source::Storage*) {
    return as_words(Source::load(row));
  }
};

#if defined(__AVX512BF16__)
// Pairs of bf16 elements.
struct PairProduct {
  using Element = BFloat16;
  static constexpr int kPerWord = 2;

  static RAO_INLINE Floats multiply_add(Floats sum, uint32_t a, Words b) {
    return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_set1_epi32(static_cast<int>(a)), (__m512bh)b);
  }
  template <class Source>
  static RAO_INLINE Words along(const uint16_t* row) {
    return load<Words>(row);
  }
  template <class Source>
  static RAO_INLINE Words across(const uint16_t* row, const uint16_t* next) {
    return widen(load<Halves>(row)) | (widen(load<Halves>(next)) << 16);
  }
};
#endif

template <class Product>
RAO_INLINE int64_t words_of(int64_t elements) {
  return ceil_div(elements, Product::kPerWord);
}

// Calls body(product, source) with the types that operands of `dtype` are multiplied with.
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

// kLanes words of a row from word `k` on, zero beyond its `size` elements.
template <class Product, class Source>
RAO_INLINE Words words_along(const typename Source::Storage* row, int64_t size, int64_t k) {
  constexpr int64_t kElements = kLanes * Product::kPerWord;
  const int64_t first = k * Product::kPerWord;
  if (first + kElements <= size) {
    return Product::template along<Source>(row + first);
  }
  typename Source::Storage padded[kElements] = {};
  if (first < size) {
    std::memcpy(padded, row + first, (size - first) * sizeof(padded[0]));
  }
  return Product::template along<Source>(padded);
}

// Rows of a row-major matrix with `size` columns, row i standing at index[i] if there is an index.
template <class Storage>
struct Rows {
  const Storage* data;
  int64_t size;
  const int64_t* index;

  RAO_INLINE const Storage* operator[](int64_t i) const {
    return data + (index == nullptr ? i : index[i]) * size;
  }
};

// kLanes columns, from `column` on, of the rows that make up word `k` of K; zero outside of the
// [length, columns] matrix.
template <class Product, class Source>
RAO_INLINE Words words_across(const Rows<typename Source::Storage>& matrix, int64_t length,
                              int64_t k, int64_t column) {
  using Storage = typename Source::Storage;
  const int64_t columns = matrix.size;
  const int64_t row = k * Product::kPerWord;
  const bool paired = Product::kPerWord == 2 && row + 1 < length;
  const Storage* first = matrix[row] + column;
  const Storage* second = paired ? matrix[row + 1] + column : first;
  if (column + kLanes <= columns && (paired || Product::kPerWord == 1)) {
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

// Words that B[length, columns] takes when packed.
template <class Product>
RAO_INLINE int64_t packed_words(int64_t length, int64_t columns) {
  return words_of<Product>(length) * round_up(columns, kPanel);
}

// Packs B = matrix^T, where matrix has `columns` rows.
template <class Product, class Source>
void pack_transposed(const Rows<typename Source::Storage>& matrix, int64_t columns,
                     uint32_t* packed, const Parallel& parallel) {
  const int64_t length = matrix.size;
  const int64_t depth = words_of<Product>(length);
  const int64_t strips = ceil_div(columns, kPanel) * kPanelVectors;
  parallel([&](int part) {
    const Range mine = share(strips, part, parallel.parts);
    for (int64_t strip = mine.begin; strip < mine.end; ++strip) {
      uint32_t* target =
          packed + strip / kPanelVectors * depth * kPanel + strip % kPanelVectors * kLanes;
      for (int64_t k = 0; k < depth; k += kLanes) {
        Words block[kLanes];
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) {
          const int64_t column = strip * kLanes + i;
          block[i] =
              column < columns ? words_along<Product, Source>(matrix[column], length, k) : Words{};
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

// Fetches one panel of the rows that make up word `k` of K.
template <class Product, class Storage>
RAO_INLINE void prefetch_rows(const Rows<Storage>& matrix, int64_t length, int64_t k,
                              int64_t column) {
  constexpr int64_t kLine = 64 / sizeof(Storage);
  const int64_t end = smaller(length, (k + 1) * Product::kPerWord);
  for (int64_t row = k * Product::kPerWord; row < end; ++row) {
    for (int64_t i = 0; i < kPanel; i += kLine) {
      __builtin_prefetch(matrix[row] + column + i);
    }
  }
}

// Packs B = matrix, which has `length` rows.
template <class Product, class Source>
void pack(const Rows<typename Source::Storage>& matrix, int64_t length, uint32_t* packed,
          const Parallel& parallel) {
  // Some words of K at a time, so that their rows are in cache for every panel, and a panel is
  // written a few lines at a time.
  constexpr int64_t kStep = 16;
  const int64_t depth = words_of<Product>(length);
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
            store(target + j, words_across<Product, Source>(matrix, length, k, panel * kPanel + j));
          }
        }
      }
    }
  });
}

}  // namespace rao::RAO_ISA
