// Views of integer rows for the operators of integer-only programs.
// Part of operators.cpp.
#pragma once
#include <ATen/ops/sub.h>
#include <torch/library.h>

#include "integer_args.h"
#include "ops_cache.h"
#include "ops_common.h"

namespace qpass_cpu {

using Rows2 = std::tuple<at::Tensor, at::Tensor>;
using Rows4 = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;
using Rows6 = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;
using MaybeTensor = std::optional<at::Tensor>;

inline void run_rows(const RowCall& call, int64_t rows) {
  if (rows == 0) return;
  current_isa();
  const int64_t grain = std::max<int64_t>(1, 16384 / (call.n * call.heads));
  at::parallel_for(0, rows, grain, [&](int64_t r0, int64_t r1) { integer_rows(call, r0, r1); });
}

// Rows of n numbers, one behind the other.
inline IntRows dense(const int32_t* x, const int32_t* k, int64_t n) {
  IntRows rows;
  rows.x = x, rows.k = k, rows.x_step[2] = n, rows.k_step[2] = 1;
  return rows;
}

// One visit to all rows of a call; keeps the tensors that were made dense alive until it has run.
class RowOp {
 public:
  explicit RowOp(const char* name) : name_(name) {}

  // Leading dimensions of x, its last one being the row; the last two for heads that are merged.
  void rows_of(const at::Tensor& x, int64_t inner = 1) {
    TORCH_CHECK(x.dim() > inner && x.numel() / std::max<int64_t>(x.size(-1), 1) >= 0, name_, ": rows of shape ",
                x.sizes());
    lead_.assign(x.sizes().begin(), x.sizes().end() - inner);
    call.n = x.size(-1);
    rows_ = 1;
    for (int64_t size : lead_) rows_ *= size;
    flat_ = lead_.size() > 3;
    if (flat_) {
      call.size[2] = rows_;
    } else {
      for (size_t i = 0; i < lead_.size(); ++i) call.size[3 - lead_.size() + i] = lead_[i];
    }
  }

  // The same leading dimensions for rows of n numbers.
  void rows_for(const at::Tensor& x, int64_t n) {
    rows_of(x);
    call.n = n;
  }

  // x [..., n] and k [..., 1], which may be broadcast, as rows.
  IntRows source(const at::Tensor& x, const at::Tensor& k) {
    check(x, at::kInt, "x"), check(k, at::kInt, "k");
    IntRows rows;
    rows.x = place(x, rows.x_step).const_data_ptr<int32_t>();
    rows.k = place(k, rows.k_step).const_data_ptr<int32_t>();
    return rows;
  }

  const int16_t* angles(const at::Tensor& t, int64_t* step) {
    check(t, at::kShort, "cos, sin");
    return place(t, step).const_data_ptr<int16_t>();
  }

  const int32_t* vector(const at::Tensor& t) {
    check(t, at::kInt, "a vector");
    held_.push_back(t.contiguous());
    return held_.back().const_data_ptr<int32_t>();
  }

  int32_t number(const at::Tensor& t) {
    check(t, at::kInt, "an exponent");
    TORCH_CHECK(t.numel() == 1, name_, ": an exponent of shape ", t.sizes());
    return *t.const_data_ptr<int32_t>();
  }

  void channels(const MaybeTensor& mantissa, const MaybeTensor& shift, const MaybeTensor& exponent) {
    if (!mantissa.has_value()) return;
    TORCH_CHECK(shift.has_value() && exponent.has_value(), name_, ": a mantissa without shift and exponent");
    TORCH_CHECK((mantissa->numel() == call.n || mantissa->numel() == 1) && shift->numel() == mantissa->numel(), name_,
                ": a dyadic vector of ", mantissa->sizes(), " and ", shift->sizes(), " for ", call.n, " channels");
    call.w_mantissa = vector(*mantissa), call.w_shift = vector(*shift), call.w_exponent = number(*exponent);
    call.w_step = mantissa->numel() > 1;
  }

  void activation(int64_t kind, const at::Tensor& table) {
    TORCH_CHECK(kind >= 0 && kind <= 5 && table.numel() == 33, name_, ": kind ", kind, ", a table of ", table.numel());
    call.kind = static_cast<int>(kind), call.table = vector(table);
  }

  // eps_mantissa, eps_exponent, root_n, places, center.
  void norm(at::IntArrayRef norm, const MaybeTensor& bias, const MaybeTensor& bias_exponent) {
    TORCH_CHECK(norm.size() == 5 && call.n <= 32767, name_, ": a norm over ", call.n, " channels");
    call.step = kUnit;
    call.eps_mantissa = norm[0], call.eps_exponent = norm[1], call.root_n = norm[2], call.places = norm[3];
    call.center = norm[4];
    if (bias.has_value()) call.bias = vector(*bias), call.bias_exponent = number(*bias_exponent);
  }

  at::Tensor make(int64_t last, at::ScalarType type) {
    at::DimVector shape(lead_.begin(), lead_.end());
    shape.push_back(last);
    return fresh(shape, type);
  }

  int64_t width() const { return call.n * call.heads; }

  Rows2 to_rows() {
    at::Tensor x = make(width(), at::kInt), k = make(1, at::kInt);
    into(x, k);
    return {x, k};
  }

