// Runs every variant of both row kernels, for ThreadSanitizer to watch. Results do not matter.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <initializer_list>

#include "rao/row_kernels.h"

namespace {

using rao::DType;

constexpr int64_t kRows = 3;

template <class T>
struct Array {
  explicit Array(int64_t size, T value = {})
      : data(static_cast<T*>(std::aligned_alloc(64, (size * sizeof(T) + 63) / 64 * 64))) {
    std::fill(data, data + size, value);
  }
  Array(std::initializer_list<T> values) : Array(static_cast<int64_t>(values.size())) {
    std::copy(values.begin(), values.end(), data);
  }
  ~Array() { std::free(data); }
  T* data;
};

void check(const char* problem) {
  if (problem != nullptr) {
    std::fprintf(stderr, "%s\n", problem);
    std::exit(2);
  }
}

struct Variant {
  DType dtype;
  bool retains, bias, more, first;
  float softcap;
};

void run(int entries, const Variant& v) {
  const int64_t stride = (entries + 63) / 64 * 64;
  const int64_t retained_values = (entries + 255) / 256 * 256 * kRows;
  Array<float> products(kRows * stride, 0.5f), bias(entries, 0.25f);
  Array<int64_t> targets({0, entries - 1, -1}), retained_row({2, 1, 0});
  Array<char> values(4 * retained_values), dz(4 * kRows * stride);
  Array<float> maxima(retained_values / 256), of_rows(12 * kRows, 0.125f);
  const auto per_row = [&](int number) { return of_rows.data + number * kRows; };
  const auto optional = [&](int number) { return v.more ? per_row(number) : nullptr; };

  rao::LogitsTile tile{};
  tile.products = products.data;
  tile.stride = stride;
  tile.bias = v.bias ? bias.data : nullptr;
  tile.targets = targets.data;
  tile.rows = kRows;
  tile.entries = entries;
  tile.scale = 1.5f;
  tile.softcap = v.softcap;
  tile.dtype = v.dtype;
  rao::RetainedTile retained{};
  if (v.retains) {
    retained = {values.data, maxima.data, kRows};
  }
  const rao::RowState state{per_row(0),  per_row(1),  per_row(2),
                            optional(3), optional(4), optional(5)};
  check(rao::launch_score_rows(tile, state, v.first, retained, nullptr));
  const rao::RowGradients gradients{per_row(6),   per_row(7),   per_row(8),       per_row(9),
                                    optional(10), optional(11), retained_row.data};
  if (v.retains) {
    tile.products = nullptr;
  }
  check(rao::launch_grad_rows(tile, gradients, retained, {dz.data, stride}, nullptr));
}

}  // namespace

int main() {
  for (int entries : {1, 255, 300, 512, 4096 + 300}) {
    for (DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16}) {
      for (int flags = 0; flags < 32; ++flags) {
        const auto flag = [&](int bit) { return (flags >> bit & 1) != 0; };
        run(entries, {dtype, flag(0), flag(1), flag(2), flag(3), flag(4) ? 30.0f : 0.0f});
      }
    }
  }
  return 0;
}
