// Schemas of the operators, and the choice of instruction set.
// Part of operators.cpp.
#include <torch/library.h>

#include <atomic>
#include <cstdlib>
#include <cstring>

#include "ops_common.h"

namespace qpass_cpu {
namespace {

Isa from_environment() {
  const Isa best = detected_isa();
  const char* name = std::getenv("QPASS_CPU_ISA");
  if (!name || !*name) return best;
  Isa asked = best;
  if (!std::strcmp(name, "avx512")) asked = kIsaAvx512;
  if (!std::strcmp(name, "avx512_bf16")) asked = kIsaAvx512Bf16;
  return std::min(asked, best);
}

std::atomic<int>& level() {
  static std::atomic<int> value{static_cast<int>(from_environment())};
  return value;
}

int64_t set_isa(int64_t asked) {
  TORCH_CHECK(asked >= 1 && asked <= detected_isa(), "qpass_cpu::set_isa: level must be 1 to ",
              static_cast<int>(detected_isa()), " on this machine, got ", asked);
  return level().exchange(static_cast<int>(asked));
}

int64_t get_isa() { return level().load(); }

}  // namespace

Isa current_isa() {
  int isa = level().load(std::memory_order_relaxed);
  TORCH_CHECK(isa != kIsaNone, "qpass_cpu: this CPU has no AVX-512 VNNI");
  return static_cast<Isa>(isa);
}

void define_integer(torch::Library& m, const std::vector<at::Tag>& tags) {
  const std::string rows = "Tensor x, Tensor k", codes = ", int bits, bool symmetric", to_rows = ") -> (Tensor, Tensor)";
  const std::string to_codes = codes + ") -> (Tensor, Tensor, Tensor, Tensor)", to_cache = ", int bits) -> Tensor";
  const std::string vector = ", Tensor mantissa, Tensor shift, Tensor exponent, Tensor table";
  const std::string norm = ", Tensor? mantissa, Tensor? shift, Tensor? exponent, Tensor? bias, Tensor? bias_exponent, "
                           "int[] norm";
  const std::string angles = ", Tensor cos, Tensor sin", two = "Tensor a, Tensor ka, Tensor b, Tensor kb";
  const std::string gate = "(" + rows + ", Tensor up, Tensor k_up, int kind" + vector;
  const std::string alone = "(" + rows + ", int kind" + vector;
  const std::string input = "Tensor codes, Tensor? zero, Tensor m, Tensor k";
  const std::string one = ", Tensor w_packed, Tensor w_table, int up, int out_features";
  const std::string some = ", Tensor[] w_packed, Tensor[] w_table, int[] up, int[] out_features";
  const std::string attention = "(Tensor q, Tensor m, Tensor k, Tensor keys, Tensor values, Tensor? keep, bool causal, "
                                "Tensor table, int scale_mantissa, int scale_exponent, int up, int clip";
  for (const std::string& schema : {
           "integer_quantize(" + rows + to_codes, "integer_pack(" + rows + to_cache, "integer_add(" + two + to_rows,
           "integer_norm(" + rows + norm + to_rows, "integer_norm_quantize(" + rows + norm + to_codes,
           "integer_add_norm_quantize(" + two + norm + codes + ") -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
           "integer_activation" + alone + to_rows, "integer_activation_quantize" + alone + to_codes,
           "integer_gated" + gate + to_rows, "integer_gated_quantize" + gate + to_codes,
           "integer_merge_heads(" + rows + to_rows, "integer_merge_heads_quantize(" + rows + to_codes,
           "integer_rotary(" + rows + angles + to_rows, "integer_rotary_quantize(" + rows + angles + to_codes,
           "integer_rotary_append(" + rows + angles + ", int bits, Tensor past) -> Tensor",
           "integer_append(" + rows + ", int bits, Tensor past) -> Tensor",
           std::string("cache_update(Tensor past, Tensor added) -> Tensor"),
           "integer_rotary_pack(" + rows + angles + to_cache, "integer_logits(" + rows + to_rows,
           "integer_scale(" + rows + ", Tensor mantissa, Tensor shift, Tensor exponent" + to_rows,
           "integer_concat(" + two + to_rows, "integer_linear(" + input + one + ") -> (Tensor, Tensor)",
           "integer_linears(" + input + some + ") -> Tensor[]",
           "integer_linears_gated_quantize(" + input + some + ", int kind" + vector + to_codes,
           "integer_linears_heads(" + input + some + angles + ", int bits, int key_bits, int value_bits, Tensor keys, "
           "Tensor values) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
           "integer_linear_add_norm_quantize(" + input + one + ", Tensor x, Tensor kx" + norm + codes +
               ") -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
           "integer_attention" + attention + ") -> (Tensor, Tensor)",
           "integer_attention_quantize" + attention + to_codes})
    m.def(schema.c_str(), tags);
}

TORCH_LIBRARY(qpass_cpu, m) {
  const std::vector<at::Tag> tags = {at::Tag::pt2_compliant_tag, at::Tag::flexible_layout};
  m.def("int8_linear(Tensor x_codes, Tensor x_scale, Tensor x_zero, Tensor w_packed, Tensor w_scale, Tensor w_sum, "
        "Tensor? bias, int out_features, ScalarType dtype) -> Tensor", tags);
  m.def("int4_linear(Tensor x, Tensor w_packed, Tensor w_scale, Tensor? w_zero, Tensor? bias, int out_features, "
        "int group_size, ScalarType dtype) -> Tensor", tags);
  m.def("int8_weight_linear(Tensor x, Tensor w_packed, Tensor w_scale, Tensor? bias, int out_features, "
        "ScalarType dtype) -> Tensor", tags);
  m.def("grouped_int8_linear(Tensor x_codes, Tensor x_scale, Tensor x_zero, Tensor w_packed, Tensor w_scale, "
        "Tensor w_sum, Tensor offsets, int out_features, ScalarType dtype) -> Tensor", tags);
  m.def("grouped_int4_linear(Tensor x, Tensor w_packed, Tensor w_scale, Tensor w_zero, Tensor offsets, "
        "int out_features, int group_size, ScalarType dtype) -> Tensor", tags);
  m.def("grouped_int8_weight_linear(Tensor x, Tensor w_packed, Tensor w_scale, Tensor offsets, int out_features, "
        "ScalarType dtype) -> Tensor", tags);
  m.def("attention(Tensor q, Tensor k, Tensor v, Tensor? mask, bool causal, float scale) -> Tensor", tags);
  define_integer(m, tags);
  m.def("set_isa(int level) -> int", set_isa);
  m.def("get_isa() -> int", get_isa);
}

}  // namespace qpass_cpu
