// Prefetches into the L2 cache, spread over the multiplication of tiles: a burst of them
// would delay the loads of tiles.
#pragma once

#include "../product.h"

namespace rao::RAO_ISA {

// Prefetches a range of memory, a few lines at each call.
class Fetch {
 public:
  Fetch() = default;
  // The lines are spread over `calls` calls.
  Fetch(const void* data, int64_t bytes, int64_t calls)
      : at_(static_cast<const char*>(data)),
        end_(at_ + bytes),
        step_(ceil_div(ceil_div(bytes, kLine), calls) * kLine) {}

  RAO_INLINE void operator()() {
    const char* stop = smaller(at_ + step_, end_);
    for (; at_ < stop; at_ += kLine) {
      __builtin_prefetch(at_, 0, 2);
    }
  }

 private:
  static constexpr int64_t kLine = 64;

  const char* at_ = nullptr;
  const char* end_ = nullptr;
  int64_t step_ = 0;
};

}  // namespace rao::RAO_ISA
