// Attention on int8 codes with one scale per token and head: int32 scores by VNNI, weights of 15 bits whose high and low
// byte meet the values' codes in one int8 product each. The query heads that share a key head are rows of one matrix.
// The bits are those of qpass.numerics.integer.attention, for every row by itself.
#include <cstring>

#include "attention_pack.h"
#include "integer_args.h"
#include "integer_math.h"

namespace qpass_cpu {
namespace {

constexpr int64_t kTile = 8;  // rows that share a visit to the keys
// Blocks of 16 keys after which sums of values are widened: 255 * 127 * 2^16 is below 2^31, as integer_sums.py says.
constexpr int64_t kChunk = 1 << 12;

constexpr int64_t up_to(int64_t x, int64_t step) { return (x + step - 1) / step * step; }

QPASS_INLINE int32_t quad_of(const uint8_t* p) {
  int32_t v;
  std::memcpy(&v, p, 4);
  return v;
}

QPASS_INLINE __mmask64 first64(int64_t count) {
  return count >= 64 ? ~0ull : count <= 0 ? 0ull : (1ull << count) - 1ull;
}

// Keys first to last, blocks of 16, that a row or a tile of rows may see.
struct Span {
  int64_t first, last;
};

struct Row {
  const int8_t* q;
  int32_t least_k, least_v;
  int32_t* out;
  int32_t* out_k;
  int32_t c_mantissa, c_exponent;
  int64_t total, folded;
};

// Sums of 64 channels in 64 bits, 256 high + low: vector j, half h of it.
struct WideSums {
  __m512i at[4][2];
  QPASS_INLINE_MEMBER void add(const __m512i* high, const __m512i* low) {
    for (int j = 0; j < 4; ++j) {
      at[j][0] = _mm512_add_epi64(at[j][0], both(_mm512_castsi512_si256(high[j]), _mm512_castsi512_si256(low[j])));
      at[j][1] = _mm512_add_epi64(
          at[j][1], both(_mm512_extracti64x4_epi64(high[j], 1), _mm512_extracti64x4_epi64(low[j], 1)));
    }
  }
  static QPASS_INLINE_MEMBER __m512i both(__m256i high, __m256i low) {
    return _mm512_add_epi64(_mm512_slli_epi64(_mm512_cvtepi32_epi64(high), 8), _mm512_cvtepi32_epi64(low));
  }
};

// One key head of one batch row: its keys and values packed once, then tile after tile of rows.
class Head {
 public:
  Head(const IntAttentionArgs& a, int64_t batch, int64_t head)
      : a_(a), b_(batch), h_(head), blocks_((a.length + 15) / 16), d64_(up_to(a.d, 64)), v64_(up_to(a.dv, 64)) {
    const int64_t keys = blocks_ * 16;
    const int64_t sizes[] = {keys * d64_, keys * v64_, keys * 4, keys * 4, keys * 4, keys * 4, keys * 4,
                             kTile * d64_, kTile * keys * 4, kTile * keys, kTile * keys, kTile * blocks_ * 2,
                             keys * 4, keys * 4, keys * 4, keys * 4};
    int64_t whole = 0;
    for (int64_t size : sizes) whole += up_to(size, 64);
    char* at = static_cast<char*>(thread_scratch(whole));
    void* parts[16];
    for (int i = 0; i < 16; at += up_to(sizes[i], 64), ++i) parts[i] = at;
    keys_ = static_cast<int8_t*>(parts[0]), values_ = static_cast<int8_t*>(parts[1]);
    base_ = static_cast<int32_t*>(parts[2]);
    km_ = static_cast<int32_t*>(parts[3]), kk_ = static_cast<int32_t*>(parts[4]);
    vm_ = static_cast<int32_t*>(parts[5]), vk_ = static_cast<int32_t*>(parts[6]);
    q_ = static_cast<uint8_t*>(parts[7]), scores_ = static_cast<int32_t*>(parts[8]);
    high_ = static_cast<uint8_t*>(parts[9]), low_ = static_cast<uint8_t*>(parts[10]);
    kept_ = static_cast<__mmask16*>(parts[11]);
    for (int i = 0; i < 4; ++i) counts_[i] = static_cast<int32_t*>(parts[12 + i]);
    const int8_t* k = a.keys + batch * a.key_b + head * a.key_h;
    const int8_t* v = a.values + batch * a.value_b + head * a.value_h;
    pack_keys(k);
    pack_values(v);
    scales(k, a.key_t, a.d, km_, kk_);
    scales(v, a.value_t, a.dv, vm_, vk_);
  }

