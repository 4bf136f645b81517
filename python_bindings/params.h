// Turns tensors into the structs that the CPU kernels take, and checks their sizes.
#pragma once

#include "checks.h"
#include "rao/tile_kernels.h"

namespace rao::bindings {

inline const TileKernels& kernels_of(int64_t isa) {
  STD_TORCH_CHECK(isa >= 0 && isa < kIsaCount && host_has(static_cast<Isa>(isa)),
                  "isa must be an instruction set that this processor can run, not ", isa);
  return kernels_for(static_cast<Isa>(isa));
}

inline HeadTile head_of(const Tensor& hidden, const Tensor& weight,
                        const std::optional<Tensor>& weight_rows, const std::optional<Tensor>& bias,
                        const Tensor& targets, int64_t first_entry, double scale, double softcap) {
  STD_TORCH_CHECK(hidden.dim() == 2 && weight.dim() == 2 && hidden.size(1) == weight.size(1),
                  "hidden and weight must be [N, D] and [W, D]");
  const int64_t rows = hidden.size(0);
  const int64_t entries = weight_rows.has_value() ? weight_rows->numel() : weight.size(0);
  const ScalarType dtype = hidden.scalar_type();
  HeadTile head{};
  head.dtype = dtype_of(hidden);
  head.hidden = data_of<void>(hidden, "hidden", dtype, rows * hidden.size(1));
  head.weight = data_of<void>(weight, "weight", dtype, entries * hidden.size(1));
  head.weight_rows = index_of(weight_rows, "weight_rows", entries);
  head.bias = floats_of(bias, "bias", entries);
  head.targets = data_of<int64_t>(targets, "targets", ScalarType::Long, rows);
  head.rows = rows;
  head.entries = entries;
  head.size = hidden.size(1);
  head.first_entry = first_entry;
  head.scale = static_cast<float>(scale);
  head.softcap = static_cast<float>(softcap);
  return head;
}

inline std::byte* bytes_of(const Tensor& tensor, const char* name, int64_t bytes) {
  return data_of<std::byte>(tensor, name, ScalarType::Byte, bytes);
}

// The slot of a retained tile. rows: of the pass that retained it.
inline RetainedSlot slot_of(const TileKernels& kernels, const HeadTile& head,
                            const std::optional<Tensor>& retained, int64_t rows) {
  if (!retained.has_value()) {
    return {nullptr, 0};
  }
  std::byte* memory =
      bytes_of(*retained, "retained", kernels.retained_bytes(head.dtype, rows, head.entries));
  STD_TORCH_CHECK(reinterpret_cast<uintptr_t>(memory) % 64 == 0, "retained must begin on 64 bytes");
  return {memory, rows};
}

// The scratch buffers. threads: [parts, bytes of each].
inline Scratch scratch_of(const ScratchSizes& sizes, const Tensor& packed_weight,
                          const Tensor& packed_hidden, const Tensor& rows, const Tensor& threads) {
  STD_TORCH_CHECK(threads.dim() == 2 && threads.size(1) >= sizes.thread, "threads must be [parts, ",
                  sizes.thread, "]");
  Scratch scratch{};
  scratch.packed_weight = bytes_of(packed_weight, "packed_weight", sizes.packed_weight);
  scratch.packed_hidden = bytes_of(packed_hidden, "packed_hidden", sizes.packed_hidden);
  scratch.rows = bytes_of(rows, "rows", sizes.rows);
  scratch.threads = bytes_of(threads, "threads", 0);
  scratch.thread_bytes = threads.size(1);
  return scratch;
}

}  // namespace rao::bindings
