// The layout of a retained tile: logits minus the maximum of their row in their block.
#pragma once

#include "operands.h"
#include "stores.h"

namespace rao::RAO_ISA {

// A header, then values [panels][strips][32 entries][32 rows] in the operands' dtype, then maxima
// [panels][strips][32 rows].
template <class Source>
class RetainedBlocks {
 public:
  using Storage = typename Source::Storage;
  static constexpr int64_t kHeader = 64;

  static int64_t bytes(int64_t rows, int64_t entries) {
    const int64_t blocks = blocks_of(rows) * blocks_of(entries);
    return kHeader + blocks * (kBlockFloats * static_cast<int64_t>(sizeof(Storage)) + 4 * kBlock);
  }

  RetainedBlocks(const RetainedSlot& slot, int64_t entries)
      : memory_(slot.memory),
        strips_(blocks_of(slot.rows)),
        blocks_(strips_ * blocks_of(entries)) {}

  bool has_memory() const { return memory_ != nullptr; }
  // True if score_tile filled the slot; false where it fell back.
  bool filled() const { return has_memory() && *reinterpret_cast<const bool*>(memory_); }
  void set_filled(bool filled) const {
    if (has_memory()) {
      std::memset(memory_, 0, kHeader);
      *reinterpret_cast<bool*>(memory_) = filled;
    }
  }

  RAO_INLINE Storage* values(int64_t panel, int64_t strip) const {
    return reinterpret_cast<Storage*>(memory_ + kHeader) + block(panel, strip) * kBlockFloats;
  }
  RAO_INLINE float* maxima(int64_t panel, int64_t strip) const {
    auto* end = reinterpret_cast<Storage*>(memory_ + kHeader) + blocks_ * kBlockFloats;
    return reinterpret_cast<float*>(end) + block(panel, strip) * kBlock;
  }

 private:
  RAO_INLINE int64_t block(int64_t panel, int64_t strip) const { return panel * strips_ + strip; }

  std::byte* memory_;
  int64_t strips_;
  int64_t blocks_;
};

}  // namespace rao::RAO_ISA