  // As rows to tensors that are there; they may be the sources.
  void into(const at::Tensor& x, const at::Tensor& k) {
    call.emit = kEmitRows, call.out = x.mutable_data_ptr<int32_t>(), call.out_k = k.mutable_data_ptr<int32_t>();
    run();
  }

  Rows4 to_codes(int64_t bits, bool symmetric) {
    const Rows4 made = make_codes(bits, symmetric);
    run();
    return made;
  }

  // Where codes go to; whoever asks for them runs the call, in parts.
  Rows4 make_codes(int64_t bits, bool symmetric) {
    TORCH_CHECK(bits >= 2 && bits <= 8, name_, ": codes of ", bits, " bits");
    at::Tensor codes = make(width(), at::kChar), zero = make(1, at::kInt), m = make(1, at::kInt);
    at::Tensor k = make(1, at::kInt);
    call.emit = kEmitCodes, call.bits = bits, call.symmetric = symmetric;
    call.codes = codes.mutable_data_ptr<int8_t>(), call.zero = zero.mutable_data_ptr<int32_t>();
    call.m = m.mutable_data_ptr<int32_t>(), call.codes_k = k.mutable_data_ptr<int32_t>();
    return {codes, zero, m, k};
  }

  // Where the sums before a norm go to.
  Rows2 make_sum() {
    at::Tensor sum = make(width(), at::kInt), k = make(1, at::kInt);
    call.sum = sum.mutable_data_ptr<int32_t>(), call.sum_k = k.mutable_data_ptr<int32_t>();
    return {sum, k};
  }

  // The call for `count` rows from `row` on alone, whose sources are to be given yet.
  RowCall part(int64_t row, int64_t count) const {
    RowCall one = call;
    one.size[0] = one.size[1] = 1, one.size[2] = count;
    if (one.sum) one.sum += row * width(), one.sum_k += row;
    one.codes += row * width(), one.zero += row, one.m += row, one.codes_k += row;
    return one;
  }

  at::Tensor to_cache(int64_t bits) {
    TORCH_CHECK(bits >= 2 && bits <= 8, name_, ": codes of ", bits, " bits");
    at::Tensor cache = make(width() + 2, at::kChar);
    call.emit = kEmitPacked, call.bits = bits, call.codes = cache.mutable_data_ptr<int8_t>();
    run();
    return cache;
  }

  // The rows of a cache [batch, heads, past, width + 2], and behind those of each head the new ones.
  at::Tensor to_longer_cache(int64_t bits, const at::Tensor& past) {
    TORCH_CHECK(bits >= 2 && bits <= 8 && lead_.size() == 3, name_, ": codes of ", bits, " bits");
    check_tensor(past, at::kChar, {lead_[0], lead_[1], past.size(2), width() + 2}, name_, "past");
    at::Tensor cache = longer_cache(past, lead_[2]);
    call.emit = kEmitPacked, call.bits = bits, call.codes = cache.mutable_data_ptr<int8_t>();
    call.skip = past.size(2), call.every = lead_[2];
    run();
    return cache;
  }

  RowCall call;

 private:
  void check(const at::Tensor& t, at::ScalarType type, const char* what) const {
    TORCH_CHECK(t.device().is_cpu() && t.scalar_type() == type, name_, ": ", what, " must be ", type,
                " on the CPU, got ", t.scalar_type(), " on ", t.device());
  }

  // t seen with the leading dimensions of the call; its own strides, 0 where it is broadcast, for three at most.
  const at::Tensor& place(const at::Tensor& t, int64_t* step) {
    const size_t lead = lead_.size();
    bool direct = !flat_ && t.dim() >= static_cast<int64_t>(lead) && (t.stride(-1) == 1 || t.size(-1) == 1);
    for (size_t i = 0; direct && i < lead; ++i) direct = t.size(i) == lead_[i] || t.size(i) == 1;
    if (!direct) return place_dense(t, step);
    for (size_t i = 0; i < lead; ++i) step[3 - lead + i] = t.size(i) == 1 ? 0 : t.stride(i);
    held_.push_back(t);
    return held_.back();
  }

  const at::Tensor& place_dense(const at::Tensor& t, int64_t* step) {
    at::DimVector shape(lead_.begin(), lead_.end());
    for (int64_t i = lead_.size(); i < t.dim(); ++i) shape.push_back(t.size(i));
    held_.push_back(t.expand(shape).contiguous());
    int64_t inner = 1;
    for (size_t i = lead_.size(); i < shape.size(); ++i) inner *= shape[i];
    for (int64_t i = static_cast<int64_t>(lead_.size()) - 1, at = 2; i >= 0 && at >= 0; --i, --at) {
      step[at] = inner;
      inner *= flat_ ? 1 : shape[i];
    }
    return held_.back();
  }

  void run() {
    if (rows_ == 0) return;
    TORCH_CHECK(call.n > 0, name_, ": empty rows");
    run_rows(call, rows_);
  }

  const char* name_;
  at::DimVector lead_;
  int64_t rows_ = 0;
  bool flat_ = false;
  std::vector<at::Tensor> held_;
};

}  // namespace qpass_cpu
