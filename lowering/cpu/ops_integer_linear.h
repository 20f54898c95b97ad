// qpass_cpu::integer_linear: codes of integer-only programs times int8 weights, to rows of int32.
// Part of operators.cpp.
#include <cstring>

#include "ops_integer.h"

namespace qpass_cpu {
namespace {

constexpr const char* kIntLinear = "qpass_cpu::integer_linear";

// Codes with 128 added, so that the first factor has no sign; zeros behind k.
void unsigned_rows(const at::Tensor& codes, int64_t m, int64_t k, int64_t ldx, uint8_t* dst) {
  const at::Tensor from = codes.contiguous();
  const auto* src = reinterpret_cast<const uint8_t*>(from.const_data_ptr<int8_t>());
  for (int64_t r = 0; r < m; ++r) {
    for (int64_t i = 0; i < k; ++i) dst[r * ldx + i] = src[r * k + i] ^ 128;
    std::memset(dst + r * ldx + k, 0, ldx - k);
  }
}

void check_linear(const at::Tensor& codes, const MaybeTensor& zero, const at::Tensor& m, const at::Tensor& k,
                  const at::Tensor& w, const at::Tensor& w_mantissa, const at::Tensor& w_shift,
                  const at::Tensor& w_sum, int64_t up, int64_t n) {
  check_tensor(codes, at::kChar, codes.sizes(), kIntLinear, "codes");
  if (zero.has_value()) check_tensor(*zero, at::kInt, with_last(codes, 1), kIntLinear, "zero");
  check_tensor(m, at::kInt, with_last(codes, 1), kIntLinear, "m");
  check_tensor(k, at::kInt, with_last(codes, 1), kIntLinear, "k");
  check_packed(w, at::kChar, n, codes.size(-1), 4, kIntLinear);
  check_tensor(w_mantissa, at::kInt, {n}, kIntLinear, "w_mantissa");
  check_tensor(w_shift, at::kInt, {n}, kIntLinear, "w_shift");
  check_tensor(w_sum, at::kInt, {n}, kIntLinear, "w_sum");
  TORCH_CHECK(up >= 0 && up <= 30, kIntLinear, ": up is ", up);
}

// What 128 more in each code adds, per row, as a zero point; and the exponents of the result.
void row_numbers(const MaybeTensor& zero, const at::Tensor& k, int64_t rows, int32_t add, int32_t* zeros,
                 int32_t* exponents) {
  const at::Tensor from = k.contiguous(), points = zero.has_value() ? zero->contiguous() : at::Tensor();
  const int32_t* ks = from.const_data_ptr<int32_t>();
  const int32_t* given = zero.has_value() ? points.const_data_ptr<int32_t>() : nullptr;
  for (int64_t r = 0; r < rows; ++r) {
    zeros[r] = 128 + (given ? given[r] : 0);
    exponents[r] = ks[r] + add;
  }
}

void multiply(const at::Tensor& x, int64_t m, int64_t k, int64_t n, const int32_t* zeros, const at::Tensor& w,
              const at::Tensor& w_sum, const DyadicArgs& dyadic) {
  const bool amx = current_isa() == kIsaAmx && m >= kAmxFromRows;
  const at::Tensor rows = amx ? tiled_rows(x, m, x.size(1)) : x;
  const Int8Args a{rows.const_data_ptr<uint8_t>(), x.size(1), nullptr, zeros, w.const_data_ptr<int8_t>(), nullptr,
                   w_sum.const_data_ptr<int32_t>(), nullptr, Output{nullptr, kOutFloat, n}, k, w.size(1), &dyadic};
  for_ranges(m, w.size(0), a.k4 * 128, true, [&](const Range& r) { amx ? int8_amx(a, r) : int8_avx512(a, r); });
}

// rows + bias, in place.
void add_bias(const at::Tensor& x, const at::Tensor& k, const at::Tensor& bias, const at::Tensor& bias_exponent) {
  RowOp op(kIntLinear);
  op.rows_of(x);
  op.call.step = kAdd;
  op.call.a = op.source(x, k), op.call.b = op.source(bias.expand(x.sizes()), bias_exponent.expand(k.sizes()));
  op.into(x, k);
}

Rows2 integer_linear(const at::Tensor& codes, const MaybeTensor& zero, const at::Tensor& m, const at::Tensor& k,
                     const at::Tensor& w, const at::Tensor& w_mantissa, const at::Tensor& w_shift,
                     const at::Tensor& w_exponent, const at::Tensor& w_sum, const MaybeTensor& bias,
                     const MaybeTensor& bias_exponent, int64_t up, int64_t n) {
  const int64_t width = checked_k(codes, kIntLinear, "codes"), rows = codes.numel() / width;
  check_linear(codes, zero, m, k, w, w_mantissa, w_shift, w_sum, up, n);
  at::Tensor x = fresh(with_last(codes, n), at::kInt), exponents = fresh(k.sizes(), at::kInt);
  if (rows == 0) return {x, exponents};
  const at::Tensor zeros = fresh({rows}, at::kInt), from = fresh({rows, round_up(width, 4)}, at::kByte);
  unsigned_rows(codes, rows, width, from.size(1), from.mutable_data_ptr<uint8_t>());
  const int32_t add = *w_exponent.const_data_ptr<int32_t>() + static_cast<int32_t>(up) - 30;
  row_numbers(zero, k, rows, add, zeros.mutable_data_ptr<int32_t>(), exponents.mutable_data_ptr<int32_t>());
  const at::Tensor factors = m.contiguous(), mantissas = w_mantissa.contiguous(), shifts = w_shift.contiguous();
  const DyadicArgs dyadic{mantissas.const_data_ptr<int32_t>(), shifts.const_data_ptr<int32_t>(),
                          factors.const_data_ptr<int32_t>(), static_cast<int32_t>(up), x.mutable_data_ptr<int32_t>()};
  const at::Tensor sums = w_sum.contiguous();
  multiply(from, rows, width, n, zeros.const_data_ptr<int32_t>(), w,
           sums, dyadic);
  if (bias.has_value()) add_bias(x, exponents, *bias, *bias_exponent);
  return {x, exponents};
}

}  // namespace

TORCH_LIBRARY_IMPL(qpass_cpu, CPU, m) { m.impl("integer_linear", integer_linear); }

}  // namespace qpass_cpu
