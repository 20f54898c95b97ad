// Shared by the AVX-512 and the AMX kernel so that one row gives the same bits whatever M it was computed with.
#pragma once
#include "integer_math.h"

namespace qpass_cpu {

struct Int8Epilogue {
  Lanes lanes;
  __m512 scale[2], bias[2];
  __m512i sum[2], mantissa[2], shift[2], half[2];
};

QPASS_INLINE Int8Epilogue int8_epilogue(const Int8Args& a, int64_t block) {
  Int8Epilogue e;
  e.lanes = block_lanes(a.out.n, block);
  for (int h = 0; h < 2; ++h) {
    __mmask16 lanes = h ? e.lanes.hi : e.lanes.lo;
    int64_t n = block * kBlockN + h * 16;
    e.sum[h] = _mm512_maskz_loadu_epi32(lanes, a.w_sum + n);
    if (a.dyadic) {
      e.mantissa[h] = _mm512_maskz_loadu_epi32(lanes, a.dyadic->mantissa + n);
      e.shift[h] = _mm512_min_epi32(_mm512_maskz_loadu_epi32(lanes, a.dyadic->shift + n), all(31));
      e.half[h] = half_of(e.shift[h]);
      continue;
    }
    e.scale[h] = _mm512_maskz_loadu_ps(lanes, a.w_scale + n);
    e.bias[h] = a.bias ? _mm512_maskz_loadu_ps(lanes, a.bias + n) : _mm512_setzero_ps();
  }
  return e;
}

QPASS_INLINE __m512 int8_finish(const Int8Args& a, const Int8Epilogue& e, int64_t row, int h, __m512i acc) {
  __m512i shift = _mm512_mullo_epi32(_mm512_set1_epi32(a.x_zero[row]), e.sum[h]);
  __m512 exact = _mm512_cvtepi32_ps(_mm512_sub_epi32(acc, shift));
  __m512 scale = _mm512_mul_ps(_mm512_set1_ps(a.x_scale[row]), e.scale[h]);
  return _mm512_add_ps(_mm512_mul_ps(exact, scale), e.bias[h]);
}

// The same for an integer-only program: two dyadic factors, of the channel and of the row.
QPASS_INLINE __m512i int8_dyadic(const Int8Args& a, const Int8Epilogue& e, int64_t row, int h, __m512i acc) {
  __m512i exact = _mm512_sub_epi32(acc, _mm512_mullo_epi32(_mm512_set1_epi32(a.x_zero[row]), e.sum[h]));
  __m512i wide = _mm512_sll_epi32(exact, _mm_cvtsi32_si128(a.dyadic->up));
  // below 2^30, as wide is at most 2^30 and the mantissa below 2^15: half may be added
  __m512i channel = _mm512_add_epi32(Factor(e.mantissa[h])(wide), e.half[h]);
  return Factor(all(a.dyadic->row[row]))(_mm512_srav_epi32(channel, e.shift[h]));
}

QPASS_INLINE void int8_store(const Int8Args& a, const Int8Epilogue& e, int64_t row, int64_t block, __m512i lo,
                             __m512i hi) {
  if (a.dyadic) {
    int32_t* out = a.dyadic->out + row * a.out.n + block * kBlockN;
    _mm512_mask_storeu_epi32(out, e.lanes.lo, int8_dyadic(a, e, row, 0, lo));
    if (e.lanes.hi) _mm512_mask_storeu_epi32(out + 16, e.lanes.hi, int8_dyadic(a, e, row, 1, hi));
    return;
  }
  store32(a.out, row, block, e.lanes, int8_finish(a, e, row, 0, lo), int8_finish(a, e, row, 1, hi));
}

}  // namespace qpass_cpu
