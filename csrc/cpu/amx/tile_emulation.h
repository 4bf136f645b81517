// Emulates the tile unit on a processor without it: the same bits, except for the payload of a NaN.
// Included by tiles.h only.
//
// The unit treats denormals as zero (operands, intermediate values and results) and rounds to
// nearest even. For a row of a and a column of b, the products of even elements are one chain of
// fused multiply-adds from zero, those of odd elements another; the sum of both is added to c.
#pragma once

#include <cmath>
#include <cstring>

#define RAO_TILE_ZERO(tile) rao::RAO_ISA::emulation::zero(tile)
#define RAO_TILE_LOAD(tile, source, stride) rao::RAO_ISA::emulation::load(tile, source, stride)
#define RAO_TILE_STREAM(tile, source, stride) rao::RAO_ISA::emulation::load(tile, source, stride)
#define RAO_TILE_STORE(tile, target, stride) rao::RAO_ISA::emulation::store(tile, target, stride)
#define RAO_TILE_MULTIPLY(c, a, b) rao::RAO_ISA::emulation::multiply(c, a, b)

namespace rao::RAO_ISA {
namespace emulation {

constexpr int kRows = 16;

struct alignas(64) Tile {
  uint32_t lanes[kRows][16];
};

inline thread_local Tile tiles[8];
inline thread_local bool configured = false;

inline float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

inline float flushed(float value) {
  return std::fabs(value) < 0x1p-126f ? std::copysign(0.0f, value) : value;
}

inline void require_configuration() {
  if (!configured) {
    __builtin_trap();  // the hardware would raise an illegal instruction
  }
}

inline void zero(int tile) {
  require_configuration();
  tiles[tile] = Tile{};
}

__attribute__((noinline)) inline void load(int tile, const void* source, int64_t stride) {
  require_configuration();
  for (int row = 0; row < kRows; ++row) {
    std::memcpy(tiles[tile].lanes[row], static_cast<const char*>(source) + row * stride, 64);
  }
}

__attribute__((noinline)) inline void store(int tile, void* target, int64_t stride) {
  require_configuration();
  for (int row = 0; row < kRows; ++row) {
    std::memcpy(static_cast<char*>(target) + row * stride, tiles[tile].lanes[row], 64);
  }
}

// A row of c: even and odd hold the chains of its 16 columns.
inline void multiply_row(const uint32_t (&a)[16], const Tile& b, uint32_t (&c)[16]) {
  float even[16] = {}, odd[16] = {};
  for (int pair = 0; pair < 16; ++pair) {
    const float a_even = flushed(float_of(a[pair] << 16));
    const float a_odd = flushed(float_of(a[pair] & 0xffff0000u));
    for (int column = 0; column < 16; ++column) {
      const uint32_t bits = b.lanes[pair][column];
      const float b_even = flushed(float_of(bits << 16));
      const float b_odd = flushed(float_of(bits & 0xffff0000u));
      even[column] = flushed(std::fmaf(a_even, b_even, even[column]));
      odd[column] = flushed(std::fmaf(a_odd, b_odd, odd[column]));
    }
  }
  for (int column = 0; column < 16; ++column) {
    const float product = flushed(even[column] + odd[column]);
    const float sum = flushed(flushed(float_of(c[column])) + product);
    std::memcpy(&c[column], &sum, sizeof(sum));
  }
}

__attribute__((noinline)) inline void multiply(int c, int a, int b) {
  require_configuration();
  for (int row = 0; row < kRows; ++row) {
    multiply_row(tiles[a].lanes[row], tiles[b], tiles[c].lanes[row]);
  }
}

}  // namespace emulation

struct TileScope {
  TileScope() { emulation::configured = true; }
  ~TileScope() { emulation::configured = false; }
  TileScope(const TileScope&) = delete;
  TileScope& operator=(const TileScope&) = delete;
};

}  // namespace rao::RAO_ISA
