// 32-bit lane n of a packed block holds eight int4 codes (k = 0 2 4 6 | 1 3 5 7 in nibbles 0..7) or four int8 codes.
// The nibble order makes both halves of a lane a bfloat16 pair after one 16-bit table look-up, which ignores all but
// the low bits of its index: no mask and no widening are needed.
#pragma once
#include "simd.h"

namespace qpass_cpu {

alignas(64) static const float kTable32[16] = {-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7};

// The integers of kTable32 as bfloat16, twice: the look-up uses five bits of the index and a nibble has four.
QPASS_INLINE __m512i table16() {
  __m512i t = _mm512_srli_epi32(_mm512_load_si512(kTable32), 16);
  __m256i half = _mm512_cvtepi32_epi16(t);
  return _mm512_inserti64x4(_mm512_castsi256_si512(half), half, 1);
}

template <int kByte>
QPASS_INLINE __m512 signed_byte(__m512i v) {
  if (kByte < 3) v = _mm512_slli_epi32(v, 24 - 8 * (kByte & 3));
  return _mm512_cvtepi32_ps(_mm512_srai_epi32(v, 24));
}

// An integer of eight bits is exact in bfloat16, so the low half of its float32 is zero and needs no rounding.
QPASS_INLINE __m512i exact_pair(__m512 even, __m512 odd) {
  return _mm512_or_si512(_mm512_srli_epi32(_mm512_castps_si512(even), 16), _mm512_castps_si512(odd));
}

// Rounds half away from zero: one addition per element, same error bound as rounding to even.
QPASS_INLINE __m512i rounded_pair(__m512 even, __m512 odd) {
  const __m512i half = _mm512_set1_epi32(0x8000);
  __m512i lo = _mm512_srli_epi32(_mm512_add_epi32(_mm512_castps_si512(even), half), 16);
  __m512i hi = _mm512_add_epi32(_mm512_castps_si512(odd), half);
  return _mm512_ternarylogic_epi32(_mm512_set1_epi32(-65536), hi, lo, 0xea);  // (mask & hi) | lo
}

// Two consecutive k of 16 channels: nibbles t and t + 4 of their lanes, scaled.
QPASS_INLINE __m512i scaled_pair(__m512i codes, int t, __m512 table, __m512 scale, __m512 shift) {
  __m512 even = _mm512_permutexvar_ps(_mm512_srli_epi32(codes, 4 * t), table);
  __m512 odd = _mm512_permutexvar_ps(_mm512_srli_epi32(codes, 4 * t + 16), table);
  return rounded_pair(_mm512_fmadd_ps(even, scale, shift), _mm512_fmadd_ps(odd, scale, shift));
}

}  // namespace qpass_cpu
