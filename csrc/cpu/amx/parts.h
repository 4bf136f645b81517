// Operands as sums of bf16 parts, the only type that the tile unit multiplies.
//
// bf16 is its own part. fp16 is the sum of two parts exactly, and fp32 of three: x = b1 + b2 + b3,
// each part the rounded remainder of those before. A product of parts i and j is formed where
// i + j <= 2 (counting from 0): all four of fp16's; six of fp32's nine, which leaves out what is
// below 2^-24 of the whole.
#pragma once

#include "../product.h"
#include "tiles.h"

namespace rao::RAO_ISA {

template <class Source>
constexpr int kPartsOf = 1;
template <>
constexpr int kPartsOf<Float16> = 2;
template <>
constexpr int kPartsOf<Float32> = 3;

// 32 bf16 elements: those of `low`, then those of `high`, rounded to nearest even.
RAO_INLINE Uints to_bf16(Floats low, Floats high) {
#if defined(__AVX512BF16__)
  return (Uints)_mm512_cvtne2ps_pbh(high, low);
#else
  // As the instruction does, which treats denormals as zero.
  const auto rounded = [](Floats value) {
    const Uints bits = as_uints(value);
    const Uints nearest = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const Uints finite = (bits & 0x7fffffffu) < 0x00800000u ? (bits >> 16) & 0x8000u : nearest;
    return __builtin_convertvector(value == value ? finite : Uints{} + 0x7fc0u, Halves);
  };
  const Halves halves[2] = {rounded(low), rounded(high)};
  return load<Uints>(halves);
#endif
}

RAO_INLINE void from_bf16(Uints elements, Floats* low, Floats* high) {
  Halves halves[2];
  std::memcpy(halves, &elements, sizeof(halves));
  *low = as_floats(widen(halves[0]) << 16);
  *high = as_floats(widen(halves[1]) << 16);
}

template <int kParts>
RAO_INLINE void split(Floats low, Floats high, Uints (&parts)[kParts]) {
  parts[0] = to_bf16(low, high);
  for (int part = 1; part < kParts; ++part) {
    Floats low_part, high_part;
    from_bf16(parts[part - 1], &low_part, &high_part);
    low -= low_part;
    high -= high_part;
    parts[part] = to_bf16(low, high);
  }
}

// The parts of 32 elements of a row.
template <class Source>
RAO_INLINE void split_row(const typename Source::Storage* row, Uints (&parts)[kPartsOf<Source>]) {
  if constexpr (kPartsOf<Source> == 1) {
    parts[0] = load<Uints>(row);
  } else {
    split(Source::load(row), Source::load(row + kLanes), parts);
  }
}

// The parts of 32 elements of a row of `size`, from `first` on; zero beyond its end.
template <class Source>
RAO_INLINE void split_row(const typename Source::Storage* row, int64_t size, int64_t first,
                          Uints (&parts)[kPartsOf<Source>]) {
  if (first + kTileDepth <= size) {
    return split_row<Source>(row + first, parts);
  }
  typename Source::Storage padded[kTileDepth] = {};
  if (first < size) {
    std::memcpy(padded, row + first, (size - first) * sizeof(padded[0]));
  }
  split_row<Source>(padded, parts);
}

// Alternates the elements of two rows, as pairs: low has columns 0 to 15, high columns 16 to 31.
RAO_INLINE void interleave_rows(Uints first, Uints second, Uints* low, Uints* high) {
#if defined(__AVX512BW__)
  alignas(64) static constexpr uint16_t kLow[32] = {0,  32, 1,  33, 2,  34, 3,  35, 4,  36, 5,
                                                    37, 6,  38, 7,  39, 8,  40, 9,  41, 10, 42,
                                                    11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
  const __m512i index = _mm512_load_si512(kLow);
  const __m512i upper = _mm512_add_epi16(index, _mm512_set1_epi16(16));
  *low = (Uints)_mm512_permutex2var_epi16((__m512i)first, index, (__m512i)second);
  *high = (Uints)_mm512_permutex2var_epi16((__m512i)first, upper, (__m512i)second);
#else
  Halves a[2], b[2];
  std::memcpy(a, &first, sizeof(a));
  std::memcpy(b, &second, sizeof(b));
  *low = widen(a[0]) | (widen(b[0]) << 16);
  *high = widen(a[1]) | (widen(b[1]) << 16);
#endif
}

// True if the parts of each value sum to it: no value is beyond bf16's largest, and no part is
// denormal, which the unit treats as zero.
RAO_INLINE bool all_exact(const Floats* values, int count) {
  constexpr uint32_t kSmallest = 0x0c000000u;  // 2^-103: its last bit is a normal number
  constexpr uint32_t kLargest = 0x7f7f7fffu;   // rounds to bf16's largest number
  Uints wrong{};
  for (int i = 0; i < count; ++i) {
    const Uints magnitude = as_uints(values[i]) & 0x7fffffffu;
    const Uints outside = magnitude - kSmallest > kLargest - kSmallest ? Uints{} + 1u : Uints{};
    wrong |= magnitude == 0u ? Uints{} : outside;
  }
  uint32_t any = 0;
  for (int i = 0; i < kLanes; ++i) {
    any |= wrong[i];
  }
  return any == 0;
}

template <class Source>
bool row_is_exact(const typename Source::Storage* row, int64_t size) {
  constexpr int kStep = 4;
  for (int64_t k = 0; k < size; k += kStep * kLanes) {
    typename Source::Storage padded[kStep * kLanes] = {};
    const typename Source::Storage* source = row + k;
    if (k + kStep * kLanes > size) {
      std::memcpy(padded, source, (size - k) * sizeof(padded[0]));
      source = padded;
    }
    Floats values[kStep];
    for (int i = 0; i < kStep; ++i) {
      values[i] = Source::load(source + i * kLanes);
    }
    if (!all_exact(values, kStep)) {
      return false;
    }
  }
  return true;
}

// True if parts represent every row of a matrix exactly. Those of bf16 always do: the vector unit's
// bf16 products treat denormals as zero too.
template <class Source>
bool is_exact(const Rows<typename Source::Storage>& matrix, int64_t rows,
              const Parallel& parallel) {
  if constexpr (kPartsOf<Source> == 1) {
    return true;
  } else {
    bool exact = true;
    parallel([&](int part) {
      const Range mine = share(rows, part, parallel.parts);
      for (int64_t row = mine.begin; row < mine.end; ++row) {
        if (!row_is_exact<Source>(matrix[row], matrix.size)) {
          __atomic_store_n(&exact, false, __ATOMIC_RELAXED);
          return;
        }
      }
    });
    return __atomic_load_n(&exact, __ATOMIC_RELAXED);
  }
}

}  // namespace rao::RAO_ISA
