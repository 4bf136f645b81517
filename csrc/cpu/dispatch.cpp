// Which instruction sets this processor has, and the kernels built for each.
#include "rao/tile_kernels.h"

#define RAO_DECLARE(isa)                                                                      \
  namespace rao::isa {                                                                        \
  int64_t retained_bytes(DType, int64_t, int64_t);                                            \
  ScratchSizes score_scratch(DType, int64_t, int64_t, int64_t);                               \
  ScratchSizes grad_scratch(DType, int64_t, int64_t, int64_t);                                \
  void pack_hidden(DType, const void*, int64_t, int64_t, bool, std::byte*, const Parallel&);  \
  void score_tile(const HeadTile&, const RowState&, const RetainedSlot&, const Scratch&,      \
                  const Parallel&);                                                           \
  void grad_tile(const HeadTile&, const RowGradients&, const RetainedSlot&, const Gradients&, \
                 const Scratch&, const Parallel&);                                            \
  constexpr TileKernels kKernels{retained_bytes, score_scratch, grad_scratch,                 \
                                 pack_hidden,    score_tile,    grad_tile};                   \
  }

RAO_DECLARE(portable)
#if defined(__x86_64__)
RAO_DECLARE(avx2)
RAO_DECLARE(avx512)
RAO_DECLARE(avx512_bf16)
#endif

namespace rao {

bool host_has(Isa isa) {
  if (isa == Isa::kPortable) {
    return true;
  }
#if defined(__x86_64__)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl");
  switch (isa) {
    case Isa::kAvx2:
      return avx2;
    case Isa::kAvx512:
      return avx512;
    case Isa::kAvx512Bf16:
      return avx512 && __builtin_cpu_supports("avx512bf16");
    case Isa::kPortable:
      break;
  }
#endif
  return false;
}

const TileKernels& kernels_for(Isa isa) {
#if defined(__x86_64__)
  switch (isa) {
    case Isa::kAvx2:
      return avx2::kKernels;
    case Isa::kAvx512:
      return avx512::kKernels;
    case Isa::kAvx512Bf16:
      return avx512_bf16::kKernels;
    case Isa::kPortable:
      break;
  }
#endif
  return portable::kKernels;
}

}  // namespace rao
