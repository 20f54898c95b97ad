// x · h(x), plain or times a second row; h a sigmoid by the branch whose exponential is at most 1, or ReLU.
#pragma once
#include "integer_rows.h"

namespace qpass_cpu {

// The smoothed ones have a dyadic vector in h's argument.
enum ActivationKind : int { kRelu, kSigmoid, kGelu, kGeluTanh, kSmoothedGelu, kSmoothedGeluTanh, kKinds };

// t(x) = x (c0 + c1 x² + c2 x⁴) of gelu and gelu_tanh, in Q13, Q15 and Q24.
struct Cubic {
  int32_t c0, c1, c2;
};

QPASS_INLINE Cubic cubic(ActivationKind kind) {
  return kind == kGelu || kind == kSmoothedGelu ? Cubic{13070, 2412, -10603} : Cubic{13073, 2338, 0};
}

// floor(2^30 / b) and what is left, for b = 2^15 + part, part 0 to 2^15: a chord of the table, a step, a correction.
struct Inverse {
  __m512i at[2], slope[2];
  QPASS_INLINE_MEMBER Inverse() {
    alignas(64) int32_t from[33], down[32];
    for (int i = 0; i <= 32; ++i) from[i] = (1 << 30) / (32768 + 1024 * i);
    for (int i = 0; i < 32; ++i) down[i] = from[i] - from[i + 1];
    for (int h = 0; h < 2; ++h) {
      at[h] = _mm512_loadu_si512(from + 16 * h);
      slope[h] = _mm512_loadu_si512(down + 16 * h);
    }
  }
  QPASS_INLINE_MEMBER __m512i operator()(__m512i part, __m512i b, __m512i* rest) const {
    const __m512i inside = _mm512_min_epi32(part, all(32767)), index = _mm512_srli_epi32(inside, 10);
    __m512i down = _mm512_madd_epi16(_mm512_permutex2var_epi32(slope[0], index, slope[1]),
                                     _mm512_and_si512(inside, all(1023)));
    __m512i d = _mm512_sub_epi32(_mm512_permutex2var_epi32(at[0], index, at[1]), _mm512_srai_epi32(down, 10));
    __m512i r = _mm512_sub_epi32(all(1 << 30), _mm512_mullo_epi32(d, b));  // within 12 b of zero
    __m512i step = _mm512_srai_epi32(_mm512_mullo_epi32(_mm512_srai_epi32(r, 6), d), 24);
    d = _mm512_add_epi32(d, step);
    r = _mm512_sub_epi32(r, _mm512_mullo_epi32(step, b));
    const __mmask16 under = _mm512_cmplt_epi32_mask(r, _mm512_setzero_si512());
    d = _mm512_mask_sub_epi32(d, under, d, all(1));
    r = _mm512_mask_add_epi32(r, under, r, b);
    const __mmask16 over = _mm512_cmpge_epi32_mask(r, b);
    *rest = _mm512_mask_sub_epi32(r, over, r, b);
    return _mm512_mask_add_epi32(d, over, d, all(1));
  }
};

struct Activation {
  ActivationKind kind;
  Exp2 exp2;
  Inverse inverse;
  Channels w;  // of the sigmoid's argument

  Activation(ActivationKind kind, const int32_t* table, const Channels& w) : kind(kind), exp2(table), w(w) {}

  // sigmoid(t) in Q15 from |t| log2(e) in Q15. With b = 1 + 2^-z and 2^30 = d b + r it is (2^30 + b / 2) / b, and for a
  // negative t (2^-z 2^15 + b / 2) / b = 2^15 - ceil((2^30 - b / 2) / b).
  QPASS_INLINE_MEMBER __m512i sigmoid(__m512i z, __mmask16 negative) const {
    const __m512i part = exp2(z), b = _mm512_add_epi32(part, all(1 << 15)), half = _mm512_srli_epi32(b, 1);
    __m512i r, d = inverse(part, b, &r);
    const __mmask16 up = _mm512_cmpge_epi32_mask(_mm512_add_epi32(r, half), b);
    const __mmask16 ceil = _mm512_cmpgt_epi32_mask(r, half);
    d = _mm512_mask_add_epi32(d, (up & ~negative) | (ceil & negative), d, all(1));
    return _mm512_mask_sub_epi32(d, negative, all(1 << 15), d);
  }

