// The CPU kernels as torch ops, through torch's stable ABI.
//
// Each op's schema stands above its function. Python passes arguments by the schema's names, torch
// passes them on by position: tests/backends/test_bindings.py compares the two, and the fields of
// the structs that they fill.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <string>
#include <vector>

#include "params.h"

// The ops' namespace; tests build the library in others.
#if !defined(RAO_OPS)
#define RAO_OPS rao_native
#endif
// STABLE_TORCH_LIBRARY of torch 2.10 does not expand a macro it is given; this does.
#define RAO_LIBRARY(ns, m) STABLE_TORCH_LIBRARY(ns, m)

namespace rao::bindings {
namespace {

using OptionalTensor = std::optional<Tensor>;

// Runs the parts on torch's own threads.
void run_parts(int parts, void (*body)(int part, void* context), void* context) {
  torch::stable::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      body(static_cast<int>(part), context);
    }
  });
}

Parallel parallel_of(const Tensor& threads) {
  return {static_cast<int>(threads.size(0)), run_parts};
}

ScratchSizes sizes_of(const TileKernels& kernels, bool backward, DType dtype, int64_t rows,
                      int64_t entries, int64_t size) {
  const auto sizes = backward ? kernels.grad_scratch : kernels.score_scratch;
  return sizes(dtype, rows, entries, size);
}

constexpr char kHostIsas[] = "host_isas() -> int";

// Bit i: this processor has Isa(i).
int64_t host_isas() {
  int64_t found = 0;
  for (int isa = 0; isa < kIsaCount; ++isa) {
    found |= static_cast<int64_t>(host_has(static_cast<Isa>(isa))) << isa;
  }
  return found;
}

constexpr char kAmxProblem[] = "amx_problem() -> str";

// The reason why this processor cannot run Isa::kAvx512Amx; empty if it can.
std::string amx_problem() {
  const char* problem = rao::amx_problem();
  return problem == nullptr ? "" : problem;
}

constexpr char kCompiler[] = "compiler() -> str";

std::string compiler() {
#if defined(__clang__)
  return __VERSION__;
#else
  return "g++ " __VERSION__;
#endif
}

constexpr char kRetainedBytes[] =
    "retained_bytes(int isa, ScalarType dtype, int rows, int entries) -> int";

// Bytes of a retained tile.
int64_t retained_bytes(int64_t isa, ScalarType dtype, int64_t rows, int64_t entries) {
  return kernels_of(isa).retained_bytes(dtype_of(dtype), rows, entries);
}

constexpr char kScratchSizes[] =
    "scratch_sizes(int isa, Tensor hidden, int entries, bool backward) -> int[]";

// Bytes of packed_weight, packed_hidden, rows, and of each thread.
std::vector<int64_t> scratch_sizes(int64_t isa, Tensor hidden, int64_t entries, bool backward) {
  const TileKernels& kernels = kernels_of(isa);
  const ScratchSizes sizes =
      sizes_of(kernels, backward, dtype_of(hidden), hidden.size(0), entries, hidden.size(1));
  return {sizes.packed_weight, sizes.packed_hidden, sizes.rows, sizes.thread};
}

constexpr char kPackHidden[] =
    "pack_hidden(int isa, Tensor hidden, bool backward, Tensor(a!) packed_hidden, "
    "Tensor(b!) threads) -> ()";

void pack_hidden(int64_t isa, Tensor hidden, bool backward, Tensor packed_hidden, Tensor threads) {
  const TileKernels& kernels = kernels_of(isa);
  const int64_t rows = hidden.size(0);
  const int64_t size = hidden.size(1);
  const DType dtype = dtype_of(hidden);
  const ScratchSizes sizes = sizes_of(kernels, backward, dtype, rows, kGroup, size);
  kernels.pack_hidden(dtype, data_of<void>(hidden, "hidden", hidden.scalar_type(), rows * size),
                      rows, size, backward,
                      bytes_of(packed_hidden, "packed_hidden", sizes.packed_hidden),
                      parallel_of(threads));
}

constexpr char kScoreTile[] =
    "score_tile(int isa, Tensor hidden, Tensor weight, Tensor? weight_rows, Tensor? bias, "
    "Tensor targets, int first_entry, float scale, float softcap, "
    "Tensor(a!) row_max, Tensor(b!) row_sum, Tensor(c!) target_logit, Tensor(d!)? entropy_sum, "
    "Tensor(e!)? sum_sq_probs, Tensor(f!)? logit_sum, "
    "Tensor(g!)? retained, int retained_rows, "
    "Tensor(h!) packed_weight, Tensor(i!) packed_hidden, Tensor(j!) rows, Tensor(k!) threads) "
    "-> ()";

void score_tile(int64_t isa, Tensor hidden, Tensor weight, OptionalTensor weight_rows,
                OptionalTensor bias, Tensor targets, int64_t first_entry, double scale,
                double softcap, Tensor row_max, Tensor row_sum, Tensor target_logit,
                OptionalTensor entropy_sum, OptionalTensor sum_sq_probs, OptionalTensor logit_sum,
                OptionalTensor retained, int64_t retained_rows, Tensor packed_weight,
                Tensor packed_hidden, Tensor rows, Tensor threads) {
  const TileKernels& kernels = kernels_of(isa);
  const HeadTile head =
      head_of(hidden, weight, weight_rows, bias, targets, first_entry, scale, softcap);
  const RowState state{
      floats_of(row_max, "row_max", head.rows),
      floats_of(row_sum, "row_sum", head.rows),
      floats_of(target_logit, "target_logit", head.rows),
      floats_of(entropy_sum, "entropy_sum", head.rows),
      floats_of(sum_sq_probs, "sum_sq_probs", head.rows),
      floats_of(logit_sum, "logit_sum", head.rows),
  };
  const ScratchSizes sizes = kernels.score_scratch(head.dtype, head.rows, head.entries, head.size);
  STD_TORCH_CHECK(!retained.has_value() || retained_rows == head.rows,
                  "retained_rows must be the number of rows of hidden");
  kernels.score_tile(head, state, slot_of(kernels, head, retained, retained_rows),
                     scratch_of(sizes, packed_weight, packed_hidden, rows, threads),
                     parallel_of(threads));
}

