// grad_tile on the tile unit: a tile's logit gradient, block by block of entries, and the two
// gradient products on it.
//
// A thread forms dz of some panels with all rows and multiplies it by hidden, for dweight, while it
// is in its second-level cache. Then all threads multiply dz by the weight, for dhidden, a strip of
// rows at a time.
#include "fallback.h"
#include "logit_gradient.h"

namespace rao::RAO_ISA {
namespace {

// Of the second-level cache: dz of a block of panels, beside which some strips of hidden pass; the
// packed weight that dz of all rows passes.
constexpr int64_t kGradientBytes = 1310720;
constexpr int64_t kHiddenBytes = 1 << 18;
constexpr int64_t kWeightBytes = 1228800;
// Sums of dweight that wait for the next rows.
constexpr int64_t kWaitingBytes = 2621440;

// How rows and entries are cut up for dweight.
struct Cut {
  int64_t strips;  // whose dz is formed before it is multiplied
  int64_t chunks;  // of so many strips
  int64_t panels;  // of a block, at most

  template <int kParts>
  static Cut of(int64_t rows, int64_t size) {
    const int64_t all = blocks_of(rows);
    const int64_t fitting = kGradientBytes / (2 * kGroupPanels * kParts * kTileBytes);
    const int64_t chunks = ceil_div(all, fitting);
    const int64_t panels = kWaitingBytes / (blocks_of(size) * kBlockFloats * 4);
    const bool waits = chunks > 1 && panels < kGroupPanels;
    return {chunks == 0 ? 0 : ceil_div(all, chunks), chunks,
            waits ? larger(1, panels) : kGroupPanels};
  }
};

// A thread's memory.
template <class Source>
struct GradMemory {
  static constexpr int kParts = kPartsOf<Source>;
  static constexpr int64_t kPairs = GradBlock<Source, true, true>::kPairBytes;
  static constexpr int64_t kRestored = RestoredBlock<Source>::kBytes;

  std::byte* blocks;
  std::byte* pairs;
  std::byte* restored;
  float* sums;  // a block for each panel or column strip of a product
  std::byte* logit_gradient;
  float* waiting;  // of dweight, where rows come in chunks: [column strips][panels] blocks

  // Column strips of the weight that dhidden's products pass at once.
  static int64_t columns(int64_t panels, int64_t size) {
    const int64_t fitting = kWeightBytes / Packed<kParts>::bytes(1, panels);
    return smaller(blocks_of(size), larger(1, fitting));
  }
  static int64_t sum_blocks(int64_t panels, int64_t size) {
    return larger(kGroupPanels, columns(panels, size)) + 1;
  }
  static int64_t bytes(int64_t rows, int64_t entries, int64_t size) {
    const Cut cut = Cut::of<kParts>(rows, size);
    const int64_t waiting = cut.chunks > 1 ? blocks_of(size) * cut.panels : 0;
    return BlockMemory::bytes<kParts>(blocks_of(size)) + kPairs + kRestored +
           4 * kBlockFloats * (sum_blocks(blocks_of(entries), size) + waiting) +
           LogitGradient<kParts>::bytes(cut.panels, cut.strips);
  }
  static GradMemory of(std::byte* memory, const HeadTile& head, const Cut& cut) {
    GradMemory found;
    found.blocks = memory;
    found.pairs = memory + BlockMemory::bytes<kParts>(blocks_of(head.size));
    found.restored = found.pairs + kPairs;
    found.sums = reinterpret_cast<float*>(found.restored + kRestored);
    float* end = found.sums + kBlockFloats * sum_blocks(blocks_of(head.words), head.size);
    found.logit_gradient = reinterpret_cast<std::byte*>(end);
    found.waiting = reinterpret_cast<float*>(found.logit_gradient +
                                             LogitGradient<kParts>::bytes(cut.panels, cut.strips));
    return found;
  }
};

int64_t place(const int64_t* index, int64_t i) { return index == nullptr ? i : index[i]; }

// The gradient of the weight's rows that belong to a block of panels.
template <class Source>
class WeightGradient {
 public:
  static constexpr int kParts = kPartsOf<Source>;

