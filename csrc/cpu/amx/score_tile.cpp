// score_tile on AMX: blocks of products, whose statistics are computed while the tile unit
// multiplies the next block. walk.h has the layout of a block.
#include "../statistics.h"
#include "fallback.h"
#include "retained.h"
#include "walk.h"

namespace rao::RAO_ISA {
namespace {

constexpr int64_t kHiddenBytes = 1 << 20;  // packed hidden's share of the L2 cache

// The inputs and outputs that the blocks of one tile share.
template <class Source>
struct ScoreContext {
  const RowState& state;
  RowLogits logits;
  GroupStatistics statistics;
  TargetPositions targets;
  RetainedBlocks<Source> retained;
  int64_t entries;
};

// Statistics of a block. kPlain: logits are the products, and the last three of RowState are null.
template <class Source, bool kPlain>
class ScoreBlock {
 public:
  ScoreBlock() = default;
  RAO_INLINE ScoreBlock(const ScoreContext<Source>& context, int64_t panel, int64_t strip,
                        float* block)
      : context_(&context),
        block_(block),
        panel_(panel),
        strip_(strip),
        count_(static_cast<int>(smaller<int64_t>(kBlock, context.entries - panel * kBlock))),
        transforms_(kPlain || context.logits.identity() ? 0 : count_) {}

  RAO_INLINE int units() const { return transforms_ + count_; }

  // Called before the first unit.
  RAO_INLINE void start() {
    retains_ = context_->retained.has_memory();
    if (kPlain || transforms_ == 0) {
      find_maxima();
    }
  }

  RAO_INLINE void unit() {
    if (kPlain) {
      if (at_ < count_) {
        reduce(at_++);
      }
    } else if (at_ < transforms_) {
      transform(at_++);
      if (at_ == transforms_) {
        find_maxima();
      }
    } else if (at_ < units()) {
      reduce(at_++ - transforms_);
    }
  }

  RAO_INLINE void finish() {
    while (at_ < units()) {
      unit();
    }
    if (retains_) {
      zero_retained_rest();
    }
    join_group();
    context_->targets.for_each(panel_, strip_, [&](int row, int entry) {
      context_->state.target_logit[strip_ * kBlock + row] = block_[entry * kBlock + row];
    });
  }

 private:
  RAO_INLINE float* at(int entry, int half) const {
    return block_ + entry * kBlock + half * kLanes;
  }

  RAO_INLINE void transform(int entry) {
    for (int half = 0; half < 2; ++half) {
      Floats slope;
      store(at(entry, half),
            context_->logits(load<Floats>(at(entry, half)), panel_ * kBlock + entry, &slope));
    }
  }

  RAO_INLINE Floats maximum_of(int half) const {
    // Two chains: in one, each maximum would wait for the one before.
    Floats even = broadcast(-kInfinity), odd = even;
    int entry = 0;
    for (; entry + 2 <= count_; entry += 2) {
      even = maximum(load<Floats>(at(entry, half)), even);
      odd = maximum(load<Floats>(at(entry + 1, half)), odd);
    }
    if (entry < count_) {
      even = maximum(load<Floats>(at(entry, half)), even);
    }
    return maximum(even, odd);
  }

  // Merges the block's maxima into the group's, which the logits are shifted by.
  RAO_INLINE void find_maxima() {
    const int64_t group = panel_ / kGroupPanels;
    for (int half = 0; half < 2; ++half) {
      const Floats top = maximum_of(half);
      if (retains_) {
        top_[half] = shift_of(top);
        store(context_->retained.maxima(panel_, strip_) + half * kLanes, top_[half]);
      }
      const float* before = context_->statistics.max(group) + first_row(half);
      max_[half] = is_first() ? top : maximum(top, load<Floats>(before));
      shift_[half] = shift_of(max_[half]);
      sums_[half] = {max_[half], Floats{}, Floats{}, Floats{}};
      logit_sum_[half] = Floats{};
    }
  }

