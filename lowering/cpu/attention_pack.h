// Keys and values of one head as panels [pairs, 32 columns, 2] of bfloat16: what Dot wants, for both products.
#pragma once
#include "simd.h"

namespace qpass_cpu {

QPASS_INLINE __mmask32 first32(int64_t count) {
  return count >= 32 ? 0xffffffffu : count <= 0 ? 0u : (1u << count) - 1u;
}

// 16 x 16 lanes of 32 bits.
QPASS_INLINE void transpose16(__m512i* r) {
  __m512i t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
  }
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
    r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
    r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
  }
}

// `count` keys [count, d], rows `stride` apart, to [count / 32, d / 2, 32, 2]; both rounded up to 32, zeros behind.
static void pack_keys(const uint16_t* k, int64_t stride, int64_t count, int64_t d, uint16_t* dst) {
  const int64_t width = (d + 31) / 32 * 32;
  for (int64_t top = 0; top < count; top += 16) {
    uint16_t* block = dst + top / 32 * 32 * width + top % 32 * 2;
    for (int64_t c = 0; c < width; c += 32) {
      __m512i rows[16];
      for (int64_t i = 0; i < 16; ++i)
        rows[i] = top + i < count ? _mm512_maskz_loadu_epi16(first32(d - c), k + (top + i) * stride + c)
                                  : _mm512_setzero_si512();
      transpose16(rows);
      for (int64_t i = 0; i < 16; ++i) _mm512_storeu_si512(block + (c / 2 + i) * 64, rows[i]);
    }
    if (top + 16 >= count && top % 32 == 0)  // the other half of the last block
      for (int64_t i = 0; i < width / 2; ++i) _mm512_storeu_si512(block + 32 + i * 64, _mm512_setzero_si512());
  }
}

// `count` values [count, d], rows `stride` apart, to [d / 32, count / 2, 32, 2]; both rounded up to 32, zeros behind.
static void pack_values(const uint16_t* v, int64_t stride, int64_t count, int64_t d, uint16_t* dst) {
  alignas(64) uint16_t index[2][32];
  for (int i = 0; i < 32; ++i) {
    index[0][i] = static_cast<uint16_t>(i / 2 + i % 2 * 32);
    index[1][i] = static_cast<uint16_t>(16 + i / 2 + i % 2 * 32);
  }
  const __m512i low = _mm512_load_si512(index[0]), high = _mm512_load_si512(index[1]);
  const int64_t length = (count + 31) / 32 * 32;
  for (int64_t s = 0; s < length; s += 2) {
    for (int64_t c = 0; c < d; c += 32) {
      const __mmask32 even = s < count ? first32(d - c) : 0, odd = s + 1 < count ? first32(d - c) : 0;
      __m512i a = _mm512_maskz_loadu_epi16(even, v + s * stride + c);
      __m512i b = _mm512_maskz_loadu_epi16(odd, v + (s + 1) * stride + c);
      uint16_t* to = dst + c * length + s * 32;
      _mm512_storeu_si512(to, _mm512_permutex2var_epi16(a, low, b));
      _mm512_storeu_si512(to + 32, _mm512_permutex2var_epi16(a, high, b));
    }
  }
}

}  // namespace qpass_cpu
