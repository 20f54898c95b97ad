// u8 x s8 -> s32 on AMX tiles. A panel of weights stays in L2 while the activations stream by.
#include <cstring>

#include "amx.h"
#include "int8_epilogue.h"

namespace qpass_cpu {
namespace {

// Weights of up to kPanelBlocks blocks, `full` steps each, and for a ragged k one more step from `tails`.
struct Panel {
  const char* weights;
  int64_t stride;
  int64_t full;
  const char* tails;  // [kPanelBlocks][2048] or null
  int64_t count;
};

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

// Sums of one block of rows with every block of the panel.
template <bool kTwo, Fetch kFetch>
void panel_sums(const Panel& p, const char* x, PanelSums& sums) {
  Nothing nothing;
  for (int64_t step = 0; step < p.full; step += kMaxSteps) {
    int64_t steps = min64(kMaxSteps, p.full - step);
    for (int64_t i = 0; i < p.count; ++i)
      resume_block<Int8Tiles, Paired, kTwo, kFetch>(x + step * 2048, p.weights + i * p.stride + step * 2048, steps,
                                                    step == 0, sums.block[i], nothing);
  }
  for (int64_t i = 0; p.tails && i < p.count; ++i)
    resume_block<Int8Tiles, Paired, kTwo, kPlain>(x + p.full * 2048, p.tails + i * 2048, 1, p.full == 0, sums.block[i],
                                                  nothing);
}

template <bool kTwo>
void panel_sums(Fetch fetch, const Panel& p, const char* x, PanelSums& sums) {
  if (fetch == kCold) return panel_sums<kTwo, kCold>(p, x, sums);
  fetch == kAhead ? panel_sums<kTwo, kAhead>(p, x, sums) : panel_sums<kTwo, kStream>(p, x, sums);
}

}  // namespace

void int8_amx(const Int8Args& a, const Range& r) {
  static thread_local Tempo tempo;
  alignas(64) char tails[kPanelBlocks][2048];
  PanelSums sums;
  const int64_t steps = (a.k4 + 15) / 16, fitting = kPanelBytes / (a.k4 * 128);
  const int64_t blocks = fitting < 1 ? 1 : min64(fitting, kPanelBlocks);
  const bool ragged = a.k4 % 16;
  int64_t configured = 0;
  for (int64_t first = r.b0; first < r.b1; first += blocks) {
    const char* weights = reinterpret_cast<const char*>(a.w + first * a.k4 * 128);
    const Panel p{weights, a.k4 * 128, a.k4 / 16, ragged ? tails[0] : nullptr, min64(blocks, r.b1 - first)};
    for (int64_t i = 0; ragged && i < p.count; ++i) copy_tail(a, first + i, tails[i]);
    for (int64_t row = r.m0; row < r.m1; row += 32) {
      int64_t rows = min64(32, r.m1 - row);
      if (rows != configured) configure_tiles(configured = rows);
      const char* x = reinterpret_cast<const char*>(a.x) + row / 32 * steps * 2048;
      const Fetch fetch = row == r.m0 ? kCold : tempo.choose();
      rows > 16 ? panel_sums<true>(fetch, p, x, sums) : panel_sums<false>(fetch, p, x, sums);
      if (fetch != kCold) tempo.done(fetch, p.count * steps);
      for (int64_t i = 0; i < p.count; ++i) store_sums(a, row, rows, first + i, sums.block[i]);
    }
  }
  _tile_release();
}

}  // namespace qpass_cpu