  void tile(int64_t row0, int64_t rows) {
    const Span span = look(row0, rows);
    queries(rows);
    switch (rows) {
      case 1: dots<1>(span); break;
      case 2: dots<2>(span); break;
      case 3: dots<3>(span); break;
      case 4: dots<4>(span); break;
      default: dots<kTile>(span);
    }
    for (int64_t r = 0; r < rows; ++r) weights(rows_[r], r, span);
    for (int64_t r = 0; r < rows; r += 2) {
      for (int64_t c = 0; c < v64_; c += 64) r + 1 < rows ? columns<2>(r, c, span) : columns<1>(r, c, span);
    }
  }

 private:
  // [blocks][d64 / 4][16 keys][4], zeros behind d and the last key; and -128 times the sum of each key.
  void pack_keys(const int8_t* k) {
    const __m512i ones = _mm512_set1_epi8(1);
    for (int64_t block = 0; block < blocks_; ++block) {
      __m512i sum = _mm512_setzero_si512();
      for (int64_t c = 0; c < d64_; c += 64) {
        __m512i rows[16];
        for (int64_t i = 0; i < 16; ++i) {
          const int64_t key = block * 16 + i;
          rows[i] = key < a_.length ? _mm512_maskz_loadu_epi8(first64(a_.d - c), k + key * a_.key_t + c)
                                    : _mm512_setzero_si512();
        }
        transpose16(rows);
        for (int64_t i = 0; i < 16; ++i) {
          _mm512_store_si512(keys_ + block * 16 * d64_ + (c / 4 + i) * 64, rows[i]);
          sum = _mm512_dpbusd_epi32(sum, ones, rows[i]);
        }
      }
      _mm512_store_si512(base_ + block * 16, _mm512_mullo_epi32(sum, all(-128)));
    }
  }

  // [keys / 4][v64 / 64][4 vectors][16 channels][4 keys]; vector i has channels 4 i to 4 i + 3 of each 16.
  void pack_values(const int8_t* v) {
    for (int64_t key = 0; key < blocks_ * 16; key += 4) {
      for (int64_t c = 0; c < v64_; c += 64) {
        __m512i r[4];
        for (int64_t i = 0; i < 4; ++i)
          r[i] = key + i < a_.length ? _mm512_maskz_loadu_epi8(first64(a_.dv - c), v + (key + i) * a_.value_t + c)
                                     : _mm512_setzero_si512();
        const __m512i al = _mm512_unpacklo_epi8(r[0], r[1]), ah = _mm512_unpackhi_epi8(r[0], r[1]);
        const __m512i bl = _mm512_unpacklo_epi8(r[2], r[3]), bh = _mm512_unpackhi_epi8(r[2], r[3]);
        int8_t* to = values_ + key * v64_ + c * 4;
        _mm512_store_si512(to, _mm512_unpacklo_epi16(al, bl));
        _mm512_store_si512(to + 64, _mm512_unpackhi_epi16(al, bl));
        _mm512_store_si512(to + 128, _mm512_unpacklo_epi16(ah, bh));
        _mm512_store_si512(to + 192, _mm512_unpackhi_epi16(ah, bh));
      }
    }
  }

