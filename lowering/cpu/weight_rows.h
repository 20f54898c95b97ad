// Few rows: int4 or int8 weights are decoded in registers and used at once, by eight rows at a time. Memory is read
// once: a block is still in L2 when the next eight rows want it.
// Compiled twice, with and without avx512_bf16; QPASS_NAME gives each copy its own name.
#include <cstring>

#include "weight_dot.h"
#include "weight_epilogue.h"

namespace qpass_cpu {
namespace {

constexpr int64_t kPrefetchBytes = 4096;

QPASS_INLINE int32_t x_pair(const uint16_t* p) {
  int32_t v;
  std::memcpy(&v, p, 4);
  return v;
}

template <int kRows, int kChains>
struct Sums {
  __m512 v[kRows][2][kChains];

  QPASS_INLINE_MEMBER void clear() {
    for (auto& row : v)
      for (auto& half : row)
        for (auto& chain : half) chain = _mm512_setzero_ps();
  }
  QPASS_INLINE_MEMBER __m512 total(int r, int h) const {
    __m512 s = v[r][h][0];
    for (int c = 1; c < kChains; ++c) s = _mm512_add_ps(s, v[r][h][c]);
    return s;
  }
  QPASS_INLINE_MEMBER void add(int chain, const uint16_t* x, int64_t ldx, const Dot::Weights& lo,
                               const Dot::Weights& hi) {
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      int32_t p = x_pair(x + r * ldx);
      v[r][0][chain] = Dot::add(v[r][0][chain], p, lo);
      v[r][1][chain] = Dot::add(v[r][1][chain], p, hi);
    }
  }
};

// Codes minus 8 are summed exactly per group; scale and zero point are applied to the sum, not to the weights.
template <int kRows, int kChains>
void int4_rows(const WeightArgs& a, int64_t row, int64_t block) {
  const Dot dot;
  const Lanes lanes = block_lanes(a.out.n, block);
  const uint8_t* w = a.w + block * a.chunks * 128;
  const uint16_t* x = a.x + row * a.ldx;
  __m512 out[kRows][2];
  for (auto& pair : out) pair[0] = pair[1] = _mm512_setzero_ps();
  for (int64_t g = 0, c = 0; g < a.groups; ++g) {
    Sums<kRows, kChains> sums;
    sums.clear();
    for (int64_t stop = min64(a.chunks, c + a.group / 8); c < stop; ++c) {
      prefetch128(w + c * 128 + kPrefetchBytes);
      __m512i lo = _mm512_loadu_si512(w + c * 128), hi = _mm512_loadu_si512(w + c * 128 + 64);
#pragma GCC unroll 4
      for (int t = 0; t < 4; ++t) sums.add(t % kChains, x + c * 8 + t * 2, a.ldx, dot.int4(lo, t), dot.int4(hi, t));
    }
    GroupTerms terms = group_terms(a, lanes, block, g);
    for (int r = 0; r < kRows; ++r) {
      for (int h = 0; h < 2; ++h) {
        out[r][h] = _mm512_fmadd_ps(sums.total(r, h), terms.scale[h], out[r][h]);
        if (a.zero)
          out[r][h] = _mm512_fmadd_ps(_mm512_set1_ps(a.x_sum[(row + r) * a.groups + g]), terms.shift[h], out[r][h]);
      }
    }
  }
  for (int r = 0; r < kRows; ++r) store_biased(a, row + r, block, lanes, out[r][0], out[r][1]);
}

template <int kRows, int kChains>
void int8_rows(const WeightArgs& a, int64_t row, int64_t block) {
  const Dot dot;
  const uint8_t* w = a.w + block * a.chunks * 128;
  const uint16_t* x = a.x + row * a.ldx;
  Sums<kRows, kChains> sums;
  sums.clear();
  for (int64_t c = 0; c < a.chunks; ++c) {
    prefetch128(w + c * 128 + kPrefetchBytes);
    __m512i lo = _mm512_loadu_si512(w + c * 128), hi = _mm512_loadu_si512(w + c * 128 + 64);
    sums.add(0, x + c * 4, a.ldx, dot.pair(signed_byte<0>(lo), signed_byte<1>(lo)),
             dot.pair(signed_byte<0>(hi), signed_byte<1>(hi)));
    sums.add(1 % kChains, x + c * 4 + 2, a.ldx, dot.pair(signed_byte<2>(lo), signed_byte<3>(lo)),
             dot.pair(signed_byte<2>(hi), signed_byte<3>(hi)));
  }
  const PanelEnd e = panel_end(a, block);
  for (int r = 0; r < kRows; ++r) store_panel(a, e, row + r, block, sums.total(r, 0), sums.total(r, 1));
}

template <int kRows, int kChains>
void rows_of(const WeightArgs& a, int64_t row, int64_t block) {
  a.bits == 8 ? int8_rows<kRows, kChains>(a, row, block) : int4_rows<kRows, kChains>(a, row, block);
}

}  // namespace

void QPASS_NAME(const WeightArgs& a, const Range& r) {
  for (int64_t block = r.b0; block < r.b1; ++block) {
    for (int64_t row = r.m0; row < r.m1; row += 8) {
      switch (min64(8, r.m1 - row)) {
        case 1: rows_of<1, 4>(a, row, block); break;
        case 2: rows_of<2, 2>(a, row, block); break;
        case 3: rows_of<3, 2>(a, row, block); break;
        case 4: rows_of<4, 1>(a, row, block); break;
        case 5: rows_of<5, 1>(a, row, block); break;
        case 6: rows_of<6, 1>(a, row, block); break;
        case 7: rows_of<7, 1>(a, row, block); break;
        default: rows_of<8, 1>(a, row, block);
      }
    }
  }
}

}  // namespace qpass_cpu
