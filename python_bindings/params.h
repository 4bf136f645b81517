// Tensors to the kernels' problem structs.
#pragma once

#include "checks.h"
#include "rao/tile_kernels.h"

namespace rao::bindings {

inline const TileKernels& kernels_of(int64_t isa) {
  STD_TORCH_CHECK(isa >= 0 && isa < kIsaCount && host_has(static_cast<Isa>(isa)),
                  "this processor cannot run instruction set ", isa);
  return kernels_for(static_cast<Isa>(isa));
}

inline HeadTile head_of(const Tensor& hidden, const Tensor& weight,
                        const std::optional<Tensor>& weight_rows, const std::optional<Tensor>& bias,
                        const Tensor& targets, int64_t first_word, double scale, double softcap) {
  STD_TORCH_CHECK(hidden.dim() == 2 && weight.dim() == 2 && hidden.size(1) == weight.size(1),
                  "hidden and weight must be [N, D] and [W, D]");
  const int64_t rows = hidden.size(0);
  const int64_t words = weight_rows.has_value() ? weight_rows->numel() : weight.size(0);
  const ScalarType dtype = hidden.scalar_type();
  return {
      dtype_of(hidden),
      data_of<void>(hidden, "hidden", dtype, rows * hidden.size(1)),
      data_of<void>(weight, "weight", dtype, words * hidden.size(1)),
      index_of(weight_rows, "weight_rows", words),
      floats_of(bias, "bias", words),
      data_of<int64_t>(targets, "targets", ScalarType::Long, rows),
      rows,
      words,
      hidden.size(1),
      first_word,
      static_cast<float>(scale),
      static_cast<float>(softcap),
  };
}

// `rows` is the number of rows that the retained tile was made for.
inline RetainedTile retained_of(const HeadTile& head, const Tensor& hidden, int64_t rows,
                                const std::optional<Tensor>& values,
                                const std::optional<Tensor>& maxima) {
  if (!values.has_value() || !maxima.has_value()) {
    return {nullptr, nullptr, 0};
  }
  const int64_t groups = (head.words + kGroup - 1) / kGroup;
  return {data_of<void>(*values, "values", hidden.scalar_type(), groups * rows * kGroup),
          floats_of(*maxima, "maxima", groups * rows), rows};
}

inline std::byte* bytes_of(const Tensor& tensor, const char* name, int64_t bytes) {
  return data_of<std::byte>(tensor, name, ScalarType::Byte, bytes);
}

// threads: [parts, bytes of each].
inline Scratch scratch_of(const ScratchSizes& sizes, const Tensor& packed_weight,
                          const Tensor& packed_hidden, const Tensor& rows, const Tensor& threads) {
  STD_TORCH_CHECK(threads.dim() == 2 && threads.size(1) >= sizes.thread, "threads must be [parts, ",
                  sizes.thread, "]");
  return {bytes_of(packed_weight, "packed_weight", sizes.packed_weight),
          bytes_of(packed_hidden, "packed_hidden", 0), bytes_of(rows, "rows", sizes.rows),
          bytes_of(threads, "threads", 0), threads.size(1)};
}

}  // namespace rao::bindings