  void scales(const int8_t* rows, int64_t step, int64_t d, int32_t* m, int32_t* k) const {
    for (int64_t key = 0; key < a_.length; ++key) {
      m[key] = rows[key * step + d] + 192;
      k[key] = rows[key * step + d + 1];
    }
    for (int64_t key = a_.length; key < blocks_ * 16; ++key) m[key] = 0, k[key] = 127;
  }

  // The keys that each row keeps, and the least exponents among them; where its result goes.
  Span look(int64_t row0, int64_t rows) {
    Span span{blocks_, 0};
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t query = (row0 + r) / a_.repeats, head = h_ * a_.repeats + (row0 + r) % a_.repeats;
      const uint8_t* keep = a_.keep ? a_.keep + b_ * a_.keep_b + query * a_.keep_t : nullptr;
      const int64_t end = a_.causal ? min64(query + 1, a_.length) : a_.length;
      __m512i least_k = all(127), least_v = all(127);
      for (int64_t block = 0; block < blocks_; ++block) {
        __mmask16 kept = first16(end - block * 16);
        if (keep && kept) {
          const __m128i bytes = _mm_maskz_loadu_epi8(kept, keep + block * 16);
          kept = _mm_test_epi8_mask(bytes, bytes);
        }
        kept_[r * blocks_ + block] = kept;
        if (!kept) continue;
        if (block < span.first) span.first = block;
        if (block >= span.last) span.last = block + 1;
        least_k = _mm512_mask_min_epi32(least_k, kept, least_k, _mm512_load_si512(kk_ + block * 16));
        least_v = _mm512_mask_min_epi32(least_v, kept, least_v, _mm512_load_si512(vk_ + block * 16));
      }
      const int64_t at = (b_ * a_.queries + query) * a_.heads + head;
      const int32_t m = a_.m[b_ * a_.m_b + head * a_.m_h + query * a_.m_t];
      const int32_t k = a_.k[b_ * a_.k_b + head * a_.k_h + query * a_.k_t];
      const int32_t product = mul32(m, a_.scale_mantissa), drop = msb32(product) - 14;
      Row& row = rows_[r];
      row.q = a_.q + b_ * a_.q_b + head * a_.q_h + query * a_.q_t;
      row.least_k = _mm512_reduce_min_epi32(least_k), row.least_v = _mm512_reduce_min_epi32(least_v);
      row.out = a_.out + at * a_.dv, row.out_k = a_.out_k + at;
      row.c_mantissa = rsh32(product, drop);
      row.c_exponent = k + a_.scale_exponent - drop + row.least_k + a_.up;
    }
    if (span.first > span.last) span.first = span.last;
    return span;
  }

  // Codes of the queries, 128 added.
  void queries(int64_t rows) {
    const __m512i flip = _mm512_set1_epi8(-128);
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < d64_; c += 64) {
        const __mmask64 some = first64(a_.d - c);
        _mm512_store_si512(q_ + r * d64_ + c,
                           _mm512_maskz_mov_epi8(some, _mm512_xor_si512(_mm512_maskz_loadu_epi8(some, rows_[r].q + c), flip)));
      }
  }

