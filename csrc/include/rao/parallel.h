// Work split over threads without knowing whose threads they are.
#pragma once

#include <cstdint>

namespace rao {

// Runs body(part) once for every part in [0, parts), in any order, at once where threads allow.
struct Parallel {
  int parts;
  void (*run)(int parts, void (*body)(int part, void* context), void* context);

  template <class Body>
  void operator()(const Body& body) const {
    run(
        parts, [](int part, void* context) { (*static_cast<const Body*>(context))(part); },
        const_cast<void*>(static_cast<const void*>(&body)));
  }
};

struct Range {
  int64_t begin;
  int64_t end;
};

// The share of [0, total) that belongs to `part`; shares differ by at most one. Never a function of
// its own, so that the linker cannot hand one instruction set's copy to another.
__attribute__((always_inline)) inline Range share(int64_t total, int part, int parts) {
  return {total * part / parts, total * (part + 1) / parts};
}

}  // namespace rao