  RAO_INLINE void reduce(int entry) {
    Floats z[2];
    for (int half = 0; half < 2; ++half) {
      z[half] = load<Floats>(at(entry, half));
      const Floats centred = z[half] - shift_[half];
      // Three parts have fp32's precision; and only exponential is exactly 0 at -inf.
      const Floats e =
          kPlain && kPartsOf<Source> < 3 ? quick_exponential(centred) : exponential(centred);
      sums_[half].sum += e;
      if (!kPlain) {
        sums_[half].entropy_sum += e == 0.0f ? Floats{} : e * centred;
        sums_[half].sum_sq_probs += e * e;
        logit_sum_[half] += z[half];
      }
    }
    if (retains_) {
      store_row<Source>(context_->retained.values(panel_, strip_) + entry * kBlock, z[0] - top_[0],
                        z[1] - top_[1]);
    }
  }

  // Adds the block's sums to the group's: one long sum would lose digits.
  RAO_INLINE void join_group() const {
    const GroupStatistics& statistics = context_->statistics;
    const int64_t group = panel_ / kGroupPanels;
    for (int half = 0; half < 2; ++half) {
      const int64_t n = first_row(half);
      Sums sums = sums_[half];
      Floats logits = logit_sum_[half];
      if (!is_first()) {
        const Sums before{load<Floats>(statistics.max(group) + n),
                          load<Floats>(statistics.sum(group) + n),
                          !kPlain ? load<Floats>(statistics.entropy_sum(group) + n) : Floats{},
                          !kPlain ? load<Floats>(statistics.sum_sq_probs(group) + n) : Floats{}};
        const Sums moved = with_max(before, sums.max);
        sums = {sums.max, sums.sum + moved.sum, sums.entropy_sum + moved.entropy_sum,
                sums.sum_sq_probs + moved.sum_sq_probs};
        if (!kPlain) {
          logits += load<Floats>(statistics.logit_sum(group) + n);
        }
      }
      store(statistics.max(group) + n, sums.max);
      store(statistics.sum(group) + n, sums.sum);
      if (!kPlain) {
        store(statistics.entropy_sum(group) + n, sums.entropy_sum);
        store(statistics.sum_sq_probs(group) + n, sums.sum_sq_probs);
        store(statistics.logit_sum(group) + n, logits);
      }
    }
  }

  // Zeroes the values beyond the tile's last entry, so that equal inputs give equal memory.
  RAO_INLINE void zero_retained_rest() const {
    auto* values = context_->retained.values(panel_, strip_);
    std::memset(values + count_ * kBlock, 0, (kBlock - count_) * kBlock * sizeof(values[0]));
  }

  RAO_INLINE bool is_first() const { return panel_ % kGroupPanels == 0; }
  RAO_INLINE int64_t first_row(int half) const { return strip_ * kBlock + half * kLanes; }

