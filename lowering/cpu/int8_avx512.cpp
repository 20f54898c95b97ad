// u8 x s8 -> s32 with VNNI. vpdpbusd adds four products at full width, so nothing saturates for any code.
#include <cstring>

#include "int8_epilogue.h"

namespace qpass_cpu {
namespace {

constexpr int64_t kPrefetchBytes = 4096;

QPASS_INLINE __m512i quad(const uint8_t* p) {
  int32_t v;
  std::memcpy(&v, p, 4);
  return _mm512_set1_epi32(v);
}

// kChains independent sums per output hide the latency of vpdpbusd when there are few rows.
template <int kRows, int kChains>
void rows_of_block(const Int8Args& a, const Int8Epilogue& e, int64_t row, int64_t block) {
  const int8_t* w = a.w + block * a.k4 * 128;
  const uint8_t* x = a.x + row * a.ldx;
  __m512i acc[kChains][kRows][2];
  for (auto& chain : acc)
    for (auto& pair : chain) pair[0] = pair[1] = _mm512_setzero_si512();
  int64_t q = 0;
  for (; q + kChains <= a.k4; q += kChains) {
#pragma GCC unroll 4
    for (int c = 0; c < kChains; ++c) {
      const int8_t* p = w + (q + c) * 128;
      prefetch128(p + kPrefetchBytes);
      __m512i lo = _mm512_loadu_si512(p), hi = _mm512_loadu_si512(p + 64);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        __m512i v = quad(x + r * a.ldx + (q + c) * 4);
        acc[c][r][0] = _mm512_dpbusd_epi32(acc[c][r][0], v, lo);
        acc[c][r][1] = _mm512_dpbusd_epi32(acc[c][r][1], v, hi);
      }
    }
  }
  for (; q < a.k4; ++q) {
    __m512i lo = _mm512_loadu_si512(w + q * 128), hi = _mm512_loadu_si512(w + q * 128 + 64);
    for (int r = 0; r < kRows; ++r) {
      __m512i v = quad(x + r * a.ldx + q * 4);
      acc[0][r][0] = _mm512_dpbusd_epi32(acc[0][r][0], v, lo);
      acc[0][r][1] = _mm512_dpbusd_epi32(acc[0][r][1], v, hi);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int c = 1; c < kChains; ++c) {
      acc[0][r][0] = _mm512_add_epi32(acc[0][r][0], acc[c][r][0]);
      acc[0][r][1] = _mm512_add_epi32(acc[0][r][1], acc[c][r][1]);
    }
    int8_store(a, e, row + r, block, acc[0][r][0], acc[0][r][1]);
  }
}

void some_rows(const Int8Args& a, const Int8Epilogue& e, int64_t row, int64_t rows, int64_t block) {
  switch (rows) {
    case 1: return rows_of_block<1, 4>(a, e, row, block);
    case 2: return rows_of_block<2, 4>(a, e, row, block);
    case 3: return rows_of_block<3, 2>(a, e, row, block);
    case 4: return rows_of_block<4, 2>(a, e, row, block);
    case 5: return rows_of_block<5, 1>(a, e, row, block);
    case 6: return rows_of_block<6, 1>(a, e, row, block);
    case 7: return rows_of_block<7, 1>(a, e, row, block);
    default: return rows_of_block<8, 1>(a, e, row, block);
  }
}

}  // namespace

void int8_avx512(const Int8Args& a, const Range& r) {
  for (int64_t block = r.b0; block < r.b1; ++block) {
    Int8Epilogue e = int8_epilogue(a, block);
    for (int64_t row = r.m0; row < r.m1; row += 8) some_rows(a, e, row, min64(8, r.m1 - row), block);
  }
}

}  // namespace qpass_cpu