  WeightGradient(const HeadTile& head, const Gradients& out, const Packed<kParts>& hidden,
                 const GradMemory<Source>& memory, const Cut& cut)
      : head_(head), out_(out), hidden_(hidden), memory_(memory), cut_(cut) {}

  // The part of the sums that strips `rows` have.
  void add(const LogitGradient<kParts>& dz, Range panels, Range rows) const {
    const bool first = rows.begin == 0, last = rows.end == hidden_.depth;
    multiply_stationary<kParts>(
        [&](int64_t panel) { return dz.left(panel); }, panels.end - panels.begin, hidden_,
        rows.begin, rows.end - rows.begin, Range{0, blocks_of(head_.size)}, memory_.sums,
        [&](int64_t strip, int64_t panel) {
          first ? zero_sums() : load_sums(waiting(strip, panel), kBlock);
        },
        [&](int64_t strip, int64_t panel) {
          float* sums = last ? memory_.sums + panel * kBlockFloats : waiting(strip, panel);
          store_sums(sums, kBlock);
          if (last) {
            write(sums, panels.begin + panel, strip);
          }
        });
  }

 private:
  float* waiting(int64_t strip, int64_t panel) const {
    return memory_.waiting + (strip * cut_.panels + panel) * kBlockFloats;
  }

  void write(const float* block, int64_t panel, int64_t strip) const {
    switch (out_.dweight_dtype) {
      case DType::kFloat32:
        return write_rows<Float32>(block, panel, strip);
      case DType::kBFloat16:
        return write_rows<BFloat16>(block, panel, strip);
      case DType::kFloat16:
        return write_rows<Float16>(block, panel, strip);
    }
  }

  template <class Target>
  RAO_INLINE void write_rows(const float* block, int64_t panel, int64_t strip) const {
    using Storage = typename Target::Storage;
    const int64_t first = panel * kBlock, column = strip * kBlock;
    const int64_t count = smaller<int64_t>(kBlock, head_.words - first);
    const int64_t columns = smaller<int64_t>(kBlock, head_.size - column);
    for (int64_t i = 0; i < count; ++i) {
      const Floats low = load<Floats>(block + i * kBlock) * out_.unscale;
      const Floats high = load<Floats>(block + i * kBlock + kLanes) * out_.unscale;
      Storage* target = static_cast<Storage*>(out_.dweight) +
                        place(out_.dweight_rows, first + i) * head_.size + column;
      if (columns == kBlock) {
        store_row<Target>(target, low, high);
      } else {
        Storage row[kBlock];
        store_row<Target>(row, low, high);
        std::memcpy(target, row, columns * sizeof(Storage));
      }
    }
  }

  const HeadTile& head_;
  const Gradients& out_;
  const Packed<kParts>& hidden_;
  const GradMemory<Source>& memory_;
  const Cut& cut_;
};

// dbias of a block of panels: sums of dz over the rows.
template <int kParts>
class BiasGradient {
 public:
  void add(const LogitGradient<kParts>& dz, int64_t panels, int64_t strips) {
    for (int64_t i = 0; i < panels * kBlock; ++i) {
      const std::byte* row = dz.entries(i / kBlock, 0) +
                             i % kBlock / kTileRows * kParts * kTileBytes + i % kTileRows * 64;
      Floats total{};
      for (int64_t tile = 0; tile < strips * 2 * kParts; tile += 2 * kParts) {
        for (int part = 0; part < kParts; ++part) {
          Floats low, high;
          from_bf16(load<Words>(row + (tile + part) * kTileBytes), &low, &high);
          total += low + high;
        }
      }
      sums_[i] += sum(total);
    }
  }
  void write(const HeadTile& head, const Gradients& out, int64_t first_panel,
             int64_t panels) const {
    for (int64_t i = 0; i < panels * kBlock; ++i) {
      const int64_t entry = first_panel * kBlock + i;
      if (entry < head.words) {
        out.dbias[place(out.dweight_rows, entry)] = sums_[i] * out.unscale;
      }
    }
  }

