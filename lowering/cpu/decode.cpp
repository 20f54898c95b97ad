// Turns one packed block into bfloat16 pairs for the matrix kernels.
#include "decode.h"

#include <cstdlib>
#include <cstring>
#include <new>

#include "weight_epilogue.h"

namespace qpass_cpu {
namespace {

QPASS_INLINE void int8_chunk(const uint8_t* w, uint16_t* dst) {
  for (int h = 0; h < 2; ++h) {
    __m512i v = _mm512_loadu_si512(w + h * 64);
    _mm512_store_si512(dst + h * 32, exact_pair(signed_byte<0>(v), signed_byte<1>(v)));
    _mm512_store_si512(dst + 64 + h * 32, exact_pair(signed_byte<2>(v), signed_byte<3>(v)));
  }
}

QPASS_INLINE void int4_chunk(const uint8_t* w, __m512i table, uint16_t* dst) {
  for (int h = 0; h < 2; ++h) {
    __m512i v = _mm512_loadu_si512(w + h * 64);
    for (int t = 0; t < 4; ++t)
      _mm512_store_si512(dst + t * 64 + h * 32, _mm512_permutexvar_epi16(_mm512_srli_epi32(v, 4 * t), table));
  }
}

void zero_rest(uint16_t* dst, uint16_t* end) {
  if (dst < end) std::memset(dst, 0, (end - dst) * 2);
}

}  // namespace

void decode_block_scaled(const WeightArgs& a, int64_t block, uint16_t* dst) {
  const Lanes lanes = block_lanes(a.out.n, block);
  const __m512 table = _mm512_load_ps(kTable32);
  const uint8_t* w = a.w + block * a.chunks * 128;
  uint16_t* end = dst + a.ldx * 32;
  GroupTerms terms{};
  int64_t next = 0, group = 0;
  for (int64_t c = 0; c < a.chunks; ++c, w += 128, dst += 256) {
    prefetch128(w + 2048);
    __m512i lo = _mm512_loadu_si512(w), hi = _mm512_loadu_si512(w + 64);
#pragma GCC unroll 4
    for (int t = 0; t < 4; ++t) {
      // A group is even, so it never starts inside a pair; padding past k stays in the last group.
      if (8 * c + 2 * t >= next && group < a.groups) {
        terms = group_terms(a, lanes, block, group++);
        next += a.group;
      }
      _mm512_store_si512(dst + t * 64, scaled_pair(lo, t, table, terms.scale[0], terms.shift[0]));
      _mm512_store_si512(dst + t * 64 + 32, scaled_pair(hi, t, table, terms.scale[1], terms.shift[1]));
    }
  }
  zero_rest(dst, end);
}

// k0 is a multiple of 32; the caller's buffer holds k1 - k0 rounded up to 32.
void decode_chunks_exact(const WeightArgs& a, int64_t block, int64_t k0, int64_t k1, uint16_t* dst) {
  const int64_t step = a.bits == 8 ? 4 : 8;
  const int64_t stop = min64((k1 + step - 1) / step, a.chunks);
  const uint8_t* w = a.w + (block * a.chunks + k0 / step) * 128;
  const __m512i table = table16();
  uint16_t* end = dst + (k1 - k0 + 31) / 32 * 32 * 32;
  for (int64_t c = k0 / step; c < stop; ++c, w += 128, dst += 32 * step) {
    prefetch128(w + 4096);
    if (step == 4)
      int8_chunk(w, dst);
    else
      int4_chunk(w, table, dst);
  }
  zero_rest(dst, end);
}

namespace {

struct Scratch {
  void* data = nullptr;
  int64_t bytes = 0;
  ~Scratch() { std::free(data); }
};

}  // namespace

void* thread_scratch(int64_t bytes) {
  static thread_local Scratch scratch;
  if (bytes > scratch.bytes) {
    std::free(scratch.data);
    scratch.bytes = (bytes + 4095) / 4096 * 4096;
    scratch.data = std::aligned_alloc(64, scratch.bytes);
    if (!scratch.data) {
      scratch.bytes = 0;
      throw std::bad_alloc();
    }
  }
  return scratch.data;
}

}  // namespace qpass_cpu
