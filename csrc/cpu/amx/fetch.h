// Memory on its way to the second-level cache.
//
// It comes a few lines at a time, while tiles are multiplied: a burst would hold up their loads.
#pragma once

#include "../product.h"

namespace rao::RAO_ISA {

// Fetches memory into the second-level cache, some lines at a time.
class Fetch {
 public:
  Fetch() = default;
  // Few enough lines at each of `calls` calls to have them all at the end.
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
