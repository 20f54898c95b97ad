// Decodes a part of a weight to bfloat16 tiles, one packed chunk per call. The calls stand between the tile instructions
// that work on the part before: those leave most of the vector units idle.
#pragma once
#include "decode.h"
#include "weight_epilogue.h"

namespace qpass_cpu {

// One block of the weight, and of it the steps of 32 k from step0 on.
struct Part {
  int64_t block, step0, steps;
};

template <int kBits>
class PartDecoder {
 public:
  explicit PartDecoder(const WeightArgs& a) : a_(a) {}

  // `dst`: [steps, 2 tiles, 16 pairs of k, 16 channels, 2].
  void start(const Part& p, char* dst) {
    block_ = p.block;
    chunk_ = p.step0 * kChunks;
    end_ = chunk_ + p.steps * kChunks;
    codes_ = a_.w + (block_ * a_.chunks + chunk_) * 128;
    dst_ = dst;
    lanes_ = block_lanes(a_.out.n, block_);
    if (kBits == 4) start_group(min64(p.step0 * 32 / a_.group, a_.groups - 1));
  }

  int64_t left() const { return end_ - chunk_; }

  QPASS_INLINE_MEMBER void next() {
    if (chunk_ >= a_.chunks)
      zeros();
    else
      kBits == 8 ? int8_chunk() : int4_chunk();
    codes_ += 128;
    dst_ += kPairs * 64;
    if (++chunk_ % kChunks == 0) dst_ += 1024;  // over the right tile
  }

 private:
  static constexpr int64_t kChunks = kBits == 8 ? 8 : 4;  // of a step
  static constexpr int64_t kPairs = 16 / kChunks;         // of k in a chunk

  // Padding past k stays in the last group.
  __attribute__((noinline)) void start_group(int64_t group) {
    group_ = group;
    terms_ = group_terms(a_, lanes_, block_, group);
    next_k_ = group + 1 < a_.groups ? (group + 1) * a_.group : INT64_MAX;
  }

  QPASS_INLINE_MEMBER void store(int t, __m512i left, __m512i right) {
    _mm512_store_si512(dst_ + t * 64, left);
    _mm512_store_si512(dst_ + t * 64 + 1024, right);
  }

  QPASS_INLINE_MEMBER void int4_chunk() {
    const __m512 table = _mm512_load_ps(kTable32);
    prefetch128(codes_ + 2048);
    __m512i left = _mm512_loadu_si512(codes_), right = _mm512_loadu_si512(codes_ + 64);
    if (8 * chunk_ >= next_k_) start_group(group_ + 1);
#pragma GCC unroll 4
    for (int t = 0; t < 4; ++t) {
      // A group is even, so it never starts inside a pair.
      if (t && 8 * chunk_ + 2 * t >= next_k_) start_group(group_ + 1);
      store(t, scaled_pair(left, t, table, terms_.scale[0], terms_.shift[0]),
            scaled_pair(right, t, table, terms_.scale[1], terms_.shift[1]));
    }
  }

  // Integers are exact in bfloat16; their scale is applied to the sums.
  QPASS_INLINE_MEMBER void int8_chunk() {
    prefetch128(codes_ + 4096);
    __m512i left = _mm512_loadu_si512(codes_), right = _mm512_loadu_si512(codes_ + 64);
    store(0, exact_pair(signed_byte<0>(left), signed_byte<1>(left)),
          exact_pair(signed_byte<0>(right), signed_byte<1>(right)));
    store(1, exact_pair(signed_byte<2>(left), signed_byte<3>(left)),
          exact_pair(signed_byte<2>(right), signed_byte<3>(right)));
  }

  QPASS_INLINE_MEMBER void zeros() {
    for (int t = 0; t < kPairs; ++t) store(t, _mm512_setzero_si512(), _mm512_setzero_si512());
  }

  const WeightArgs& a_;
  const uint8_t* codes_ = nullptr;
  char* dst_ = nullptr;
  int64_t block_ = 0, chunk_ = 0, end_ = 0, group_ = 0, next_k_ = 0;
  Lanes lanes_{};
  GroupTerms terms_{};
};

}  // namespace qpass_cpu
