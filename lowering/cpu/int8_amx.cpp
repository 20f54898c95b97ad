// u8 x s8 -> s32 on AMX tiles. Four blocks of weights stay in L2 while the activations stream by.
#include <cstring>

#include "amx.h"
#include "int8_epilogue.h"

namespace qpass_cpu {
namespace {

// The rest of k that does not fill a tile, padded so that the last block is never read past its end.
void copy_tail(const Int8Args& a, int64_t block, char* tail) {
  int64_t steps = a.k4 / 16, left = a.k4 % 16;
  std::memset(tail, 0, 2048);
  std::memcpy(tail, a.w + (block * a.k4 + steps * 16) * 128, left * 128);
}

void store_sums(const Int8Args& a, int64_t row, int64_t rows, int64_t block, const char* sums) {
  Int8Epilogue e = int8_epilogue(a, block);
  for (int64_t i = 0; i < rows; ++i, sums += 128)
    int8_store(a, e, row + i, block, _mm512_load_si512(sums), _mm512_load_si512(sums + 64));
}

}  // namespace

void int8_amx(const Int8Args& a, const Range& r) {
  alignas(64) char tails[kPanelBlocks][2048];
  PanelSums sums;
  const int64_t steps = (a.k4 + 15) / 16;
  int64_t configured = 0;
  for (int64_t first = r.b0; first < r.b1; first += kPanelBlocks) {
    const char* weights = reinterpret_cast<const char*>(a.w + first * a.k4 * 128);
    const bool ragged = a.k4 % 16;
    const Panel p{weights, a.k4 * 128, a.k4 / 16, ragged ? tails[0] : nullptr, min64(kPanelBlocks, r.b1 - first)};
    for (int64_t i = 0; ragged && i < p.count; ++i) copy_tail(a, first + i, tails[i]);
    for (int64_t row = r.m0; row < r.m1; row += 32) {
      int64_t rows = min64(32, r.m1 - row);
      if (rows != configured) configure_tiles(configured = rows);
      const char* x = reinterpret_cast<const char*>(a.x) + row / 32 * steps * 2048;
      any_panel_sums<Int8Tiles>(p, x, rows, row == r.m0, row + 32 >= r.m1, sums);
      for (int64_t i = 0; i < p.count; ++i) store_sums(a, row, rows, first + i, sums.block[i]);
    }
  }
  _tile_release();
}

}  // namespace qpass_cpu
