// Decodes a part of a weight to bfloat16 tiles, one packed chunk per call. The calls stand between the tile instructions
// that work on the part before, where they cost nothing: those leave the vector units idle.
#pragma once
#include "decode.h"
#include "weight_epilogue.h"

namespace qpass_cpu {

// Blocks first .. first + count of the weight, and of each the steps of 32 k from step0 on.
struct Part {
  int64_t first, count, step0, steps;
};

class PartDecoder {
 public:
  explicit PartDecoder(const WeightArgs& a) : a_(a), per_step_(a.bits == 8 ? 8 : 4) {}

  // `dst`: [count, steps, 2 tiles, 16 pairs of k, 16 channels, 2].
  void start(const Part& p, char* dst) {
    part_ = p;
    dst_ = dst;
    block_ = p.first;
    left_ = p.count * p.steps * per_step_;
    start_block();
  }

  int64_t left() const { return left_; }

  void next() {
    if (chunk_ == end_) {
      ++block_;
      start_block();
    }
    char* dst = dst_ + row_ * 64;
    if (chunk_ >= a_.chunks)
      zeros(dst);
    else
      a_.bits == 8 ? int8_chunk(dst) : int4_chunk(dst);
    ++chunk_;
    --left_;
    row_ += 16 / per_step_;
    if (row_ == 16) {
      row_ = 0;
      dst_ += 2048;
    }
  }

 private:
  QPASS_INLINE_MEMBER void start_block() {
    chunk_ = part_.step0 * per_step_;
    end_ = chunk_ + part_.steps * per_step_;
    row_ = 0;
    lanes_ = block_lanes(a_.out.n, block_);
    if (a_.bits == 4) start_group(min64(part_.step0 * 32 / a_.group, a_.groups - 1));
  }

  // Padding past k stays in the last group.
  QPASS_INLINE_MEMBER void start_group(int64_t group) {
    group_ = group;
    terms_ = group_terms(a_, lanes_, block_, group);
    next_k_ = group + 1 < a_.groups ? (group + 1) * a_.group : INT64_MAX;
  }

  QPASS_INLINE_MEMBER void int4_chunk(char* dst) {
    const __m512 table = _mm512_load_ps(kTable32);
    const uint8_t* w = a_.w + (block_ * a_.chunks + chunk_) * 128;
    prefetch128(w + 2048);
    __m512i left = _mm512_loadu_si512(w), right = _mm512_loadu_si512(w + 64);
#pragma GCC unroll 4
    for (int t = 0; t < 4; ++t, dst += 64) {
      // A group is even, so it never starts inside a pair.
      if (8 * chunk_ + 2 * t >= next_k_) start_group(group_ + 1);
      _mm512_store_si512(dst, scaled_pair(left, t, table, terms_.scale[0], terms_.shift[0]));
      _mm512_store_si512(dst + 1024, scaled_pair(right, t, table, terms_.scale[1], terms_.shift[1]));
    }
  }

  // Integers are exact in bfloat16; their scale is applied to the sums.
  QPASS_INLINE_MEMBER void int8_chunk(char* dst) {
    const uint8_t* w = a_.w + (block_ * a_.chunks + chunk_) * 128;
    prefetch128(w + 4096);
    for (int h = 0; h < 2; ++h, dst += 1024) {
      __m512i v = _mm512_loadu_si512(w + h * 64);
      _mm512_store_si512(dst, exact_pair(signed_byte<0>(v), signed_byte<1>(v)));
      _mm512_store_si512(dst + 64, exact_pair(signed_byte<2>(v), signed_byte<3>(v)));
    }
  }

  QPASS_INLINE_MEMBER void zeros(char* dst) {
    for (int64_t i = 0; i < 16 / per_step_; ++i, dst += 64) {
      _mm512_store_si512(dst, _mm512_setzero_si512());
      _mm512_store_si512(dst + 1024, _mm512_setzero_si512());
    }
  }

  const WeightArgs& a_;
  const int64_t per_step_;
  Part part_{};
  char* dst_ = nullptr;
  int64_t block_ = 0, chunk_ = 0, end_ = 0, row_ = 0, left_ = 0, group_ = 0, next_k_ = 0;
  Lanes lanes_{};
  GroupTerms terms_{};
};

}  // namespace qpass_cpu