  const ScoreContext<Source>* context_;
  float* block_;
  int64_t panel_;
  int64_t strip_;
  int count_;
  int transforms_;
  bool retains_;
  int at_ = 0;
  Floats top_[2];
  Floats max_[2];
  Floats shift_[2];
  Sums sums_[2];
  Floats logit_sum_[2];
};

// Strips of a set, whose tiles stay in the L2 cache for all panels of a group. The sets
// are of equal size and as many as the parts can share.
int64_t strips_at_once(int64_t strips, int64_t fitting, int parts) {
  return ceil_div(strips, parts * ceil_div(strips, parts * fitting));
}

// Calls body(group, strips) for the part's share of all (set of strips, group, strip), set by set.
template <class Body>
RAO_INLINE void for_sets(int part, int parts, int64_t strips, int64_t set, int64_t groups,
                         const Body& body) {
  const Range mine = share(strips * groups, part, parts);
  for (int64_t at = mine.begin; at < mine.end;) {
    const int64_t first = at / (set * groups) * set;
    const int64_t count = smaller(set, strips - first);
    const int64_t within = at - first * groups;
    const int64_t group = within / count, strip = within % count;
    const int64_t end = smaller(count, strip + mine.end - at);
    body(group, Range{first + strip, first + end});
    at += end - strip;
  }
}

template <class Source, bool kPlain>
void score_blocks(const HeadTile& head, const ScoreContext<Source>& context,
                  const PackedHidden<kPartsOf<Source>>& hidden, const Scratch& scratch,
                  const Parallel& parallel) {
  constexpr int kParts = kPartsOf<Source>;
  using Block = ScoreBlock<Source, kPlain>;
  const int64_t depth = hidden.by_rows.depth;
  const int64_t strips = blocks_of(head.rows), panels = blocks_of(head.entries);
  const int64_t set =
      strips_at_once(strips, strips_within<kParts>(kHiddenBytes, depth), parallel.parts);
  parallel([&](int part) {
    const TileScope tiles;
    std::byte* memory = scratch.threads + part * scratch.thread_bytes;
    BlockWalk<Source, Block> walk(head, hidden.by_rows, BlockMemory::of<kParts>(memory, depth));
    for_sets(part, parallel.parts, strips, set, ceil_div(panels, kGroupPanels),
             [&](int64_t group, Range rows) {
               const int64_t first = group * kGroupPanels;
               walk({first, smaller(panels, first + kGroupPanels)}, rows, Fetch(),
                    [&](int64_t panel, int64_t strip, float* block) {
                      return Block(context, panel, strip, block);
                    });
             });
    walk.finish();
  });
}

template <class Source>
void score(const HeadTile& head, const RowState& state, const RetainedSlot& slot,
           const Scratch& scratch, const Parallel& parallel) {
  constexpr int kParts = kPartsOf<Source>;
  const auto hidden = PackedHidden<kParts>::of(scratch.packed_hidden, head.rows, head.size);
  const Rows<typename Source::Storage> weight = weight_rows<typename Source::Storage>(head);
  const RetainedBlocks<Source> retained(slot, head.entries);
  const bool exact = *hidden.exact && is_exact<Source>(weight, head.entries, parallel);
  retained.set_filled(exact);
  if (!exact) {
    return RAO_FALLBACK_ISA::score_tile(head, state, kNothingRetained, scratch, parallel);
  }
  const int64_t groups = ceil_div(head.entries, kGroup);
  const GroupStatistics statistics(scratch.rows, head.rows);
  std::byte* positions = scratch.rows + GroupStatistics::bytes(groups, head.rows);
  const ScoreContext<Source> context{
      state, RowLogits(head), statistics, TargetPositions(positions, head), retained, head.entries};
  const bool more =
      state.entropy_sum != nullptr || state.sum_sq_probs != nullptr || state.logit_sum != nullptr;
  if (context.logits.identity() && !more) {
    score_blocks<Source, true>(head, context, hidden, scratch, parallel);
  } else {
    score_blocks<Source, false>(head, context, hidden, scratch, parallel);
  }
  fold_all(state, statistics, groups, head.rows, parallel);
}

}  // namespace

int64_t retained_bytes(DType dtype, int64_t rows, int64_t entries) {
  return with_source(
      dtype, [&](auto source) { return RetainedBlocks<decltype(source)>::bytes(rows, entries); });
}

ScratchSizes score_scratch(DType dtype, int64_t rows, int64_t entries, int64_t size) {
  return with_source(dtype, [&](auto source) {
    constexpr int kParts = kPartsOf<decltype(source)>;
    ScratchSizes sizes{};
    sizes.packed_hidden = PackedHidden<kParts>::bytes(rows, size, false);
    sizes.rows =
        GroupStatistics::bytes(ceil_div(entries, kGroup), rows) + TargetPositions::bytes(rows);
    sizes.thread = BlockMemory::bytes<kParts>(blocks_of(size));
    if (kParts == 1) {
      return sizes;
    }
    return with_fallback(sizes, RAO_FALLBACK_ISA::score_scratch(dtype, rows, entries, size));
  });
}

void score_tile(const HeadTile& head, const RowState& state, const RetainedSlot& retained,
                const Scratch& scratch, const Parallel& parallel) {
  with_source(head.dtype, [&](auto source) {
    score<decltype(source)>(head, state, retained, scratch, parallel);
  });
}

}  // namespace rao::RAO_ISA