 private:
  float sums_[kGroup] = {};
};

// What forms dz, and multiplies it for dweight.
template <class Source>
class EntryGradients {
 public:
  static constexpr int kParts = kPartsOf<Source>;

  EntryGradients(const HeadTile& head, const GradContext<Source>& context, const Gradients& out,
                 const PackedHidden<kParts>& hidden, const Packed<kParts>& by_rows,
                 const Scratch& scratch)
      : head_(head),
        context_(context),
        out_(out),
        hidden_(hidden),
        by_rows_(by_rows),
        scratch_(scratch),
        cut_(Cut::of<kParts>(head.rows, head.size)) {}

  template <bool kPlain, bool kRestored>
  void operator()(const Parallel& parallel) const {
    const int64_t panels = blocks_of(head_.words);
    const int64_t rounds = ceil_div(panels, parallel.parts * cut_.panels);
    const int64_t block = ceil_div(panels, parallel.parts * rounds);
    parallel([&](int part) {
      const TileScope tiles;
      const Range mine = share(ceil_div(panels, block), part, parallel.parts);
      for (int64_t i = mine.begin; i < mine.end; ++i) {
        form<kPlain, kRestored>({i * block, smaller(panels, (i + 1) * block)}, part);
      }
      order_stores();
    });
  }

 private:
  template <bool kPlain, bool kRestored>
  void form(Range panels, int part) const {
    const auto memory =
        GradMemory<Source>::of(scratch_.threads + part * scratch_.thread_bytes, head_, cut_);
    const LogitGradient<kParts> dz{memory.logit_gradient, cut_.strips, by_rows_};
    const WeightGradient<Source> dweight(head_, out_, hidden_.by_depth, memory, cut_);
    BiasGradient<kParts> dbias;
    const int64_t count = panels.end - panels.begin, strips = blocks_of(head_.rows);
    for (int64_t first = 0; first < strips; first += cut_.strips) {
      const Range rows{first, smaller(strips, first + cut_.strips)};
      form_chunk<kPlain, kRestored>(panels, rows, dz, memory);
      tile_fence();
      if (out_.dbias != nullptr) {
        dbias.add(dz, count, rows.end - rows.begin);
      }
      if (out_.dweight != nullptr) {
        dweight.add(dz, panels, rows);
      }
    }
    if (out_.dbias != nullptr) {
      dbias.write(head_, out_, panels.begin, count);
    }
  }

  template <bool kPlain, bool kRestored>
  void form_chunk(Range panels, Range rows, const LogitGradient<kParts>& dz,
                  const GradMemory<Source>& memory) const {
    using Block = GradBlock<Source, kPlain, kRestored>;
    const auto make = [&](int64_t panel, int64_t strip, const float* block,
                          const RestoredBlock<Source>& restored) {
      std::byte* by_rows = by_rows_.data == nullptr ? nullptr : by_rows_.tile(strip, 0, panel);
      return Block(context_, panel, strip, block, restored,
                   dz.entries(panel - panels.begin, strip - rows.begin), by_rows,
                   by_rows_.depth * kParts * kTileBytes, memory.pairs);
    };
    if constexpr (kRestored) {
      for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
        for (int64_t strip = rows.begin; strip < rows.end; ++strip) {
          prefetch_retained(panel, strip + 2, rows.end);
          Block work = make(panel, strip, nullptr, {context_, panel, strip, memory.restored});
          work.start();
          work.finish();
        }
      }
    } else {
      const int64_t depth = hidden_.by_rows.depth;
      const int64_t set = strips_within<kParts>(kHiddenBytes, depth);
      BlockWalk<Source, Block> walk(head_, hidden_.by_rows,
                                    BlockMemory::of<kParts>(memory.blocks, depth));
      for (int64_t first = rows.begin; first < rows.end; first += set) {
        const int64_t end = smaller(rows.end, first + set);
        const int64_t calls = (panels.end - panels.begin) * (end - first) * depth;
        walk(panels, {first, end}, next_hidden(end, smaller(rows.end, end + set), calls),
             [&](int64_t panel, int64_t strip, float* block) {
               return make(panel, strip, block, {});
             });
      }
      walk.finish();
    }
  }

