// Scales of one packed block, and the last step of every weight-only kernel.
#pragma once
#include "simd.h"

namespace qpass_cpu {

struct GroupTerms {
  __m512 scale[2];
  __m512 shift[2];  // scale * (8 - zero): decoded int4 weights are code - 8
};

QPASS_INLINE GroupTerms group_terms(const WeightArgs& a, Lanes lanes, int64_t block, int64_t g) {
  GroupTerms t;
  for (int h = 0; h < 2; ++h) {
    __mmask16 mask = h ? lanes.hi : lanes.lo;
    int64_t n = block * kBlockN + h * 16;
    t.shift[h] = _mm512_setzero_ps();
    if (a.bits == 8) {
      t.scale[h] = _mm512_maskz_loadu_ps(mask, a.scale32 + n);
      continue;
    }
    t.scale[h] = bf16_to_fp32(_mm256_maskz_loadu_epi16(mask, a.scale16 + g * a.out.n + n));
    if (!a.zero) continue;
    __m512i zero = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(mask, a.zero + g * a.out.n + n));
    __m512 offset = _mm512_cvtepi32_ps(_mm512_sub_epi32(_mm512_set1_epi32(8), zero));
    t.shift[h] = _mm512_mul_ps(t.scale[h], offset);
  }
  return t;
}

QPASS_INLINE void store_biased(const WeightArgs& a, int64_t row, int64_t block, Lanes lanes, __m512 lo, __m512 hi) {
  if (a.bias) {
    lo = _mm512_add_ps(lo, _mm512_maskz_loadu_ps(lanes.lo, a.bias + block * kBlockN));
    hi = _mm512_add_ps(hi, _mm512_maskz_loadu_ps(lanes.hi, a.bias + block * kBlockN + 16));
  }
  store32(a.out, row, block, lanes, lo, hi);
}

// Panels of int4 already contain the scale; those of int8 are plain integers.
struct PanelEnd {
  Lanes lanes;
  __m512 scale[2], bias[2];
};

QPASS_INLINE PanelEnd panel_end(const WeightArgs& a, int64_t block) {
  PanelEnd e;
  e.lanes = block_lanes(a.out.n, block);
  for (int h = 0; h < 2; ++h) {
    __mmask16 mask = h ? e.lanes.hi : e.lanes.lo;
    int64_t n = block * kBlockN + h * 16;
    e.scale[h] = a.bits == 8 ? _mm512_maskz_loadu_ps(mask, a.scale32 + n) : _mm512_set1_ps(1.0f);
    e.bias[h] = a.bias ? _mm512_maskz_loadu_ps(mask, a.bias + n) : _mm512_setzero_ps();
  }
  return e;
}

QPASS_INLINE void store_panel(const WeightArgs& a, const PanelEnd& e, int64_t row, int64_t block, __m512 lo,
                              __m512 hi) {
  store32(a.out, row, block, e.lanes, _mm512_fmadd_ps(lo, e.scale[0], e.bias[0]),
          _mm512_fmadd_ps(hi, e.scale[1], e.bias[1]));
}

}  // namespace qpass_cpu
