// Plain structs of the integer kernels, shared with the operators. No torch header, as in common.h.
#pragma once
#include <cstdint>

namespace qpass_cpu {

// Rows of int32 with an exponent each, by strides of up to three leading dimensions; elements of a row are dense.
struct IntRows {
  const int32_t *x = nullptr, *k = nullptr;
  int64_t x_step[3] = {}, k_step[3] = {};
};

enum RowStep : int { kTake, kAdd, kUnit, kActivate, kGate, kMerge, kRotate, kLogits, kScale, kConcat };
enum RowEmit : int { kEmitRows, kEmitCodes, kEmitPacked };

struct RowCall {
  RowStep step = kTake;
  RowEmit emit = kEmitRows;
  int64_t size[3] = {1, 1, 1}, n = 0;  // rows by dimension, and numbers in a row
  IntRows a, b;                        // b: what is added before a norm, or added, or gated with
  // a norm; w also of an activation and by itself
  const int32_t *w_mantissa = nullptr, *w_shift = nullptr, *bias = nullptr;
  int64_t w_step = 1;
  int32_t w_exponent = 0, bias_exponent = 0;
  int32_t eps_mantissa = 0, eps_exponent = 0, root_n = 0, places = 0;
  bool center = false;
  // an activation
  int kind = 0;
  const int32_t* table = nullptr;
  // heads of `n` numbers that become one row
  int64_t heads = 1, head_x = 0, head_k = 0;
  int64_t first = 0;  // numbers of a in a row of a and b side by side
  // rotary embedding
  const int16_t *cos = nullptr, *sin = nullptr;
  int64_t cos_step[3] = {}, sin_step[3] = {};
  // results, dense
  int32_t *sum = nullptr, *sum_k = nullptr;  // of a and b, before a norm
  int32_t *out = nullptr, *out_k = nullptr;
  int8_t* codes = nullptr;
  int64_t skip = 0, every = 1;  // rows that are left out before each `every` rows of codes: those of a cache
  int32_t *zero = nullptr, *m = nullptr, *codes_k = nullptr;
  int64_t bits = 8;
  bool symmetric = true;
};

// Rows r0 to r1 of all rows of the call.
void integer_rows(const RowCall& call, int64_t r0, int64_t r1);

// int8 queries [batch, heads, queries, d] with m and k each, caches [batch, heads / repeats, keys, d + 2] and
// [..., dv + 2]: codes, mantissa - 192, exponent; strides in elements, of the last dimension 1.
struct IntAttentionArgs {
  const int8_t *q, *keys, *values;
  const int32_t *m, *k;
  int64_t q_b, q_h, q_t, m_b, m_h, m_t, k_b, k_h, k_t, key_b, key_h, key_t, value_b, value_h, value_t;
  const uint8_t* keep;  // null for no mask
  int64_t keep_b, keep_t;
  bool causal;
  const int32_t* table;
  int32_t scale_mantissa, scale_exponent, up, clip;
  int64_t heads, repeats, queries, length, d, dv;
  int32_t *out, *out_k;  // dense [batch, queries, heads, dv] and [..., 1]
};

// Rows row0 to row1 of the queries * repeats that belong to one key head.
void integer_attention(const IntAttentionArgs& a, int64_t batch, int64_t head, int64_t row0, int64_t row1);

}  // namespace qpass_cpu