  RAO_INLINE void prefetch_retained(int64_t panel, int64_t strip, int64_t end) const {
    if (context_.rows.retained_row == nullptr && strip < end) {
      const auto* block = reinterpret_cast<const char*>(context_.retained.values(panel, strip));
      constexpr int64_t kBytes = kBlockFloats * sizeof(typename Source::Storage);
      for (int64_t i = 0; i < kBytes; i += 64) {
        __builtin_prefetch(block + i);
      }
    }
  }

  Fetch next_hidden(int64_t first, int64_t end, int64_t calls) const {
    const Packed<kParts>& packed = hidden_.by_rows;
    const std::byte* data = packed.tile(first, 0, 0);
    return {data, packed.tile(end, 0, 0) - data, calls};
  }

  const HeadTile& head_;
  const GradContext<Source>& context_;
  const Gradients& out_;
  const PackedHidden<kParts>& hidden_;
  const Packed<kParts>& by_rows_;
  const Scratch& scratch_;
  Cut cut_;
};

// dhidden += dz @ weight: the packed weight of some columns stays in the second-level cache and is
// streamed; dz and dhidden pass once for them.
template <class Source>
class HiddenGradient {
 public:
  static constexpr int kParts = kPartsOf<Source>;

  HiddenGradient(const HeadTile& head, const Gradients& out, const Packed<kParts>& dz,
                 const Packed<kParts>& weight, const Scratch& scratch)
      : head_(head), out_(out), dz_(dz), weight_(weight), scratch_(scratch) {}

  void operator()(const Parallel& parallel) const {
    const int64_t strips = blocks_of(head_.rows), all = blocks_of(head_.size);
    const int64_t fitting = GradMemory<Source>::columns(dz_.depth, head_.size);
    // Few strips: fewer columns, so that every part has some.
    const int64_t shared = larger(1, all * strips / (4 * parallel.parts));
    const int64_t columns = smaller(fitting, shared);
    const int64_t slabs = ceil_div(all, columns);
    parallel([&](int part) {
      const TileScope tiles;
      float* sums = GradMemory<Source>::of(scratch_.threads + part * scratch_.thread_bytes, head_,
                                           Cut::of<kParts>(head_.rows, head_.size))
                        .sums;
      const Range mine = share(slabs * strips, part, parallel.parts);
      for (int64_t at = mine.begin; at < mine.end; ++at) {
        const int64_t first = at / strips * columns;
        add(at % strips, {first, smaller(all, first + columns)}, at + 1 < mine.end, sums);
      }
    });
  }

 private:
  // more: the next strip follows, with the same columns if there is one.
  void add(int64_t strip, Range columns, bool more, float* sums) const {
    constexpr int64_t kLongest = 19 / kParts;
    const int64_t depth = dz_.depth, step = ceil_div(depth, ceil_div(depth, kLongest));
    const int64_t count = columns.end - columns.begin;
    more = more && (strip + 1) * kBlock < head_.rows;
    Fetch next_dz =
        more ? Fetch(dz_.tile(strip + 1, 0, 0), Packed<kParts>::bytes(1, depth), depth * count)
             : Fetch();
    for (int64_t k = 0; k < depth; k += step) {
      const int64_t tiles = smaller(step, depth - k);
      const Operand left = dz_.operand(strip).from(k);
      for (int64_t column = columns.begin; column < columns.end; ++column) {
        const Operand right = weight_.operand(column).from(k);
        const bool fetches = more && k == 0 && in_place(strip + 1, column);
        const int64_t each = ceil_div(kBlock, tiles);
        float* block = sums + (1 + column - columns.begin) * kBlockFloats;
        k == 0 ? begin(strip, column) : load_sums(block, kBlock);
        multiply_tiles<kParts, Streamed::kRight>(left, right, tiles, [&](int64_t i) {
          next_dz();
          if (fetches) {
            prefetch_sums(strip + 1, column, i * each, smaller<int64_t>(kBlock, (i + 1) * each));
          }
        });
        k + tiles == depth ? end(strip, column, sums) : store_sums(block, kBlock);
      }
    }
  }

