// Detects the processor's instruction sets and returns the kernels built for each.
#include "kernel_set.h"

#if defined(RAO_HAS_AMX) && !defined(RAO_TILES_EMULATED)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

// A build with emulated tiles has no other x86 kernels: it falls back to the portable ones.
#if defined(__x86_64__) && !defined(RAO_TILES_EMULATED)
#define RAO_X86 1
#endif

RAO_DECLARE(portable)
#if defined(RAO_X86)
RAO_DECLARE(avx2)
RAO_DECLARE(avx512)
RAO_DECLARE(avx512_bf16)
#endif
#if defined(RAO_HAS_AMX)
RAO_DECLARE(avx512_amx)
#endif

namespace rao {
namespace {

#if defined(RAO_X86)
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c");
}

bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

bool has_avx512_bf16() { return has_avx512() && __builtin_cpu_supports("avx512bf16"); }
#endif

}  // namespace

const char* amx_problem() {
#if defined(RAO_TILES_EMULATED)
  return nullptr;
#elif !defined(RAO_HAS_AMX)
  return "the library was built without AMX";
#else
  static const char* const problem = [] {
    // CPUID leaf 7, EDX: bit 22 is AMX-BF16, bit 24 AMX-TILE.
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d >> 22 & 1) || !(d >> 24 & 1)) {
      return "the processor has no AMX unit for bf16";
    }
    if (!has_avx512_bf16()) {
      return "the processor has no AVX-512 BF16";
    }
    // Linux grants the tiles' state to a process that asks for it once, and to all its threads.
    constexpr int kRequestPermission = 0x1023, kTileData = 18;
    if (syscall(SYS_arch_prctl, kRequestPermission, kTileData) != 0) {
      return "Linux does not grant AMX tiles (arch_prctl ARCH_REQ_XCOMP_PERM failed)";
    }
    return static_cast<const char*>(nullptr);
  }();
  return problem;
#endif
}

bool host_has(Isa isa) {
  switch (isa) {
    case Isa::kPortable:
      return true;
    case Isa::kAvx512Amx:
      return amx_problem() == nullptr;
#if defined(RAO_X86)
    case Isa::kAvx2:
      return has_avx2();
    case Isa::kAvx512:
      return has_avx512();
    case Isa::kAvx512Bf16:
      return has_avx512_bf16();
#endif
    default:
      return false;
  }
}

const TileKernels& kernels_for(Isa isa) {
  switch (isa) {
#if defined(RAO_X86)
    case Isa::kAvx2:
      return avx2::kKernels;
    case Isa::kAvx512:
      return avx512::kKernels;
    case Isa::kAvx512Bf16:
      return avx512_bf16::kKernels;
#endif
#if defined(RAO_HAS_AMX)
    case Isa::kAvx512Amx:
      return avx512_amx::kKernels;
#endif
    default:
      return portable::kKernels;
  }
}

}  // namespace rao
