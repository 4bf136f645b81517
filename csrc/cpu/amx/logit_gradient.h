// dz, the logit gradient of a block, in the layouts of its two products.
#pragma once

#include "rao/logit.h"
#include "retained.h"
#include "walk.h"

namespace rao::RAO_ISA {

// Row factors, [4][rows], padded to whole strips; the factors of a padding row give a gradient of
// 0.
class PaddedFactors {
 public:
  static constexpr int kCount = 4;
  static int64_t bytes(int64_t rows) { return 4 * kCount * blocks_of(rows) * kBlock; }

  PaddedFactors(std::byte* memory, const RowGradients& rows, int64_t count, float scale)
      : data_(reinterpret_cast<float*>(memory)), stride_(blocks_of(count) * kBlock) {
    for (int64_t n = 0; n < stride_; ++n) {
      if (n < count) {
        const RowFactors factors(rows, n, scale);
        set(n, factors.row_max, factors.log_sum, factors.p, factors.p_log_p);
        in_range_ = in_range_ && in_range(scale * rows.logp_grad[n]) &&
                    (rows.p_factor == nullptr || (in_range(scale * rows.p_factor[n]) &&
                                                  in_range(scale * rows.p_log_p_factor[n])));
      } else {
        set(n, 0.0f, __builtin_inff(), 0.0f, 0.0f);
      }
    }
  }

  RAO_INLINE Floats row_max(int64_t n) const { return load<Floats>(data_ + n); }
  RAO_INLINE Floats log_sum(int64_t n) const { return load<Floats>(data_ + stride_ + n); }
  RAO_INLINE Floats p(int64_t n) const { return load<Floats>(data_ + 2 * stride_ + n); }
  RAO_INLINE Floats p_log_p(int64_t n) const { return load<Floats>(data_ + 3 * stride_ + n); }

  // True if three parts represent the gradients to fp32's precision: what they lose, below 2^-126,
  // is then less than the rounding of the row's sums.
  bool in_range() const { return in_range_; }

 private:
  static bool in_range(float gradient) {
    constexpr float kSmallest = 0x1p-80f, kLargest = 0x1p100f;
    const float magnitude = gradient < 0.0f ? -gradient : gradient;
    return magnitude == 0.0f || (magnitude >= kSmallest && magnitude <= kLargest);
  }
  void set(int64_t n, float row_max, float log_sum, float p, float p_log_p) {
    data_[n] = row_max;
    data_[stride_ + n] = log_sum;
    data_[2 * stride_ + n] = p;
    data_[3 * stride_ + n] = p_log_p;
  }

  float* data_;
  int64_t stride_;
  bool in_range_ = true;
};

// dz as left operands. For dweight: [panels][strips][2][parts] tiles of [16 entries][32 rows], of
// some panels and strips. For dhidden: strips of rows against panels as tiles of K.
template <int kParts>
struct LogitGradient {
  std::byte* by_entries;
  int64_t strips;          // of by_entries
  Packed<kParts> by_rows;  // depth: all panels of the tile; data null: not wanted

  static int64_t bytes(int64_t panels, int64_t strips) {
    return 2 * panels * strips * kParts * kTileBytes;
  }
  RAO_INLINE std::byte* entries(int64_t panel, int64_t strip) const {
    return by_entries + 2 * (panel * strips + strip) * kParts * kTileBytes;
  }
  RAO_INLINE Operand left(int64_t panel) const {
    return {entries(panel, 0), kParts * kTileBytes, 2 * kParts * kTileBytes};
  }
};

// The inputs that the blocks of one tile share.
template <class Source>
struct GradContext {
  const RowGradients& rows;
  RowLogits logits;
  PaddedFactors factors;
  TargetPositions targets;
  RetainedBlocks<Source> retained;
  int64_t row_count;
  int64_t entries;
};

// A block's logits, restored from the retained tile.
template <class Source>
class RestoredBlock {
 public:
  using Storage = typename Source::Storage;
  static constexpr int64_t kBytes =
      kBlockFloats * static_cast<int64_t>(sizeof(Storage)) + 4 * kBlock;

