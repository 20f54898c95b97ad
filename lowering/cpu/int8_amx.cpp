// u8 x s8 -> s32 on AMX tiles. Four blocks of weights stay in L2 while the activations stream by.
#include <cstring>

#include "amx.h"
#include "int8_epilogue.h"

namespace qpass_cpu {
namespace {

// The rest of k that does not fill a tile, padded so that the last block is never read past its end.
void copy_tail(const Int8Args& a, int64_t block, int8_t* tail) {
  int64_t steps = a.k4 / 16, left = a.k4 % 16;
  std::memset(tail, 0, 2048);
  std::memcpy(tail, a.w + (block * a.k4 + steps * 16) * 128, left * 128);
}

template <bool kTwo, bool kCold>
void block_sums(const Int8Args& a, int64_t row, int64_t block, const int8_t* tail, int32_t* sums) {
  const char* x = reinterpret_cast<const char*>(a.x + row * a.ldx);
  const char* w = reinterpret_cast<const char*>(a.w + block * a.k4 * 128);
  int64_t steps = a.k4 / 16;
  zero_tiles<kTwo>();
  tile_steps<Int8Tiles, kTwo, kCold>(x, a.ldx, w, steps);
  if (a.k4 % 16) tile_steps<Int8Tiles, kTwo, false>(x + steps * 64, a.ldx, reinterpret_cast<const char*>(tail), 1);
  store_tiles<kTwo>(sums);
}

void one_block(const Int8Args& a, int64_t row, int64_t rows, int64_t block, bool cold, const int8_t* tail) {
  alignas(64) int32_t sums[32 * 32];
  if (rows > 16) {
    cold ? block_sums<true, true>(a, row, block, tail, sums) : block_sums<true, false>(a, row, block, tail, sums);
  } else {
    cold ? block_sums<false, true>(a, row, block, tail, sums) : block_sums<false, false>(a, row, block, tail, sums);
  }
  Int8Epilogue e = int8_epilogue(a, block);
  for (int64_t i = 0; i < rows; ++i)
    int8_store(a, e, row + i, block, _mm512_load_si512(sums + i * 32), _mm512_load_si512(sums + i * 32 + 16));
}

}  // namespace

void int8_amx(const Int8Args& a, const Range& r) {
  alignas(64) int8_t tails[kPanelBlocks][2048];
  int64_t configured = 0;
  for (int64_t first = r.b0; first < r.b1; first += kPanelBlocks) {
    int64_t count = min64(kPanelBlocks, r.b1 - first);
    if (a.k4 % 16)
      for (int64_t i = 0; i < count; ++i) copy_tail(a, first + i, tails[i]);
    for (int64_t row = r.m0; row < r.m1; row += 32) {
      int64_t rows = min64(32, r.m1 - row);
      if (rows != configured) configure_tiles(configured = rows);
      for (int64_t i = 0; i < count; ++i) one_block(a, row, rows, first + i, row == r.m0, tails[i]);
    }
  }
  _tile_release();
}

}  // namespace qpass_cpu
