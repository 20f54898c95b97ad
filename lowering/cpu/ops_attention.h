// qpass_cpu::attention: bfloat16 attention with grouped queries.
// Part of operators.cpp.
#include <torch/library.h>

#include "ops_common.h"

namespace qpass_cpu {
namespace {

constexpr const char* kAttention = "qpass_cpu::attention";
constexpr int64_t kRowGroup = 32;  // rows that share a visit to a block of keys

at::Tensor dense_last(const at::Tensor& t) { return t.stride(-1) == 1 ? t : t.contiguous(); }

void check_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
  for (const auto& [t, name] : {std::pair{&q, "q"}, {&k, "k"}, {&v, "v"}}) {
    TORCH_CHECK(t->dim() == 4, kAttention, ": ", name, " must have 4 dimensions, got shape ", t->sizes());
    check_tensor(*t, at::kBFloat16, t->sizes(), kAttention, name);
  }
  TORCH_CHECK(k.size(1) > 0 && q.size(1) % k.size(1) == 0, kAttention, ": ", q.size(1),
              " query heads are no multiple of ", k.size(1), " key heads");
  check_tensor(k, at::kBFloat16, {q.size(0), k.size(1), k.size(2), q.size(3)}, kAttention, "k");
  check_tensor(v, at::kBFloat16, {q.size(0), k.size(1), k.size(2), v.size(3)}, kAttention, "v");
}

// The mask seen as [b, heads, queries, keys]: sizes of 1 get a stride of 0.
at::Tensor broadcast_mask(const at::Tensor& mask, AttentionArgs& a, int64_t batch) {
  const auto type = mask.scalar_type();
  TORCH_CHECK(type == at::kBool || type == at::kFloat || type == at::kBFloat16, kAttention,
              ": mask must be bool, float32 or bfloat16, got ", type);
  a.mask_type = type == at::kBool ? kMaskBool : type == at::kFloat ? kMaskFloat : kMaskBFloat16;
  at::Tensor wide = mask.size(-1) == a.keys && mask.stride(-1) == 1
                        ? mask
                        : mask.expand([&] {
                            at::DimVector shape(mask.sizes());
                            shape.back() = a.keys;
                            return shape;
                          }()).contiguous();
  wide = wide.expand({batch, a.heads, a.queries, a.keys});
  a.mask = wide.const_data_ptr();
  a.mask_b = wide.stride(0);
  a.mask_h = wide.stride(1);
  a.mask_t = wide.stride(2);
  return wide;
}

at::Tensor attention(const at::Tensor& q_in, const at::Tensor& k_in, const at::Tensor& v_in,
                     const std::optional<at::Tensor>& mask, bool causal, double scale) {
  check_attention(q_in, k_in, v_in);
  const at::Tensor q = dense_last(q_in), k = dense_last(k_in), v = dense_last(v_in);
  const int64_t batch = q.size(0), heads = q.size(1), queries = q.size(2), key_heads = k.size(1);
  at::Tensor out = at::empty({batch, queries, heads, v.size(3)}, q.options());
  AttentionArgs a{};
  a.q = static_cast<const uint16_t*>(q.const_data_ptr());
  a.k = static_cast<const uint16_t*>(k.const_data_ptr());
  a.v = static_cast<const uint16_t*>(v.const_data_ptr());
  a.q_b = q.stride(0), a.q_h = q.stride(1), a.q_t = q.stride(2);
  a.k_b = k.stride(0), a.k_h = k.stride(1), a.k_t = k.stride(2);
  a.v_b = v.stride(0), a.v_h = v.stride(1), a.v_t = v.stride(2);
  a.causal = causal;
  a.scale = static_cast<float>(scale);
  a.heads = heads, a.repeats = heads / key_heads, a.queries = queries, a.keys = k.size(2);
  a.d = q.size(3), a.dv = v.size(3);
  a.out = static_cast<uint16_t*>(out.mutable_data_ptr());
  at::Tensor held;
  if (mask.has_value() && mask->defined()) held = broadcast_mask(*mask, a, batch);
  if (out.numel() == 0) return out.transpose(1, 2);
  // With fewer heads than threads, the rows of a head are shared out too; each thread packs what it needs.
  const int64_t rows = queries * a.repeats, pairs = batch * key_heads;
  const int64_t wanted = ceil_div(2 * at::get_num_threads(), pairs);
  const int64_t parts = at::get_num_threads() == 1 ? 1 : std::min(wanted, ceil_div(rows, 4 * kRowGroup));
  const int64_t step = round_up(ceil_div(rows, parts), kRowGroup);
  const bool bf16 = current_isa() == kIsaAvx512Bf16;
  const int64_t work = std::max<int64_t>(1, std::min(step, rows) * a.keys * (a.d + a.dv));
  at::parallel_for(0, pairs * parts, std::max<int64_t>(1, (1 << 20) / work), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t pair = i / parts, row = i % parts * step;
      if (row >= rows) continue;
      (bf16 ? attention_bf16 : attention_fp32)(a, pair / key_heads, pair % key_heads, row, std::min(rows, row + step));
    }
  });
  return out.transpose(1, 2);
}

}  // namespace

TORCH_LIBRARY_IMPL(qpass_cpu, CPU, m) { m.impl("attention", attention); }

}  // namespace qpass_cpu
