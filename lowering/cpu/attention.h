// softmax(scale q k' + mask) v in blocks of 512 keys. The query heads that share a key head are rows of one matrix, so
// keys and values are read once for all of them, and never repeated in memory.
// Compiled twice, with and without avx512_bf16; QPASS_NAME gives each copy its own name.
#include <cstring>

#include "attention_pack.h"
#include "attention_softmax.h"
#include "weight_dot.h"

namespace qpass_cpu {
namespace {

constexpr int64_t kKeys = 512;  // of a block
constexpr int64_t kRows = 8;    // of a register tile
constexpr int64_t kGroup = 32;  // rows that share a visit to a block of keys

constexpr int64_t up32(int64_t x) { return (x + 31) / 32 * 32; }

// [n rows, 2 pairs] times a panel: 32 columns of sums for each row.
template <int n>
void tile(const uint16_t* x, int64_t ldx, const uint16_t* panel, int64_t pairs, float* out, int64_t ldo) {
  const Dot dot;
  __m512 sums[n][2];
  for (auto& pair : sums) pair[0] = pair[1] = _mm512_setzero_ps();
  for (int64_t p = 0; p < pairs; ++p) {
    Dot::Weights lo = dot.pair(_mm512_load_si512(panel + p * 64));
    Dot::Weights hi = dot.pair(_mm512_load_si512(panel + p * 64 + 32));
#pragma GCC unroll 8
    for (int r = 0; r < n; ++r) {
      int32_t v;
      std::memcpy(&v, x + r * ldx + p * 2, 4);
      sums[r][0] = Dot::add(sums[r][0], v, lo);
      sums[r][1] = Dot::add(sums[r][1], v, hi);
    }
  }
  for (int r = 0; r < n; ++r) {
    _mm512_store_ps(out + r * ldo, sums[r][0]);
    _mm512_store_ps(out + r * ldo + 16, sums[r][1]);
  }
}

void rows_tile(int64_t rows, const uint16_t* x, int64_t ldx, const uint16_t* panel, int64_t pairs, float* out,
               int64_t ldo) {
  switch (rows) {
    case 1: return tile<1>(x, ldx, panel, pairs, out, ldo);
    case 2: return tile<2>(x, ldx, panel, pairs, out, ldo);
    case 3: return tile<3>(x, ldx, panel, pairs, out, ldo);
    case 4: return tile<4>(x, ldx, panel, pairs, out, ldo);
    case 5: return tile<5>(x, ldx, panel, pairs, out, ldo);
    case 6: return tile<6>(x, ldx, panel, pairs, out, ldo);
    case 7: return tile<7>(x, ldx, panel, pairs, out, ldo);
    default: return tile<8>(x, ldx, panel, pairs, out, ldo);
  }
}

struct Span {
  int64_t from, to;
};

// One key head of one batch row.
class Head {
 public:
  Head(const AttentionArgs& a, int64_t batch, int64_t head, bool once) : a_(a), b_(batch), h_(head), once_(once) {
    blocks_ = once ? 1 : (a.keys + kKeys - 1) / kKeys;
    char* at = static_cast<char*>(thread_scratch(bytes(a, once)));
    const auto take = [&at](int64_t count, int64_t size) {
      char* got = at;
      at += (count * size + 63) / 64 * 64;
      return got;
    };
    k_ = reinterpret_cast<uint16_t*>(take(blocks_ * kKeys * up32(a.d), 2));
    v_ = reinterpret_cast<uint16_t*>(take(blocks_ * kKeys * up32(a.dv), 2));
    q_ = reinterpret_cast<uint16_t*>(take(kGroup * up32(a.d), 2));
    sums_ = reinterpret_cast<float*>(take(kGroup * up32(a.dv), 4));
    scores_ = reinterpret_cast<float*>(take(kRows * kKeys, 4));
    p_ = reinterpret_cast<uint16_t*>(take(kRows * kKeys, 2));
    product_ = reinterpret_cast<float*>(take(kRows * 32, 4));
    packed_ = take((a.keys + kKeys - 1) / kKeys, 1);
    std::memset(packed_, 0, (a.keys + kKeys - 1) / kKeys);
  }

