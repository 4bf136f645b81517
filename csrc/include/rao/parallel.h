// Work split into parts that run on the caller's threads, whatever library owns them.
#pragma once

#include <cstdint>

namespace rao {

// Runs body(part) once for every part in [0, parts), in any order, concurrently where threads
// allow.
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

// The indices [begin, end).
struct Range {
  int64_t begin;
  int64_t end;
};

// The share of [0, total) that belongs to `part`; shares differ by at most one. Always inline: the
// linker could otherwise give one instruction set another's copy.
__attribute__((always_inline)) inline Range share(int64_t total, int part, int parts) {
  return {total * part / parts, total * (part + 1) / parts};
}

}  // namespace rao
