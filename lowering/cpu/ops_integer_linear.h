// qpass_cpu::integer_linear: codes of integer-only programs times int8 weights, to rows of int32; several weights at once.
// Part of operators.cpp.
#pragma once
#include <cstring>

#include "ops_integer.h"

namespace qpass_cpu {
namespace {

constexpr const char* kIntLinear = "qpass_cpu::integer_linear";

// What is known of each output channel, int32: mantissas, shifts and sums of the weight's rows, with a bias its numbers,
// all padded to blocks; then the exponents of the scales and of the bias.
struct IntWeight {
  const int8_t* w;
  const int32_t *mantissa, *shift, *sum, *bias;
  int32_t exponent, bias_exponent;
  int64_t n, blocks, up;
};

IntWeight int_weight(const at::Tensor& w, const at::Tensor& table, int64_t up, int64_t n, int64_t k) {
  check_packed(w, at::kChar, n, k, 4, kIntLinear);
  TORCH_CHECK(up >= 0 && up <= 30, kIntLinear, ": up is ", up);
  const int64_t blocks = w.size(0), width = blocks * kBlockN, kinds = (table.numel() - 2) / width;
  TORCH_CHECK(kinds == 3 || kinds == 4, kIntLinear, ": a table of ", table.numel(), " for ", n, " channels");
  check_tensor(table, at::kInt, {kinds * width + 2}, kIntLinear, "w_table");
  TORCH_CHECK(table.is_contiguous(), kIntLinear, ": w_table must be contiguous");
  const int32_t *from = table.const_data_ptr<int32_t>(), *last = from + kinds * width;
  return {w.const_data_ptr<int8_t>(), from, from + width, from + 2 * width, kinds == 4 ? from + 3 * width : nullptr,
          last[0], last[1], n, blocks, up};
}

// Codes with 128 added, so that the first factor has no sign; zeros behind k.
void unsigned_rows(const int8_t* codes, int64_t m, int64_t k, int64_t ldx, uint8_t* dst) {
  const auto* src = reinterpret_cast<const uint8_t*>(codes);
  for (int64_t r = 0; r < m; ++r) {
    for (int64_t i = 0; i < k; ++i) dst[r * ldx + i] = src[r * k + i] ^ 128;
    std::memset(dst + r * ldx + k, 0, ldx - k);
  }
}

// The codes of a call, made once for all weights that read them.
class IntInput {
 public:
  IntInput(const at::Tensor& codes, const MaybeTensor& zero, const at::Tensor& m, const at::Tensor& k)
      : width(checked_k(codes, kIntLinear, "codes")), rows(codes.numel() / width), ldx(round_up(width, 4)) {
    const at::DimVector one = with_last(codes, 1);
    check_tensor(codes, at::kChar, codes.sizes(), kIntLinear, "codes");
    check_tensor(m, at::kInt, one, kIntLinear, "m");
    check_tensor(k, at::kInt, one, kIntLinear, "k");
    if (zero.has_value()) check_tensor(*zero, at::kInt, one, kIntLinear, "zero");
    m_ = m.contiguous(), k_ = k.contiguous();
    x_ = fresh({rows, ldx}, at::kByte), zeros_ = fresh({rows}, at::kInt);
    if (rows == 0) return;
    unsigned_rows(codes.contiguous().const_data_ptr<int8_t>(), rows, width, ldx, x_.mutable_data_ptr<uint8_t>());
    const at::Tensor points = zero.has_value() ? zero->contiguous() : at::Tensor();
    const int32_t* given = zero.has_value() ? points.const_data_ptr<int32_t>() : nullptr;
    int32_t* to = zeros_.mutable_data_ptr<int32_t>();
    for (int64_t r = 0; r < rows; ++r) to[r] = 128 + (given ? given[r] : 0);  // 128 more in each code
    amx_ = current_isa() == kIsaAmx && rows >= kAmxFromRows;
    if (amx_) x_ = tiled_rows(x_, rows, ldx);
  }

  // Rows r0 to r1, r0 a multiple of 32: x int32 [r1 - r0, n] and their exponents.
  void multiply(const IntWeight& w, int64_t r0, int64_t r1, int32_t* x, int32_t* k) const {
    const int64_t count = r1 - r0, step = amx_ ? round_up(width, 64) : ldx;
    const DyadicArgs dyadic{w.mantissa, w.shift, m_.const_data_ptr<int32_t>() + r0, static_cast<int32_t>(w.up), x};
    const Int8Args a{x_.const_data_ptr<uint8_t>() + r0 * step, ldx, nullptr, zeros_.const_data_ptr<int32_t>() + r0, w.w,
                     nullptr, w.sum, nullptr, Output{nullptr, kOutFloat, w.n}, width, ceil_div(width, 4), &dyadic};
    const bool amx = amx_;
    for_ranges(count, w.blocks, a.k4 * 128, true, [&](const Range& r) { amx ? int8_amx(a, r) : int8_avx512(a, r); });
    const int32_t *from = k_.const_data_ptr<int32_t>() + r0, add = w.exponent + static_cast<int32_t>(w.up) - 30;
    for (int64_t r = 0; r < count; ++r) k[r] = from[r] + add;
    if (w.bias) add_bias(w, count, x, k);
  }

