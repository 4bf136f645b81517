// The products of tiles: blocks of 32 x 32 fp32 sums, held in tiles 0 to 3.
#pragma once

#include "operands.h"

namespace rao::RAO_ISA {

// The operand that is loaded from the L2 cache, bypassing the L1 cache, which
// holds the other operand.
enum class Streamed { kLeft, kRight };

RAO_INLINE void zero_sums() {
  RAO_TILE_ZERO(0);
  RAO_TILE_ZERO(1);
  RAO_TILE_ZERO(2);
  RAO_TILE_ZERO(3);
}

// The sums in memory: [32][stride floats].
RAO_INLINE void load_sums(const float* c, int64_t stride) {
  tile_fence();
  RAO_TILE_LOAD(0, c, stride * 4);
  RAO_TILE_LOAD(1, c + kTileRows, stride * 4);
  RAO_TILE_LOAD(2, c + kTileRows * stride, stride * 4);
  RAO_TILE_LOAD(3, c + kTileRows * stride + kTileRows, stride * 4);
}

RAO_INLINE void store_sums(float* c, int64_t stride) {
  tile_fence();
  RAO_TILE_STORE(0, c, stride * 4);
  RAO_TILE_STORE(1, c + kTileRows, stride * 4);
  RAO_TILE_STORE(2, c + kTileRows * stride, stride * 4);
  RAO_TILE_STORE(3, c + kTileRows * stride + kTileRows, stride * 4);
  tile_fence();
}

// Begins sums that continue those of a block in memory (null: that start from zero). Operands of
// one part continue in the tiles. Sums over parts start from zero and are added by close_sums,
// because rounding grows with the length of a sum and is the only error of fp32.
template <int kParts>
RAO_INLINE void open_sums(const float* from) {
  if (kParts == 1 && from != nullptr) {
    load_sums(from, kBlock);
  } else {
    zero_sums();
  }
}

// Stores the sums that open_sums(from) began in `to`, which may be `from`.
template <int kParts>
RAO_INLINE void close_sums(const float* from, float* to) {
  if (kParts == 1 || from == nullptr) {
    return store_sums(to, kBlock);
  }
  alignas(64) float block[kBlockFloats];
  store_sums(block, kBlock);
  for (int64_t i = 0; i < kBlockFloats; i += kLanes) {
    RAO_ISA::store(to + i, load<Floats>(from + i) + load<Floats>(block + i));
  }
  tile_fence();
}

template <Streamed kStreamed>
class Multiplier {
 public:
  RAO_INLINE Multiplier(const Operand& left, const Operand& right) : left_(left), right_(right) {}

  // Multiplies one tile of K whose operands have one part.
  RAO_INLINE void whole(int64_t k) const {
    const std::byte* a = left_.first + k * left_.step;
    const std::byte* b = right_.first + k * right_.step;
    left_low(a);
    right_low(b);
    RAO_TILE_MULTIPLY(0, 4, 6);
    right_high(b);
    RAO_TILE_MULTIPLY(1, 4, 7);
    left_high(a);
    RAO_TILE_MULTIPLY(2, 5, 6);
    RAO_TILE_MULTIPLY(3, 5, 7);
  }

  // Multiplies one tile of K, the products of small parts first; every step but the first loads
  // only one operand.
  template <int kParts>
  RAO_INLINE void parts(int64_t k) const {
    if constexpr (kParts == 2) {
      both(k, 1, 1);
      right(k, 0);
      left(k, 0);
      right(k, 1);
    } else {
      both(k, 0, 2);
      right(k, 1);
      left(k, 1);
      right(k, 0);
      left(k, 2);
      left(k, 0);
    }
  }

