// Blocks of logits: products of panels with strips, and vector work on each block while the tile
// unit multiplies the next one.
//
// A block is z^T: [32 entries][32 rows]. Lanes are rows, so that maxima, sums and row factors are
// vectors and nothing is reduced across lanes.
#pragma once

#include "../logits.h"
#include "multiply.h"
#include "stores.h"

namespace rao::RAO_ISA {

constexpr int kGroupPanels = kGroup / kBlock;
// Rows of more tiles of K are "deep": they are multiplied kDepthStep tiles at a time, because a
// panel's copy would not stay in the L1 cache and sums over parts would lose digits.
// Partial sums are then kept in memory, beside which fewer strips fit.
template <int kParts>
constexpr int64_t kLongestDepth = kParts == 1 ? 48 : 18;
constexpr int64_t kDepthStep = 16;
constexpr int64_t kDeepStrips = 16;

template <int kParts>
RAO_INLINE bool is_deep(int64_t depth) {
  return depth > kLongestDepth<kParts>;
}
template <int kParts>
RAO_INLINE int64_t depth_step(int64_t depth) {
  return is_deep<kParts>(depth) ? kDepthStep : depth;
}

// Strips whose packed rows take at most `bytes` of the L2 cache.
template <int kParts>
int64_t strips_within(int64_t bytes, int64_t depth) {
  const int64_t fitting = bytes / Packed<kParts>::bytes(1, depth_step<kParts>(depth));
  const int64_t most = is_deep<kParts>(depth) ? kDeepStrips : fitting;
  return fitting < 1 ? 1 : smaller(fitting, most);
}

// Turns products into logits. Lanes are rows, so the bias is one number.
class RowLogits {
 public:
  explicit RowLogits(const HeadTile& head)
      : function_(head.scale, head.softcap), bias_(head.bias) {}

  bool identity() const { return bias_ == nullptr && function_.identity(); }
  const LogitFunction& function() const { return function_; }

  // Returns the logit; slope: the derivative of the softcap (1 if there is none).
  RAO_INLINE Floats operator()(Floats product, int64_t entry, Floats* slope) const {
    *slope = broadcast(1.0f);
    return function_(bias_ == nullptr ? product : product + bias_[entry], slope);
  }

 private:
  LogitFunction function_;
  const float* bias_;
};

// One bit for each of 16 lanes, set where the value is below a limit.
RAO_INLINE uint32_t lanes_below(Uints values, uint32_t limit) {
#if defined(__AVX512F__)
  return _mm512_cmplt_epu32_mask((__m512i)values, _mm512_set1_epi32(static_cast<int>(limit)));
#else
  uint32_t found = 0;
  for (int lane = 0; lane < kLanes; ++lane) {
    found |= static_cast<uint32_t>(values[lane] < limit) << lane;
  }
  return found;
#endif
}

// Each row's target as a position in the tile, [strips * 32]; ~0 where it is in another tile.
class TargetPositions {
 public:
  static int64_t bytes(int64_t rows) { return 4 * blocks_of(rows) * kBlock; }

  TargetPositions(std::byte* memory, const HeadTile& head)
      : positions_(reinterpret_cast<uint32_t*>(memory)) {
    for (int64_t n = 0; n < blocks_of(head.rows) * kBlock; ++n) {
      const int64_t position = n < head.rows ? head.targets[n] - head.first_entry : -1;
      positions_[n] =
          position >= 0 && position < head.entries ? static_cast<uint32_t>(position) : ~0u;
    }
  }

  // Calls body(row, entry) for each of the block's targets, by its position in the block.
  template <class Body>
  RAO_INLINE void for_each(int64_t panel, int64_t strip, const Body& body) const {
    const uint32_t* positions = positions_ + strip * kBlock;
    const auto first = static_cast<uint32_t>(panel * kBlock);
    uint32_t found = lanes_below(load<Uints>(positions) - first, kBlock) |
                     lanes_below(load<Uints>(positions + kLanes) - first, kBlock) << kLanes;
    for (; __builtin_expect(found != 0, 0); found &= found - 1) {
      const int row = __builtin_ctz(found);
      body(row, static_cast<int>(positions[row] - first));
    }
  }

 private:
  uint32_t* positions_;
};

// A thread's memory for blocks of logits.
struct BlockMemory {
  float* blocks[2];
  std::byte* panel;  // a copy of a panel's tiles
  float* sums;       // of deep rows: a block for each of a group's panels and strips

