// grad_tile: a tile's logit gradient from retained logits or recomputed products, then the two
// gradient products on it.
//
// The logit gradient dz [N, W] is written once, row by row, as the left operand of
// dhidden = dz @ weight; dweight = dz^T @ hidden transposes it block by block in cache.
#include "rao/logit.h"
#include "retained_tile.h"
#include "tile_kernels_isa.h"

namespace rao::RAO_ISA {
namespace {

// Rows of a block of C with so many columns: as many as stay in cache, whole micro-tiles.
template <class Product>
int64_t block_rows(int64_t columns) {
  constexpr int64_t kStep = Product::kMicroRows;
  const int64_t fitting = kBlockElements / columns / kStep * kStep;
  return fitting < kStep ? kStep : smaller<int64_t>(fitting, Product::kRowBlock);
}

// dz in the products' element type: [N, stride], its entries beyond W zero up to a whole group. The
// stride is not a power of two, or a column of dz would fall in few sets of the caches.
template <class Product>
class LogitGradient {
 public:
  using Element = typename Product::Element;
  using Storage = typename Element::Storage;

  LogitGradient(std::byte* memory, int64_t entries)
      : data_(reinterpret_cast<Storage*>(memory)), stride_(stride_of(entries)) {}

  // A transposed block may begin less than kRowBlock entries before the end of a row.
  static int64_t bytes(int64_t rows, int64_t entries) {
    return (rows * stride_of(entries) + Product::kRowBlock) * static_cast<int64_t>(sizeof(Storage));
  }

  Storage* row(int64_t n) const { return data_ + n * stride_; }
  int64_t stride() const { return stride_; }

 private:
  static int64_t stride_of(int64_t entries) { return round_up(entries, kGroup) + 32; }

  Storage* data_;
  int64_t stride_;
};

// The logits of retained rows, for one group of entries.
template <class Source>
class RetainedRows {
 public:
  using Storage = typename Source::Storage;

  RetainedRows(const Group& group, const RetainedTile& retained, const int64_t* retained_row)
      : group_(group), retained_(retained), index_(retained_row) {}

  bool present() const { return retained_.values != nullptr; }

  void restore(int64_t n, float* row) const {
    const Storage* values = values_of(n);
    const float max = retained_.maxima[index_of(n)];
    for (int i = 0; i < kGroup; i += kLanes) {
      store(row + i, Source::load(values + i) + max);
    }
    fill_tail(row, group_.width, 0.0f);
  }

  // Rows are too far apart for the hardware prefetcher.
  RAO_INLINE void prefetch(int64_t n) const {
    constexpr int kLine = 64 / sizeof(Storage);
    for (int i = 0; i < kGroup; i += kLine) {
      __builtin_prefetch(values_of(n) + i);
    }
  }

 private:
  int64_t index_of(int64_t n) const {
    return group_.index * retained_.rows + (index_ == nullptr ? n : index_[n]);
  }
  const Storage* values_of(int64_t n) const {
    return static_cast<const Storage*>(retained_.values) + index_of(n) * kGroup;
  }

  const Group& group_;
  const RetainedTile& retained_;
  const int64_t* index_;
};

// Passes retained logits on, as Transform makes logits of products.
class RetainedLogits {
 public:
  explicit RetainedLogits(const LogitFunction& function) : function_(function) {}

  RAO_INLINE Floats operator()(Floats logit, int, Floats* slope) const {
    *slope = function_.slope_at(logit);
    return logit;
  }