  RestoredBlock() = default;
  // memory: kBytes, for rows that are gathered by retained_row.
  RAO_INLINE RestoredBlock(const GradContext<Source>& context, int64_t panel, int64_t strip,
                           std::byte* memory)
      : values_(context.retained.values(panel, strip)),
        maxima_(context.retained.maxima(panel, strip)) {
    if (context.rows.retained_row != nullptr) {
      gather(context, panel, strip, memory);
    }
  }

  RAO_INLINE Floats operator()(int entry, int half) const {
    return Source::load(values_ + entry * kBlock + half * kLanes) +
           load<Floats>(maxima_ + half * kLanes);
  }

 private:
  void gather(const GradContext<Source>& context, int64_t panel, int64_t strip, std::byte* memory) {
    auto* maxima = reinterpret_cast<float*>(memory);
    auto* values = reinterpret_cast<Storage*>(memory + 4 * kBlock);
    for (int row = 0; row < kBlock; ++row) {
      const int64_t n = smaller(strip * kBlock + row, context.row_count - 1);
      const int64_t from = context.rows.retained_row[n];
      const int64_t lane = from % kBlock;
      maxima[row] = context.retained.maxima(panel, from / kBlock)[lane];
      const Storage* source = context.retained.values(panel, from / kBlock) + lane;
      for (int entry = 0; entry < kBlock; ++entry) {
        values[entry * kBlock + row] = source[entry * kBlock];
      }
    }
    values_ = values;
    maxima_ = maxima;
  }

  const Storage* values_;
  const float* maxima_;
};

// dz of one block. kPlain: logits are the products or restored ones without a softcap, and p_factor
// is null.
template <class Source, bool kPlain, bool kRestored>
class GradBlock {
 public:
  static constexpr int kParts = kPartsOf<Source>;
  // Scratch: pairs of entries, [parts][2][16 pairs][16 rows].
  static constexpr int64_t kPairBytes = 2 * kParts * kTileBytes;

  GradBlock() = default;
  // panel, strip: of the tile. entries, rows: where the two layouts of the block are written.
  RAO_INLINE GradBlock(const GradContext<Source>& context, int64_t panel, int64_t strip,
                       const float* block, const RestoredBlock<Source>& restored,
                       std::byte* entries, std::byte* rows, int64_t row_half, std::byte* pairs)
      : context_(&context),
        block_(block),
        restored_(restored),
        panel_(panel),
        strip_(strip),
        count_(static_cast<int>(smaller<int64_t>(kBlock, context.entries - panel * kBlock))),
        entries_(entries),
        rows_(rows),
        row_half_(row_half),
        pairs_(pairs) {}

  RAO_INLINE int units() const { return kTileRows + (rows_ == nullptr ? 0 : 2 * kParts); }

  // Called before the first unit.
  RAO_INLINE void start() {
    for (int half = 0; half < 2; ++half) {
      const int64_t n = strip_ * kBlock + half * kLanes;
      row_max_[half] = context_->factors.row_max(n);
      log_sum_[half] = context_->factors.log_sum(n);
      p_[half] = context_->factors.p(n);
      p_log_p_[half] = context_->factors.p_log_p(n);
    }
  }

  RAO_INLINE void unit() {
    if (at_ < kTileRows) {
      form_pair(at_++);
    } else if (at_ < units()) {
      transpose_pairs(at_++ - kTileRows);
    }
  }

  RAO_INLINE void finish() {
    while (at_ < units()) {
      unit();
    }
    if (count_ < kBlock) {
      zero_rest();
    }
    context_->targets.for_each(panel_, strip_, [&](int row, int entry) { put_target(row, entry); });
  }

 private:
  // slope: the derivative of the softcap (1 if there is none); not set if kPlain.
  RAO_INLINE Floats logit(int entry, int half, Floats* slope) const {
    if constexpr (kRestored) {
      const Floats z = restored_(entry, half);
      if (!kPlain) {
        *slope = context_->logits.function().slope_at(z);
      }
      return z;
    } else {
      const Floats z = load<Floats>(block_ + entry * kBlock + half * kLanes);
      const int64_t last = context_->entries - 1;  // the bias has no padding
      return kPlain ? z : context_->logits(z, smaller(panel_ * kBlock + entry, last), slope);
    }
  }

