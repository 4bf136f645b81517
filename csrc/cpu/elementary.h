// exp and tanh of whole vectors.
#pragma once

#include "simd.h"

namespace rao::RAO_ISA {

// e^x for x <= 88, within one unit in the last place; exactly 1 at 0, exactly 0 below the smallest
// normal number, NaN for NaN. The polynomial is the minimax one of degree 6 over half a binade; ln
// 2 is split as in Cephes' expf.
RAO_INLINE Floats exponential(Floats x) {
  constexpr float kLog2E = 1.44269504088896341f;
  constexpr float kLn2High = 0.693359375f;
  constexpr float kLn2Low = -2.12194440e-4f;
  constexpr float kSmallest = -87.33f;
  // 1.5 * 2^23: adding it rounds to an integer and leaves that integer in the low bits.
  constexpr float kRound = 12582912.0f;
  const Floats rounded = x * kLog2E + kRound;
  const Floats n = rounded - kRound;
  Floats r = x - n * kLn2High;
  r = r - n * kLn2Low;
  Floats p = r * 1.3814602407e-3f + 8.3687152376e-3f;
  p = p * r + 4.1668387879e-2f;
  p = p * r + 1.6666520645e-1f;
  p = p * r + 4.9999993449e-1f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const Floats power = as_floats((as_uints(rounded) << 23) + 0x3f800000u);
  return x < kSmallest ? Floats{} : p * power;
}

// e^x for x <= 0 in fewer steps: relative error 2e-7 + 6e-8 |x|; about 1e-38 for every x below -87,
// exactly 1 at 0, NaN for NaN. The polynomial is the minimax one of 2^f over half a
// binade among those that are 1 at 0.
RAO_INLINE Floats quick_exponential(Floats x) {
  constexpr float kLog2E = 1.44269504088896341f;
  constexpr float kSmallest = -87.0f;
  constexpr float kRound = 12582912.0f;  // as above
  const Floats bounded = maximum(broadcast(kSmallest), x);
  const Floats rounded = bounded * kLog2E + kRound;
  const Floats f = bounded * kLog2E - (rounded - kRound);
  Floats p = f * 1.3264727e-3f + 9.6715130e-3f;
  p = p * f + 5.5507336e-2f;
  p = p * f + 2.4022242e-1f;
  p = p * f + 6.9314700e-1f;
  p = p * f + 1.0f;
  return as_floats(as_uints(p) + (as_uints(rounded) << 23));
}

// tanh, relative error about two units in the last place, also near 0; the polynomial is that of
// Cephes' tanhf.
RAO_INLINE Floats hyperbolic_tangent(Floats x) {
  constexpr float kSmall = 0.625f;
  const Floats magnitude = x < 0.0f ? -x : x;
  const Floats square = x * x;
  Floats p = square * -5.70498872745e-3f + 2.06390887954e-2f;
  p = p * square - 5.37397155531e-2f;
  p = p * square + 1.33314422036e-1f;
  p = p * square - 3.33332819422e-1f;
  const Floats near = p * square * x + x;
  // Beyond 10, tanh is 1 in fp32.
  const Floats bounded = magnitude > 10.0f ? broadcast(10.0f) : magnitude;
  const Floats far = 1.0f - 2.0f / (exponential(bounded + bounded) + 1.0f);
  return magnitude < kSmall ? near : (x < 0.0f ? -far : far);
}

}  // namespace rao::RAO_ISA