 private:
  RAO_INLINE void left_low(const std::byte* a) const {
    if constexpr (kStreamed == Streamed::kLeft) {
      RAO_TILE_STREAM(4, a, left_.stride);
    } else {
      RAO_TILE_LOAD(4, a, left_.stride);
    }
  }
  RAO_INLINE void left_high(const std::byte* a) const {
    if constexpr (kStreamed == Streamed::kLeft) {
      RAO_TILE_STREAM(5, a + left_.half, left_.stride);
    } else {
      RAO_TILE_LOAD(5, a + left_.half, left_.stride);
    }
  }
  RAO_INLINE void right_low(const std::byte* b) const {
    if constexpr (kStreamed == Streamed::kRight) {
      RAO_TILE_STREAM(6, b, right_.stride);
    } else {
      RAO_TILE_LOAD(6, b, right_.stride);
    }
  }
  RAO_INLINE void right_high(const std::byte* b) const {
    if constexpr (kStreamed == Streamed::kRight) {
      RAO_TILE_STREAM(7, b + right_.half, right_.stride);
    } else {
      RAO_TILE_LOAD(7, b + right_.half, right_.stride);
    }
  }
  RAO_INLINE void load_left(int64_t k, int part) const {
    const std::byte* a = left_.first + k * left_.step + part * kTileBytes;
    left_low(a);
    left_high(a);
  }
  RAO_INLINE void load_right(int64_t k, int part) const {
    const std::byte* b = right_.first + k * right_.step + part * kTileBytes;
    right_low(b);
    right_high(b);
  }
  RAO_INLINE void multiply() const {
    RAO_TILE_MULTIPLY(0, 4, 6);
    RAO_TILE_MULTIPLY(1, 4, 7);
    RAO_TILE_MULTIPLY(2, 5, 6);
    RAO_TILE_MULTIPLY(3, 5, 7);
  }
  RAO_INLINE void left(int64_t k, int part) const {
    load_left(k, part);
    multiply();
  }
  RAO_INLINE void right(int64_t k, int part) const {
    load_right(k, part);
    multiply();
  }
  RAO_INLINE void both(int64_t k, int left_part, int right_part) const {
    load_left(k, left_part);
    right(k, right_part);
  }

  const Operand& left_;
  const Operand& right_;
};

// Adds left @ right over `depth` tiles of K to the sums. side(k): vector work that runs while the
// tile unit multiplies, which takes 64 cycles for each pair of parts of a tile of K.
template <int kParts, Streamed kStreamed, class Side>
RAO_INLINE void multiply_tiles(const Operand& left, const Operand& right, int64_t depth,
                               Side&& side) {
  const Multiplier<kStreamed> multiplier(left, right);
  tile_fence();
  for (int64_t k = 0; k < depth; ++k) {
    if constexpr (kParts == 1) {
      multiplier.whole(k);
    } else {
      multiplier.template parts<kParts>(k);
    }
    side(k);
  }
  tile_fence();
}

// C = A B, block by block: A is `panels` blocks of 32 rows that stay in the L2 cache and
// are streamed; B is `strips` blocks of 32 columns, of which as many tiles of K as fit stay in the
// L1 cache. Partial sums are kept in `sums`, a block for each panel. begin(strip, panel) returns
// the block whose sums are continued, or null; end(strip, panel, block) receives the results.
template <int kParts, class LeftOf, class Begin, class End>
RAO_INLINE void multiply_stationary(const LeftOf& left_of, int64_t panels,
                                    const Packed<kParts>& right, int64_t first_k, int64_t depth,
                                    Range strips, float* sums, const Begin& begin, const End& end) {
  // Tiles of K: a strip of them leaves some of the L1 cache's 48 KiB free.
  constexpr int64_t kLongest = 19 / kParts;
  const int64_t step = ceil_div(depth, ceil_div(depth, kLongest));
  for (int64_t strip = strips.begin; strip < strips.end; ++strip) {
    for (int64_t k = 0; k < depth; k += step) {
      const int64_t count = smaller(step, depth - k);
      const Operand b = right.operand(strip).from(first_k + k);
      // The strip's next tiles, or the next strip's first.
      const bool last = k + count == depth;
      const bool more = !last || strip + 1 < strips.end;
      const Operand next =
          right.operand(last ? strip + 1 : strip).from(first_k + (last ? 0 : k + count));
      Fetch halves[2];
      if (more) {
        const int64_t tiles = smaller(step, last ? depth : depth - k - count) * kParts;
        for (int half = 0; half < 2; ++half) {
          halves[half] = Fetch(next.first + half * next.half, tiles * kTileBytes, panels * count);
        }
      }
      for (int64_t panel = 0; panel < panels; ++panel) {
        float* block = sums + panel * kBlockFloats;
        const float* from = k == 0 ? begin(strip, panel) : block;
        open_sums<kParts>(from);
        const Operand a = left_of(panel).from(k);
        multiply_tiles<kParts, Streamed::kLeft>(a, b, count, [&](int64_t) {
          halves[0]();
          halves[1]();
        });
        close_sums<kParts>(from, block);
        if (last) {
          end(strip, panel, block);
        }
      }
    }
  }
}

}  // namespace rao::RAO_ISA
