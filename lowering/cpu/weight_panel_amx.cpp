// Many rows on AMX: a panel of blocks is decoded once into L2 and used by all rows of the range.
#include "amx.h"
#include "weight_epilogue.h"

namespace qpass_cpu {
namespace {

void store_sums(const WeightArgs& a, int64_t row, int64_t rows, int64_t block, const char* sums) {
  const PanelEnd e = panel_end(a, block);
  for (int64_t i = 0; i < rows; ++i, sums += 128)
    store_panel(a, e, row + i, block, _mm512_load_ps(sums), _mm512_load_ps(sums + 64));
}

void decode(const WeightArgs& a, int64_t first, int64_t count, uint16_t* panel) {
  for (int64_t i = 0; i < count; ++i) {
    if (a.bits == 8)
      decode_chunks_exact(a, first + i, 0, a.ldx, panel + i * a.ldx * 32);
    else
      decode_block_scaled(a, first + i, panel + i * a.ldx * 32);
  }
}

}  // namespace

void weight_panel_amx(const WeightArgs& a, const Range& r) {
  const int64_t fitting = kPanelBytes / (a.ldx * 64);
  const int64_t blocks = fitting < 1 ? 1 : min64(fitting, kPanelBlocks);
  auto* panel = static_cast<uint16_t*>(thread_scratch(blocks * a.ldx * 64));
  PanelSums sums;
  int64_t configured = 0;
  for (int64_t first = r.b0; first < r.b1; first += blocks) {
    const Panel p{reinterpret_cast<const char*>(panel), a.ldx * 64, a.ldx / 32, nullptr, min64(blocks, r.b1 - first)};
    decode(a, first, p.count, panel);
    for (int64_t row = r.m0; row < r.m1; row += 32) {
      int64_t rows = min64(32, r.m1 - row);
      if (rows != configured) configure_tiles(configured = rows);
      const char* x = reinterpret_cast<const char*>(a.x + row * a.ldx);
      any_panel_sums<Bf16Tiles>(p, x, rows, false, false, sums);
      for (int64_t i = 0; i < p.count; ++i) store_sums(a, row, rows, first + i, sums.block[i]);
    }
  }
  _tile_release();
}

}  // namespace qpass_cpu
