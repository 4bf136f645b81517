// Checks of the tensors that a kernel is given. Only this package calls the kernels, so a failure
// is a bug of ours; it must still not read or write out of bounds.
//
// RAO_BIND_DEVICE: the device that the library's kernels run on, which is also their dispatch key.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>

#include "rao/rows.h"

namespace rao::bindings {

using torch::headeronly::DeviceType;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline DType dtype_of(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float:
      return DType::kFloat32;
    case ScalarType::BFloat16:
      return DType::kBFloat16;
    case ScalarType::Half:
      return DType::kFloat16;
    default:
      STD_TORCH_CHECK(false, "hidden, values and dz must be float32, bfloat16 or float16");
  }
}

inline DType dtype_of(const Tensor& tensor) { return dtype_of(tensor.scalar_type()); }

inline void check_buffer(const Tensor& tensor, const char* name, int64_t elements) {
  STD_TORCH_CHECK(tensor.device().type() == DeviceType::RAO_BIND_DEVICE && tensor.is_contiguous(),
                  name, " must be contiguous and on the device that the kernels run on");
  STD_TORCH_CHECK(tensor.numel() >= elements, name, " must have at least ", elements,
                  " elements, not ", tensor.numel());
}

template <class T>
T* data_of(const Tensor& tensor, const char* name, ScalarType dtype, int64_t elements) {
  check_buffer(tensor, name, elements);
  STD_TORCH_CHECK(tensor.scalar_type() == dtype, name, " has the wrong dtype");
  return static_cast<T*>(tensor.data_ptr());
}

inline float* floats_of(const Tensor& tensor, const char* name, int64_t elements) {
  return data_of<float>(tensor, name, ScalarType::Float, elements);
}

inline float* floats_of(const std::optional<Tensor>& tensor, const char* name, int64_t elements) {
  return tensor.has_value() ? floats_of(*tensor, name, elements) : nullptr;
}

inline const int64_t* index_of(const std::optional<Tensor>& tensor, const char* name,
                               int64_t elements) {
  return tensor.has_value() ? data_of<int64_t>(*tensor, name, ScalarType::Long, elements) : nullptr;
}

}  // namespace rao::bindings
