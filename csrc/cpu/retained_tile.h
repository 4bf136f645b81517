// The layout of a retained tile in its slot: rao::RetainedTile's values, then its maxima.
#pragma once

#include "product.h"

namespace rao::RAO_ISA {

// Bytes of the values: whole groups, so that the maxima begin on a multiple of 512 bytes.
template <class Source>
RAO_INLINE int64_t values_bytes(int64_t rows, int64_t entries) {
  constexpr int64_t kValueBytes = sizeof(typename Source::Storage);
  return ceil_div(entries, kGroup) * rows * kGroup * kValueBytes;
}

// The retained tile of so many entries in a slot.
template <class Source>
RAO_INLINE RetainedTile retained_on(const RetainedSlot& slot, int64_t entries) {
  if (slot.memory == nullptr) {
    return {nullptr, nullptr, 0};
  }
  std::byte* maxima = slot.memory + values_bytes<Source>(slot.rows, entries);
  return {slot.memory, reinterpret_cast<float*>(maxima), slot.rows};
}

}  // namespace rao::RAO_ISA