  template <int kParts>
  static int64_t bytes(int64_t depth) {
    const int64_t waiting = is_deep<kParts>(depth) ? kGroupPanels * kDeepStrips : 0;
    return 4 * (2 + waiting) * kBlockFloats + Packed<kParts>::bytes(1, depth_step<kParts>(depth));
  }
  template <int kParts>
  static BlockMemory of(std::byte* memory, int64_t depth) {
    auto* blocks = reinterpret_cast<float*>(memory);
    auto* panel = memory + 4 * 2 * kBlockFloats;
    auto* sums =
        reinterpret_cast<float*>(panel + Packed<kParts>::bytes(1, depth_step<kParts>(depth)));
    return {{blocks, blocks + kBlockFloats}, panel, sums};
  }
};

// Walks the blocks of a tile. Work: the vector work on a block, called as start(), then unit()
// units() times while the tile unit multiplies, then finish().
template <class Source, class Work>
class BlockWalk {
 public:
  static constexpr int kParts = kPartsOf<Source>;

  RAO_INLINE BlockWalk(const HeadTile& head, const Packed<kParts>& hidden,
                       const BlockMemory& memory)
      : weight_(head),
        panels_(blocks_of(head.entries)),
        hidden_(hidden),
        memory_(memory),
        step_(depth_step<kParts>(hidden.depth)) {}

  // Computes the blocks of at most kGroupPanels panels with strips (at most kDeepStrips of deep
  // rows). make(panel, strip, block) returns the work on a block. ahead: a prefetch of the
  // caller's.
  template <class Make>
  RAO_INLINE void operator()(Range panels, Range strips, Fetch ahead, const Make& make) {
    const int64_t count = strips.end - strips.begin;
    for (int64_t k = 0; k < hidden_.depth; k += step_) {
      const int64_t depth = smaller(step_, hidden_.depth - k);
      for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
        const Operand left = weight_.operand(panel, k, depth, memory_.panel);
        const Tiles next = after(panels, panel, k);
        Fetch next_panel = next.whole ? weight_.fetch(next.panel, count * depth) : Fetch();
        float* sums = memory_.sums + (panel - panels.begin) * count * kBlockFloats;
        for (int64_t strip = strips.begin; strip < strips.end; ++strip, sums += kBlockFloats) {
          if (!next.whole && next.panel < panels_) {
            const int64_t done = strip - strips.begin;
            weight_.prefetch(next.panel, {done * kBlock / count, (done + 1) * kBlock / count},
                             next.k, step_);
          }
          const auto fetch = [&] {
            next_panel();
            ahead();
          };
          const Operand right = hidden_.operand(strip).from(k);
          const float* from = k == 0 ? nullptr : sums;
          open_sums<kParts>(from);
          if (k + depth < hidden_.depth) {
            multiply_tiles<kParts, Streamed::kRight>(left, right, depth, [&](int64_t) { fetch(); });
            close_sums<kParts>(from, sums);
          } else {
            multiply_last(left, right, depth, fetch);
            float* block = memory_.blocks[flip_ ^= 1];
            close_sums<kParts>(from, block);
            work_ = make(panel, strip, block);
            pending_ = true;
          }
        }
      }
    }
  }

  // Does the work on the last block.
  RAO_INLINE void finish() {
    if (pending_) {
      work_.start();
      work_.finish();
      pending_ = false;
    }
    order_stores();
  }

 private:
  // Tiles of K of a panel, from k on. whole: all of them, with adjacent rows.
  struct Tiles {
    int64_t panel;
    int64_t k;
    bool whole;
  };

  template <class Fetches>
  RAO_INLINE void multiply_last(const Operand& left, const Operand& right, int64_t depth,
                                const Fetches& fetch) {
    if (!pending_) {
      return multiply_tiles<kParts, Streamed::kRight>(left, right, depth,
                                                      [&](int64_t) { fetch(); });
    }
    Work work = work_;  // a local, so that its state can stay in registers
    work.start();
    const int64_t each = ceil_div(work.units(), depth);
    multiply_tiles<kParts, Streamed::kRight>(left, right, depth, [&](int64_t) {
      fetch();
      for (int64_t i = 0; i < each; ++i) {
        work.unit();
      }
    });
    work.finish();
  }

  // The tiles that follow a panel's; after a group's last panel, the first of the next group.
  RAO_INLINE Tiles after(Range panels, int64_t panel, int64_t k) const {
    Tiles next{panel + 1, k, false};
    if (next.panel == panels.end) {
      next.k = k + step_ < hidden_.depth ? k + step_ : 0;
      next.panel = next.k == 0 ? panels.end : panels.begin;
    }
    next.whole = next.panel < panels_ && step_ == hidden_.depth && weight_.contiguous();
    return next;
  }

  WeightPanels<Source> weight_;
  int64_t panels_;
  Packed<kParts> hidden_;
  BlockMemory memory_;
  int64_t step_;
  Work work_;
  bool pending_ = false;
  int flip_ = 0;
};

}  // namespace rao::RAO_ISA
