// The tile kernels of one instruction set.
#pragma once

#include "logits.h"

namespace rao::RAO_ISA {

int64_t retained_bytes(DType dtype, int64_t rows, int64_t words);
ScratchSizes score_scratch(DType dtype, int64_t rows, int64_t words, int64_t size);
ScratchSizes grad_scratch(DType dtype, int64_t rows, int64_t words, int64_t size);

void pack_hidden(DType dtype, const void* hidden, int64_t rows, int64_t size, bool backward,
                 std::byte* packed, const Parallel& parallel);
void score_tile(const HeadTile& head, const RowState& state, const RetainedSlot& retained,
                const Scratch& scratch, const Parallel& parallel);
void grad_tile(const HeadTile& head, const RowGradients& rows, const RetainedSlot& retained,
               const Gradients& out, const Scratch& scratch, const Parallel& parallel);

}  // namespace rao::RAO_ISA
