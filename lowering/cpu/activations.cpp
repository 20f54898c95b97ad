// Activations as the kernels want them: padded rows, or for AMX tiles of 32 rows by 64 bytes, one after the other.
#include <cstring>

#include "simd.h"

namespace qpass_cpu {
namespace {

QPASS_INLINE __mmask16 first_lanes(int64_t count) {
  return count >= 16 ? 0xffff : count <= 0 ? 0 : static_cast<__mmask16>((1u << count) - 1u);
}

QPASS_INLINE __m256i load_bf16(const void* x, int from, int64_t i, __mmask16 mask) {
  if (from == kOutBFloat16) return _mm256_maskz_loadu_epi16(mask, static_cast<const uint16_t*>(x) + i);
  if (from == kOutFloat) return fp32_to_bf16(_mm512_maskz_loadu_ps(mask, static_cast<const float*>(x) + i));
  return fp32_to_bf16(_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, static_cast<const uint16_t*>(x) + i)));
}

// Index of x[row, i] where i is a multiple of 16.
QPASS_INLINE int64_t place(int64_t row, int64_t i, int64_t ldx, bool tiles) {
  if (!tiles) return row * ldx + i;
  return row / 32 * 32 * ldx + i / 32 * 1024 + row % 32 * 32 + i % 32;
}

}  // namespace

void rows_to_bf16(const void* x, int from, int64_t r0, int64_t r1, int64_t k, uint16_t* dst, int64_t ldx, bool tiles) {
  if (tiles && from == kOutBFloat16)
    return rows_to_tiles(static_cast<const uint8_t*>(x), r0, r1, k * 2, reinterpret_cast<uint8_t*>(dst));
  for (int64_t r = r0; r < r1; ++r) {
    for (int64_t i = 0; i < ldx; i += 16) {
      __m256i v = load_bf16(x, from, r * k + i, first_lanes(k - i));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(dst + place(r, i, ldx, tiles)), v);
    }
  }
}

// Eight tiles at a time: their 16 KiB stay in L1 until they are full, and of each row a stretch is read at once.
void rows_to_tiles(const uint8_t* x, int64_t r0, int64_t r1, int64_t k, uint8_t* dst) {
  const int64_t steps = (k + 63) / 64;
  for (int64_t top = r0; top < r1; top = min64(top / 32 * 32 + 32, r1)) {
    for (int64_t s0 = 0; s0 < steps; s0 += 8) {
      for (int64_t r = top; r < min64(top / 32 * 32 + 32, r1); ++r) {
        uint8_t* to = dst + (r / 32 * steps * 32 + r % 32) * 64;
        for (int64_t s = s0; s < min64(s0 + 8, steps); ++s) {
          int64_t left = k - s * 64;
          __mmask64 mask = left >= 64 ? ~0ull : (1ull << left) - 1ull;
          _mm512_storeu_si512(to + s * 2048, _mm512_maskz_loadu_epi8(mask, x + r * k + s * 64));
        }
      }
    }
  }
}

void group_sums(const WeightArgs& a, int64_t rows, bool tiles, float* dst) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t g = 0; g < a.groups; ++g) {
      __m512 sum = _mm512_setzero_ps();
      int64_t end = min64(g * a.group + a.group, a.k);
      for (int64_t i = g * a.group; i < end; i += 16)
        sum = _mm512_add_ps(
            sum, bf16_to_fp32(_mm256_maskz_loadu_epi16(first_lanes(end - i), a.x + place(r, i, a.ldx, tiles))));
      dst[r * a.groups + g] = _mm512_reduce_add_ps(sum);
    }
  }
}

}  // namespace qpass_cpu
