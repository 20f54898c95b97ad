// Up to 32 rows on AMX: each stretch of k is decoded to exact integers in L1 and its sum is scaled in float32, which
// costs less than scaling every weight when there are few rows to share that work.
#include "amx.h"
#include "weight_epilogue.h"

namespace qpass_cpu {
namespace {

constexpr int64_t kStretch = 256;  // decoded: 16 KiB, which leaves room in L1 for the activations

struct Buffers {
  alignas(64) uint16_t weights[kStretch * 32];
  alignas(64) float sums[32 * 32];
  alignas(64) float out[32 * 32];
};

void add_scaled(const GroupTerms& t, int64_t rows, Buffers& b) {
  for (int64_t i = 0; i < rows * 2; ++i) {
    __m512 out = _mm512_load_ps(b.out + i * 16);
    _mm512_store_ps(b.out + i * 16, _mm512_fmadd_ps(_mm512_load_ps(b.sums + i * 16), t.scale[i % 2], out));
  }
}

void add_shift(const WeightArgs& a, const GroupTerms& t, int64_t rows, int64_t g, Buffers& b) {
  for (int64_t i = 0; i < rows * 2; ++i) {
    __m512 x = _mm512_set1_ps(a.x_sum[i / 2 * a.groups + g]);
    _mm512_store_ps(b.out + i * 16, _mm512_fmadd_ps(x, t.shift[i % 2], _mm512_load_ps(b.out + i * 16)));
  }
}

template <bool kTwo>
void stretch(const WeightArgs& a, int64_t k0, int64_t steps, Buffers& b, bool fresh) {
  const char* x = reinterpret_cast<const char*>(a.x + k0 * 32);
  if (fresh) zero_tiles<kTwo>();
  tile_steps<Bf16Tiles, kTwo>(x, reinterpret_cast<const char*>(b.weights), steps);
}

// Tiles keep summing across the stretches of one group.
void one_block(const WeightArgs& a, int64_t rows, int64_t block, Buffers& b) {
  const Lanes lanes = block_lanes(a.out.n, block);
  for (int64_t i = 0; i < rows * 2; ++i) _mm512_store_ps(b.out + i * 16, _mm512_setzero_ps());
  for (int64_t g = 0; g < a.groups; ++g) {
    int64_t begin = g * a.group, end = min64(begin + a.group, a.k);
    for (int64_t k0 = begin; k0 < end; k0 += kStretch) {
      int64_t k1 = min64(k0 + kStretch, end), steps = (k1 - k0 + 31) / 32;
      decode_chunks_exact(a, block, k0, k1, b.weights);
      rows > 16 ? stretch<true>(a, k0, steps, b, k0 == begin) : stretch<false>(a, k0, steps, b, k0 == begin);
    }
    rows > 16 ? store_tiles<true>(b.sums) : store_tiles<false>(b.sums);
    GroupTerms terms = group_terms(a, lanes, block, g);
    add_scaled(terms, rows, b);
    if (a.zero) add_shift(a, terms, rows, g, b);
  }
  for (int64_t i = 0; i < rows; ++i)
    store_biased(a, i, block, lanes, _mm512_load_ps(b.out + i * 32), _mm512_load_ps(b.out + i * 32 + 16));
}

}  // namespace

void weight_small_amx(const WeightArgs& a, const Range& r) {
  Buffers buffers;
  configure_tiles(r.m1);
  for (int64_t block = r.b0; block < r.b1; ++block) one_block(a, r.m1, block, buffers);
  _tile_release();
}

}  // namespace qpass_cpu
