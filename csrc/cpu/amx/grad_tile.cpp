// grad_tile on AMX: a tile's logit gradient dz, by blocks of entries, and its two products.
//
// Each thread forms dz of some panels against all rows and multiplies it by hidden, for dweight,
// while it is in the L2 cache. Then all threads multiply dz by the weight, for dhidden, a
// strip of rows at a time.
#include "entry_gradients.h"
#include "fallback.h"
#include "hidden_gradient.h"

namespace rao::RAO_ISA {
namespace {

template <class Source>
void form_gradients(const HeadTile& head, const GradContext<Source>& context, const Gradients& out,
                    const PackedHidden<kPartsOf<Source>>& hidden,
                    const Packed<kPartsOf<Source>>& by_rows, const Scratch& scratch,
                    const Parallel& parallel) {
  const EntryGradients<Source> form(head, context, out, hidden, by_rows, scratch);
  const bool restored = context.retained.filled();
  const bool transformed =
      restored ? context.logits.function().has_softcap() : !context.logits.identity();
  const bool plain = !transformed && context.rows.p_factor == nullptr;
  if (plain) {
    restored ? form.template operator()<true, true>(parallel)
             : form.template operator()<true, false>(parallel);
  } else {
    restored ? form.template operator()<false, true>(parallel)
             : form.template operator()<false, false>(parallel);
  }
}

// Recomputes the products: where score_tile fell back, nothing was retained.
void grad_by_fallback(const HeadTile& head, const RowGradients& rows, const Gradients& out,
                      const Scratch& scratch, int64_t own_bytes, const Parallel& parallel) {
  Scratch other = scratch;
  other.packed_hidden += round_up(own_bytes, 64);
  RAO_FALLBACK_ISA::pack_hidden(head.dtype, head.hidden, head.rows, head.size, true,
                                other.packed_hidden, parallel);
  RAO_FALLBACK_ISA::grad_tile(head, rows, kNothingRetained, out, other, parallel);
}

// Bytes of dz by rows, of row factors and of the targets' positions.
template <int kParts>
int64_t row_bytes(int64_t rows, int64_t entries) {
  return Packed<kParts>::bytes(blocks_of(rows), blocks_of(entries)) + PaddedFactors::bytes(rows) +
         TargetPositions::bytes(rows);
}

template <class Source>
void grad(const HeadTile& head, const RowGradients& rows, const RetainedSlot& slot,
          const Gradients& out, const Scratch& scratch, const Parallel& parallel) {
  constexpr int kParts = kPartsOf<Source>;
  const auto hidden = PackedHidden<kParts>::of(scratch.packed_hidden, head.rows, head.size);
  const Rows<typename Source::Storage> weight = weight_rows<typename Source::Storage>(head);
  const int64_t panels = blocks_of(head.entries), strips = blocks_of(head.rows);
  std::byte* factors = scratch.rows + Packed<kParts>::bytes(strips, panels);
  const GradContext<Source> context{
      rows,
      RowLogits(head),
      PaddedFactors(factors, rows, head.rows, head.scale),
      TargetPositions(factors + PaddedFactors::bytes(head.rows), head),
      RetainedBlocks<Source>(slot, head.entries),
      head.rows,
      head.entries};
  const bool exact = kParts == 1 || (*hidden.exact && context.factors.in_range() &&
                                     is_exact<Source>(weight, head.entries, parallel));
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
        pack_rows_of<Source>(weight, head.entries, panel, packed);
      }
    });
    HiddenGradient<Source>(head, out, by_rows, packed, scratch)(parallel);
  }
}

}  // namespace

ScratchSizes grad_scratch(DType dtype, int64_t rows, int64_t entries, int64_t size) {
  return with_source(dtype, [&](auto source) {
    using Source = decltype(source);
    constexpr int kParts = kPartsOf<Source>;
    ScratchSizes sizes{};
    sizes.packed_weight = Packed<kParts>::bytes(blocks_of(size), blocks_of(entries));
    sizes.packed_hidden = PackedHidden<kParts>::bytes(rows, size, true);
    sizes.rows = row_bytes<kParts>(rows, entries);
    sizes.thread = GradMemory<Source>::bytes(rows, entries, size);
    if (kParts == 1) {
      return sizes;
    }
    return with_fallback(sizes, RAO_FALLBACK_ISA::grad_scratch(dtype, rows, entries, size));
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
