// RAO_DECLARE(isa): declares the kernels of an instruction set and defines their table.
#pragma once

#include "rao/tile_kernels.h"

#define RAO_DECLARE(isa)                                                                      \
  namespace rao::isa {                                                                        \
  int64_t retained_bytes(DType, int64_t rows, int64_t entries);                               \
  ScratchSizes score_scratch(DType, int64_t rows, int64_t entries, int64_t size);             \
  ScratchSizes grad_scratch(DType, int64_t rows, int64_t entries, int64_t size);              \
  void pack_hidden(DType, const void* hidden, int64_t rows, int64_t size, bool backward,      \
                   std::byte* packed, const Parallel&);                                       \
  void score_tile(const HeadTile&, const RowState&, const RetainedSlot&, const Scratch&,      \
                  const Parallel&);                                                           \
  void grad_tile(const HeadTile&, const RowGradients&, const RetainedSlot&, const Gradients&, \
                 const Scratch&, const Parallel&);                                            \
  constexpr TileKernels kKernels{retained_bytes, score_scratch, grad_scratch,                 \
                                 pack_hidden,    score_tile,    grad_tile};                   \
  }
