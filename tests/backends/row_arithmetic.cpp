// Test entry points to the arithmetic of csrc/include/rao, one row at a time.
#include "rao/logit.h"
#include "rao/online_lse.h"

using namespace rao;

#define EXPORT extern "C" __attribute__((visibility("default")))

// out: max, sum, entropy_sum, sum_sq_probs and logit_sum of the logits, `step` of them at a time.
EXPORT void row_sums(const float* logits, int64_t count, int64_t step, float* out) {
  RowSums sums = no_sums();
  for (int64_t first = 0; first < count; first += step) {
    const int64_t end = first + step < count ? first + step : count;
    float max = sums.max;
    for (int64_t i = first; i < end; ++i) {
      max = fmaxf(max, logits[i]);
    }
    raise_max<true>(sums, max);
    for (int64_t i = first; i < end; ++i) {
      add_logit<true>(sums, logits[i]);
    }
  }
  const float found[] = {sums.max, sums.sum, sums.entropy_sum, sums.sum_sq_probs, sums.logit_sum};
  for (int i = 0; i < 5; ++i) {
    out[i] = found[i];
  }
}

EXPORT void row_logits(const float* products, int64_t count, float scale, float softcap,
                       float* logits, float* slopes) {
  const LogitTransform transform(scale, softcap);
  for (int64_t i = 0; i < count; ++i) {
    logits[i] = transform.logit<true>(products[i], &slopes[i]);
  }
}

// row: row_max, log_sum, logp, logp_grad, p_factor, p_log_p_factor. dz: of the products, without
// the slope. target -1: in another tile.
EXPORT void row_gradients(const float* logits, int64_t count, const float* row, float scale,
                          int64_t target, float* dz) {
  const RowGradients rows{row, row + 1, row + 2, row + 3, row + 4, row + 5, nullptr};
  const RowFactors factors(rows, 0, scale);
  for (int64_t i = 0; i < count; ++i) {
    dz[i] = product_gradient<true>(logits[i], factors);
  }
  if (target >= 0) {
    dz[target] = target_gradient(rows, 0) * scale;
  }
}
