// The row operators of integer-only programs: each step alone, and with the requantization behind it.
// Part of operators.cpp.
#pragma once
#include "ops_integer.h"

namespace qpass_cpu {
namespace {

RowOp taken(const at::Tensor& x, const at::Tensor& k) {
  RowOp op("qpass_cpu::integer_quantize");
  op.rows_of(x);
  op.call.a = op.source(x, k);
  return op;
}

Rows4 integer_quantize(const at::Tensor& x, const at::Tensor& k, int64_t bits, bool symmetric) {
  return taken(x, k).to_codes(bits, symmetric);
}

at::Tensor integer_pack(const at::Tensor& x, const at::Tensor& k, int64_t bits) { return taken(x, k).to_cache(bits); }

Rows2 integer_add(const at::Tensor& a, const at::Tensor& ka, const at::Tensor& b, const at::Tensor& kb) {
  RowOp op("qpass_cpu::integer_add");
  TORCH_CHECK(a.sizes() == b.sizes(), "qpass_cpu::integer_add: rows of ", a.sizes(), " and ", b.sizes());
  op.rows_of(a);
  op.call.step = kAdd;
  op.call.a = op.source(a, ka), op.call.b = op.source(b, kb);
  return op.to_rows();
}

RowOp normed(const at::Tensor& x, const at::Tensor& k, const MaybeTensor& mantissa, const MaybeTensor& shift,
             const MaybeTensor& exponent, const MaybeTensor& bias, const MaybeTensor& bias_exponent,
             at::IntArrayRef norm) {
  RowOp op("qpass_cpu::integer_norm");
  op.rows_of(x);
  op.norm(norm, bias, bias_exponent);
  op.channels(mantissa, shift, exponent);
  op.call.a = op.source(x, k);
  return op;
}

Rows2 integer_norm(const at::Tensor& x, const at::Tensor& k, const MaybeTensor& mantissa, const MaybeTensor& shift,
                   const MaybeTensor& exponent, const MaybeTensor& bias, const MaybeTensor& bias_exponent,
                   at::IntArrayRef norm) {
  return normed(x, k, mantissa, shift, exponent, bias, bias_exponent, norm).to_rows();
}

Rows4 integer_norm_quantize(const at::Tensor& x, const at::Tensor& k, const MaybeTensor& mantissa,
                            const MaybeTensor& shift, const MaybeTensor& exponent, const MaybeTensor& bias,
                            const MaybeTensor& bias_exponent, at::IntArrayRef norm, int64_t bits, bool symmetric) {
  return normed(x, k, mantissa, shift, exponent, bias, bias_exponent, norm).to_codes(bits, symmetric);
}

Rows6 integer_add_norm_quantize(const at::Tensor& a, const at::Tensor& ka, const at::Tensor& b, const at::Tensor& kb,
                                const MaybeTensor& mantissa, const MaybeTensor& shift, const MaybeTensor& exponent,
                                const MaybeTensor& bias, const MaybeTensor& bias_exponent, at::IntArrayRef norm,
                                int64_t bits, bool symmetric) {
  TORCH_CHECK(a.sizes() == b.sizes(), "qpass_cpu::integer_add: rows of ", a.sizes(), " and ", b.sizes());
  RowOp op = normed(a, ka, mantissa, shift, exponent, bias, bias_exponent, norm);
  op.call.b = op.source(b, kb);
  const Rows2 sum = op.make_sum();
  return std::tuple_cat(sum, op.to_codes(bits, symmetric));
}

RowOp activating(const at::Tensor& x, const at::Tensor& k, int64_t kind, const at::Tensor& mantissa,
                 const at::Tensor& shift, const at::Tensor& exponent, const at::Tensor& table) {
  RowOp op("qpass_cpu::integer_activation");
  op.rows_of(x);
  op.activation(kind, table);
  op.call.step = kActivate;
  op.channels(mantissa, shift, exponent);
  op.call.a = op.source(x, k);
  return op;
}

RowOp gating(const at::Tensor& x, const at::Tensor& k, const at::Tensor& up, const at::Tensor& k_up, int64_t kind,
             const at::Tensor& mantissa, const at::Tensor& shift, const at::Tensor& exponent,
             const at::Tensor& table) {
  TORCH_CHECK(x.sizes() == up.sizes(), "qpass_cpu::integer_gated: rows of ", x.sizes(), " and ", up.sizes());
  RowOp op = activating(x, k, kind, mantissa, shift, exponent, table);
  op.call.step = kGate, op.call.b = op.source(up, k_up);
  return op;
}

Rows2 integer_activation(const at::Tensor& x, const at::Tensor& k, int64_t kind, const at::Tensor& mantissa,
                         const at::Tensor& shift, const at::Tensor& exponent, const at::Tensor& table) {
  return activating(x, k, kind, mantissa, shift, exponent, table).to_rows();
}

Rows4 integer_activation_quantize(const at::Tensor& x, const at::Tensor& k, int64_t kind, const at::Tensor& mantissa,
                                  const at::Tensor& shift, const at::Tensor& exponent, const at::Tensor& table,
                                  int64_t bits, bool symmetric) {
  return activating(x, k, kind, mantissa, shift, exponent, table).to_codes(bits, symmetric);
}

Rows2 integer_gated(const at::Tensor& x, const at::Tensor& k, const at::Tensor& up, const at::Tensor& k_up,
                    int64_t kind, const at::Tensor& mantissa, const at::Tensor& shift, const at::Tensor& exponent,
                    const at::Tensor& table) {
  return gating(x, k, up, k_up, kind, mantissa, shift, exponent, table).to_rows();
}

Rows4 integer_gated_quantize(const at::Tensor& x, const at::Tensor& k, const at::Tensor& up, const at::Tensor& k_up,
                             int64_t kind, const at::Tensor& mantissa, const at::Tensor& shift,
                             const at::Tensor& exponent, const at::Tensor& table, int64_t bits, bool symmetric) {
  return gating(x, k, up, k_up, kind, mantissa, shift, exponent, table).to_codes(bits, symmetric);
}

RowOp merging(const at::Tensor& x, const at::Tensor& k) {
  RowOp op("qpass_cpu::integer_merge_heads");
  TORCH_CHECK(x.dim() >= 3 && x.size(-1) > 1 && k.dim() == x.dim() && k.size(-1) == 1 && k.size(-2) == x.size(-2),
              "qpass_cpu::integer_merge_heads: rows of ", x.sizes(), " with exponents of ", k.sizes());
  const at::Tensor dense = x.stride(-1) == 1 ? x : x.contiguous();
  op.rows_of(dense, 2);
  op.call.step = kMerge, op.call.heads = x.size(-2);
  const bool flat = x.dim() > 5;
  const at::Tensor xs = flat ? dense.contiguous() : dense, ks = flat ? k.contiguous() : k;
  op.call.head_x = xs.stride(-2), op.call.head_k = ks.stride(-2);
  op.call.a = op.source(xs, ks);
  return op;
}

Rows2 integer_merge_heads(const at::Tensor& x, const at::Tensor& k) { return merging(x, k).to_rows(); }

Rows4 integer_merge_heads_quantize(const at::Tensor& x, const at::Tensor& k, int64_t bits, bool symmetric) {
  return merging(x, k).to_codes(bits, symmetric);
}

RowOp turning(const at::Tensor& x, const at::Tensor& k, const at::Tensor& cos, const at::Tensor& sin) {
  RowOp op("qpass_cpu::integer_rotary");
  TORCH_CHECK(x.size(-1) % 2 == 0 && cos.size(-1) == x.size(-1) && sin.size(-1) == x.size(-1),
              "qpass_cpu::integer_rotary: rows of ", x.sizes(), " with angles of ", cos.sizes());
  op.rows_of(x);
  op.call.step = kRotate;
  op.call.a = op.source(x, k);
  op.call.cos = op.angles(cos, op.call.cos_step), op.call.sin = op.angles(sin, op.call.sin_step);
  return op;
}

// The exponents keep the shape of k, which one of all heads has.
Rows2 integer_rotary(const at::Tensor& x, const at::Tensor& k, const at::Tensor& cos, const at::Tensor& sin) {
  return {std::get<0>(turning(x, k, cos, sin).to_rows()), at::sub(k, 1)};
}

Rows4 integer_rotary_quantize(const at::Tensor& x, const at::Tensor& k, const at::Tensor& cos, const at::Tensor& sin,
                              int64_t bits, bool symmetric) {
  return turning(x, k, cos, sin).to_codes(bits, symmetric);
}

at::Tensor integer_rotary_pack(const at::Tensor& x, const at::Tensor& k, const at::Tensor& cos, const at::Tensor& sin,
                               int64_t bits) {
  return turning(x, k, cos, sin).to_cache(bits);
}

at::Tensor integer_rotary_append(const at::Tensor& x, const at::Tensor& k, const at::Tensor& cos,
                                 const at::Tensor& sin, int64_t bits, const at::Tensor& past) {
  return turning(x, k, cos, sin).to_longer_cache(bits, past);
}

at::Tensor integer_append(const at::Tensor& x, const at::Tensor& k, int64_t bits, const at::Tensor& past) {
  return taken(x, k).to_longer_cache(bits, past);
}

RowOp scaling(const at::Tensor& x, const at::Tensor& k, const at::Tensor& mantissa, const at::Tensor& shift,
              const at::Tensor& exponent) {
  RowOp op("qpass_cpu::integer_scale");
  op.rows_of(x);
  op.call.step = kScale;
  op.channels(mantissa, shift, exponent);
  op.call.a = op.source(x, k);
  return op;
}

Rows2 integer_scale(const at::Tensor& x, const at::Tensor& k, const at::Tensor& mantissa, const at::Tensor& shift,
                    const at::Tensor& exponent) {
  return scaling(x, k, mantissa, shift, exponent).to_rows();
}

Rows2 integer_concat(const at::Tensor& a, const at::Tensor& ka, const at::Tensor& b, const at::Tensor& kb) {
  RowOp op("qpass_cpu::integer_concat");
  TORCH_CHECK(a.dim() == b.dim() && a.sizes().slice(0, a.dim() - 1) == b.sizes().slice(0, b.dim() - 1),
              "qpass_cpu::integer_concat: rows of ", a.sizes(), " and ", b.sizes());
  op.rows_for(a, a.size(-1) + b.size(-1));
  op.call.step = kConcat, op.call.first = a.size(-1);
  op.call.a = op.source(a, ka), op.call.b = op.source(b, kb);
  return op.to_rows();
}

Rows2 integer_logits(const at::Tensor& x, const at::Tensor& k) {
  RowOp op = taken(x, k);
  op.call.step = kLogits;
  return op.to_rows();
}

}  // namespace

TORCH_LIBRARY_IMPL(qpass_cpu, CPU, m) {
  m.impl("integer_quantize", integer_quantize);
  m.impl("integer_pack", integer_pack);
  m.impl("integer_add", integer_add);
  m.impl("integer_norm", integer_norm);
  m.impl("integer_norm_quantize", integer_norm_quantize);
  m.impl("integer_add_norm_quantize", integer_add_norm_quantize);
  m.impl("integer_activation", integer_activation);
  m.impl("integer_activation_quantize", integer_activation_quantize);
  m.impl("integer_gated", integer_gated);
  m.impl("integer_gated_quantize", integer_gated_quantize);
  m.impl("integer_merge_heads", integer_merge_heads);
  m.impl("integer_merge_heads_quantize", integer_merge_heads_quantize);
  m.impl("integer_rotary", integer_rotary);
  m.impl("integer_rotary_quantize", integer_rotary_quantize);
  m.impl("integer_rotary_pack", integer_rotary_pack);
  m.impl("integer_rotary_append", integer_rotary_append);
  m.impl("integer_append", integer_append);
  m.impl("integer_scale", integer_scale);
  m.impl("integer_concat", integer_concat);
  m.impl("integer_logits", integer_logits);
}

}  // namespace qpass_cpu