 private:
  LogitFunction function_;
};

// Overwrites a row, of which logits_of makes logits, with the products' gradient, as if no entry
// were the target.
template <bool kEntropy, bool kSoftcap, class LogitsOf>
RAO_INLINE void differentiate_row(float* row, const LogitsOf& logits_of, const RowFactors& rows) {
#pragma GCC unroll 4
  for (int i = 0; i < kGroup; i += kLanes) {
    Floats slope{};
    const Floats z = logits_of(load<Floats>(row + i), i, &slope);
    const Floats log_p = (z - rows.row_max) - rows.log_sum;
    const Floats p = exponential(log_p);
    Floats dz = p * rows.p;
    if (kEntropy) {
      dz += p == 0.0f ? Floats{} : (p * log_p) * rows.p_log_p;
    }
    store(row + i, kSoftcap ? dz * slope : dz);
  }
}

template <class LogitsOf>
void differentiate(float* row, int64_t n, int64_t target, int width, const LogitFunction& function,
                   const LogitsOf& logits_of, const RowGradients& rows) {
  const RowFactors factors(rows, n, function.scale());
  const bool entropy = rows.p_factor != nullptr;
  if (function.has_softcap()) {
    entropy ? differentiate_row<true, true>(row, logits_of, factors)
            : differentiate_row<false, true>(row, logits_of, factors);
  } else {
    entropy ? differentiate_row<true, false>(row, logits_of, factors)
            : differentiate_row<false, false>(row, logits_of, factors);
  }
  if (target >= 0 && target < width) {
    row[target] =
        target_gradient(rows, n) * function.scale() * function.slope_at(target_logit(rows, n));
  }
  fill_tail(row, width, 0.0f);
}

// Computes one block of dz, from the products in `block` or from retained logits.
template <class Product, class Source>
void differentiate_block(const HeadTile& head, const Group& group, int64_t first_row, int64_t count,
                         float* block, const RowGradients& rows, const RetainedRows<Source>& kept,
                         const LogitGradient<Product>& dz) {
  constexpr int64_t kAhead = 6;
  const Transform transform(head, group);
  const LogitFunction& function = transform.function();
  for (int64_t i = 0; i < count; ++i) {
    const int64_t n = first_row + i;
    float* row = block + i * kGroup;
    const int64_t target = head.targets[n] - head.first_entry - group.first;
    if (kept.present()) {
      kept.prefetch(smaller(n + kAhead, first_row + count - 1));
      kept.restore(n, row);
      const RetainedLogits retained(function);
      differentiate(row, n, target, group.width, function, retained, rows);
    } else {
      differentiate(row, n, target, group.width, function, transform, rows);
    }
    auto* out = dz.row(n) + group.first;
    for (int j = 0; j < kGroup; j += kLanes) {
      Product::Element::store(out + j, load<Floats>(row + j));
    }
  }
}

template <class Product, class Source>
void form_logit_gradient(const HeadTile& head, const RowGradients& rows,
                         const RetainedTile& retained, const Scratch& scratch,
                         const LogitGradient<Product>& dz, const Parallel& parallel) {
  auto* packed = reinterpret_cast<uint32_t*>(scratch.packed_weight);
  if (retained.values == nullptr) {
    pack_transposed<Product, Source>(weight_rows<typename Source::Storage>(head), head.entries,
                                     packed, parallel);
  }
  const int64_t groups = ceil_div(head.entries, kGroup);
  parallel([&](int part) {
    const auto bench = Workbench<Product>::of(scratch, part);
    for_share<Product>(
        part, parallel.parts, head.rows, groups, [&](int64_t g, int64_t first, int64_t end) {
          const Group group = group_of(head, g);
          const RetainedRows<Source> kept(group, retained, rows.retained_row);
          for (int64_t row = first; row < end; row += Product::kRowBlock) {
            const int64_t count = smaller<int64_t>(Product::kRowBlock, end - row);
            if (!kept.present()) {
              multiply_group<Product, Source>(head, group, row, count, packed, bench);
            }
            differentiate_block(head, group, row, count, bench.block, rows, kept, dz);
          }
        });
  });
}

int64_t row_at(const int64_t* index, int64_t i) { return index == nullptr ? i : index[i]; }

// Computes C[rows, size] block by block: all columns of B at a time where there are rows enough for
// all parts, else panel by panel. Each block is passed to
// store_block(block, stride, first_row, rows, first_column, columns).
template <class Product, class LeftOf, class Store>
void multiply_all(const LeftOf& left_of, int64_t rows, const uint32_t* packed, int64_t depth,
                  int64_t size, const Scratch& scratch, const Parallel& parallel,
                  const Store& store_block) {
  const int64_t panels = ceil_div(size, kPanel);
  const bool by_rows = rows >= 32 * Product::kMicroRows * parallel.parts;
  const int64_t chunk_panels = by_rows ? panels : 1;
  const int64_t stride = chunk_panels * kPanel;
  const int64_t step = block_rows<Product>(stride);
  parallel([&](int part) {
    const auto bench = Workbench<Product>::of(scratch, part);
    for_share<Product>(
        part, parallel.parts, rows, panels / chunk_panels,
        [&](int64_t chunk, int64_t first, int64_t end) {
          const int64_t column = chunk * stride;
          for (int64_t row = first; row < end; row += step) {
            const int64_t count = smaller(step, end - row);
            multiply_block<Product>(left_of(row, count, bench.left), count, packed + column * depth,
                                    depth, chunk_panels, bench.block, stride);
            store_block(bench.block, stride, row, count, column, smaller(stride, size - column));
          }
        });
  });
}

// dhidden += dz @ weight.
template <class Product, class Source>
void accumulate_dhidden(const HeadTile& head, const LogitGradient<Product>& dz,
                        const Gradients& out, const Scratch& scratch, const Parallel& parallel) {
  auto* packed = reinterpret_cast<uint32_t*>(scratch.packed_weight);
  pack<Product, Source>(weight_rows<typename Source::Storage>(head), head.entries, packed,
                        parallel);
  const auto left_of = [&](int64_t row, int64_t count, uint32_t* buffer) {
    return MatrixRows<Product, typename Product::Element>(dz.row(row), count, dz.stride(), buffer);
  };
  const auto add = [&](const float* block, int64_t stride, int64_t first_row, int64_t rows,
                       int64_t column, int64_t columns) {
    for (int64_t i = 0; i < rows; ++i) {
      float* target = out.dhidden + row_at(out.dhidden_rows, first_row + i) * head.size + column;
      for (int64_t j = 0; j < columns; ++j) {
        target[j] += block[i * stride + j];
      }
    }
  };
  multiply_all<Product>(left_of, head.rows, packed, lanes_of<Product>(head.entries), head.size,
                        scratch, parallel, add);
}

// A = dz^T: entries [first, first + count) of the tile by rows of the pass, transposed to `buffer`.
template <class Product>
class TransposedColumns {
 public:
  TransposedColumns(const LogitGradient<Product>& dz, int64_t rows, int64_t first, int64_t count,
                    uint32_t* buffer)
      : dz_(dz), rows_(rows), first_(first), count_(count), buffer_(buffer) {}

