// Many rows on AMX: a panel of blocks is decoded once into L2 and used by all rows of the range.
#include "amx.h"
#include "weight_epilogue.h"

namespace qpass_cpu {
namespace {

template <bool kTwo>
void block_sums(const WeightArgs& a, int64_t row, const uint16_t* panel, float* sums) {
  zero_tiles<kTwo>();
  tile_steps<Bf16Tiles, kTwo, false>(reinterpret_cast<const char*>(a.x + row * a.ldx), a.ldx * 2,
                                     reinterpret_cast<const char*>(panel), a.ldx / 32);
  store_tiles<kTwo>(sums);
}

void one_block(const WeightArgs& a, int64_t row, int64_t rows, int64_t block, const uint16_t* panel) {
  alignas(64) float sums[32 * 32];
  rows > 16 ? block_sums<true>(a, row, panel, sums) : block_sums<false>(a, row, panel, sums);
  const Lanes lanes = block_lanes(a.out.n, block);
  for (int64_t i = 0; i < rows; ++i)
    store_panel(a, row + i, block, lanes, _mm512_load_ps(sums + i * 32), _mm512_load_ps(sums + i * 32 + 16));
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
      for (int64_t i = 0; i < count; ++i) one_block(a, row, rows, first + i, panel + i * a.ldx * 32);
    }
  }
  _tile_release();
}

}  // namespace qpass_cpu
