// The arithmetic of one element, for every device: product to logit, logit to product gradient.
#pragma once

#include <cmath>

#include "rao/host_device.h"
#include "rao/rows.h"

namespace rao {

// logit = softcap * tanh((product + bias) / softcap) * scale; softcap 0 = none.
class LogitTransform {
 public:
  LogitTransform(float scale, float softcap)
      : scale_(scale),
        softcap_(softcap),
        inverse_softcap_(softcap == 0.0f ? 0.0f : 1.0f / softcap),
        inverse_bound_(softcap == 0.0f ? 0.0f : 1.0f / (softcap * scale)) {}

  RAO_SHARED float scale() const { return scale_; }
  RAO_SHARED bool has_softcap() const { return softcap_ != 0.0f; }

  // Returns the logit, rounded, so that none is above the row's maximum and no log-prob above 0.
  // slope: d logit / d product, without the scale. kSoftcap: false compiles the softcap out.
  template <bool kSoftcap>
  RAO_SHARED float logit(float biased_product, float* slope) const {
    *slope = 1.0f;
    if (!kSoftcap || !has_softcap()) {
      return rounded_product(biased_product, scale_);
    }
    const float capped = tanhf(biased_product * inverse_softcap_);
    *slope = 1.0f - capped * capped;
    return rounded_product(capped, softcap_ * scale_);
  }

  // The slope at a logit; 1 without a softcap.
  RAO_SHARED float slope_at(float logit) const {
    return has_softcap() ? softcap_slope_at(logit) : 1.0f;
  }
  // The same, where there is a softcap.
  RAO_SHARED float softcap_slope_at(float logit) const {
    const float capped = logit * inverse_bound_;
    return 1.0f - capped * capped;
  }

 private:
  float scale_;
  float softcap_;
  float inverse_softcap_;
  float inverse_bound_;  // 1 / the largest logit
};

// A row's factors in product_gradient, from the formula of RowGradients, times the scale.
struct RowFactors {
  float row_max;
  float log_sum;
  float p;        // factor of p: p_factor - logp_grad
  float p_log_p;  // factor of p log p

  RAO_SHARED RowFactors(const RowGradients& rows, int64_t n, float scale)
      : row_max(rows.row_max[n]),
        log_sum(rows.log_sum[n]),
        p(scale * ((rows.p_factor == nullptr ? 0.0f : rows.p_factor[n]) - rows.logp_grad[n])),
        p_log_p(rows.p_factor == nullptr ? 0.0f : scale * rows.p_log_p_factor[n]) {}
};

// Gradient of the product of an entry that is not the target, without the slope.
template <bool kEntropy>
RAO_SHARED float product_gradient(float z, const RowFactors& row) {
  const float log_p = (z - row.row_max) - row.log_sum;
  const float p = expf(log_p);
  const float dz = p * row.p;
  return kEntropy && p != 0.0f ? dz + (p * log_p) * row.p_log_p : dz;
}

// The target's logit, more precise than a retained one.
RAO_SHARED float target_logit(const RowGradients& rows, int64_t n) {
  return rows.logp[n] + (rows.row_max[n] + rows.log_sum[n]);
}

// Gradient of the target's logit. p and 1 - p come from logp, which is more precise than the logit.
RAO_SHARED float target_gradient(const RowGradients& rows, int64_t n) {
  const float logp = rows.logp[n];
  float dz = rows.logp_grad[n] * -expm1f(logp);
  if (rows.p_factor != nullptr) {
    const float p = expf(logp);
    dz += rows.p_factor[n] * p + (p == 0.0f ? 0.0f : rows.p_log_p_factor[n] * (p * logp));
  }
  return dz;
}

}  // namespace rao
