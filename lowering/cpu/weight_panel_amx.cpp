// Many rows on AMX: a panel of blocks is decoded once into L2 and used by all rows of the range.
#include "amx.h"
#include "weight_epilogue.h"

namespace qpass_cpu {
namespace {

struct Sums {
  alignas(64) float v[kPanelBlocks][32 * 32];
};

template <bool kTwo>
void add_steps(const WeightArgs& a, int64_t row, int64_t step, int64_t steps, const uint16_t* panel, float* sums) {
  step ? load_tiles<kTwo>(sums) : zero_tiles<kTwo>();
  tile_steps<Bf16Tiles, kTwo, false>(reinterpret_cast<const char*>(a.x + row * a.ldx + step * 32), a.ldx * 2,
                                     reinterpret_cast<const char*>(panel + step * 1024), steps);
  store_tiles<kTwo>(sums);
}

void rows_of_panel(const WeightArgs& a, int64_t row, int64_t rows, int64_t first, int64_t count, const uint16_t* panel) {
  Sums sums;
  const int64_t all = a.ldx / 32;
  for (int64_t step = 0; step < all; step += kStepsInL1) {
    int64_t steps = min64(kStepsInL1, all - step);
    for (int64_t i = 0; i < count; ++i) {
      const uint16_t* weights = panel + i * a.ldx * 32;
      rows > 16 ? add_steps<true>(a, row, step, steps, weights, sums.v[i])
                : add_steps<false>(a, row, step, steps, weights, sums.v[i]);
    }
  }
  for (int64_t i = 0; i < count; ++i) {
    const Lanes lanes = block_lanes(a.out.n, first + i);
    for (int64_t r = 0; r < rows; ++r) {
      const float* s = sums.v[i] + r * 32;
      store_panel(a, row + r, first + i, lanes, _mm512_load_ps(s), _mm512_load_ps(s + 16));
    }
  }
}

}  // namespace

void weight_panel_amx(const WeightArgs& a, const Range& r) {
  const int64_t fitting = kPanelBytes / (a.ldx * 64);
  const int64_t blocks = fitting < 1 ? 1 : min64(fitting, kPanelBlocks);
  auto* panel = static_cast<uint16_t*>(thread_scratch(blocks * a.ldx * 64));
  int64_t configured = 0;
  for (int64_t first = r.b0; first < r.b1; first += blocks) {
    int64_t count = min64(blocks, r.b1 - first);
    for (int64_t i = 0; i < count; ++i) {
      if (a.bits == 8)
        decode_chunks_exact(a, first + i, 0, a.ldx, panel + i * a.ldx * 32);
      else
        decode_block_scaled(a, first + i, panel + i * a.ldx * 32);
    }
    for (int64_t row = r.m0; row < r.m1; row += 32) {
      int64_t rows = min64(32, r.m1 - row);
      if (rows != configured) configure_tiles(configured = rows);
      rows_of_panel(a, row, rows, first, count, panel);
    }
  }
  _tile_release();
}

}  // namespace qpass_cpu
