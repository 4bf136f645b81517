// Stores of rows of results that bypass the caches.
#pragma once

#include "parts.h"

namespace rao::RAO_ISA {

// Bypasses the caches where the address is aligned: nothing reads the value soon.
RAO_INLINE void store_past_caches(void* target, Uints value) {
#if defined(__AVX512F__)
  if (reinterpret_cast<uintptr_t>(target) % 64 == 0) {
    return _mm512_stream_si512(static_cast<__m512i*>(target), (__m512i)value);
  }
#endif
  store(target, value);
}

// Stores 32 elements, rounded to the target's type.
template <class Target>
RAO_INLINE void store_row(typename Target::Storage* target, Floats low, Floats high) {
  if constexpr (kPartsOf<Target> == 1) {
    store_past_caches(target, to_bf16(low, high));
  } else if constexpr (sizeof(typename Target::Storage) == sizeof(float)) {
    store_past_caches(target, as_uints(low));
    store_past_caches(target + kLanes, as_uints(high));
  } else {
    Target::store(target, low);
    Target::store(target + kLanes, high);
  }
}

// Makes stores that bypassed the caches visible before any later store.
RAO_INLINE void order_stores() {
#if defined(__AVX512F__)
  _mm_sfence();
#endif
}

}  // namespace rao::RAO_ISA
