// The kernels of another instruction set, for operands that bf16 parts do not represent exactly.
#pragma once

#include "../tile_kernels_isa.h"

#if defined(RAO_TILES_EMULATED)
#define RAO_FALLBACK_ISA portable
#else
#define RAO_FALLBACK_ISA avx512_bf16
#endif

RAO_DECLARE(RAO_FALLBACK_ISA)

namespace rao::RAO_ISA {

constexpr RetainedSlot kNothingRetained{nullptr, 0};

// Calls body(source) with the element type of `dtype`.
template <class Body>
RAO_INLINE auto with_source(DType dtype, const Body& body) {
  switch (dtype) {
    case DType::kFloat32:
      return body(Float32{});
    case DType::kFloat16:
      return body(Float16{});
    case DType::kBFloat16:
      break;
  }
  return body(BFloat16{});
}

RAO_INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

// Scratch that suffices for both sets of kernels; bf16 never falls back.
RAO_INLINE ScratchSizes with_fallback(const ScratchSizes& own, const ScratchSizes& other) {
  return {larger(own.packed_weight, other.packed_weight),
          round_up(own.packed_hidden, 64) + other.packed_hidden, larger(own.rows, other.rows),
          larger(own.thread, other.thread)};
}

}  // namespace rao::RAO_ISA
