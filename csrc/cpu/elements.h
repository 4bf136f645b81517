// Element types of the operands: loads to fp32 vectors, and rounded stores from them.
#pragma once

#include "simd.h"

namespace rao::RAO_ISA {

struct Float32 {
  using Storage = float;

  static RAO_INLINE Floats load(const Storage* source) { return RAO_ISA::load<Floats>(source); }
  static RAO_INLINE void store(Storage* target, Floats value) { RAO_ISA::store(target, value); }
};

struct BFloat16 {
  using Storage = uint16_t;

  static RAO_INLINE Floats load(const Storage* source) {
    return as_floats(widen(RAO_ISA::load<Halves>(source)) << 16);
  }
  // Rounds to nearest even; NaN stays NaN.
  static RAO_INLINE void store(Storage* target, Floats value) {
    const Uints bits = as_uints(value);
    const Uints rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const Uints result = value == value ? rounded : Uints{} + 0x7fc0u;
    RAO_ISA::store(target, __builtin_convertvector(result, Halves));
  }
};

struct Float16 {
  using Storage = uint16_t;

#if defined(__AVX512F__)
  static RAO_INLINE Floats load(const Storage* source) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(source)));
  }
  static RAO_INLINE void store(Storage* target, Floats value) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(target),
                        _mm512_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT));
  }
#elif defined(__AVX2__)
  static RAO_INLINE Floats load(const Storage* source) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(source)));
  }
  static RAO_INLINE void store(Storage* target, Floats value) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(target),
                     _mm256_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT));
  }
#else
  // Multiplying by a power of two changes the exponent's bias, of denormals too.
  static RAO_INLINE Floats load(const Storage* source) {
    const Uints bits = widen(RAO_ISA::load<Halves>(source));
    const Uints sign = (bits & 0x8000u) << 16;
    const Uints shifted = (bits & 0x7fffu) << 13;
    const Uints finite = as_uints(as_floats(shifted) * 0x1p112f);
    const Uints special = shifted | 0x7f800000u;
    return as_floats(sign | ((bits & 0x7c00u) == 0x7c00u ? special : finite));
  }
  static RAO_INLINE void store(Storage* target, Floats value) {
    const Uints bits = as_uints(value);
    const Uints sign = (bits >> 16) & 0x8000u;
    const Uints magnitude = bits & 0x7fffffffu;
    // Normal results: round off the low 13 bits, then rebias. Denormal results: adding 0.5 lets
    // the adder round them into the low bits.
    const Uints normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
    const Uints denormal = as_uints(as_floats(magnitude) + 0.5f) - 0x3f000000u;
    const Uints finite = magnitude < 0x38800000u ? denormal : normal;
    const Uints limited = magnitude >= 0x477ff000u ? Uints{} + 0x7c00u : finite;
    const Uints result = magnitude > 0x7f800000u ? Uints{} + 0x7e00u : limited;
    RAO_ISA::store(target, __builtin_convertvector(sign | result, Halves));
  }
#endif
};

}  // namespace rao::RAO_ISA
