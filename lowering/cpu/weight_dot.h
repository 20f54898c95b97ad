// The one step in which machines differ: two products of bfloat16 pairs added to a float32 sum.
#pragma once
#include "decode.h"

namespace qpass_cpu {

#ifdef __AVX512BF16__

struct Dot {
  using Weights = __m512bh;
  __m512i table = table16();

  QPASS_INLINE_MEMBER Weights int4(__m512i codes, int t) const {
    return (__m512bh)_mm512_permutexvar_epi16(_mm512_srli_epi32(codes, 4 * t), table);
  }
  QPASS_INLINE_MEMBER Weights pair(__m512i packed) const { return (__m512bh)packed; }
  QPASS_INLINE_MEMBER Weights pair(__m512 even, __m512 odd) const { return (__m512bh)exact_pair(even, odd); }
  QPASS_INLINE_MEMBER static __m512 add(__m512 acc, int32_t x, Weights w) {
    return _mm512_dpbf16_ps(acc, (__m512bh)_mm512_set1_epi32(x), w);
  }
};

#else

struct Dot {
  struct Weights {
    __m512 even, odd;
  };
  __m512 table = _mm512_load_ps(kTable32);

  QPASS_INLINE_MEMBER Weights int4(__m512i codes, int t) const {
    return {_mm512_permutexvar_ps(_mm512_srli_epi32(codes, 4 * t), table),
            _mm512_permutexvar_ps(_mm512_srli_epi32(codes, 4 * t + 16), table)};
  }
  QPASS_INLINE_MEMBER Weights pair(__m512i packed) const {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(packed, 16)),
            _mm512_castsi512_ps(_mm512_and_si512(packed, _mm512_set1_epi32(-65536)))};
  }
  QPASS_INLINE_MEMBER Weights pair(__m512 even, __m512 odd) const { return {even, odd}; }
  QPASS_INLINE_MEMBER static __m512 add(__m512 acc, int32_t x, const Weights& w) {
    __m512i both = _mm512_set1_epi32(x);
    acc = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_slli_epi32(both, 16)), w.even, acc);
    return _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_and_si512(both, _mm512_set1_epi32(-65536))), w.odd, acc);
  }
};

#endif

}  // namespace qpass_cpu
