// Steps on one row of an integer-only program: x int32 [n] with one exponent k, the value is x · 2^-k.
// Rows pass from step to step in a buffer of the caller, 64-byte aligned and padded to 16; what is behind n is 0.
#pragma once
#include "integer_math.h"

namespace qpass_cpu {

// Least and largest number of a row, with 0 where the row is read as magnitudes.
struct Extent {
  int32_t low, high;
  QPASS_INLINE_MEMBER int32_t largest() const {
    const int32_t minus = static_cast<int32_t>(0u - static_cast<uint32_t>(low));
    return high > minus ? high : minus;
  }
};

struct ExtentLanes {
  __m512i low = _mm512_setzero_si512(), high = _mm512_setzero_si512();
  QPASS_INLINE_MEMBER void see(__m512i v) {
    low = _mm512_min_epi32(low, v);
    high = _mm512_max_epi32(high, v);
  }
  QPASS_INLINE_MEMBER Extent extent() const { return {_mm512_reduce_min_epi32(low), _mm512_reduce_max_epi32(high)}; }
};

QPASS_INLINE __m512i load_row(const int32_t* x, int64_t i, int64_t n) {
  return n - i >= 16 ? _mm512_loadu_si512(x + i) : _mm512_maskz_loadu_epi32(first_of(n - i), x + i);
}

QPASS_INLINE void store_row(int32_t* x, int64_t i, int64_t n, __m512i v) {
  n - i >= 16 ? _mm512_storeu_si512(x + i, v) : _mm512_mask_storeu_epi32(x + i, first_of(n - i), v);
}

static Extent extent_of(const int32_t* x, int64_t n) {
  ExtentLanes seen;
  for (int64_t i = 0; i < n; i += 16) seen.see(load_row(x, i, n));
  return seen.extent();
}

// By how much a row is shifted so that its largest number is at bit 28, and its exponent then.
struct Normal {
  int32_t shift, k;
};

QPASS_INLINE Normal normal(int32_t largest, int32_t k) {
  if (largest == 0) return {0, 127};
  int32_t wanted = k - msb32(largest) + 28;
  if (wanted > 127) wanted = 127;
  return {k - wanted, wanted};
}

// dst = a + b at the coarser of the two normalized exponents. Returns that exponent. dst may be a or b.
static int32_t add_row(const int32_t* a, int32_t ka, const int32_t* b, int32_t kb, int64_t n, int32_t* dst,
                       Extent* seen) {
  const Normal na = normal(extent_of(a, n).largest(), ka), nb = normal(extent_of(b, n).largest(), kb);
  const int32_t k = na.k < nb.k ? na.k : nb.k;
  const Shift a1(na.shift), a2(na.k - k), b1(nb.shift), b2(nb.k - k);
  ExtentLanes lanes;
  for (int64_t i = 0; i < n; i += 16) {
    __m512i v = _mm512_add_epi32(a2(a1(load_row(a, i, n))), b2(b1(load_row(b, i, n))));
    lanes.see(v);
    store_row(dst, i, n, v);
  }
  *seen = lanes.extent();
  return k;
}

// A dyadic vector: mantissa and shift of a channel, or of all (step 0); null for none.
struct Channels {
  const int32_t *mantissa, *shift;
  int64_t step;
  int32_t exponent;
  QPASS_INLINE_MEMBER __m512i load(const int32_t* from, int64_t i, int64_t n) const {
    return step ? load_row(from, i, n) : all(*from);
  }
};

// dst = x times a dyadic vector. Returns the exponent. dst may be x.
static int32_t scale_row(const int32_t* x, int32_t k, int64_t n, const Channels& w, int32_t* dst, Extent* seen) {
  const Normal to = normal(extent_of(x, n).largest(), k);
  const Shift shift(to.shift);
  ExtentLanes lanes;
  for (int64_t i = 0; i < n; i += 16) {
    const __m512i v = Factor(w.load(w.mantissa, i, n))(shift(load_row(x, i, n)));
    const __m512i scaled = rsh_right(v, w.load(w.shift, i, n));
    lanes.see(scaled);
    store_row(dst, i, n, scaled);
  }
  *seen = lanes.extent();
  return to.k + w.exponent - 15;
}

// dst [na + nb] = a and b side by side at the coarser of the two normalized exponents. Returns that exponent.
static int32_t concat_row(const int32_t* a, int32_t ka, int64_t na, const int32_t* b, int32_t kb, int64_t nb,
                          int32_t* dst, Extent* seen) {
  const Normal one = normal(extent_of(a, na).largest(), ka), two = normal(extent_of(b, nb).largest(), kb);
  const int32_t k = one.k < two.k ? one.k : two.k;
  ExtentLanes lanes;
  const auto copy = [&lanes](const int32_t* from, int64_t n, Shift first, Shift second, int32_t* to) {
    for (int64_t i = 0; i < n; i += 16) {
      const __m512i v = second(first(load_row(from, i, n)));
      lanes.see(v);
      store_row(to, i, n, v);
    }
  };
  copy(a, na, Shift(one.shift), Shift(one.k - k), dst);
  copy(b, nb, Shift(two.shift), Shift(two.k - k), dst + na);
  *seen = lanes.extent();
  return k;
}

// Of RMSNorm: the dyadic of n · eps, round(sqrt(n) · 2^places) and places.
struct NormArgs {
  int32_t eps_mantissa, eps_exponent, root_n, places;
};

struct UnitScale {
  int32_t factor, k;
};

// From sum x² of the row at 15 bits to the factor of the row at 29.
static UnitScale unit_scale(int64_t squares, int32_t k15, const NormArgs& norm) {
  const int64_t left = 2 * static_cast<int64_t>(k15) - norm.eps_exponent;
  int64_t over = left - 44 > 0 ? left - 44 : 0;
  over += over & 1;
  int64_t v = rsh64(squares, over) + rsh64(norm.eps_mantissa, over - left);
  if (v < 1) v = 1;
  int64_t even = msb64(v) - 30;
  even += even & 1;
  int64_t root = isqrt(rsh64(v, even));
  if (root < 1) root = 1;
  const int32_t inverse = static_cast<int32_t>(((int64_t{1} << 30) + (root >> 1)) / root);
  return {rsh32(mul32(inverse, norm.root_n), 15), static_cast<int32_t>(14 + ((even + over) >> 1) + norm.places)};
}

// dst = w · x / sqrt(mean(x²) + eps). Returns the exponent. dst may be x.
static int32_t norm_row(const int32_t* x, int32_t k, Extent e, int64_t n, const NormArgs& norm, const Channels& w,
                        int32_t* dst, Extent* seen) {
  const Normal to = normal(e.largest(), k);
  const Shift first(to.shift);
  __m512i low = _mm512_setzero_si512(), high = low;
  for (int64_t i = 0; i < n; i += 16) {
    __m512i v = first(load_row(x, i, n));
    store_row(dst, i, n, v);
    v = rsh<14>(v);
    v = _mm512_mullo_epi32(v, v);
    low = _mm512_add_epi32(low, _mm512_and_si512(v, all(0xffff)));
    high = _mm512_add_epi32(high, _mm512_srai_epi32(v, 16));
  }
  const int64_t squares = (static_cast<int64_t>(_mm512_reduce_add_epi32(high)) << 16) + _mm512_reduce_add_epi32(low);
  const UnitScale unit = unit_scale(squares, to.k - 14, norm);
  const __m512i factor = all(unit.factor);
  ExtentLanes lanes;
  for (int64_t i = 0; i < n; i += 16) {
    __m512i v = mul_shift(load_row(dst, i, n), factor);
    if (w.mantissa) v = rsh_right(Factor(w.load(w.mantissa, i, n))(v), w.load(w.shift, i, n));
    lanes.see(v);
    store_row(dst, i, n, v);
  }
  *seen = lanes.extent();
  return w.mantissa ? unit.k + w.exponent - 15 : unit.k;
}

// dst = x less the mean of its row, rounded at bit 29. dst may be x.
static int32_t center_row(const int32_t* x, int32_t k, Extent e, int64_t n, int32_t* dst, Extent* seen) {
  const Normal to = normal(e.largest(), k);
  const Shift shift(to.shift);
  __m512i low = _mm512_setzero_si512(), high = low;  // of 16 bits each, so that a sum of 32767 fits
  for (int64_t i = 0; i < n; i += 16) {
    const __m512i v = shift(load_row(x, i, n));
    low = _mm512_add_epi32(low, _mm512_and_si512(v, all(0xffff)));
    high = _mm512_add_epi32(high, _mm512_srai_epi32(v, 16));
    store_row(dst, i, n, v);
  }
  int64_t total = _mm512_reduce_add_epi32(high);
  total = total * 65536 + _mm512_reduce_add_epi32(low) + (n << 30);
  const __m512i mean = all(static_cast<int32_t>((total + n / 2) / n - (int64_t{1} << 30)));
  ExtentLanes lanes;
  for (int64_t i = 0; i < n; i += 16) {
    const __m512i v = _mm512_sub_epi32(load_row(dst, i, n), mean);
    store_row(dst, i, n, v);
    lanes.see(v);
  }
  *seen = lanes.extent();
  if (n % 16) *seen = extent_of(dst, n);  // the mean was taken from lanes behind n as well
  return to.k;
}

// dst = the row at 24 bits. Returns its exponent.
static int32_t logits_row(const int32_t* x, int32_t k, int64_t n, int32_t* dst) {
  const Normal to = normal(extent_of(x, n).largest(), k);
  const Shift shift(to.shift);
  for (int64_t i = 0; i < n; i += 16) store_row(dst, i, n, rsh<5>(shift(load_row(x, i, n))));
  return to.k - 5;
}

// The exponent of each of `heads` normalized rows brought to one: dst [heads * n]. x: rows `x_step` apart.
static int32_t merge_row(const int32_t* x, int64_t x_step, const int32_t* k, int64_t k_step, int64_t heads, int64_t n,
                         int32_t* dst, Extent* seen) {
  int32_t common = INT32_MAX;
  for (int64_t h = 0; h < heads; ++h) {
    const Normal to = normal(extent_of(x + h * x_step, n).largest(), k[h * k_step]);
    common = to.k < common ? to.k : common;
    dst[h * n] = to.shift, dst[h * n + 1] = to.k;
  }
  ExtentLanes lanes;
  for (int64_t h = 0; h < heads; ++h) {
    const Shift one(dst[h * n]), two(dst[h * n + 1] - common);
    for (int64_t i = 0; i < n; i += 16) {
      __m512i v = two(one(load_row(x + h * x_step, i, n)));
      lanes.see(v);
      store_row(dst + h * n, i, n, v);
    }
  }
  *seen = lanes.extent();
  return common;
}

// dst = x · cos + rotate(x) · sin with the halves of a row as pairs; cos and sin int16, Q14. n even.
static void rotary_row(const int32_t* x, const int16_t* cos, const int16_t* sin, int64_t n, int32_t* dst,
                       Extent* seen) {
  const int64_t half = n / 2;
  const __m512i zero = _mm512_setzero_si512();
  ExtentLanes lanes;
  for (int64_t i = 0; i < half; i += 16) {
    const __mmask16 some = first_of(half - i);
    const auto factor = [some](const int16_t* from) {
      return Factor(_mm512_cvtepi16_epi32(_mm256_maskz_loadu_epi16(some, from)));
    };
    __m512i a = _mm512_maskz_loadu_epi32(some, x + i), b = _mm512_maskz_loadu_epi32(some, x + half + i);
    __m512i one = _mm512_add_epi32(factor(cos + i)(a), factor(sin + i)(_mm512_sub_epi32(zero, b)));
    __m512i two = _mm512_add_epi32(factor(cos + half + i)(b), factor(sin + half + i)(a));
    lanes.see(one);
    lanes.see(two);
    _mm512_mask_storeu_epi32(dst + i, some, one);
    _mm512_mask_storeu_epi32(dst + half + i, some, two);
  }
  *seen = lanes.extent();
}

}  // namespace qpass_cpu
