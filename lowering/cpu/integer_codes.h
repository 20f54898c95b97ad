// A row to codes: one division a row, rounding anchored at the zero point.
#pragma once
#include "integer_rows.h"

namespace qpass_cpu {

// Codes are -most..most, or 0..most with a zero point and `offset` taken from them; `mantissa` bits of the scale.
struct CodeFormat {
  int32_t most, offset, mantissa;
  bool symmetric;
};

QPASS_INLINE CodeFormat code_format(int64_t bits, bool symmetric, int32_t mantissa) {
  const int32_t most = symmetric ? (1 << (bits - 1)) - 1 : (1 << bits) - 1;
  return {most, bits == 8 && !symmetric ? 128 : 0, mantissa, symmetric};
}

struct RowScale {
  int32_t zero, m, k;
};

struct Requant {
  int32_t m, e, inverse, before, after;
};

QPASS_INLINE int32_t ceil_shift(int32_t v, int32_t k) {
  const int32_t right = k > 0 ? (k > 31 ? 31 : k) : 0, left = k < 0 ? -k : 0;
  return static_cast<int32_t>(static_cast<uint32_t>(-((-v) >> right)) << (left & 31));
}

// The scale m · 2^e >= extent / most, m of `mantissa` bits, and how codes come from it.
static Requant requant(int32_t extent, const CodeFormat& f) {
  const int32_t before = msb32(extent) - 14, g = 14 + 1 + msb32(f.most);
  const int32_t u = mul32(ceil_shift(extent, before), ((1 << g) + f.most - 1) / f.most);
  int32_t drop = msb32(u) - (f.mantissa - 1);
  int32_t m = ceil_shift(u, drop);
  const int32_t full = m >> f.mantissa;
  m >>= full, drop += full;
  const int32_t inverse = ((1 << (f.mantissa + 14)) + (m >> 1)) / m;
  return {m, drop + before - g, inverse, before, drop + f.mantissa + 14 - g};
}

// Codes of x [n] with extent e to dst.
static RowScale quantize_row(const int32_t* x, int32_t k, Extent e, int64_t n, const CodeFormat& f, int8_t* dst) {
  int32_t low = 0, extent = e.largest();
  if (!f.symmetric) {
    low = clamp32(e.low, 1 - (1 << 30), 0);
    extent = static_cast<int32_t>(static_cast<uint32_t>(e.high > 0 ? e.high : 0) - static_cast<uint32_t>(low));
  }
  const Requant r = requant(extent < 1 ? 1 : extent, f);
  const int32_t zero =
      f.symmetric ? 0 : clamp32(rsh32(mul32(rsh32(-low, r.before), r.inverse), r.after), 0, f.most);
  const Shift before(r.before), after(r.after);
  const __m512i inverse = all(r.inverse), least = all(f.symmetric ? -f.most : 0), most = all(f.most);
  const __m512i point = all(zero), offset = all(f.offset);
  for (int64_t i = 0; i < n; i += 16) {
    __m512i v = after(_mm512_mullo_epi32(before(load_row(x, i, n)), inverse));
    v = _mm512_min_epi32(_mm512_max_epi32(_mm512_add_epi32(v, point), least), most);
    const __m128i codes = _mm512_cvtepi32_epi8(_mm512_sub_epi32(v, offset));
    if (n - i >= 16) {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(dst + i), codes);
    } else {
      _mm_mask_storeu_epi8(dst + i, first_of(n - i), codes);
    }
  }
  return {zero - f.offset, r.m, k - r.e};
}

// A row of a cache [n + 2]: symmetric codes, mantissa - 192, exponent.
static void pack_row(const int32_t* x, int32_t k, Extent e, int64_t n, const CodeFormat& f, int8_t* dst) {
  const RowScale scale = quantize_row(x, k, e, n, f, dst);
  dst[n] = static_cast<int8_t>(scale.m - 192);
  dst[n + 1] = static_cast<int8_t>(clamp32(scale.k, -128, 127));
}

}  // namespace qpass_cpu
