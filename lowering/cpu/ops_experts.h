// The linears of ops_int8.h and ops_weight.h for many experts: one after another, each on its own rows.
// Part of operators.cpp, behind those two.
#include <torch/library.h>

#include "ops_common.h"

namespace qpass_cpu {
namespace {

void check_stack(const at::Tensor& w, at::ScalarType dtype, int64_t experts, int64_t n, int64_t k, int64_t per_lane,
                 const char* op) {
  TORCH_CHECK(n >= 1, op, ": out_features must be at least 1, got ", n);
  check_tensor(w, dtype, {experts, ceil_div(n, kBlockN), ceil_div(k, per_lane), kBlockN, 4}, op, "w_packed");
  TORCH_CHECK(w.is_contiguous(), op, ": w_packed must be contiguous, got strides ", w.strides());
}

// Calls `rows(expert, first, count)` for every expert that has rows; rows behind the last expert's become zero.
template <class Rows>
at::Tensor by_expert(const at::Tensor& x, const at::Tensor& offsets, int64_t n, at::ScalarType dtype, const char* op,
                     const Rows& rows) {
  TORCH_CHECK(x.dim() == 2, op, ": the rows must be [S, K], got shape ", x.sizes());
  check_tensor(offsets, at::kInt, {offsets.numel()}, op, "offsets");
  const OutType type = out_type(dtype, op, "dtype");
  at::Tensor out = at::empty({x.size(0), n}, x.options().dtype(dtype)), ends = offsets.contiguous();
  const auto* end = ends.const_data_ptr<int32_t>();
  int64_t first = 0;
  for (int64_t expert = 0; expert < ends.numel(); ++expert) {
    TORCH_CHECK(end[expert] >= first && end[expert] <= x.size(0), op, ": offsets must rise from 0 to at most ",
                x.size(0), ", got ", end[expert], " behind ", first);
    const int64_t count = end[expert] - first;
    char* to = static_cast<char*>(out.mutable_data_ptr()) + first * n * out.element_size();
    if (count) rows(expert, first, count, Output{to, type, n});
    first = end[expert];
  }
  if (first < x.size(0)) out.narrow(0, first, x.size(0) - first).zero_();
  return out;
}

at::Tensor grouped_int8_linear(const at::Tensor& x, const at::Tensor& x_scale, const at::Tensor& x_zero,
                               const at::Tensor& w, const at::Tensor& w_scale, const at::Tensor& w_sum,
                               const at::Tensor& offsets, int64_t n, at::ScalarType dtype) {
  constexpr const char* op = "qpass_cpu::grouped_int8_linear";
  const int64_t k = checked_k(x, op, "x_codes"), experts = offsets.numel();
  check_tensor(x, at::kByte, x.sizes(), op, "x_codes");
  check_tensor(x_scale, at::kFloat, with_last(x, 1), op, "x_scale");
  check_tensor(x_zero, at::kInt, with_last(x, 1), op, "x_zero");
  check_stack(w, at::kChar, experts, n, k, 4, op);
  check_tensor(w_scale, at::kFloat, {experts, n}, op, "w_scale");
  check_tensor(w_sum, at::kInt, {experts, n}, op, "w_sum");
  at::Tensor codes = x.contiguous(), xs = x_scale.contiguous(), xz = x_zero.contiguous();
  at::Tensor ws = w_scale.contiguous(), sums = w_sum.contiguous();
  return by_expert(x, offsets, n, dtype, op, [&](int64_t e, int64_t first, int64_t count, const Output& out) {
    int8_rows(codes.narrow(0, first, count), xs.narrow(0, first, count), xz.narrow(0, first, count), w.select(0, e),
              ws.select(0, e), sums.select(0, e), {}, count, k, out);
  });
}

at::Tensor grouped_int4_linear(const at::Tensor& x, const at::Tensor& w, const at::Tensor& w_scale,
                               const at::Tensor& w_zero, const at::Tensor& offsets, int64_t n, int64_t group,
                               at::ScalarType dtype) {
  constexpr const char* op = "qpass_cpu::grouped_int4_linear";
  const int64_t k = checked_k(x, op, "x"), experts = offsets.numel();
  TORCH_CHECK(group >= 2 && (group % 2 == 0 || group >= k), op, ": group_size must be even, got ", group);
  const OutType from = out_type(x.scalar_type(), op, "x");
  check_tensor(x, x.scalar_type(), x.sizes(), op, "x");
  check_stack(w, at::kByte, experts, n, k, 8, op);
  WeightArgs a{};
  a.bits = 4;
  a.group = group >= k ? round_up(k, 32) : group;
  a.groups = group >= k ? 1 : ceil_div(k, group);
  a.chunks = w.size(2);
  check_tensor(w_scale, at::kBFloat16, {experts, a.groups, n}, op, "w_scale");
  check_tensor(w_zero, at::kByte, {experts, a.groups, n}, op, "w_zero");
  at::Tensor rows = x.contiguous(), scale = w_scale.contiguous(), zero = w_zero.contiguous();
  return by_expert(x, offsets, n, dtype, op, [&](int64_t e, int64_t first, int64_t count, const Output& out) {
    a.w = w.const_data_ptr<uint8_t>() + e * w.stride(0);
    a.scale16 = static_cast<const uint16_t*>(scale.const_data_ptr()) + e * a.groups * n;
    a.zero = zero.const_data_ptr<uint8_t>() + e * a.groups * n;
    times_weight(rows.narrow(0, first, count), from, a, count, k, w.size(1), {}, out);
  });
}

at::Tensor grouped_int8_weight_linear(const at::Tensor& x, const at::Tensor& w, const at::Tensor& w_scale,
                                      const at::Tensor& offsets, int64_t n, at::ScalarType dtype) {
  constexpr const char* op = "qpass_cpu::grouped_int8_weight_linear";
  const int64_t k = checked_k(x, op, "x"), experts = offsets.numel();
  const OutType from = out_type(x.scalar_type(), op, "x");
  check_tensor(x, x.scalar_type(), x.sizes(), op, "x");
  check_stack(w, at::kChar, experts, n, k, 4, op);
  check_tensor(w_scale, at::kFloat, {experts, n}, op, "w_scale");
  at::Tensor rows = x.contiguous(), scale = w_scale.contiguous();
  WeightArgs a{};
  a.bits = 8;
  a.chunks = w.size(2);
  a.group = round_up(k, 32);
  a.groups = 1;
  return by_expert(x, offsets, n, dtype, op, [&](int64_t e, int64_t first, int64_t count, const Output& out) {
    a.w = reinterpret_cast<const uint8_t*>(w.const_data_ptr<int8_t>() + e * w.stride(0));
    a.scale32 = scale.const_data_ptr<float>() + e * n;
    times_weight(rows.narrow(0, first, count), from, a, count, k, w.size(1), {}, out);
  });
}

}  // namespace

TORCH_LIBRARY_IMPL(qpass_cpu, CPU, m) {
  m.impl("grouped_int8_linear", grouped_int8_linear);
  m.impl("grouped_int4_linear", grouped_int4_linear);
  m.impl("grouped_int8_weight_linear", grouped_int8_weight_linear);
}

}  // namespace qpass_cpu