  // Whole blocks are summed where they are.
  RAO_INLINE bool in_place(int64_t strip, int64_t column) const {
    return out_.dhidden_rows == nullptr && (strip + 1) * kBlock <= head_.rows &&
           (column + 1) * kBlock <= head_.size;
  }
  RAO_INLINE float* target(int64_t row, int64_t column) const {
    return out_.dhidden + place(out_.dhidden_rows, row) * head_.size + column * kBlock;
  }

  RAO_INLINE void prefetch_sums(int64_t strip, int64_t column, int64_t first, int64_t end) const {
    for (int64_t i = first; i < end; ++i) {
      const float* row = target(strip * kBlock + i, column);
      __builtin_prefetch(row, 1, 2);
      __builtin_prefetch(row + kLanes, 1, 2);
    }
  }
  RAO_INLINE void begin(int64_t strip, int64_t column) const {
    if (in_place(strip, column)) {
      load_sums(target(strip * kBlock, column), head_.size);
    } else {
      zero_sums();
    }
  }
  RAO_INLINE void end(int64_t strip, int64_t column, float* block) const {
    if (in_place(strip, column)) {
      return store_sums(target(strip * kBlock, column), head_.size);
    }
    store_sums(block, kBlock);
    const int64_t rows = smaller<int64_t>(kBlock, head_.rows - strip * kBlock);
    const int64_t count = smaller<int64_t>(kBlock, head_.size - column * kBlock);
    for (int64_t i = 0; i < rows; ++i) {
      float* sums = target(strip * kBlock + i, column);
      for (int64_t j = 0; j < count; ++j) {
        sums[j] += block[i * kBlock + j];
      }
    }
  }

  const HeadTile& head_;
  const Gradients& out_;
  const Packed<kParts>& dz_;
  const Packed<kParts>& weight_;
  const Scratch& scratch_;
};

template <class Source>
void form_gradients(const HeadTile& head, const GradContext<Source>& context, const Gradients& out,
                    const PackedHidden<kPartsOf<Source>>& hidden,
                    const Packed<kPartsOf<Source>>& by_rows, const Scratch& scratch,
                    const Parallel& parallel) {
  const EntryGradients<Source> form(head, context, out, hidden, by_rows, scratch);
  const bool plain = context.logits.identity() && context.rows.mass_grad == nullptr;
  const bool restored = context.retained.filled();
  if (plain) {
    restored ? form.template operator()<true, true>(parallel)
             : form.template operator()<true, false>(parallel);
  } else {
    restored ? form.template operator()<false, true>(parallel)
             : form.template operator()<false, false>(parallel);
  }
}

// Nothing is retained where the scores fell back: the products are formed again.
void grad_by_fallback(const HeadTile& head, const RowGradients& rows, const Gradients& out,
                      const Scratch& scratch, int64_t own_bytes, const Parallel& parallel) {
  Scratch other = scratch;
  other.packed_hidden += round_up(own_bytes, 64);
  RAO_FALLBACK_ISA::pack_hidden(head.dtype, head.hidden, head.rows, head.size, true,
                                other.packed_hidden, parallel);
  RAO_FALLBACK_ISA::grad_tile(head, rows, kNothingRetained, out, other, parallel);
}

// Memory for dz by rows, row factors and places of targets.
template <int kParts>
int64_t row_bytes(int64_t rows, int64_t entries) {
  return Packed<kParts>::bytes(blocks_of(rows), blocks_of(entries)) + PaddedFactors::bytes(rows) +
         TargetPlaces::bytes(rows);
}

template <class Source>
void grad(const HeadTile& head, const RowGradients& rows, const RetainedSlot& slot,
          const Gradients& out, const Scratch& scratch, const Parallel& parallel) {
  constexpr int kParts = kPartsOf<Source>;
  const auto hidden = PackedHidden<kParts>::of(scratch.packed_hidden, head.rows, head.size);
  const Rows<typename Source::Storage> weight = weight_rows<typename Source::Storage>(head);
  const int64_t panels = blocks_of(head.words), strips = blocks_of(head.rows);
  std::byte* factors = scratch.rows + Packed<kParts>::bytes(strips, panels);
  const GradContext<Source> context{rows,
                                    RowLogits(head),
                                    PaddedFactors(factors, rows, head.rows, head.scale),
                                    TargetPlaces(factors + PaddedFactors::bytes(head.rows), head),
                                    RetainedBlocks<Source>(slot, head.words),
                                    head.rows,
                                    head.words};
  const bool exact = kParts == 1 || (*hidden.exact && context.factors.in_range() &&
                                     is_exact<Source>(weight, head.words, parallel));
  if (!exact) {
    const int64_t own = PackedHidden<kParts>::bytes(head.rows, head.size, true);
    return grad_by_fallback(head, rows, out, scratch, own, parallel);
  }
  const bool wants_dhidden = out.dhidden != nullptr;
  const Packed<kParts> by_rows{wants_dhidden ? scratch.rows : nullptr, panels};
  form_gradients<Source>(head, context, out, hidden, by_rows, scratch, parallel);
  if (wants_dhidden) {
    const Packed<kParts> packed{scratch.packed_weight, panels};
    parallel([&](int part) {
      const Range mine = share(panels, part, parallel.parts);
      for (int64_t panel = mine.begin; panel < mine.end; ++panel) {
        pack_rows_of<Source>(weight, head.words, panel, packed);
      }
    });
    HiddenGradient<Source>(head, out, by_rows, packed, scratch)(parallel);
  }
}

}  // namespace

