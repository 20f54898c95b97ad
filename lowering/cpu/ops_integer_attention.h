// qpass_cpu::integer_attention: attention of integer-only programs over a cache of int8 rows.
// Part of operators.cpp.
#pragma once
#include "ops_integer_rows.h"

namespace qpass_cpu {
namespace {

constexpr const char* kIntAttention = "qpass_cpu::integer_attention";

at::Tensor dense_rows(const at::Tensor& t) { return t.stride(-1) == 1 || t.size(-1) == 1 ? t : t.contiguous(); }

void check_shapes(const at::Tensor& q, const at::Tensor& m, const at::Tensor& k, const at::Tensor& keys,
                  const at::Tensor& values) {
  for (const at::Tensor* t : {&q, &m, &k, &keys, &values})
    TORCH_CHECK(t->dim() == 4, kIntAttention, ": 4 dimensions expected, got shape ", t->sizes());
  TORCH_CHECK(keys.size(1) > 0 && q.size(1) % keys.size(1) == 0 && q.size(3) > 0 && values.size(3) > 2, kIntAttention,
              ": queries ", q.sizes(), " do not go with keys ", keys.sizes());
  check_tensor(q, at::kChar, q.sizes(), kIntAttention, "q");
  check_tensor(m, at::kInt, {q.size(0), q.size(1), q.size(2), 1}, kIntAttention, "m");
  check_tensor(k, at::kInt, {q.size(0), q.size(1), q.size(2), 1}, kIntAttention, "k");
  check_tensor(keys, at::kChar, {q.size(0), keys.size(1), keys.size(2), q.size(3) + 2}, kIntAttention, "keys");
  check_tensor(values, at::kChar, {q.size(0), keys.size(1), keys.size(2), values.size(3)}, kIntAttention, "values");
}

// The mask seen as [batch, 1, queries, keys].
at::Tensor seen_mask(const at::Tensor& mask, IntAttentionArgs& a, int64_t batch) {
  TORCH_CHECK(mask.scalar_type() == at::kBool && mask.dim() == 4 && mask.size(1) == 1, kIntAttention,
              ": the mask must be bool [batch, 1, queries, keys], got ", mask.scalar_type(), " ", mask.sizes());
  at::Tensor wide = mask.expand({batch, 1, a.queries, a.length});
  if (wide.stride(-1) != 1 && a.length > 1) wide = wide.contiguous();
  a.keep = static_cast<const uint8_t*>(wide.const_data_ptr());
  a.keep_b = wide.stride(0), a.keep_t = wide.stride(2);
  return wide;
}

void run_heads(const IntAttentionArgs& a, int64_t batch) {
  const int64_t key_heads = a.heads / a.repeats, rows = a.queries * a.repeats, pairs = batch * key_heads;
  // With fewer heads than threads, the rows of a head are shared out too; each thread packs what it needs.
  const int64_t wanted = at::get_num_threads() == 1 ? 1 : ceil_div(2 * at::get_num_threads(), pairs);
  const int64_t parts = std::max<int64_t>(1, std::min(wanted, rows / 64));
  const int64_t step = round_up(ceil_div(rows, parts), 8);
  const int64_t work = std::max<int64_t>(1, std::min(step, rows) * a.length * (a.d + a.dv));
  at::parallel_for(0, pairs * parts, std::max<int64_t>(1, (1 << 20) / work), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t pair = i / parts, row = i % parts * step;
      if (row < rows) integer_attention(a, pair / key_heads, pair % key_heads, row, std::min(rows, row + step));
    }
  });
}

Rows2 attention_rows(const at::Tensor& q_in, const at::Tensor& m, const at::Tensor& k, const at::Tensor& keys_in,
                     const at::Tensor& values_in, const MaybeTensor& mask, bool causal, const at::Tensor& table,
                     int64_t scale_mantissa, int64_t scale_exponent, int64_t up, int64_t clip) {
  check_shapes(q_in, m, k, keys_in, values_in);
  const at::Tensor q = dense_rows(q_in), keys = dense_rows(keys_in), values = dense_rows(values_in);
  TORCH_CHECK(table.numel() == 33 && table.scalar_type() == at::kInt, kIntAttention, ": a table of ", table.sizes());
  const at::Tensor powers = table.contiguous();
  const int64_t batch = q.size(0);
  IntAttentionArgs a{};
  a.q = q.const_data_ptr<int8_t>(), a.keys = keys.const_data_ptr<int8_t>(), a.values = values.const_data_ptr<int8_t>();
  a.m = m.const_data_ptr<int32_t>(), a.k = k.const_data_ptr<int32_t>();
  a.q_b = q.stride(0), a.q_h = q.stride(1), a.q_t = q.stride(2);
  a.m_b = m.stride(0), a.m_h = m.stride(1), a.m_t = m.stride(2);
  a.k_b = k.stride(0), a.k_h = k.stride(1), a.k_t = k.stride(2);
  a.key_b = keys.stride(0), a.key_h = keys.stride(1), a.key_t = keys.stride(2);
  a.value_b = values.stride(0), a.value_h = values.stride(1), a.value_t = values.stride(2);
  a.causal = causal, a.table = powers.const_data_ptr<int32_t>();
  a.scale_mantissa = scale_mantissa, a.scale_exponent = scale_exponent, a.up = up, a.clip = clip;
  a.heads = q.size(1), a.repeats = q.size(1) / keys.size(1), a.queries = q.size(2), a.length = keys.size(2);
  a.d = q.size(3), a.dv = values.size(3) - 2;
  at::Tensor out = fresh({batch, a.queries, a.heads, a.dv}, at::kInt);
  at::Tensor out_k = fresh({batch, a.queries, a.heads, 1}, at::kInt);
  a.out = out.mutable_data_ptr<int32_t>(), a.out_k = out_k.mutable_data_ptr<int32_t>();
  at::Tensor held;
  if (mask.has_value()) held = seen_mask(*mask, a, batch);
  current_isa();
  if (out.numel()) run_heads(a, batch);
  return {out.transpose(1, 2), out_k.transpose(1, 2)};
}

// The heads of each query side by side, as codes.
Rows4 attention_codes(const at::Tensor& q, const at::Tensor& m, const at::Tensor& k, const at::Tensor& keys,
                      const at::Tensor& values, const MaybeTensor& mask, bool causal, const at::Tensor& table,
                      int64_t scale_mantissa, int64_t scale_exponent, int64_t up, int64_t clip, int64_t bits,
                      bool symmetric) {
  const auto [x, xk] = attention_rows(q, m, k, keys, values, mask, causal, table, scale_mantissa, scale_exponent, up, clip);
  return integer_merge_heads_quantize(x.transpose(1, 2), xk.transpose(1, 2), bits, symmetric);
}

}  // namespace

TORCH_LIBRARY_IMPL(qpass_cpu, CPU, m) {
  m.impl("integer_attention", attention_rows);
  m.impl("integer_attention_quantize", attention_codes);
}

}  // namespace qpass_cpu