  Left operator()(int64_t k, int64_t count) const {
    constexpr int kStep = kLanes * Product::kPerLane;
    for (int64_t i = 0; i < count; i += kLanes) {
      prefetch((k + i + kLanes) * Product::kPerLane);
      for (int64_t entry = 0; entry < count_; entry += kStep) {
        transpose_block(k + i, entry, buffer_ + entry * kLeftStride + i);
      }
    }
    return {buffer_, kLeftStride};
  }

 private:
  // The next rows, which are too far apart for the hardware prefetcher.
  RAO_INLINE void prefetch(int64_t row) const {
    constexpr int64_t kLine = 64 / sizeof(typename LogitGradient<Product>::Storage);
    const int64_t end = smaller(rows_, row + kLanes * Product::kPerLane);
    for (; row < end; ++row) {
      for (int64_t entry = 0; entry < count_; entry += kLine) {
        __builtin_prefetch(dz_.row(row) + first_ + entry);
      }
    }
  }

  RAO_INLINE Uints lanes_at(int64_t row, int64_t entry) const {
    return row < rows_ ? load<Uints>(dz_.row(row) + first_ + entry) : Uints{};
  }

  RAO_INLINE void transpose_block(int64_t k, int64_t entry, uint32_t* target) const {
    Uints even[kLanes], odd[kLanes];
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) {
      if (Product::kPerLane == 1) {
        even[i] = lanes_at(k + i, entry);
      } else {
        const Uints row = lanes_at(2 * (k + i), entry);
        const Uints next = lanes_at(2 * (k + i) + 1, entry);
        even[i] = (row & 0xffffu) | (next << 16);
        odd[i] = (row >> 16) | (next & 0xffff0000u);
      }
    }
    transpose(even);
    if (Product::kPerLane == 2) {
      transpose(odd);
    }
    for (int i = 0; i < kLanes; ++i) {
      store(target + i * Product::kPerLane * kLeftStride, even[i]);
      if (Product::kPerLane == 2) {
        store(target + (2 * i + 1) * kLeftStride, odd[i]);
      }
    }
  }

  const LogitGradient<Product>& dz_;
  int64_t rows_;
  int64_t first_;
  int64_t count_;
  uint32_t* buffer_;
};

template <class Target>
void store_scaled(const float* source, float factor, int64_t count,
                  typename Target::Storage* target) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    Target::store(target + i, load<Floats>(source + i) * factor);
  }
  if (i < count) {
    typename Target::Storage tail[kLanes];
    Target::store(tail, load<Floats>(source + i) * factor);
    std::memcpy(target + i, tail, (count - i) * sizeof(tail[0]));
  }
}

