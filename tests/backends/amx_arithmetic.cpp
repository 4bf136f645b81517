// Test entry points to csrc/cpu/amx: its instructions on emulated tiles, and its vector work.
#include "../../csrc/cpu/amx/operands.h"

using namespace rao::RAO_ISA;

#define EXPORT extern "C" __attribute__((visibility("default")))

// c [count][16][16] += a [count][16][32] b [count][16][32], as tiles.
EXPORT void multiply_tiles(const uint16_t* a, const uint16_t* b, float* c, int64_t count) {
  const TileScope scope;
  for (int64_t i = 0; i < count; ++i) {
    RAO_TILE_LOAD(4, a + i * 512, 64);
    RAO_TILE_LOAD(6, b + i * 512, 64);
    RAO_TILE_LOAD(0, c + i * 256, 64);
    RAO_TILE_MULTIPLY(0, 4, 6);
    RAO_TILE_STORE(0, c + i * 256, 64);
  }
}

// Loads and stores a tile whose rows are `stride` bytes apart; zero: zeroes it in between.
EXPORT void copy_tile(const void* source, int64_t stride, bool zero, void* target) {
  const TileScope scope;
  RAO_TILE_STREAM(3, source, stride);
  if (zero) {
    RAO_TILE_ZERO(3);
  }
  RAO_TILE_STORE(3, target, 64);
}

EXPORT void zero_without_configuration() { RAO_TILE_ZERO(0); }
EXPORT void multiply_after_the_scope() {
  {
    const TileScope scope;
  }
  RAO_TILE_MULTIPLY(0, 4, 6);
}

// In the functions below, `count` is a multiple of 32.
EXPORT void round_to_bf16(const float* source, int64_t count, uint16_t* target) {
  for (int64_t i = 0; i < count; i += 32) {
    store(target + i, to_bf16(load<Floats>(source + i), load<Floats>(source + i + 16)));
  }
}

template <class Source>
void split_all(const typename Source::Storage* source, int64_t count, uint16_t* target) {
  constexpr int kParts = kPartsOf<Source>;
  for (int64_t i = 0; i < count; i += 32) {
    Uints parts[kParts];
    split_row<Source>(source, count, i, parts);
    for (int part = 0; part < kParts; ++part) {
      store(target + part * count + i, parts[part]);
    }
  }
}

// target: [parts][count].
EXPORT void split_float32(const float* source, int64_t count, uint16_t* target) {
  split_all<Float32>(source, count, target);
}
EXPORT void split_float16(const uint16_t* source, int64_t count, uint16_t* target) {
  split_all<Float16>(source, count, target);
}

EXPORT bool is_row_exact(const float* row, int64_t size) {
  return row_is_exact<Float32>(row, size);
}

EXPORT void interleave(const uint16_t* first, const uint16_t* second, uint16_t* target) {
  Uints low, high;
  interleave_rows(load<Uints>(first), load<Uints>(second), &low, &high);
  store(target, low);
  store(target + 32, high);
}

EXPORT void transpose_16(const uint32_t* source, uint32_t* target) {
  Uints rows[16];
  for (int i = 0; i < 16; ++i) {
    rows[i] = load<Uints>(source + 16 * i);
  }
  transpose(rows);
  for (int i = 0; i < 16; ++i) {
    store(target + 16 * i, rows[i]);
  }
}
