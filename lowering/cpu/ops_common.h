// Argument checks and work division shared by the operators.
#pragma once
#include <ATen/EmptyTensor.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include "common.h"

namespace qpass_cpu {

// The level in use: the machine's, or a lower one forced by QPASS_CPU_ISA or by a test.
Isa current_isa();

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// at::empty on the CPU, without a way through the dispatcher.
inline at::Tensor fresh(at::IntArrayRef shape, at::ScalarType type) {
  return at::detail::empty_cpu(shape, type, false, std::nullopt);
}

inline OutType out_type(at::ScalarType t, const char* op, const char* name) {
  TORCH_CHECK(t == at::kFloat || t == at::kBFloat16 || t == at::kHalf, op, ": ", name,
              " must be float32, bfloat16 or float16, got ", t);
  return t == at::kFloat ? kOutFloat : t == at::kBFloat16 ? kOutBFloat16 : kOutHalf;
}

inline void check_tensor(const at::Tensor& t, at::ScalarType dtype, at::IntArrayRef shape, const char* op,
                         const char* name) {
  TORCH_CHECK(t.device().is_cpu(), op, ": ", name, " must be on the CPU, got ", t.device());
  TORCH_CHECK(t.scalar_type() == dtype, op, ": ", name, " must have dtype ", dtype, ", got ", t.scalar_type());
  TORCH_CHECK(t.sizes() == shape, op, ": ", name, " must have shape ", shape, ", got ", t.sizes());
}

inline void check_packed(const at::Tensor& w, at::ScalarType dtype, int64_t n, int64_t k, int64_t per_lane,
                         const char* op) {
  TORCH_CHECK(n >= 1, op, ": out_features must be at least 1, got ", n);
  check_tensor(w, dtype, {ceil_div(n, kBlockN), ceil_div(k, per_lane), kBlockN, 4}, op, "w_packed");
  TORCH_CHECK(w.is_contiguous(), op, ": w_packed must be contiguous, got strides ", w.strides());
}

inline int64_t checked_k(const at::Tensor& x, const char* op, const char* name) {
  TORCH_CHECK(x.dim() >= 1, op, ": ", name, " must have at least one dimension, got shape ", x.sizes());
  TORCH_CHECK(x.size(-1) >= 1, op, ": the last dimension of ", name, " must not be empty, got shape ", x.sizes());
  return x.size(-1);
}

inline at::DimVector with_last(const at::Tensor& x, int64_t n) {
  at::DimVector shape(x.sizes());
  shape.back() = n;
  return shape;
}

// Contiguous float32 bias, or an undefined tensor.
inline at::Tensor float_bias(const std::optional<at::Tensor>& bias, int64_t n, const char* op) {
  if (!bias.has_value() || !bias->defined()) return {};
  out_type(bias->scalar_type(), op, "bias");
  check_tensor(*bias, bias->scalar_type(), {n}, op, "bias");
  return bias->to(at::kFloat).contiguous();
}

// Splits blocks over threads, and rows as well where there are fewer blocks than threads can use. `block_bytes` keeps
// tiny layers on one thread: waking a second one costs more than reading a few kilobytes.
template <class Kernel>
void for_ranges(int64_t m, int64_t blocks, int64_t block_bytes, bool split_rows, const Kernel& kernel) {
  int64_t threads = at::get_num_threads();
  int64_t row_parts = 1;
  if (split_rows && blocks < 2 * threads) row_parts = std::min(ceil_div(2 * threads, blocks), ceil_div(m, 64));
  int64_t rows = round_up(ceil_div(m, row_parts), 32);
  row_parts = ceil_div(m, rows);
  int64_t grain = std::max<int64_t>(1, 49152 / (block_bytes * std::max<int64_t>(1, std::min<int64_t>(rows, 64) / 8)));
  at::parallel_for(0, row_parts * blocks, grain, [&](int64_t begin, int64_t end) {
    while (begin < end) {
      int64_t part = begin / blocks;
      int64_t stop = std::min(end, (part + 1) * blocks);
      kernel(Range{part * rows, std::min(m, (part + 1) * rows), begin - part * blocks, stop - part * blocks});
      begin = stop;
    }
  });
}

}  // namespace qpass_cpu
