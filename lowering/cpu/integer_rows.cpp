// Rows in, rows, codes or rows of a cache out: one visit to each row, which stays in L1 between the steps.
#include "integer_activation.h"
#include "integer_args.h"
#include "integer_codes.h"

namespace qpass_cpu {
namespace {

struct Place {
  int64_t at[3];
  int64_t of(const int64_t* step) const { return at[0] * step[0] + at[1] * step[1] + at[2] * step[2]; }
};

Place place_of(const RowCall& c, int64_t row) {
  const int64_t last = row % c.size[2], rest = row / c.size[2];
  return {{rest / c.size[1], rest % c.size[1], last}};
}

class Rows {
 public:
  explicit Rows(const RowCall& c)
      : c_(c),
        width_(c.step == kMerge ? c.heads * c.n : c.n),
        w_{c.w_mantissa, c.w_shift, c.w_step, c.w_exponent},
        norm_{c.eps_mantissa, c.eps_exponent, c.root_n, c.places},
        format_(code_format(c.bits, c.emit == kEmitPacked || c.symmetric, c.emit == kEmitPacked ? 8 : 15)) {
    if (c.emit != kEmitRows) scratch_ = static_cast<int32_t*>(thread_scratch((width_ + 16) * 4));
  }

  void run(int64_t row, const Activation* act) {
    const Place place = place_of(c_, row);
    int32_t* to = c_.emit == kEmitRows ? c_.out + row * width_ : scratch_;
    Extent seen{};
    const int32_t* x = to;
    int32_t k;
    if (c_.step == kTake) {  // read where it lies
      x = c_.a.x + place.of(c_.a.x_step), k = c_.a.k[place.of(c_.a.k_step)];
      seen = extent_of(x, c_.n);
    } else {
      k = step(row, place, act, to, &seen);
    }
    emit(row, x, k, seen);
  }

 private:
  int32_t step(int64_t row, const Place& place, const Activation* act, int32_t* to, Extent* seen) const {
    const int32_t *a = c_.a.x + place.of(c_.a.x_step), *ka = c_.a.k + place.of(c_.a.k_step);
    const int32_t *b = nullptr, *kb = nullptr;
    if (c_.b.x) b = c_.b.x + place.of(c_.b.x_step), kb = c_.b.k + place.of(c_.b.k_step);
    switch (c_.step) {
      case kAdd: return add_row(a, *ka, b, *kb, c_.n, to, seen);
      case kUnit: return norm(row, a, *ka, b, kb, to, seen);
      case kActivate: return activated_row(a, *ka, c_.n, *act, to, seen);
      case kGate: return gated_row(a, *ka, b, *kb, c_.n, *act, to, seen);
      case kMerge: return merge_row(a, c_.head_x, ka, c_.head_k, c_.heads, c_.n, to, seen);
      case kScale: return scale_row(a, *ka, c_.n, w_, to, seen);
      case kConcat: return concat_row(a, *ka, c_.first, b, *kb, c_.n - c_.first, to, seen);
      case kLogits: return logits_row(a, *ka, c_.n, to);
      default: break;
    }
    rotary_row(a, c_.cos + place.of(c_.cos_step), c_.sin + place.of(c_.sin_step), c_.n, to, seen);
    return *ka - 1;
  }

  // RMSNorm or LayerNorm of a, or of a + b, whose sum is a result as well.
  int32_t norm(int64_t row, const int32_t* a, int32_t ka, const int32_t* b, const int32_t* kb, int32_t* to,
               Extent* seen) const {
    Extent e;
    if (b) {
      int32_t* sum = c_.sum + row * c_.n;
      ka = c_.sum_k[row] = add_row(a, ka, b, *kb, c_.n, sum, &e);
      a = sum;
    } else {
      e = extent_of(a, c_.n);
    }
    if (c_.center) {
      ka = center_row(a, ka, e, c_.n, to, &e);
      a = to;
    }
    int32_t k = norm_row(a, ka, e, c_.n, norm_, w_, to, seen);
    return c_.bias ? add_row(to, k, c_.bias, c_.bias_exponent, c_.n, to, seen) : k;
  }

  void emit(int64_t row, const int32_t* x, int32_t k, const Extent& seen) const {
    if (c_.emit == kEmitRows) {
      c_.out_k[row] = k;
    } else if (c_.emit == kEmitPacked) {
      const int64_t at = row + (row / c_.every + 1) * c_.skip;
      pack_row(x, k, seen, width_, format_, c_.codes + at * (width_ + 2));
    } else {
      const RowScale scale = quantize_row(x, k, seen, width_, format_, c_.codes + row * width_);
      c_.zero[row] = scale.zero, c_.m[row] = scale.m, c_.codes_k[row] = scale.k;
    }
  }

  const RowCall& c_;
  int64_t width_;
  Channels w_;
  NormArgs norm_;
  CodeFormat format_;
  int32_t* scratch_ = nullptr;
};

}  // namespace

void integer_rows(const RowCall& call, int64_t r0, int64_t r1) {
  Rows rows(call);
  if (call.step != kActivate && call.step != kGate) {
    for (int64_t row = r0; row < r1; ++row) rows.run(row, nullptr);
    return;
  }
  const Channels w{call.w_mantissa, call.w_shift, call.w_step, call.w_exponent};
  const Activation act(static_cast<ActivationKind>(call.kind), call.table, w);
  for (int64_t row = r0; row < r1; ++row) rows.run(row, &act);
}

}  // namespace qpass_cpu