  static int64_t bytes(const AttentionArgs& a, bool once) {
    const int64_t blocks = (a.keys + kKeys - 1) / kKeys, d = up32(a.d), dv = up32(a.dv);
    return (once ? 1 : blocks) * kKeys * (d + dv) * 2 + kGroup * (d * 2 + dv * 4) + kRows * kKeys * 6 + kRows * 128 +
           blocks + 8 * 64;
  }

  // Rows are (query, query head of this key head), heads innermost.
  void group(int64_t row0, int64_t row1) {
    Span all{a_.keys, 0};
    for (int64_t r = row0; r < row1; ++r) {
      spans_[r - row0] = span(r, r > row0 ? spans_[r - row0 - 1] : all, r > row0);
      states_[r - row0] = {kMinusInfinity, 0.0f};
      load_query(r, q_ + (r - row0) * up32(a_.d));
      if (spans_[r - row0].from < all.from) all.from = spans_[r - row0].from;
      if (spans_[r - row0].to > all.to) all.to = spans_[r - row0].to;
    }
    std::memset(sums_, 0, (row1 - row0) * up32(a_.dv) * 4);
    for (int64_t k0 = all.from / kKeys * kKeys; k0 < all.to; k0 += kKeys) {
      pack(k0);
      for (int64_t r = row0; r < row1; r += kRows) add_block(r, min64(kRows, row1 - r), r - row0, k0);
    }
    for (int64_t r = row0; r < row1; ++r) store(r, r - row0);
  }

 private:
  int64_t query(int64_t row) const { return row / a_.repeats; }
  int64_t q_head(int64_t row) const { return h_ * a_.repeats + row % a_.repeats; }

  MaskRow mask(int64_t row) const {
    const int64_t size = a_.mask_type == kMaskFloat ? 4 : a_.mask_type == kMaskBFloat16 ? 2 : 1;
    const int64_t offset = b_ * a_.mask_b + q_head(row) * a_.mask_h + query(row) * a_.mask_t;
    return {a_.mask_type, static_cast<const char*>(a_.mask) + offset * size};
  }

  // The keys between the first and the last one that a row may see; rows of one query often share their mask's row.
  Span span(int64_t row, Span before, bool have) const {
    if (have && query(row) == query(row - 1) && (!a_.mask_h || a_.mask_type != kMaskBool)) return before;
    Span s{0, a_.causal ? min64(a_.keys, query(row) + 1) : a_.keys};
    if (a_.mask_type != kMaskBool) return s;
    const MaskRow m = mask(row);
    while (s.to > s.from && !m.kept(s.to - 1, 1)) {
      const int64_t k = s.to > 16 ? s.to - 16 : 0;
      const __mmask16 kept = m.kept(k, first16(s.to - k));
      s.to = kept ? k + 32 - __builtin_clz(kept) : k;
    }
    while (s.from < s.to) {
      const __mmask16 kept = m.kept(s.from, first16(s.to - s.from));
      if (kept) return {s.from + __builtin_ctz(kept), s.to};
      s.from += 16;
    }
    return {s.to, s.to};
  }

  void load_query(int64_t row, uint16_t* to) const {
    const uint16_t* q = a_.q + b_ * a_.q_b + q_head(row) * a_.q_h + query(row) * a_.q_t;
    for (int64_t c = 0; c < a_.d; c += 32)
      _mm512_store_si512(to + c, _mm512_maskz_loadu_epi16(first32(a_.d - c), q + c));
  }

  uint16_t* keys_of(int64_t k0) const { return k_ + (once_ ? 0 : k0) * up32(a_.d); }
  uint16_t* values_of(int64_t k0) const { return v_ + (once_ ? 0 : k0) * up32(a_.dv); }