constexpr char kGradTile[] =
    "grad_tile(int isa, Tensor hidden, Tensor weight, Tensor? weight_rows, Tensor? bias, "
    "Tensor targets, int first_entry, float scale, float softcap, "
    "Tensor row_max, Tensor log_sum, Tensor logp, Tensor logp_grad, Tensor? p_factor, "
    "Tensor? p_log_p_factor, Tensor? retained_row, "
    "Tensor? retained, int retained_rows, "
    "Tensor(a!)? dhidden, Tensor? dhidden_rows, Tensor(b!)? dweight, Tensor? dweight_rows, "
    "Tensor(c!)? dbias, Tensor? unscale, "
    "Tensor(d!) packed_weight, Tensor(e!) packed_hidden, Tensor(f!) rows, Tensor(g!) threads) "
    "-> ()";

void grad_tile(int64_t isa, Tensor hidden, Tensor weight, OptionalTensor weight_rows,
               OptionalTensor bias, Tensor targets, int64_t first_entry, double scale,
               double softcap, Tensor row_max, Tensor log_sum, Tensor logp, Tensor logp_grad,
               OptionalTensor p_factor, OptionalTensor p_log_p_factor, OptionalTensor retained_row,
               OptionalTensor retained, int64_t retained_rows, OptionalTensor dhidden,
               OptionalTensor dhidden_rows, OptionalTensor dweight, OptionalTensor dweight_rows,
               OptionalTensor dbias, OptionalTensor unscale, Tensor packed_weight,
               Tensor packed_hidden, Tensor rows, Tensor threads) {
  const TileKernels& kernels = kernels_of(isa);
  const HeadTile head =
      head_of(hidden, weight, weight_rows, bias, targets, first_entry, scale, softcap);
  STD_TORCH_CHECK(p_factor.has_value() == p_log_p_factor.has_value(),
                  "p_factor and p_log_p_factor must both be given, or neither");
  const RowGradients gradients{
      floats_of(row_max, "row_max", head.rows),
      floats_of(log_sum, "log_sum", head.rows),
      floats_of(logp, "logp", head.rows),
      floats_of(logp_grad, "logp_grad", head.rows),
      floats_of(p_factor, "p_factor", head.rows),
      floats_of(p_log_p_factor, "p_log_p_factor", head.rows),
      index_of(retained_row, "retained_row", head.rows),
  };
  const ScratchSizes sizes = kernels.grad_scratch(head.dtype, head.rows, head.entries, head.size);
  Gradients out{};
  out.dhidden = floats_of(dhidden, "dhidden", head.rows * head.size);
  out.dhidden_rows = index_of(dhidden_rows, "dhidden_rows", head.rows);
  out.dweight_rows = index_of(dweight_rows, "dweight_rows", head.entries);
  out.dbias = floats_of(dbias, "dbias", head.entries);
  out.unscale = unscale.has_value() ? *floats_of(unscale, "unscale", 1) : 1.0f;
  if (dweight.has_value()) {
    out.dweight_dtype = dtype_of(*dweight);
    out.dweight =
        data_of<void>(*dweight, "dweight", dweight->scalar_type(), head.entries * head.size);
  }
  STD_TORCH_CHECK(
      !retained.has_value() || retained_row.has_value() || retained_rows == head.rows,
      "retained_rows must be the number of rows of hidden where retained_row is not given");
  kernels.grad_tile(head, gradients, slot_of(kernels, head, retained, retained_rows), out,
                    scratch_of(sizes, packed_weight, packed_hidden, rows, threads),
                    parallel_of(threads));
}

}  // namespace
}  // namespace rao::bindings

RAO_LIBRARY(RAO_OPS, m) {
  m.def(rao::bindings::kHostIsas);
  m.def(rao::bindings::kAmxProblem);
  m.def(rao::bindings::kCompiler);
  m.def(rao::bindings::kScratchSizes);
  m.def(rao::bindings::kRetainedBytes);
  m.def(rao::bindings::kPackHidden);
  m.def(rao::bindings::kScoreTile);
  m.def(rao::bindings::kGradTile);
}

STABLE_TORCH_LIBRARY_IMPL(RAO_OPS, CompositeExplicitAutograd, m) {
  m.impl("host_isas", TORCH_BOX(&rao::bindings::host_isas));
  m.impl("amx_problem", TORCH_BOX(&rao::bindings::amx_problem));
  m.impl("compiler", TORCH_BOX(&rao::bindings::compiler));
  m.impl("retained_bytes", TORCH_BOX(&rao::bindings::retained_bytes));
}

STABLE_TORCH_LIBRARY_IMPL(RAO_OPS, CPU, m) {
  m.impl("scratch_sizes", TORCH_BOX(&rao::bindings::scratch_sizes));
  m.impl("pack_hidden", TORCH_BOX(&rao::bindings::pack_hidden));
  m.impl("score_tile", TORCH_BOX(&rao::bindings::score_tile));
  m.impl("grad_tile", TORCH_BOX(&rao::bindings::grad_tile));
}
