// qpass_cpu::int4_linear and qpass_cpu::int8_weight_linear: 16-bit activations times weight-only codes.
// Part of operators.cpp.
#include <torch/library.h>

#include "ops_common.h"

namespace qpass_cpu {
namespace {

// Weights decoded in registers up to here, once for every eight rows: while that is less work than a panel's.
constexpr int64_t kFewRows[] = {0, 16, 32, 4};  // by Isa; AMX where tiles cannot take over
constexpr int64_t kFewRowsAmx[] = {1, 2};       // the same for int4, int8 where they can
constexpr int64_t kSmallRows = 32;  // one block of AMX tiles

at::Tensor bf16_rows(const at::Tensor& x, OutType from, int64_t m, int64_t k, int64_t ldx, bool tiles) {
  at::Tensor src = x.contiguous();
  if (from == kOutBFloat16 && k == ldx && !tiles) return src;
  at::Tensor dst = at::empty({tiles ? round_up(m, 32) : m, ldx}, src.options().dtype(at::kBFloat16));
  const void* in = src.const_data_ptr();
  auto* out = static_cast<uint16_t*>(dst.mutable_data_ptr());
  at::parallel_for(0, m, std::max<int64_t>(1, 131072 / k),
                   [&](int64_t r0, int64_t r1) { rows_to_bf16(in, from, r0, r1, k, out, ldx, tiles); });
  return dst;
}

enum class Path { kRows, kSmallAmx, kPanel };

Path choose(Isa isa, int64_t m, const WeightArgs& a) {
  bool chunk_groups = a.bits == 8 || a.group % 8 == 0, tile_groups = a.bits == 8 || a.group % 32 == 0;
  bool small_amx = isa == kIsaAmx && m <= kSmallRows && tile_groups;
  if (m <= (small_amx ? kFewRowsAmx[a.bits == 8] : kFewRows[isa]) && chunk_groups) return Path::kRows;
  if (small_amx) return Path::kSmallAmx;
  return Path::kPanel;
}

void compute(const WeightArgs& a, Isa isa, Path path, const Range& r) {
  // On cores with AMX, vdpbf16ps was measured to be slower than the float32 FMAs that replace it.
  const bool bf16 = isa == kIsaAvx512Bf16;
  if (path == Path::kRows) return bf16 ? weight_rows_bf16(a, r) : weight_rows_fp32(a, r);
  if (path == Path::kSmallAmx) return weight_small_amx(a, r);
  if (isa == kIsaAmx) return weight_panel_amx(a, r);
  return bf16 ? weight_panel_bf16(a, r) : weight_panel_fp32(a, r);
}

// Rows [m, k] times one weight, into rows of `out`; `a` brings the weight's own tensors.
void times_weight(const at::Tensor& x, OutType from, WeightArgs a, int64_t m, int64_t k, int64_t blocks,
                  const at::Tensor& bias, const Output& out) {
  if (m == 0) return;
  a.ldx = round_up(k, 32);
  a.k = k;
  const Isa isa = current_isa();
  const Path path = choose(isa, m, a);
  const bool tiles = isa == kIsaAmx && path != Path::kRows;
  at::Tensor rows = bf16_rows(x, from, m, k, a.ldx, tiles), sums;
  a.x = static_cast<const uint16_t*>(rows.const_data_ptr());
  a.bias = bias.defined() ? bias.const_data_ptr<float>() : nullptr;
  a.out = out;
  if (a.zero && path != Path::kPanel) {
    sums = at::empty({m, a.groups}, x.options().dtype(at::kFloat));
    group_sums(a, m, tiles, sums.mutable_data_ptr<float>());
    a.x_sum = sums.const_data_ptr<float>();
  }
  for_ranges(m, blocks, a.chunks * 128, path == Path::kPanel, [&](const Range& r) { compute(a, isa, path, r); });
}

at::Tensor run(const at::Tensor& x, const WeightArgs& a, int64_t k, int64_t blocks, const at::Tensor& bias, int64_t n,
               at::ScalarType dtype, const char* op) {
  const OutType from = out_type(x.scalar_type(), op, "x"), type = out_type(dtype, op, "dtype");
  at::Tensor out = at::empty(with_last(x, n), x.options().dtype(dtype));
  times_weight(x, from, a, x.numel() / k, k, blocks, bias, Output{out.mutable_data_ptr(), type, n});
  return out;
}

at::Tensor int4_linear(const at::Tensor& x, const at::Tensor& w, const at::Tensor& w_scale,
                       const std::optional<at::Tensor>& w_zero, const std::optional<at::Tensor>& bias, int64_t n,
                       int64_t group, at::ScalarType dtype) {
  constexpr const char* op = "qpass_cpu::int4_linear";
  const int64_t k = checked_k(x, op, "x");
  TORCH_CHECK(group >= 2 && (group % 2 == 0 || group >= k), op, ": group_size must be even, got ", group);
  check_tensor(x, x.scalar_type(), x.sizes(), op, "x");
  check_packed(w, at::kByte, n, k, 8, op);
  const bool per_channel = group >= k;
  WeightArgs a{};
  a.group = per_channel ? round_up(k, 32) : group;
  a.groups = per_channel ? 1 : ceil_div(k, group);
  check_tensor(w_scale, at::kBFloat16, {a.groups, n}, op, "w_scale");
  at::Tensor scale = w_scale.contiguous(), zero;
  if (w_zero.has_value() && w_zero->defined()) {
    check_tensor(*w_zero, at::kByte, {a.groups, n}, op, "w_zero");
    zero = w_zero->contiguous();
    a.zero = zero.const_data_ptr<uint8_t>();
  }
  a.w = w.const_data_ptr<uint8_t>();
  a.bits = 4;
  a.scale16 = static_cast<const uint16_t*>(scale.const_data_ptr());
  a.chunks = w.size(1);
  return run(x, a, k, w.size(0), float_bias(bias, n, op), n, dtype, op);
}

at::Tensor int8_weight_linear(const at::Tensor& x, const at::Tensor& w, const at::Tensor& w_scale,
                              const std::optional<at::Tensor>& bias, int64_t n, at::ScalarType dtype) {
  constexpr const char* op = "qpass_cpu::int8_weight_linear";
  const int64_t k = checked_k(x, op, "x");
  check_tensor(x, x.scalar_type(), x.sizes(), op, "x");
  check_packed(w, at::kChar, n, k, 4, op);
  check_tensor(w_scale, at::kFloat, {n}, op, "w_scale");
  at::Tensor scale = w_scale.contiguous();
  WeightArgs a{};
  a.w = reinterpret_cast<const uint8_t*>(w.const_data_ptr<int8_t>());
  a.bits = 8;
  a.scale32 = scale.const_data_ptr<float>();
  a.chunks = w.size(1);
  a.group = round_up(k, 32);
  a.groups = 1;
  return run(x, a, k, w.size(0), float_bias(bias, n, op), n, dtype, op);
}

}  // namespace

TORCH_LIBRARY_IMPL(qpass_cpu, CPU, m) {
  m.impl("int4_linear", int4_linear);
  m.impl("int8_weight_linear", int8_weight_linear);
}

}  // namespace qpass_cpu