// dweight = dz^T @ hidden * unscale.
template <class Product, class Target>
void write_dweight(const HeadTile& head, const LogitGradient<Product>& dz, const Gradients& out,
                   const Scratch& scratch, const Parallel& parallel) {
  using Storage = typename Target::Storage;
  const auto left_of = [&](int64_t entry, int64_t count, uint32_t* buffer) {
    return TransposedColumns<Product>(dz, head.rows, entry, count, buffer);
  };
  const auto write = [&](const float* block, int64_t stride, int64_t first_entry, int64_t entries,
                         int64_t column, int64_t columns) {
    for (int64_t i = 0; i < entries; ++i) {
      Storage* target = static_cast<Storage*>(out.dweight) +
                        row_at(out.dweight_rows, first_entry + i) * head.size + column;
      store_scaled<Target>(block + i * stride, out.unscale, columns, target);
    }
  };
  multiply_all<Product>(left_of, head.entries, reinterpret_cast<uint32_t*>(scratch.packed_hidden),
                        lanes_of<Product>(head.rows), head.size, scratch, parallel, write);
}

// dbias = column sums of dz * unscale.
template <class Product>
void write_dbias(const HeadTile& head, const LogitGradient<Product>& dz, const Gradients& out,
                 const Parallel& parallel) {
  parallel([&](int part) {
    const Range mine = share(ceil_div(head.entries, kLanes), part, parallel.parts);
    for (int64_t i = mine.begin * kLanes; i < mine.end * kLanes; i += kLanes) {
      Floats total{};
      for (int64_t n = 0; n < head.rows; ++n) {
        total += Product::Element::load(dz.row(n) + i);
      }
      const int count = static_cast<int>(smaller<int64_t>(kLanes, head.entries - i));
      for (int j = 0; j < count; ++j) {
        out.dbias[row_at(out.dweight_rows, i + j)] = total[j] * out.unscale;
      }
    }
  });
}

template <class Product, class Source>
void grad(const HeadTile& head, const RowGradients& rows, const RetainedSlot& slot,
          const Gradients& out, const Scratch& scratch, const Parallel& parallel) {
  const RetainedTile retained = retained_on<Source>(slot, head.entries);
  const LogitGradient<Product> dz(scratch.rows, head.entries);
  form_logit_gradient<Product, Source>(head, rows, retained, scratch, dz, parallel);
  if (out.dbias != nullptr) {
    write_dbias(head, dz, out, parallel);
  }
  if (out.dhidden != nullptr) {
    accumulate_dhidden<Product, Source>(head, dz, out, scratch, parallel);
  }
  if (out.dweight == nullptr) {
    return;
  }
  switch (out.dweight_dtype) {
    case DType::kFloat32:
      return write_dweight<Product, Float32>(head, dz, out, scratch, parallel);
    case DType::kBFloat16:
      return write_dweight<Product, BFloat16>(head, dz, out, scratch, parallel);
    case DType::kFloat16:
      return write_dweight<Product, Float16>(head, dz, out, scratch, parallel);
  }
}

}  // namespace

ScratchSizes grad_scratch(DType dtype, int64_t rows, int64_t entries, int64_t size) {
  ScratchSizes sizes{};
  with_types(dtype, [&](auto product, auto) {
    using Product = decltype(product);
    const int64_t for_logits = packed_lanes<Product>(size, entries);
    const int64_t for_dhidden = packed_lanes<Product>(entries, size);
    sizes.packed_weight = 4 * (for_logits > for_dhidden ? for_logits : for_dhidden);
    sizes.packed_hidden = 4 * packed_lanes<Product>(rows, size);
    sizes.rows = LogitGradient<Product>::bytes(rows, entries);
    const int64_t columns = round_up(size, kPanel);
    const int64_t gradient_block = block_rows<Product>(columns) * columns;
    const int64_t logit_block = Product::kRowBlock * kGroup;
    sizes.thread =
        Workbench<Product>::bytes(gradient_block > logit_block ? gradient_block : logit_block);
  });
  return sizes;
}

void pack_hidden(DType dtype, const void* hidden, int64_t rows, int64_t size, bool backward,
                 std::byte* packed, const Parallel& parallel) {
  if (!backward) {
    return;
  }
  with_types(dtype, [&](auto product, auto source) {
    using Source = decltype(source);
    const Rows<typename Source::Storage> matrix{
        static_cast<const typename Source::Storage*>(hidden), size, nullptr};
    pack<decltype(product), Source>(matrix, rows, reinterpret_cast<uint32_t*>(packed), parallel);
  });
}

void grad_tile(const HeadTile& head, const RowGradients& rows, const RetainedSlot& retained,
               const Gradients& out, const Scratch& scratch, const Parallel& parallel) {
  with_types(head.dtype, [&](auto product, auto source) {
    grad<decltype(product), decltype(source)>(head, rows, retained, out, scratch, parallel);
  });
}

}  // namespace rao::RAO_ISA
