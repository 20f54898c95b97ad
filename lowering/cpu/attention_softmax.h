// One row of scores -> weights: scale, mask, running maximum and sum (the softmax over keys that come in blocks).
#pragma once
#include <limits>

#include "simd.h"

namespace qpass_cpu {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

// exp for arguments up to 0, within 2 units in the last place; 0 for -inf, NaN for NaN.
QPASS_INLINE __m512 exp_nonpositive(__m512 x) {
  x = _mm512_max_ps(_mm512_set1_ps(-104.0f), x);  // the second operand is what a NaN leaves
  __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), _MM_FROUND_TO_NEAREST_INT);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693145752f), x);  // ln 2 in two parts: n times the first is exact
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(1.42860677e-6f), r);
  __m512 p = _mm512_set1_ps(1.0f / 720);
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 120));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 24));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 6));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.5f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
  return _mm512_scalef_ps(p, n);
}

QPASS_INLINE __mmask16 first16(int64_t count) {
  return count >= 16 ? 0xffff : count <= 0 ? 0 : static_cast<__mmask16>((1u << count) - 1u);
}

// Keys [k0, k1) of the mask's row: which are kept, and what is added to their score.
struct MaskRow {
  MaskType type;
  const void* data;

  QPASS_INLINE_MEMBER __mmask16 kept(int64_t key, __mmask16 lanes) const {
    if (type != kMaskBool) return lanes;
    __m128i v = _mm_maskz_loadu_epi8(lanes, static_cast<const uint8_t*>(data) + key);
    return _mm_test_epi8_mask(v, v);
  }
  QPASS_INLINE_MEMBER __m512 add(int64_t key, __mmask16 lanes, __m512 score) const {
    if (type == kMaskFloat)
      return _mm512_add_ps(score, _mm512_maskz_loadu_ps(lanes, static_cast<const float*>(data) + key));
    if (type == kMaskBFloat16) {
      __m256i v = _mm256_maskz_loadu_epi16(lanes, static_cast<const uint16_t*>(data) + key);
      return _mm512_add_ps(score, bf16_to_fp32(v));
    }
    return score;
  }
};

// The running state of a row.
struct RowState {
  float top, sum;
};

// Scores of keys [k0, k1) in place, of which [from, to) count; weights as bfloat16 to `p`, zeros for the others.
// Returns the factor for what was summed before.
static float softmax_row(float* scores, uint16_t* p, int64_t k0, int64_t k1, int64_t from, int64_t to, float scale,
                         const MaskRow& mask, RowState& state) {
  const __m512 low = _mm512_set1_ps(kMinusInfinity);
  __m512 top = low;
  for (int64_t k = k0; k < k1; k += 16) {
    __mmask16 lanes = first16(to - k) & static_cast<__mmask16>(~first16(from - k));
    lanes = mask.kept(k, lanes);
    __m512 v = _mm512_mul_ps(_mm512_load_ps(scores + k - k0), _mm512_set1_ps(scale));
    v = _mm512_mask_mov_ps(low, lanes, mask.add(k, lanes, v));
    _mm512_store_ps(scores + k - k0, v);
    top = _mm512_max_ps(top, v);
  }
  const float before = state.top;
  state.top = __builtin_fmaxf(before, _mm512_reduce_max_ps(top));
  // Nothing is kept so far: any finite number makes every weight zero.
  const __m512 shift = _mm512_set1_ps(state.top == kMinusInfinity ? 0.0f : state.top);
  __m512 sum = _mm512_setzero_ps();
  for (int64_t k = k0; k < k1; k += 16) {
    __m512 e = exp_nonpositive(_mm512_sub_ps(_mm512_load_ps(scores + k - k0), shift));
    sum = _mm512_add_ps(sum, e);
    _mm256_store_si256(reinterpret_cast<__m256i*>(p + k - k0), fp32_to_bf16(e));
  }
  if (before == kMinusInfinity) {
    state.sum = _mm512_reduce_add_ps(sum);
    return 0.0f;
  }
  const float factor = _mm512_cvtss_f32(exp_nonpositive(_mm512_set1_ps(before - state.top)));
  state.sum = state.sum * factor + _mm512_reduce_add_ps(sum);
  return factor;
}

}  // namespace qpass_cpu
