// qpass_cpu::cache_update: rows of a cache of bytes, then new ones.
// Part of operators.cpp.
#pragma once
#include <torch/library.h>

#include <cstring>

#include "ops_common.h"

namespace qpass_cpu {
namespace {

constexpr const char* kCache = "qpass_cpu::cache_update";

void copy_rows(const at::Tensor& from, int64_t pair, int64_t heads, int8_t* to) {
  const int64_t rows = from.size(2), width = from.size(3), step = from.stride(2);
  const int8_t* src = from.const_data_ptr<int8_t>() + pair / heads * from.stride(0) + pair % heads * from.stride(1);
  if (step == width) {
    std::memcpy(to, src, rows * width);
    return;
  }
  for (int64_t r = 0; r < rows; ++r) std::memcpy(to + r * width, src + r * step, width);
}

// past with room for `more` rows behind those of each head.
at::Tensor longer_cache(const at::Tensor& past, int64_t more) {
  const at::Tensor old = past.stride(3) == 1 ? past : past.contiguous();
  const int64_t heads = old.size(1), width = old.size(3), rows = old.size(2) + more;
  at::Tensor out = fresh({old.size(0), heads, rows, width}, at::kChar);
  auto* to = out.mutable_data_ptr<int8_t>();
  const int64_t grain = std::max<int64_t>(1, (1 << 18) / std::max<int64_t>(1, rows * width));
  at::parallel_for(0, old.size(0) * heads, grain, [&](int64_t begin, int64_t end) {
    for (int64_t pair = begin; pair < end; ++pair) copy_rows(old, pair, heads, to + pair * rows * width);
  });
  return out;
}

at::Tensor cache_update(const at::Tensor& past, const at::Tensor& added) {
  TORCH_CHECK(past.dim() == 4 && added.dim() == 4, kCache, ": 4 dimensions expected, got ", past.sizes(), " and ",
              added.sizes());
  check_tensor(past, at::kChar, {added.size(0), added.size(1), past.size(2), added.size(3)}, kCache, "past");
  check_tensor(added, at::kChar, added.sizes(), kCache, "added");
  at::Tensor out = longer_cache(past, added.size(2));
  const at::Tensor news = added.stride(3) == 1 ? added : added.contiguous();
  const int64_t heads = added.size(1), width = added.size(3);
  for (int64_t pair = 0; pair < added.size(0) * heads; ++pair)
    copy_rows(news, pair, heads, out.mutable_data_ptr<int8_t>() + (pair * out.size(2) + past.size(2)) * width);
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(qpass_cpu, CPU, m) { m.impl("cache_update", cache_update); }

}  // namespace qpass_cpu