  // scores = q · k for kRows rows; rows that are not there repeat old numbers, which nobody reads.
  template <int kRows>
  void dots(const Span& span) {
    const int64_t quads = (a_.d + 3) / 4, keys = blocks_ * 16;
    for (int64_t block = span.first; block < span.last; block += 2) {
      const bool two = block + 1 < span.last;
      const int8_t* k0 = keys_ + block * 16 * d64_;
      const int8_t* k1 = two ? k0 + 16 * d64_ : k0;
      __m512i sums[kRows][2];
      for (auto& pair : sums) {
        pair[0] = _mm512_load_si512(base_ + block * 16);
        pair[1] = _mm512_load_si512(base_ + (block + two) * 16);
      }
      for (int64_t quad = 0; quad < quads; ++quad) {
        const __m512i one = _mm512_load_si512(k0 + quad * 64), other = _mm512_load_si512(k1 + quad * 64);
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
          const __m512i v = all(quad_of(q_ + r * d64_ + quad * 4));
          sums[r][0] = _mm512_dpbusd_epi32(sums[r][0], v, one);
          sums[r][1] = _mm512_dpbusd_epi32(sums[r][1], v, other);
        }
      }
      for (int r = 0; r < kRows; ++r) {
        _mm512_store_si512(scores_ + r * keys + block * 16, sums[r][0]);
        if (two) _mm512_store_si512(scores_ + r * keys + block * 16 + 16, sums[r][1]);
      }
    }
  }

  // Shift counts k - least, less `more` bits, for all keys. One that the row does not see may have a lower exponent: its
  // number is never read, and must not wrap.
  void counts(const int32_t* k, int32_t least, int32_t more, int32_t* shift, int32_t* half) const {
    for (int64_t key = 0; key < blocks_ * 16; key += 16) {
      __m512i s = _mm512_sub_epi32(_mm512_load_si512(k + key), all(least - more));
      s = _mm512_min_epi32(_mm512_max_epi32(s, _mm512_setzero_si512()), all(31));
      _mm512_store_si512(shift + key, s);
      _mm512_store_si512(half + key, half_of(s));
    }
  }

  // Scores of one row to the two bytes of its weights, zero where masked; their sum and the sum of the numerators.
  void weights(Row& row, int64_t r, const Span& span) {
    int32_t* scores = scores_ + r * blocks_ * 16;
    const __mmask16* kept = kept_ + r * blocks_;
    // RSH(p, k - least - up) is RSH(p · 2^up, k - least): |p| · 2^up <= 2^29, and half of the shift may be added
    const int32_t up = a_.up > 0 ? a_.up : 0;
    if (known_k_ != row.least_k) counts(kk_, known_k_ = row.least_k, up - a_.up, counts_[0], counts_[1]);
    if (known_v_ != row.least_v) counts(vk_, known_v_ = row.least_v, 8, counts_[2], counts_[3]);
    const __m128i left = _mm_cvtsi32_si128(up);
    __m512i top = all(-INT32_MAX);
    for (int64_t block = span.first; block < span.last; ++block) {
      const int64_t key = block * 16;
      const __m512i wide = _mm512_mullo_epi32(_mm512_load_si512(scores + key), _mm512_load_si512(km_ + key));
      const __m512i sum = _mm512_add_epi32(_mm512_sll_epi32(wide, left), _mm512_load_si512(counts_[1] + key));
      const __m512i score = _mm512_srav_epi32(sum, _mm512_load_si512(counts_[0] + key));
      _mm512_store_si512(scores + block * 16, score);
      top = _mm512_mask_max_epi32(top, kept[block], top, score);
    }
    top = all(_mm512_reduce_max_epi32(top));
    const Exp2 exp2(a_.table);
    const ToQ15 to_q(row.c_exponent - 30);
    const bool one = row.c_mantissa == 1 << 15;  // of 16 bits, by rounding: a factor of 1
    const Factor c(all(one ? 0 : row.c_mantissa));
    const __m512i clip = all(a_.clip > 0 ? a_.clip : INT32_MAX), zero = _mm512_setzero_si512();
    __m512i total = zero, sum = zero;
    for (int64_t block = span.first; block < span.last; ++block) {
      __mmask16 some = kept[block];
      const __m512i distance = _mm512_maskz_sub_epi32(some, top, _mm512_load_si512(scores + block * 16));
      const __m512i z = to_q(one ? distance : c(distance));
      some &= _mm512_cmplt_epi32_mask(z, clip);
      const __m512i e = _mm512_maskz_mov_epi32(some, exp2(z));
      const __m512i wide = _mm512_mullo_epi32(e, _mm512_load_si512(vm_ + block * 16));
      const __m512i folded = _mm512_srav_epi32(_mm512_add_epi32(wide, _mm512_load_si512(counts_[3] + block * 16)),
                                               _mm512_load_si512(counts_[2] + block * 16));
      total = _mm512_add_epi32(total, e);
      sum = _mm512_add_epi32(sum, folded);
      const int64_t at = r * blocks_ * 16 + block * 16;
      _mm_store_si128(reinterpret_cast<__m128i*>(high_ + at), _mm512_cvtepi32_epi8(_mm512_srli_epi32(folded, 8)));
      _mm_store_si128(reinterpret_cast<__m128i*>(low_ + at), _mm512_cvtepi32_epi8(folded));
    }
    row.total = wide_sum(total), row.folded = wide_sum(sum);
  }

  static int64_t wide_sum(__m512i v) {
    return _mm512_reduce_add_epi64(_mm512_add_epi64(_mm512_cvtepi32_epi64(_mm512_castsi512_si256(v)),
                                                    _mm512_cvtepi32_epi64(_mm512_extracti64x4_epi64(v, 1))));
  }

  template <int kRows>
  void columns(int64_t r, int64_t c, const Span& span) {
    WideSums wide[kRows] = {};
    for (int64_t first = span.first; first < span.last; first += kChunk) {
      const Span chunk{first, min64(first + kChunk, span.last)};
      a_.dv - c <= 32 ? narrow_products<kRows>(r, c, chunk, wide) : products<kRows>(r, c, chunk, wide);
    }
    for (int i = 0; i < kRows; ++i) finish(rows_[r + i], c, wide[i]);
  }

  // The same for the last 32 channels or fewer, which are in the lower half of each vector.
  template <int kRows>
  void narrow_products(int64_t r, int64_t c, const Span& span, WideSums* wide) {
    const int64_t keys = blocks_ * 16;
    __m256i high[kRows][4], low[kRows][4];
    for (int i = 0; i < kRows; ++i)
      for (int j = 0; j < 4; ++j) high[i][j] = low[i][j] = _mm256_setzero_si256();
    for (int64_t key = span.first * 16; key < span.last * 16; key += 4) {
      const auto* v = reinterpret_cast<const __m256i*>(values_ + key * v64_ + c * 4);
#pragma GCC unroll 2
      for (int i = 0; i < kRows; ++i) {
        const __m256i h = _mm256_set1_epi32(quad_of(high_ + (r + i) * keys + key));
        const __m256i l = _mm256_set1_epi32(quad_of(low_ + (r + i) * keys + key));
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) {
          const __m256i part = _mm256_load_si256(v + 2 * j);
          high[i][j] = _mm256_dpbusd_epi32(high[i][j], h, part);
          low[i][j] = _mm256_dpbusd_epi32(low[i][j], l, part);
        }
      }
    }
    for (int i = 0; i < kRows; ++i) {
      __m512i wide_high[4], wide_low[4];
      for (int j = 0; j < 4; ++j) {
        wide_high[j] = _mm512_zextsi256_si512(high[i][j]);
        wide_low[j] = _mm512_zextsi256_si512(low[i][j]);
      }
      wide[i].add(wide_high, wide_low);
    }
  }

  // Channels c to c + 64 of weights times values for kRows rows.
  template <int kRows>
  void products(int64_t r, int64_t c, const Span& span, WideSums* wide) {
    const int64_t keys = blocks_ * 16;
    __m512i high[kRows][4], low[kRows][4];
    for (int i = 0; i < kRows; ++i)
      for (int j = 0; j < 4; ++j) high[i][j] = low[i][j] = _mm512_setzero_si512();
    for (int64_t key = span.first * 16; key < span.last * 16; key += 4) {
      const int8_t* v = values_ + key * v64_ + c * 4;
      __m512i part[4];
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) part[j] = _mm512_load_si512(v + j * 64);
#pragma GCC unroll 2
      for (int i = 0; i < kRows; ++i) {
        const __m512i h = all(quad_of(high_ + (r + i) * keys + key)), l = all(quad_of(low_ + (r + i) * keys + key));
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) {
          high[i][j] = _mm512_dpbusd_epi32(high[i][j], h, part[j]);
          low[i][j] = _mm512_dpbusd_epi32(low[i][j], l, part[j]);
        }
      }
    }
    for (int i = 0; i < kRows; ++i) wide[i].add(high[i], low[i]);
  }

  // Sums of 64 bits, brought to 30 bits and divided by the sum of the numerators.
  void finish(const Row& row, int64_t c, const WideSums& sums) const {
    const int64_t total = row.total < 1 ? 1 : row.total, places = msb64(total) - 15, n = rsh64(total, places);
    const int64_t inverse = ((int64_t{1} << 30) + (n >> 1)) / n, wide = msb64(row.folded) + 8 - 29;
    const int64_t drop = wide > 0 ? wide : 0;
    *row.out_k = static_cast<int32_t>(row.least_v + places + 7 - drop);
    const __m512i factor = all(static_cast<int32_t>(inverse));
    __m512i x[4];
    for (int j = 0; j < 4; ++j) {
      const __m256i halves[2] = {dropped(sums.at[j][0], drop), dropped(sums.at[j][1], drop)};
      x[j] = mul_shift(_mm512_inserti64x4(_mm512_castsi256_si512(halves[0]), halves[1], 1), factor);
    }
    // vector j, lane l has channels 16 l + 4 j: a transpose of 4 x 4 lanes
    const __m512i ab = _mm512_shuffle_i32x4(x[0], x[1], 0x44), AB = _mm512_shuffle_i32x4(x[0], x[1], 0xee);
    const __m512i cd = _mm512_shuffle_i32x4(x[2], x[3], 0x44), CD = _mm512_shuffle_i32x4(x[2], x[3], 0xee);
    const __m512i out[4] = {_mm512_shuffle_i32x4(ab, cd, 0x88), _mm512_shuffle_i32x4(ab, cd, 0xdd),
                            _mm512_shuffle_i32x4(AB, CD, 0x88), _mm512_shuffle_i32x4(AB, CD, 0xdd)};
    for (int j = 0; j < 4; ++j) _mm512_mask_storeu_epi32(row.out + c + 16 * j, first16(a_.dv - c - 16 * j), out[j]);
  }

  // RSH(v, drop) in 64 bits.
  static __m256i dropped(__m512i v, int64_t drop) {
    if (drop == 0) return _mm512_cvtepi64_epi32(v);
    const __m512i carry = _mm512_and_si512(_mm512_sra_epi64(v, _mm_cvtsi64_si128(drop - 1)), _mm512_set1_epi64(1));
    return _mm512_cvtepi64_epi32(_mm512_add_epi64(_mm512_sra_epi64(v, _mm_cvtsi64_si128(drop)), carry));
  }

  static QPASS_INLINE_MEMBER __mmask16 first16(int64_t count) { return first_of(count); }

  const IntAttentionArgs& a_;
  int64_t b_, h_, blocks_, d64_, v64_;
  int8_t *keys_, *values_;
  int32_t *base_, *km_, *kk_, *vm_, *vk_, *scores_;
  uint8_t *q_, *high_, *low_;
  __mmask16* kept_;
  int32_t* counts_[4];  // shift and half of each key's score, of each value's weight
  int32_t known_k_ = INT32_MIN, known_v_ = INT32_MIN;  // the least exponents that they are for
  Row rows_[kTile];
};

}  // namespace

void integer_attention(const IntAttentionArgs& a, int64_t batch, int64_t head, int64_t row0, int64_t row1) {
  Head one(a, batch, head);
  for (int64_t row = row0; row < row1; row += kTile) one.tile(row, min64(kTile, row1 - row));
}

}  // namespace qpass_cpu