ScratchSizes grad_scratch(DType dtype, int64_t rows, int64_t words, int64_t size) {
  return with_source(dtype, [&](auto source) {
    using Source = decltype(source);
    constexpr int kParts = kPartsOf<Source>;
    ScratchSizes sizes{};
    sizes.packed_weight = Packed<kParts>::bytes(blocks_of(size), blocks_of(words));
    sizes.packed_hidden = PackedHidden<kParts>::bytes(rows, size, true);
    sizes.rows = row_bytes<kParts>(rows, words);
    sizes.thread = GradMemory<Source>::bytes(rows, words, size);
    if (kParts == 1) {
      return sizes;
    }
    return with_fallback(sizes, RAO_FALLBACK_ISA::grad_scratch(dtype, rows, words, size));
  });
}

void pack_hidden(DType dtype, const void* hidden, int64_t rows, int64_t size, bool backward,
                 std::byte* packed, const Parallel& parallel) {
  with_source(dtype, [&](auto source) {
    using Source = decltype(source);
    constexpr int kParts = kPartsOf<Source>;
    using Storage = typename Source::Storage;
    const Rows<Storage> matrix{static_cast<const Storage*>(hidden), size, nullptr};
    const auto target = PackedHidden<kParts>::of(packed, rows, size);
    *target.exact = is_exact<Source>(matrix, rows, parallel);
    const int64_t strips = blocks_of(rows);
    parallel([&](int part) {
      const Range mine = share(strips, part, parallel.parts);
      for (int64_t strip = mine.begin; strip < mine.end; ++strip) {
        pack_columns_of<Source>(matrix, rows, 2 * strip, target.by_rows);
        pack_columns_of<Source>(matrix, rows, 2 * strip + 1, target.by_rows);
        if (backward) {
          pack_rows_of<Source>(matrix, rows, strip, target.by_depth);
        }
      }
    });
  });
}

void grad_tile(const HeadTile& head, const RowGradients& rows, const RetainedSlot& retained,
               const Gradients& out, const Scratch& scratch, const Parallel& parallel) {
  with_source(head.dtype, [&](auto source) {
    grad<decltype(source)>(head, rows, retained, out, scratch, parallel);
  });
}

}  // namespace rao::RAO_ISA
