// Vectors of the instruction set this translation unit is compiled for.
//
// RAO_ISA names the set and the namespace: if two units shared an inline function, the linker would
// keep one copy, perhaps one that this processor cannot run.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

#define RAO_INLINE inline __attribute__((always_inline))

namespace rao::RAO_ISA {

#if defined(__AVX512F__) || defined(RAO_TILES_EMULATED)
constexpr int kLanes = 16;        // 32-bit lanes of a vector
constexpr int kPanelVectors = 4;  // vectors across a packed panel
#elif defined(__AVX2__)
constexpr int kLanes = 8;
constexpr int kPanelVectors = 2;
#else
constexpr int kLanes = 4;
constexpr int kPanelVectors = 2;
#endif

typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef uint32_t Uints __attribute__((vector_size(4 * kLanes)));
typedef uint16_t Halves __attribute__((vector_size(2 * kLanes)));

template <class Vector>
RAO_INLINE Vector load(const void* source) {
  Vector value;
  std::memcpy(&value, source, sizeof(value));
  return value;
}

template <class Vector>
RAO_INLINE void store(void* target, Vector value) {
  std::memcpy(target, &value, sizeof(value));
}

RAO_INLINE Floats broadcast(float value) { return value - Floats{}; }

RAO_INLINE Floats as_floats(Uints bits) { return reinterpret_cast<Floats>(bits); }
RAO_INLINE Uints as_uints(Floats value) { return reinterpret_cast<Uints>(value); }

// The first `count` elements, `fill` beyond them.
RAO_INLINE Floats load_some(const float* source, int count, float fill) {
  Floats value = broadcast(fill);
  std::memcpy(&value, source, sizeof(float) * count);
  return value;
}

RAO_INLINE void store_some(float* target, int count, Floats value) {
  std::memcpy(target, &value, sizeof(float) * count);
}

RAO_INLINE Uints widen(Halves value) { return __builtin_convertvector(value, Uints); }

// Where `a` is NaN, `b`: a NaN logit shows in the sums, not in the maximum.
RAO_INLINE Floats maximum(Floats a, Floats b) { return a > b ? a : b; }

// The lane numbers 0 ... kLanes - 1, for shuffles.
template <int... kIndex>
struct Indices {};
template <int kCount, int... kIndex>
struct Count : Count<kCount - 1, kCount - 1, kIndex...> {};
template <int... kIndex>
struct Count<0, kIndex...> {
  using Type = Indices<kIndex...>;
};

using Lanes = typename Count<kLanes>::Type;

template <int kShift, int... kIndex>
RAO_INLINE Floats rotate(Floats a, Indices<kIndex...>) {
  return __builtin_shufflevector(a, a, ((kIndex + kShift) % kLanes)...);
}

template <int kWidth = kLanes / 2>
RAO_INLINE float largest(Floats value) {
  if constexpr (kWidth == 0) {
    return value[0];
  } else {
    return largest<kWidth / 2>(maximum(value, rotate<kWidth>(value, Lanes{})));
  }
}

template <int kWidth = kLanes / 2>
RAO_INLINE float sum(Floats value) {
  if constexpr (kWidth == 0) {
    return value[0];
  } else {
    return sum<kWidth / 2>(value + rotate<kWidth>(value, Lanes{}));
  }
}

// Alternates lanes of `a` and `b`: of their lower halves (kFirst = 0), or of their upper halves.
template <int kFirst, int... kIndex>
RAO_INLINE Uints interleave(Uints a, Uints b, Indices<kIndex...>) {
  return __builtin_shufflevector(a, b, (kFirst + kIndex / 2 + (kIndex % 2) * kLanes)...);
}

// Transposes kLanes vectors in place: each round of perfect shuffles moves one bit of the row
// index into the lane index.
RAO_INLINE void transpose(Uints (&rows)[kLanes]) {
#pragma GCC unroll 4
  for (int round = 1; round < kLanes; round *= 2) {
    Uints next[kLanes];
#pragma GCC unroll 8
    for (int i = 0; i < kLanes / 2; ++i) {
      next[2 * i] = interleave<0>(rows[i], rows[i + kLanes / 2], Lanes{});
      next[2 * i + 1] = interleave<kLanes / 2>(rows[i], rows[i + kLanes / 2], Lanes{});
    }
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) {
      rows[i] = next[i];
    }
  }
}

}  // namespace rao::RAO_ISA
