// A block of logits in cache, [rows of the pass][kGroup]: the rows against one group of entries.
#pragma once

#include "elementary.h"
#include "gemm.h"

namespace rao::RAO_ISA {

constexpr int kGroupVectors = kGroup / kLanes;

// A thread's own memory for a product.
template <class Product>
struct Workbench {
  static constexpr int64_t kLeftLanes = Product::kRowBlock * kLeftStride;

  float* block;    // of C
  uint32_t* left;  // of A

  static int64_t bytes(int64_t block_elements) {
    return 4 * (round_up(block_elements, 16) + kLeftLanes);
  }
  static Workbench of(const Scratch& scratch, int part) {
    auto* begin = reinterpret_cast<float*>(scratch.threads + part * scratch.thread_bytes);
    return {begin + kLeftLanes, reinterpret_cast<uint32_t*>(begin)};
  }
};

// Entries [first, first + width) of the tile, at most kGroup.
struct Group {
  int64_t index;
  int64_t first;
  int width;
};

RAO_INLINE Group group_of(const HeadTile& head, int64_t index) {
  const int64_t first = index * kGroup;
  return {index, first, static_cast<int>(smaller<int64_t>(kGroup, head.entries - first))};
}

RAO_INLINE void fill_tail(float* row, int width, float value) {
  for (int i = width; i < kGroup; ++i) {
    row[i] = value;
  }
}

template <class Storage>
RAO_INLINE Rows<Storage> weight_rows(const HeadTile& head) {
  return {static_cast<const Storage*>(head.weight), head.size, head.weight_rows};
}

// block[rows, kGroup] = hidden[first_row ..] @ weight[group]^T.
template <class Product, class Source>
void multiply_group(const HeadTile& head, const Group& group, int64_t first_row, int64_t rows,
                    const uint32_t* packed_weight, const Workbench<Product>& bench) {
  using Storage = typename Source::Storage;
  const int64_t depth = lanes_of<Product>(head.size);
  const Storage* hidden = static_cast<const Storage*>(head.hidden) + first_row * head.size;
  multiply_block<Product>(MatrixRows<Product, Source>(hidden, rows, head.size, bench.left), rows,
                          packed_weight + group.first * depth, depth, ceil_div(group.width, kPanel),
                          bench.block, kGroup);
}

// softcap * tanh(z / softcap) * scale; softcap 0 = none.
class LogitFunction {
 public:
  LogitFunction(float scale, float softcap)
      : scale_(scale),
        softcap_(softcap),
        inverse_bound_(softcap == 0.0f ? 0.0f : 1.0f / (softcap * scale)) {}

  bool identity() const { return softcap_ == 0.0f && scale_ == 1.0f; }
  bool has_softcap() const { return softcap_ != 0.0f; }
  float scale() const { return scale_; }

  // Returns the logit; slope: the derivative of the softcap, set only where there is one.
  RAO_INLINE Floats operator()(Floats z, Floats* slope) const {
    if (has_softcap()) {
      const Floats capped = hyperbolic_tangent(z / softcap_);
      *slope = 1.0f - capped * capped;
      return capped * (softcap_ * scale_);
    }
    return z * scale_;
  }

  // The derivative of the softcap at a logit, or at a vector of them; 1 where there is none.
  template <class T>
  RAO_INLINE T slope_at(T logit) const {
    const T capped = logit * inverse_bound_;
    return has_softcap() ? 1.0f - capped * capped : T{} + 1.0f;
  }

 private:
  float scale_;
  float softcap_;
  float inverse_bound_;  // 1 / the largest logit
};

// Turns a group's products into logits: bias, softcap and scale.
class Transform {
 public:
  Transform(const HeadTile& head, const Group& group)
      : function_(head.scale, head.softcap), has_bias_(head.bias != nullptr) {
    if (has_bias_) {
      std::memcpy(bias_, head.bias + group.first, group.width * sizeof(float));
      fill_tail(bias_, group.width, 0.0f);
    }
  }

  bool identity() const { return !has_bias_ && function_.identity(); }
  const LogitFunction& function() const { return function_; }

  RAO_INLINE Floats operator()(Floats product, int column, Floats* slope) const {
    const Floats z = has_bias_ ? product + load<Floats>(bias_ + column) : product;
    return function_(z, slope);
  }

 private:
  LogitFunction function_;
  bool has_bias_;
  float bias_[kGroup];
};

}  // namespace rao::RAO_ISA