  const int64_t width, rows, ldx;

 private:
  static void add_bias(const IntWeight& w, int64_t count, int32_t* x, int32_t* k) {
    RowCall call;
    call.step = kAdd, call.n = w.n, call.size[2] = count;
    call.a.x = x, call.a.k = k, call.a.x_step[2] = w.n, call.a.k_step[2] = 1;
    call.b.x = w.bias, call.b.k = &w.bias_exponent;
    call.out = x, call.out_k = k;
    run_rows(call, count);
  }

  at::Tensor m_, k_, x_, zeros_;
  bool amx_ = false;
};

Rows2 integer_linear(const at::Tensor& codes, const MaybeTensor& zero, const at::Tensor& m, const at::Tensor& k,
                     const at::Tensor& w, const at::Tensor& table, int64_t up, int64_t n) {
  const IntInput in(codes, zero, m, k);
  const IntWeight weight = int_weight(w, table, up, n, in.width);
  at::Tensor x = fresh(with_last(codes, n), at::kInt), exponents = fresh(k.sizes(), at::kInt);
  if (in.rows) in.multiply(weight, 0, in.rows, x.mutable_data_ptr<int32_t>(), exponents.mutable_data_ptr<int32_t>());
  return {x, exponents};
}

std::vector<IntWeight> int_weights(at::TensorList w, at::TensorList tables, at::IntArrayRef up, at::IntArrayRef n,
                                   int64_t k) {
  TORCH_CHECK(w.size() == tables.size() && w.size() == up.size() && w.size() == n.size(), kIntLinear, "s: ", w.size(),
              " weights, ", tables.size(), " tables, ", up.size(), " and ", n.size(), " numbers");
  std::vector<IntWeight> weights;
  for (size_t i = 0; i < w.size(); ++i) weights.push_back(int_weight(w[i], tables[i], up[i], n[i], k));
  return weights;
}

// x and exponents of each weight, in turn.
std::vector<at::Tensor> integer_linears(const at::Tensor& codes, const MaybeTensor& zero, const at::Tensor& m,
                                        const at::Tensor& k, at::TensorList w, at::TensorList tables,
                                        at::IntArrayRef up, at::IntArrayRef n) {
  const IntInput in(codes, zero, m, k);
  std::vector<at::Tensor> results;
  for (const IntWeight& weight : int_weights(w, tables, up, n, in.width)) {
    at::Tensor x = fresh(with_last(codes, weight.n), at::kInt), exponents = fresh(k.sizes(), at::kInt);
    if (in.rows) in.multiply(weight, 0, in.rows, x.mutable_data_ptr<int32_t>(), exponents.mutable_data_ptr<int32_t>());
    results.push_back(x), results.push_back(exponents);
  }
  return results;
}

// Runs rows(r0, r1, scratch) for parts of all rows, whose `each` numbers a row lie in a scratch of their own. A part is
// as many rows as weigh what the weights weigh, so that neither is read much more often than the other.
template <class Rows>
void in_parts(int64_t rows, int64_t each, int64_t weight_bytes, const Rows& run) {
  const int64_t part = std::min(rows, std::max<int64_t>(64, round_up(weight_bytes / (each * 4), 32)));
  const int64_t parts = ceil_div(rows, part);
  const auto some = [&](int64_t begin, int64_t end) {
    const at::Tensor scratch = fresh({part * each}, at::kInt);
    for (int64_t i = begin; i < end; ++i)
      run(i * part, std::min(rows, (i + 1) * part), scratch.mutable_data_ptr<int32_t>());
  };
  // what is within a part of its own thread is not shared out again
  if (parts >= 2 * at::get_num_threads()) return at::parallel_for(0, parts, 1, some);
  some(0, parts);
}

// Two weights, the second times an activation of the first: codes.
Rows4 integer_linears_gated_quantize(const at::Tensor& codes, const MaybeTensor& zero, const at::Tensor& m,
                                     const at::Tensor& k, at::TensorList w, at::TensorList tables, at::IntArrayRef up,
                                     at::IntArrayRef n, int64_t kind, const at::Tensor& mantissa,
                                     const at::Tensor& shift, const at::Tensor& exponent, const at::Tensor& table,
                                     int64_t bits, bool symmetric) {
  const IntInput in(codes, zero, m, k);
  const std::vector<IntWeight> weights = int_weights(w, tables, up, n, in.width);
  TORCH_CHECK(weights.size() == 2 && n[0] == n[1], kIntLinear, "s_gated_quantize: outputs of ", n);
  RowOp op("qpass_cpu::integer_linears_gated_quantize");
  op.rows_for(codes, n[0]);
  op.activation(kind, table);
  op.channels(mantissa, shift, exponent);
  op.call.step = kGate;
  const Rows4 result = op.make_codes(bits, symmetric);
  const int64_t each = 2 * n[0] + 2;
  in_parts(in.rows, each, 2 * w[0].numel(), [&](int64_t r0, int64_t r1, int32_t* x) {
    const int64_t count = r1 - r0;
    int32_t *other = x + count * n[0], *xk = other + count * n[0];
    in.multiply(weights[0], r0, r1, x, xk);
    in.multiply(weights[1], r0, r1, other, xk + count);
    RowCall part = op.part(r0, count);
    part.a = dense(x, xk, n[0]), part.b = dense(other, xk + count, n[0]);
    run_rows(part, count);
  });
  return result;
}

// The rows of a weight and those of x summed; the sum's norm as codes.
Rows6 integer_linear_add_norm_quantize(const at::Tensor& codes, const MaybeTensor& zero, const at::Tensor& m,
                                       const at::Tensor& k, const at::Tensor& w, const at::Tensor& table, int64_t up,
                                       int64_t n, const at::Tensor& x, const at::Tensor& kx,
                                       const MaybeTensor& mantissa, const MaybeTensor& shift,
                                       const MaybeTensor& exponent, const MaybeTensor& bias,
                                       const MaybeTensor& bias_exponent, at::IntArrayRef norm, int64_t bits,
                                       bool symmetric) {
  const IntInput in(codes, zero, m, k);
  const IntWeight weight = int_weight(w, table, up, n, in.width);
  check_tensor(x, at::kInt, with_last(codes, n), kIntLinear, "x");
  check_tensor(kx, at::kInt, with_last(codes, 1), kIntLinear, "kx");
  const at::Tensor added = x.contiguous(), added_k = kx.contiguous();
  RowOp op("qpass_cpu::integer_linear_add_norm_quantize");
  op.rows_for(codes, n);
  op.norm(norm, bias, bias_exponent);
  op.channels(mantissa, shift, exponent);
  const Rows2 sum = op.make_sum();
  const Rows4 result = op.make_codes(bits, symmetric);
  in_parts(in.rows, n + 1, w.numel(), [&](int64_t r0, int64_t r1, int32_t* made) {
    const int64_t count = r1 - r0;
    int32_t* made_k = made + count * n;
    in.multiply(weight, r0, r1, made, made_k);
    RowCall part = op.part(r0, count);
    part.a = dense(made, made_k, n);
    part.b = dense(added.const_data_ptr<int32_t>() + r0 * n, added_k.const_data_ptr<int32_t>() + r0, n);
    run_rows(part, count);
  });
  return std::tuple_cat(sum, result);
}

at::Tensor by_heads(const at::Tensor& x, int64_t heads, int64_t d) {
  return x.view({x.size(0), x.size(1), heads, d}).transpose(1, 2);
}

// Queries, keys and values from three weights: the queries' codes, turned; the caches with the new rows behind.
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> integer_linears_heads(
    const at::Tensor& codes, const MaybeTensor& zero, const at::Tensor& m, const at::Tensor& k, at::TensorList w,
    at::TensorList tables, at::IntArrayRef up, at::IntArrayRef n, const at::Tensor& cos, const at::Tensor& sin,
    int64_t bits, int64_t key_bits, int64_t value_bits, const at::Tensor& keys, const at::Tensor& values) {
  TORCH_CHECK(codes.dim() == 3 && keys.dim() == 4 && values.dim() == 4 && n.size() == 3, kIntLinear, "s_heads: codes of ",
              codes.sizes(), ", keys of ", keys.sizes(), ", ", n.size(), " weights");
  const std::vector<at::Tensor> x = integer_linears(codes, zero, m, k, w, tables, up, n);
  const int64_t d = keys.size(3) - 2, dv = values.size(3) - 2;
  const auto [q, points, qm, qk] = integer_rotary_quantize(by_heads(x[0], n[0] / d, d), by_heads(x[1], 1, 1), cos, sin,
                                                           bits, true);
  const at::Tensor longer = integer_rotary_append(by_heads(x[2], n[1] / d, d), by_heads(x[3], 1, 1), cos, sin, key_bits,
                                                  keys);
  return {q, qm, qk, longer, integer_append(by_heads(x[4], n[2] / dv, dv), by_heads(x[5], 1, 1), value_bits, values)};
}

}  // namespace

TORCH_LIBRARY_IMPL(qpass_cpu, CPU, m) {
  m.impl("integer_linear", integer_linear);
  m.impl("integer_linears", integer_linears);
  m.impl("integer_linears_gated_quantize", integer_linears_gated_quantize);
  m.impl("integer_linear_add_norm_quantize", integer_linear_add_norm_quantize);
  m.impl("integer_linears_heads", integer_linears_heads);
}

}  // namespace qpass_cpu