  void pack(int64_t k0) {
    if (packed_[k0 / kKeys]) return;
    packed_[k0 / kKeys] = 1;
    const int64_t count = min64(kKeys, a_.keys - k0);
    pack_keys(a_.k + b_ * a_.k_b + h_ * a_.k_h + k0 * a_.k_t, a_.k_t, count, a_.d, keys_of(k0));
    pack_values(a_.v + b_ * a_.v_b + h_ * a_.v_h + k0 * a_.v_t, a_.v_t, count, a_.dv, values_of(k0));
  }

  // Adds the keys of one block, as far as any of the rows sees them.
  void add_block(int64_t row, int64_t rows, int64_t at, int64_t k0) {
    int64_t from = a_.keys, to = 0;
    for (int64_t r = 0; r < rows; ++r) {
      from = min64(from, spans_[at + r].from);
      to = to > spans_[at + r].to ? to : spans_[at + r].to;
    }
    const int64_t first = from > k0 ? (from - k0) / 32 * 32 : 0;
    const int64_t end = min64(kKeys, up32(min64(to, a_.keys) - k0));
    if (first >= end) return;
    for (int64_t k = first; k < end; k += 32)
      rows_tile(rows, q_ + at * up32(a_.d), up32(a_.d), keys_of(k0) + k * up32(a_.d), up32(a_.d) / 2, scores_ + k, kKeys);
    float factor[kRows];
    for (int64_t r = 0; r < rows; ++r)
      factor[r] = softmax_row(scores_ + r * kKeys + first, p_ + r * kKeys + first, k0 + first, k0 + end,
                              spans_[at + r].from, spans_[at + r].to, a_.scale, mask(row + r), states_[at + r]);
    const int64_t length = up32(min64(kKeys, a_.keys - k0));
    for (int64_t c = 0; c < a_.dv; c += 32) {
      rows_tile(rows, p_ + first, kKeys, values_of(k0) + c * length + first * 32, (end - first) / 2, product_, 32);
      for (int64_t i = 0; i < rows * 2; ++i) {
        float* sum = sums_ + (at + i / 2) * up32(a_.dv) + c + i % 2 * 16;
        const __m512 add = _mm512_load_ps(product_ + i * 16);
        _mm512_store_ps(sum, _mm512_fmadd_ps(_mm512_load_ps(sum), _mm512_set1_ps(factor[i / 2]), add));
      }
    }
  }

  // A row that sees no key is zero, as it is in torch.
  void store(int64_t row, int64_t at) const {
    const float sum = states_[at].sum;
    const __m512 inverse = _mm512_set1_ps(sum == 0.0f ? 0.0f : 1.0f / sum);
    uint16_t* out = a_.out + ((b_ * a_.queries + query(row)) * a_.heads + q_head(row)) * a_.dv;
    for (int64_t c = 0; c < a_.dv; c += 16) {
      __m512 v = _mm512_mul_ps(_mm512_load_ps(sums_ + at * up32(a_.dv) + c), inverse);
      _mm256_mask_storeu_epi16(out + c, first16(a_.dv - c), fp32_to_bf16(v));
    }
  }

  const AttentionArgs& a_;
  int64_t b_, h_, blocks_;
  bool once_;
  uint16_t *k_, *v_, *q_, *p_;
  float *sums_, *scores_, *product_;
  char* packed_;
  Span spans_[kGroup];
  RowState states_[kGroup];
};

}  // namespace

void QPASS_NAME(const AttentionArgs& a, int64_t batch, int64_t head, int64_t row0, int64_t row1) {
  Head one(a, batch, head, row1 - row0 <= kGroup);
  for (int64_t row = row0; row < row1; row += kGroup) one.group(row, min64(row + kGroup, row1));
}

}  // namespace qpass_cpu
