// Many rows without AMX: weights are decoded once into an L2 panel, then used by every block of eight rows.
// Compiled twice, with and without avx512_bf16; QPASS_NAME gives each copy its own name.
#include <cstring>

#include "weight_dot.h"
#include "weight_epilogue.h"

namespace qpass_cpu {
namespace {

template <int kRows>
void panel_rows(const WeightArgs& a, int64_t row, int64_t block, const uint16_t* panel) {
  const Dot dot;
  const uint16_t* x = a.x + row * a.ldx;
  __m512 sums[kRows][2];
  for (auto& pair : sums) pair[0] = pair[1] = _mm512_setzero_ps();
  for (int64_t p = 0; p < a.ldx / 2; ++p) {
    Dot::Weights lo = dot.pair(_mm512_load_si512(panel + p * 64));
    Dot::Weights hi = dot.pair(_mm512_load_si512(panel + p * 64 + 32));
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      int32_t v;
      std::memcpy(&v, x + r * a.ldx + p * 2, 4);
      sums[r][0] = Dot::add(sums[r][0], v, lo);
      sums[r][1] = Dot::add(sums[r][1], v, hi);
    }
  }
  const PanelEnd e = panel_end(a, block);
  for (int r = 0; r < kRows; ++r) store_panel(a, e, row + r, block, sums[r][0], sums[r][1]);
}

void some_rows(const WeightArgs& a, int64_t row, int64_t rows, int64_t block, const uint16_t* panel) {
  switch (rows) {
    case 1: return panel_rows<1>(a, row, block, panel);
    case 2: return panel_rows<2>(a, row, block, panel);
    case 3: return panel_rows<3>(a, row, block, panel);
    case 4: return panel_rows<4>(a, row, block, panel);
    case 5: return panel_rows<5>(a, row, block, panel);
    case 6: return panel_rows<6>(a, row, block, panel);
    case 7: return panel_rows<7>(a, row, block, panel);
    default: return panel_rows<8>(a, row, block, panel);
  }
}

}  // namespace

void QPASS_NAME(const WeightArgs& a, const Range& r) {
  auto* panel = static_cast<uint16_t*>(thread_scratch(a.ldx * 64));
  for (int64_t block = r.b0; block < r.b1; ++block) {
    if (a.bits == 8)
      decode_chunks_exact(a, block, 0, a.ldx, panel);
    else
      decode_block_scaled(a, block, panel);
    for (int64_t row = r.m0; row < r.m1; row += 8) some_rows(a, row, min64(8, r.m1 - row), block, panel);
  }
}

}  // namespace qpass_cpu