  // |t| log2(e) in Q15: |x| times the dyadic vector, 30 - k bits too long.
  QPASS_INLINE_MEMBER __m512i argument(__m512i size, const ToQ15& to_q, int32_t k, int64_t i, int64_t n) const {
    const __m512i t = Factor(w.load(w.mantissa, i, n))(size);
    return w.step ? to_q15(t, _mm512_add_epi32(w.load(w.shift, i, n), all(k + w.exponent - 30))) : to_q(t);
  }

  // |x| in Q12, for a smoothed kind times the dyadic vector first, which leaves it 15 - k bits too short.
  QPASS_INLINE_MEMBER __m512i cubic_argument(__m512i size, const ToQ15& to_q, int32_t k, int64_t i, int64_t n) const {
    if (!smoothed()) return to_q(size);
    const __m512i t = Factor(w.load(w.mantissa, i, n))(size);
    return w.step ? to_q15(t, _mm512_add_epi32(w.load(w.shift, i, n), all(k + w.exponent - 27))) : to_q(t);
  }

  // |t(x)| log2(e) in Q15 with h(x) = sigmoid(t(x)), |x| in Q12 at most 6.
  QPASS_INLINE_MEMBER __m512i gelu_argument(__m512i size) const {
    const Cubic c = cubic(kind);
    const __m512i a = _mm512_min_epi32(size, all(6 << 12));
    const __m512i square = rsh<12>(_mm512_mullo_epi32(a, a)), coarse = rsh<2>(square);
    __m512i slope = _mm512_add_epi32(all(c.c0), rsh<14>(_mm512_mullo_epi32(square, all(c.c1))));
    const __m512i fourth = rsh<16>(_mm512_mullo_epi32(coarse, coarse));
    slope = _mm512_add_epi32(slope, rsh<15>(_mm512_mullo_epi32(fourth, all(c.c2))));
    return rsh<9>(_mm512_mullo_epi32(rsh<14>(_mm512_mullo_epi32(a, slope)), all(11819)));
  }

  // What brings an argument to Q15, for a row with exponent k.
  QPASS_INLINE_MEMBER ToQ15 scale_of(int32_t k) const {
    if (kind != kSigmoid && !smoothed()) return ToQ15(k - 12);
    return ToQ15(w.step ? 0 : *w.shift + k + w.exponent - (smoothed() ? 27 : 30));
  }

  QPASS_INLINE_MEMBER bool smoothed() const { return kind == kSmoothedGelu || kind == kSmoothedGeluTanh; }

  // x · h(x) of 16 numbers of a normalized row with exponent k, channels i to i + 16 of n.
  QPASS_INLINE_MEMBER __m512i operator()(__m512i x, const ToQ15& to_q, int32_t k, int64_t i, int64_t n) const {
    if (kind == kRelu) return _mm512_max_epi32(x, _mm512_setzero_si512());
    const __m512i size = _mm512_abs_epi32(x);
    const __m512i z = kind == kSigmoid ? argument(size, to_q, k, i, n)
                                       : gelu_argument(cubic_argument(size, to_q, k, i, n));
    return mul_shift(x, sigmoid(z, _mm512_movepi32_mask(x)));
  }
};

// dst = x · h(x), rows to rows.
static int32_t activated_row(const int32_t* x, int32_t k, int64_t n, Activation act, int32_t* dst,
                             Extent* seen) {
  const Normal to = normal(extent_of(x, n).largest(), k);
  const Shift shift(to.shift);
  const ToQ15 to_q = act.scale_of(to.k);
  ExtentLanes lanes;
  for (int64_t i = 0; i < n; i += 16) {
    const __m512i v = act(shift(load_row(x, i, n)), to_q, to.k, i, n);
    lanes.see(v);
    store_row(dst, i, n, v);
  }
  *seen = lanes.extent();
  return to.k;
}

// dst = x · h(x) · up, rows to rows.
static int32_t gated_row(const int32_t* x, int32_t k, const int32_t* up, int32_t k_up, int64_t n,
                         Activation act, int32_t* dst, Extent* seen) {
  const Normal to = normal(extent_of(x, n).largest(), k);
  const Normal other = normal(extent_of(up, n).largest(), k_up);
  const Shift shift(to.shift), ups(other.shift);
  const ToQ15 to_q = act.scale_of(to.k);
  ExtentLanes lanes;
  for (int64_t i = 0; i < n; i += 16) {
    const __m512i y = act(shift(load_row(x, i, n)), to_q, to.k, i, n);
    const __m512i v = mul_high(y, ups(load_row(up, i, n)));
    lanes.see(v);
    store_row(dst, i, n, v);
  }
  *seen = lanes.extent();
  return to.k + other.k - 30;
}

}  // namespace qpass_cpu
