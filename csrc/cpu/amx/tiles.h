// The instructions of the tile unit (AMX), and its state in a thread.
//
// Eight tiles of 16 rows of 64 bytes, named by literals because the instructions encode them:
// 0 to 3 hold a block of 32 x 32 fp32 sums, 4 and 5 the left operand, 6 and 7 the right one.
// RAO_TILE_MULTIPLY(c, a, b) adds a product to c: a holds [16 rows][32 bf16 of K], b holds
// [16 pairs of K][16 columns][2].
//
// RAO_TILES_EMULATED: emulated tiles, with the same bits, for processors without the unit.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(RAO_TILES_EMULATED)
#include "tile_emulation.h"
#else
#include <immintrin.h>

#define RAO_TILE_ZERO(tile) _tile_zero(tile)
#define RAO_TILE_LOAD(tile, source, stride) _tile_loadd(tile, source, stride)
// Bypasses the L1 cache.
#define RAO_TILE_STREAM(tile, source, stride) _tile_stream_loadd(tile, source, stride)
#define RAO_TILE_STORE(tile, target, stride) _tile_stored(tile, target, stride)
#define RAO_TILE_MULTIPLY(c, a, b) _tile_dpbf16ps(c, a, b)

namespace rao::RAO_ISA {

struct TileConfiguration {
  uint8_t palette;
  uint8_t start_row;
  uint8_t reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};

// A constant in memory: compilers do not see that the instruction reads all of it.
alignas(64) inline constexpr TileConfiguration kTileConfiguration{
    1, 0, {}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};

// Configures the thread's tiles and releases them at the end of the scope: other users of the unit,
// such as oneDNN, configure it anew.
class TileScope {
 public:
  TileScope() { _tile_loadconfig(&kTileConfiguration); }
  ~TileScope() { _tile_release(); }
  TileScope(const TileScope&) = delete;
  TileScope& operator=(const TileScope&) = delete;
};

}  // namespace rao::RAO_ISA
#endif

namespace rao::RAO_ISA {

constexpr int64_t kTileBytes = 1024;
constexpr int kTileRows = 16;
constexpr int kTileDepth = 32;  // bf16 elements of K in a tile
constexpr int kBlock = 32;      // rows and columns of a block of sums
constexpr int64_t kBlockFloats = kBlock * kBlock;

// Compilers do not see that tile loads read memory, nor that tile stores write it: no access to
// memory may move across this.
inline __attribute__((always_inline)) void tile_fence() { asm volatile("" ::: "memory"); }

}  // namespace rao::RAO_ISA
