// dz of a tile, and dweight and dbias from it; logit_gradient.h has the layout of dz.
#pragma once

#include "grad_memory.h"

namespace rao::RAO_ISA {

// dweight of a block of panels: dz^T @ hidden.
template <class Source>
class WeightGradient {
 public:
  static constexpr int kParts = kPartsOf<Source>;

  WeightGradient(const HeadTile& head, const Gradients& out, const Packed<kParts>& hidden,
                 const GradMemory<Source>& memory, const Cut& cut)
      : head_(head), out_(out), hidden_(hidden), memory_(memory), cut_(cut) {}

  // Adds the products over strips `rows`; with the last strip, writes the sums to dweight.
  void add(const LogitGradient<kParts>& dz, Range panels, Range rows) const {
    const bool first = rows.begin == 0, last = rows.end == hidden_.depth;
    multiply_stationary<kParts>(
        [&](int64_t panel) { return dz.left(panel); }, panels.end - panels.begin, hidden_,
        rows.begin, rows.end - rows.begin, Range{0, blocks_of(head_.size)}, memory_.sums,
        [&](int64_t strip, int64_t panel) -> const float* {
          return first ? nullptr : waiting(strip, panel);
        },
        [&](int64_t strip, int64_t panel, const float* block) {
          if (last) {
            write(block, panels.begin + panel, strip);
          } else {
            std::memcpy(waiting(strip, panel), block, kBlockFloats * sizeof(float));
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
    const int64_t count = smaller<int64_t>(kBlock, head_.entries - first);
    const int64_t columns = smaller<int64_t>(kBlock, head_.size - column);
    for (int64_t i = 0; i < count; ++i) {
      const Floats low = load<Floats>(block + i * kBlock) * out_.unscale;
      const Floats high = load<Floats>(block + i * kBlock + kLanes) * out_.unscale;
      Storage* target = static_cast<Storage*>(out_.dweight) +
                        row_at(out_.dweight_rows, first + i) * head_.size + column;
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
          from_bf16(load<Uints>(row + (tile + part) * kTileBytes), &low, &high);
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
      if (entry < head.entries) {
        out.dbias[row_at(out.dweight_rows, entry)] = sums_[i] * out.unscale;
      }
    }
  }

 private:
  float sums_[kGroup] = {};
};

// Forms dz of a thread's panels, then dweight and dbias from it.
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
    const int64_t panels = blocks_of(head_.entries);
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
        GradMemory<Source>::of(scratch_.threads + part * scratch_.thread_bytes, head_);
    const LogitGradient<kParts> dz{memory.logit_gradient, cut_.strips, by_rows_};
    const WeightGradient<Source> dweight(head_, out_, hidden_.by_depth, memory, cut_);
    BiasGradient<kParts> dbias;
    const int64_t count = panels.end - panels.begin, strips = blocks_of(head_.rows);
    for (int64_t first = 0; first < strips; first += cut_.strips) {
      const Range rows{first, smaller(strips, first + cut_.strips)};
      form_chunk<kPlain, kRestored>(panels, rows, dz, memory);
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
      // Where dz has few rows, the rest of its cache holds strips: panels are loaded less often.
      const int64_t dz_bytes =
          LogitGradient<kParts>::bytes(panels.end - panels.begin, rows.end - rows.begin);
      const int64_t set = strips_within<kParts>(kHiddenBytes + kGradientBytes - dz_bytes, depth);
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

}  // namespace rao::RAO_ISA
