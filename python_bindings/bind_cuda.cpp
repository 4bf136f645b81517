// The row kernels of the CUDA backend as torch ops, through torch's stable ABI.
//
// Each op's schema stands above its function; tests/backends/test_bindings.py compares the two. The
// stream is an argument: asking torch for it would link this library to libtorch_cuda, and it could
// then be neither built nor loaded beside a torch without CUDA.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <string>

#include "checks.h"
#include "rao/row_kernels.h"

namespace rao::bindings {
namespace {

using OptionalTensor = std::optional<Tensor>;

// Rows must begin on 16 bytes, so that a pack is one load or store.
void check_packs(const Tensor& tensor, const char* name, int64_t entries) {
  STD_TORCH_CHECK(tensor.dim() == 2 && tensor.size(1) >= entries && tensor.size(1) % kPack == 0,
                  name, " must be [N, a multiple of ", kPack, " that is at least ", entries, "]");
  STD_TORCH_CHECK(reinterpret_cast<uintptr_t>(tensor.data_ptr()) % 16 == 0, name,
                  " must begin on 16 bytes");
}

LogitsTile tile_of(const OptionalTensor& products, DType dtype, const OptionalTensor& bias,
                   const Tensor& targets, int64_t first_entry, int64_t entries, double scale,
                   double softcap) {
  STD_TORCH_CHECK(entries > 0 && entries <= kMaxEntries, "entries must be from 1 to ", kMaxEntries);
  const int64_t rows = targets.numel();
  LogitsTile tile{};
  if (products.has_value()) {
    check_packs(*products, "products", entries);
    tile.stride = products->size(1);
    tile.products = floats_of(*products, "products", rows * tile.stride);
  }
  tile.bias = floats_of(bias, "bias", entries);
  tile.targets = data_of<int64_t>(targets, "targets", ScalarType::Long, rows);
  tile.rows = rows;
  tile.entries = static_cast<int>(entries);
  tile.first_entry = first_entry;
  tile.scale = static_cast<float>(scale);
  tile.softcap = static_cast<float>(softcap);
  tile.dtype = dtype;
  return tile;
}

RetainedTile retained_of(const OptionalTensor& values, const OptionalTensor& maxima,
                         int64_t entries) {
  if (!values.has_value() || !maxima.has_value()) {
    return {};
  }
  const int64_t groups = (entries + kGroup - 1) / kGroup;
  STD_TORCH_CHECK(values->dim() == 3 && values->size(0) == groups && values->size(2) == kGroup,
                  "values must be [", groups, ", rows, ", kGroup, "]");
  STD_TORCH_CHECK(reinterpret_cast<uintptr_t>(values->data_ptr()) % 16 == 0,
                  "values must begin on 16 bytes");
  const int64_t rows = values->size(1);
  return {data_of<void>(*values, "values", values->scalar_type(), groups * rows * kGroup),
          floats_of(*maxima, "maxima", groups * rows), rows};
}

void check(const char* problem) {
  STD_TORCH_CHECK(problem == nullptr, "CUDA kernel launch: ", problem);
}

constexpr char kScoreRows[] =
    "score_rows(Tensor products, Tensor? bias, Tensor targets, int first_entry, int entries, "
    "float scale, float softcap, "
    "Tensor(a!) row_max, Tensor(b!) row_sum, Tensor(c!) target_logit, Tensor(d!)? entropy_sum, "
    "Tensor(e!)? sum_sq_probs, Tensor(f!)? logit_sum, bool first, "
    "Tensor(g!)? values, Tensor(h!)? maxima, int stream) -> ()";

void score_rows(Tensor products, OptionalTensor bias, Tensor targets, int64_t first_entry,
                int64_t entries, double scale, double softcap, Tensor row_max, Tensor row_sum,
                Tensor target_logit, OptionalTensor entropy_sum, OptionalTensor sum_sq_probs,
                OptionalTensor logit_sum, bool first, OptionalTensor values, OptionalTensor maxima,
                int64_t stream) {
  const DType dtype = values.has_value() ? dtype_of(*values) : DType::kFloat32;
  const LogitsTile tile =
      tile_of(products, dtype, bias, targets, first_entry, entries, scale, softcap);
  const RowState state{
      floats_of(row_max, "row_max", tile.rows),
      floats_of(row_sum, "row_sum", tile.rows),
      floats_of(target_logit, "target_logit", tile.rows),
      floats_of(entropy_sum, "entropy_sum", tile.rows),
      floats_of(sum_sq_probs, "sum_sq_probs", tile.rows),
      floats_of(logit_sum, "logit_sum", tile.rows),
  };
  const RetainedTile retained = retained_of(values, maxima, entries);
  STD_TORCH_CHECK(retained.values == nullptr || retained.rows == tile.rows,
                  "values must have a row for each target");
  check(launch_score_rows(tile, state, first, retained, reinterpret_cast<void*>(stream)));
}

constexpr char kGradRows[] =
    "grad_rows(Tensor? products, Tensor? values, Tensor? maxima, Tensor? bias, Tensor targets, "
    "int first_entry, int entries, float scale, float softcap, "
    "Tensor row_max, Tensor log_sum, Tensor logp, Tensor logp_grad, Tensor? p_factor, "
    "Tensor? p_log_p_factor, Tensor? retained_row, Tensor(a!) dz, int stream) -> ()";

void grad_rows(OptionalTensor products, OptionalTensor values, OptionalTensor maxima,
               OptionalTensor bias, Tensor targets, int64_t first_entry, int64_t entries,
               double scale, double softcap, Tensor row_max, Tensor log_sum, Tensor logp,
               Tensor logp_grad, OptionalTensor p_factor, OptionalTensor p_log_p_factor,
               OptionalTensor retained_row, Tensor dz, int64_t stream) {
  const DType dtype = dtype_of(dz);
  const LogitsTile tile =
      tile_of(products, dtype, bias, targets, first_entry, entries, scale, softcap);
  STD_TORCH_CHECK(p_factor.has_value() == p_log_p_factor.has_value(),
                  "p_factor and p_log_p_factor must both be given, or neither");
  const RowGradients rows{
      floats_of(row_max, "row_max", tile.rows),
      floats_of(log_sum, "log_sum", tile.rows),
      floats_of(logp, "logp", tile.rows),
      floats_of(logp_grad, "logp_grad", tile.rows),
      floats_of(p_factor, "p_factor", tile.rows),
      floats_of(p_log_p_factor, "p_log_p_factor", tile.rows),
      index_of(retained_row, "retained_row", tile.rows),
  };
  const RetainedTile retained = retained_of(values, maxima, entries);
  STD_TORCH_CHECK((tile.products == nullptr) != (retained.values == nullptr),
                  "exactly one of products and values must be given");
  STD_TORCH_CHECK(retained.values == nullptr || values->scalar_type() == dz.scalar_type(),
                  "values must have the dtype of dz");
  check_packs(dz, "dz", entries);
  const ProductGradient gradient{data_of<void>(dz, "dz", dz.scalar_type(), tile.rows * dz.size(1)),
                                 dz.size(1)};
  check(launch_grad_rows(tile, rows, retained, gradient, reinterpret_cast<void*>(stream)));
}

constexpr char kRowKernelsProblem[] = "row_kernels_problem() -> str";

// The reason why the kernels cannot run on the current device; empty if they can.
std::string row_kernels_problem() {
  const char* found = rao::row_kernels_problem();
  return found == nullptr ? "" : found;
}

constexpr char kRowKernelsBuild[] = "row_kernels_build() -> str";

std::string row_kernels_build() { return rao::row_kernels_build(); }

}  // namespace
}  // namespace rao::bindings

STABLE_TORCH_LIBRARY_FRAGMENT(rao_native, m) {
  m.def(rao::bindings::kRowKernelsBuild);
  m.def(rao::bindings::kRowKernelsProblem);
  m.def(rao::bindings::kScoreRows);
  m.def(rao::bindings::kGradRows);
}

STABLE_TORCH_LIBRARY_IMPL(rao_native, CompositeExplicitAutograd, m) {
  m.impl("row_kernels_build", TORCH_BOX(&rao::bindings::row_kernels_build));
  m.impl("row_kernels_problem", TORCH_BOX(&rao::bindings::row_kernels_problem));
}

STABLE_TORCH_LIBRARY_IMPL(rao_native, RAO_BIND_DEVICE, m) {
  m.impl("score_rows", TORCH_BOX(&rao::bindings::score_rows));
  m.impl("grad_rows", TORCH_BOX(&rao::bindings::grad_rows));
}