  RAO_INLINE Floats gradient(int entry, int half) const {
    Floats slope;
    const Floats z = logit(entry, half, &slope);
    const Floats log_p = (z - row_max_[half]) - log_sum_[half];
    const Floats p = kPlain && kParts < 3 ? quick_exponential(log_p) : exponential(log_p);
    Floats dz = p * p_[half];
    if (!kPlain) {
      dz += p == 0.0f ? Floats{} : (p * log_p) * p_log_p_[half];
      dz *= slope;
    }
    return dz;
  }

  // Entries beyond the tile's last are computed too; finish() zeroes them.
  RAO_INLINE void form_entry(int entry, Uints (&parts)[kParts]) const {
    split(gradient(entry, 0), gradient(entry, 1), parts);
#pragma GCC unroll 3
    for (int part = 0; part < kParts; ++part) {
      store(entry_row(entry, part), parts[part]);
    }
  }

  RAO_INLINE void form_pair(int pair) const {
    Uints even[kParts], odd[kParts];
    form_entry(2 * pair, even);
    form_entry(2 * pair + 1, odd);
#pragma GCC unroll 3
    for (int part = 0; part < kParts; ++part) {
      Uints low, high;
      interleave_rows(even[part], odd[part], &low, &high);
      store(pairs_ + 2 * part * kTileBytes + pair * 64, low);
      store(pairs_ + (2 * part + 1) * kTileBytes + pair * 64, high);
    }
  }

  RAO_INLINE void transpose_pairs(int which) const {
    Uints rows[kTileRows];
#pragma GCC unroll 16
    for (int i = 0; i < kTileRows; ++i) {
      rows[i] = load<Uints>(pairs_ + which * kTileBytes + i * 64);
    }
    transpose(rows);
    std::byte* target = rows_ + which % 2 * row_half_ + which / 2 * kTileBytes;
#pragma GCC unroll 16
    for (int i = 0; i < kTileRows; ++i) {
      store(target + i * 64, rows[i]);
    }
  }

  // The addresses of an entry's gradients of all rows, and of a row's gradients of all entries.
  RAO_INLINE std::byte* entry_row(int entry, int part) const {
    if (kParts == 1) {
      return entries_ + entry * 64;
    }
    return entries_ + (entry / kTileRows * kParts + part) * kTileBytes + entry % kTileRows * 64;
  }
  RAO_INLINE std::byte* row(int row, int part) const {
    return rows_ + row / kTileRows * row_half_ + part * kTileBytes + row % kTileRows * 64;
  }

  void zero_rest() const {
    for (int part = 0; part < kParts; ++part) {
      for (int entry = count_; entry < kBlock; ++entry) {
        std::memset(entry_row(entry, part), 0, 64);
      }
      for (int i = 0; i < kBlock && rows_ != nullptr; ++i) {
        std::memset(row(i, part) + 2 * count_, 0, 2 * (kBlock - count_));
      }
    }
  }

  // Overwrites the target's gradient with the one that is computed from its log-prob.
  void put_target(int row, int entry) const {
    const int64_t n = strip_ * kBlock + row;
    const LogitFunction& function = context_->logits.function();
    const float slope = function.slope_at(target_logit(context_->rows, n));
    const float value = target_gradient(context_->rows, n) * function.scale() * slope;
    Uints parts[kParts];
    split(broadcast(value), broadcast(value), parts);
    for (int part = 0; part < kParts; ++part) {
      const uint32_t bits = parts[part][0];
      std::memcpy(entry_row(entry, part) + 2 * row, &bits, 2);
      if (rows_ != nullptr) {
        std::memcpy(this->row(row, part) + 2 * entry, &bits, 2);
      }
    }
  }

  const GradContext<Source>* context_;
  const float* block_;
  RestoredBlock<Source> restored_;
  int64_t panel_;
  int64_t strip_;
  int count_;
  std::byte* entries_;
  std::byte* rows_;
  int64_t row_half_;
  std::byte* pairs_;
  int at_ = 0;
  Floats row_max_[2];
  Floats log_sum_[2];
  Floats p_[2];
  Floats p_log_p_[2];
};

}  // namespace rao::RAO_ISA
