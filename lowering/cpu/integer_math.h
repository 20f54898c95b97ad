// The arithmetic of integer-only programs: RSH(a, k) = floor((a + 2^(k-1)) / 2^k), a left shift for k < 0, and products
// of 30-bit integers in 32 bits. Every function gives the bits of its namesake in qpass.numerics.integer.
#pragma once
#include "simd.h"

namespace qpass_cpu {

QPASS_INLINE __m512i all(int32_t v) { return _mm512_set1_epi32(v); }

QPASS_INLINE __mmask16 first_of(int64_t count) {
  return count >= 16 ? 0xffff : count <= 0 ? 0 : static_cast<__mmask16>((1u << count) - 1u);
}

QPASS_INLINE int32_t clamp32(int32_t v, int32_t low, int32_t high) { return v < low ? low : v > high ? high : v; }

// RSH by one count for many numbers, |a| < 2^31 - 1: ((a >> (k - 1)) + 1) >> 1.
struct Shift {
  __m128i count;
  bool right;
  explicit QPASS_INLINE_MEMBER Shift(int32_t k)
      : count(_mm_cvtsi32_si128(k > 0 ? clamp32(k - 1, 0, 31) : k < -31 ? 31 : -k)), right(k > 0) {}
  QPASS_INLINE_MEMBER __m512i operator()(__m512i a) const {
    if (!right) return _mm512_sll_epi32(a, count);
    return _mm512_srai_epi32(_mm512_add_epi32(_mm512_sra_epi32(a, count), all(1)), 1);
  }
};

// RSH by a count known when compiling, 1 to 31, of numbers that adding half does not wrap.
template <int kCount>
QPASS_INLINE __m512i rsh(__m512i a) {
  return _mm512_srai_epi32(_mm512_add_epi32(a, all(1 << (kCount - 1))), kCount);
}

// 2^(k - 1), what RSH adds before it shifts; 0 for k = 0 and beyond 32.
QPASS_INLINE __m512i half_of(__m512i k) { return _mm512_srli_epi32(_mm512_sllv_epi32(all(1), k), 1); }

// RSH by a count of each lane's own that is not negative. The shifts take any count: from 32 on, the sign is left.
QPASS_INLINE __m512i rsh_right(__m512i a, __m512i k) {
  __mmask16 some = _mm512_test_epi32_mask(k, k);
  __m512i carry = _mm512_maskz_and_epi32(some, _mm512_srav_epi32(a, _mm512_sub_epi32(k, all(1))), all(1));
  return _mm512_add_epi32(_mm512_srav_epi32(a, k), carry);
}

// RSH by a count of each lane's own, of any sign.
QPASS_INLINE __m512i rsh_each(__m512i a, __m512i k) {
  const __m512i zero = _mm512_setzero_si512();
  __m512i left = _mm512_min_epi32(_mm512_max_epi32(_mm512_sub_epi32(zero, k), zero), all(31));
  return _mm512_sllv_epi32(rsh_right(a, _mm512_max_epi32(k, zero)), left);
}

// RSH(a · b, 15) for |b| < 2^16: the product of the low part, 15 bits, takes half of 2^15 more without a wrap.
QPASS_INLINE __m512i mul_shift(__m512i a, __m512i b) {
  __m512i low = _mm512_mullo_epi32(_mm512_and_si512(a, all(32767)), b);
  return _mm512_add_epi32(_mm512_mullo_epi32(_mm512_srai_epi32(a, 15), b), rsh<15>(low));
}

// RSH(a · b, 15) for |a| <= 2^30 and factors b of 16 bits with a sign, made ready for many a. With a = 2^16 high + low,
// both signed, it is 2 · high · b + RSH(low · b, 15), which are two sums of pairs and one rounded product.
struct Factor {
  __m512i b, high, both;
  explicit QPASS_INLINE_MEMBER Factor(__m512i b)
      : b(b), high(_mm512_slli_epi32(b, 16)), both(_mm512_or_si512(high, all(1))) {}
  QPASS_INLINE_MEMBER __m512i operator()(__m512i a) const {
    const __m512i low = _mm512_mulhrs_epi16(a, b);
    const __m512i pairs = _mm512_mask_blend_epi16(0xaaaaaaaa, low, _mm512_add_epi32(a, all(1 << 15)));
    return _mm512_dpwssd_epi32(_mm512_madd_epi16(pairs, both), pairs, high);
  }
};

// RSH(a · b, 30) for |a|, |b| <= 2^29: 64-bit products of the even and of the odd lanes.
QPASS_INLINE __m512i mul_high(__m512i a, __m512i b) {
  const __m512i half = _mm512_set1_epi64(1 << 29);
  const __m512i even = _mm512_add_epi64(_mm512_mul_epi32(a, b), half);
  const __m512i odd = _mm512_add_epi64(_mm512_mul_epi32(_mm512_srli_epi64(a, 32), _mm512_srli_epi64(b, 32)), half);
  return _mm512_mask_blend_epi32(0xaaaa, _mm512_srli_epi64(even, 30), _mm512_slli_epi64(odd, 2));
}

constexpr int32_t kOctaves = 1 << 20;  // 32 octaves in Q15, where 2^-z is 0

// RSH(u, shift) for u >= 0, but at most 2^20.
QPASS_INLINE __m512i to_q15(__m512i u, __m512i shift) {
  const __m512i zero = _mm512_setzero_si512(), most = all(kOctaves);
  __m512i left = _mm512_min_epi32(_mm512_max_epi32(_mm512_sub_epi32(zero, shift), zero), all(20));
  __m512i first = _mm512_min_epi32(left, all(10));
  __m512i wide = _mm512_min_epi32(rsh_right(u, _mm512_max_epi32(shift, zero)), most);
  wide = _mm512_min_epi32(_mm512_sllv_epi32(wide, first), most);
  return _mm512_min_epi32(_mm512_sllv_epi32(wide, _mm512_sub_epi32(left, first)), most);
}

// The same by one count.
struct ToQ15 {
  __m512i each, half;
  __m128i count;
  bool left;
  explicit QPASS_INLINE_MEMBER ToQ15(int32_t shift)
      : each(all(shift)),
        half(all(shift > 0 && shift < 32 ? static_cast<int32_t>(1u << (shift - 1)) : 0)),
        count(_mm_cvtsi32_si128(shift < 0 ? 0 : shift > 32 ? 32 : shift)),
        left(shift < 0) {}
  QPASS_INLINE_MEMBER __m512i operator()(__m512i u) const {
    if (left) return to_q15(u, each);
    // u and half are 30 bits each: their sum has no sign
    return _mm512_min_epi32(_mm512_srl_epi32(_mm512_add_epi32(u, half), count), all(kOctaves));
  }
};

// 2^-z: the table of 32 octave parts in registers.
struct Exp2 {
  __m512i high[2], low[2];
  explicit QPASS_INLINE_MEMBER Exp2(const int32_t* table) {
    for (int h = 0; h < 2; ++h) {
      high[h] = _mm512_loadu_si512(table + 16 * h);
      low[h] = _mm512_loadu_si512(table + 16 * h + 1);
    }
  }
  // round(2^15 · 2^(-z / 2^15)), 0 to 2^15, for z in Q15, 0 to 2^30.
  QPASS_INLINE_MEMBER __m512i operator()(__m512i z) const {
    __m512i index = _mm512_srli_epi32(z, 10);  // the permutation looks at its five low bits
    __m512i top = _mm512_permutex2var_epi32(high[0], index, high[1]);
    __m512i bottom = _mm512_permutex2var_epi32(low[0], index, low[1]);
    // both below 2^15: a product of pairs, of which one is 0
    __m512i part = _mm512_madd_epi16(_mm512_sub_epi32(top, bottom), _mm512_and_si512(z, all(1023)));
    const __m512i octave = _mm512_srli_epi32(z, 15);
    return _mm512_srlv_epi32(_mm512_add_epi32(_mm512_sub_epi32(top, rsh<10>(part)), half_of(octave)), octave);
  }
};

// ------------------------------------------------------------------------------------------------ one number a row
QPASS_INLINE int32_t rsh32(int32_t a, int32_t k) {
  if (k <= 0) return static_cast<int32_t>(static_cast<uint32_t>(a) << (k < -31 ? 31 : -k));
  return (a >> (k > 31 ? 31 : k)) + ((a >> (k > 32 ? 31 : k - 1)) & 1);
}

QPASS_INLINE int64_t rsh64(int64_t a, int64_t k) {
  if (k <= 0) return static_cast<int64_t>(static_cast<uint64_t>(a) << (k < -63 ? 63 : -k));
  return (a >> (k > 63 ? 63 : k)) + ((a >> (k > 64 ? 63 : k - 1)) & 1);
}

QPASS_INLINE int32_t msb32(int32_t v) { return v > 0 ? 31 - __builtin_clz(static_cast<uint32_t>(v)) : 0; }
QPASS_INLINE int64_t msb64(int64_t v) { return v > 0 ? 63 - __builtin_clzll(static_cast<uint64_t>(v)) : 0; }

QPASS_INLINE int32_t mul32(int32_t a, int32_t b) {
  return static_cast<int32_t>(static_cast<uint32_t>(a) * static_cast<uint32_t>(b));
}

// floor(sqrt(v)), 0 <= v < 2^32, one bit a step.
QPASS_INLINE int64_t isqrt(int64_t v) {
  int64_t root = 0;
  for (int bit = 15; bit >= 0; --bit) {
    int64_t trial = ((root << 1) + (int64_t{1} << bit)) << bit;
    if (v >= trial) v -= trial, root += int64_t{1} << bit;
  }
  return root;
}

}  // namespace qpass_cpu
