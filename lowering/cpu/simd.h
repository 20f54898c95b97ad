// Helpers of the AVX-512 files. Everything is static: see common.h for why nothing may be merged across files.
#pragma once
#include <immintrin.h>

#include "common.h"

#define QPASS_INLINE_MEMBER inline __attribute__((always_inline))
#define QPASS_INLINE static QPASS_INLINE_MEMBER

namespace qpass_cpu {

struct Lanes {
  __mmask16 lo, hi;
};

// Lanes of a packed block that are real channels: the last block of a ragged weight is partly padding.
QPASS_INLINE Lanes block_lanes(int64_t n, int64_t block) {
  int64_t left = n - block * kBlockN;
  uint32_t bits = left >= kBlockN ? 0xffffffffu : (1u << left) - 1u;
  return {static_cast<__mmask16>(bits & 0xffffu), static_cast<__mmask16>(bits >> 16)};
}

QPASS_INLINE __m512 bf16_to_fp32(__m256i v) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16));
}

// Round to nearest even; a NaN stays a NaN because its quiet bit is set before the low half is dropped.
QPASS_INLINE __m256i fp32_to_bf16(__m512 f) {
  __m512i v = _mm512_castps_si512(f);
  __m512i odd = _mm512_and_si512(_mm512_srli_epi32(v, 16), _mm512_set1_epi32(1));
  __m512i rounded = _mm512_add_epi32(v, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  __mmask16 nan = _mm512_cmp_ps_mask(f, f, _CMP_UNORD_Q);
  rounded = _mm512_mask_or_epi32(rounded, nan, v, _mm512_set1_epi32(0x400000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
}

QPASS_INLINE void store16(const Output& out, int64_t index, __mmask16 lanes, __m512 v) {
  if (out.type == kOutFloat) {
    _mm512_mask_storeu_ps(static_cast<float*>(out.data) + index, lanes, v);
    return;
  }
  __m256i half = out.type == kOutBFloat16 ? fp32_to_bf16(v) : _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT);
  _mm256_mask_storeu_epi16(static_cast<uint16_t*>(out.data) + index, lanes, half);
}

QPASS_INLINE void store32(const Output& out, int64_t row, int64_t block, Lanes lanes, __m512 lo, __m512 hi) {
  int64_t index = row * out.n + block * kBlockN;
#ifdef __AVX512BF16__
  if (out.type == kOutBFloat16) {
    __mmask32 both = static_cast<__mmask32>(lanes.hi) << 16 | lanes.lo;
    _mm512_mask_storeu_epi16(static_cast<uint16_t*>(out.data) + index, both, (__m512i)_mm512_cvtne2ps_pbh(hi, lo));
    return;
  }
#endif
  store16(out, index, lanes.lo, lo);
  if (lanes.hi) store16(out, index + 16, lanes.hi, hi);
}

QPASS_INLINE int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }

// Hides the latency of a linear stream of weights across block boundaries, where the hardware prefetcher restarts.
QPASS_INLINE void prefetch128(const void* p) {
  _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0);
  _mm_prefetch(static_cast<const char*>(p) + 64, _MM_HINT_T0);
}

}  // namespace qpass_cpu
