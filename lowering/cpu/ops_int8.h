// qpass_cpu::int8_linear: dynamic or static uint8 activations times symmetric int8 weights.
// Part of operators.cpp.
#include <torch/library.h>

#include <cstring>

#include "ops_common.h"

namespace qpass_cpu {
namespace {

constexpr const char* kName = "qpass_cpu::int8_linear";
constexpr int64_t kAmxFromRows = 9;  // below, decoding speed does not matter: the weights' bandwidth does

at::Tensor tiled_rows(const at::Tensor& x, int64_t m, int64_t k) {
  at::Tensor from = x.contiguous();
  at::Tensor to = at::empty({ceil_div(m, 32), ceil_div(k, 64), 32, 64}, from.options());
  const auto* src = from.const_data_ptr<uint8_t>();
  auto* dst = to.mutable_data_ptr<uint8_t>();
  at::parallel_for(0, m, std::max<int64_t>(1, 262144 / k),
                   [&](int64_t r0, int64_t r1) { rows_to_tiles(src, r0, r1, k, dst); });
  return to;
}

// The last quad of k is read whole, so ragged rows are copied with zeros behind them.
at::Tensor padded_rows(const at::Tensor& x, int64_t m, int64_t k, int64_t ldx) {
  at::Tensor from = x.contiguous();
  if (k == ldx) return from;
  at::Tensor to = at::empty({m, ldx}, from.options());
  const auto* src = from.const_data_ptr<uint8_t>();
  auto* dst = to.mutable_data_ptr<uint8_t>();
  for (int64_t r = 0; r < m; ++r) {
    std::memcpy(dst + r * ldx, src + r * k, k);
    std::memset(dst + r * ldx + k, 0, ldx - k);
  }
  return to;
}

// Rows [m, k] of codes times one weight, into rows of `out`. All tensors are checked and contiguous.
void int8_rows(const at::Tensor& x, const at::Tensor& x_scale, const at::Tensor& x_zero, const at::Tensor& w,
               const at::Tensor& w_scale, const at::Tensor& w_sum, const at::Tensor& bias, int64_t m, int64_t k,
               const Output& out) {
  if (m == 0) return;
  const bool amx = current_isa() == kIsaAmx && m >= kAmxFromRows;
  const int64_t ldx = round_up(k, 4);
  at::Tensor rows = amx ? tiled_rows(x, m, k) : padded_rows(x, m, k, ldx);
  Int8Args a{rows.const_data_ptr<uint8_t>(), ldx, x_scale.const_data_ptr<float>(), x_zero.const_data_ptr<int32_t>(),
             w.const_data_ptr<int8_t>(), w_scale.const_data_ptr<float>(), w_sum.const_data_ptr<int32_t>(),
             bias.defined() ? bias.const_data_ptr<float>() : nullptr, out, k, w.size(1)};
  for_ranges(m, w.size(0), a.k4 * 128, true, [&](const Range& r) { amx ? int8_amx(a, r) : int8_avx512(a, r); });
}

void check(const at::Tensor& x, const at::Tensor& x_scale, const at::Tensor& x_zero, const at::Tensor& w,
           const at::Tensor& w_scale, const at::Tensor& w_sum, int64_t n, int64_t k) {
  check_tensor(x, at::kByte, x.sizes(), kName, "x_codes");
  check_tensor(x_scale, at::kFloat, with_last(x, 1), kName, "x_scale");
  check_tensor(x_zero, at::kInt, with_last(x, 1), kName, "x_zero");
  check_packed(w, at::kChar, n, k, 4, kName);
  check_tensor(w_scale, at::kFloat, {n}, kName, "w_scale");
  check_tensor(w_sum, at::kInt, {n}, kName, "w_sum");
}

at::Tensor int8_linear(const at::Tensor& x, const at::Tensor& x_scale, const at::Tensor& x_zero, const at::Tensor& w,
                       const at::Tensor& w_scale, const at::Tensor& w_sum, const std::optional<at::Tensor>& bias,
                       int64_t n, at::ScalarType dtype) {
  const int64_t k = checked_k(x, kName, "x_codes"), m = x.numel() / k;
  const OutType type = out_type(dtype, kName, "dtype");
  check(x, x_scale, x_zero, w, w_scale, w_sum, n, k);
  at::Tensor b = float_bias(bias, n, kName);
  at::Tensor out = at::empty(with_last(x, n), x.options().dtype(dtype));
  int8_rows(x, x_scale.contiguous(), x_zero.contiguous(), w, w_scale.contiguous(), w_sum.contiguous(), b, m, k,
            Output{out.mutable_data_ptr(), type, n});
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(qpass_cpu, CPU, m) { m.impl("int8_linear", int8_linear); }

}  // namespace qpass_cpu
