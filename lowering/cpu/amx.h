// A 32 x 32 block of outputs: tiles 0..3 hold the sums, 4..5 the activations, 6..7 the weights.
#pragma once
#include "simd.h"

namespace qpass_cpu {

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes[16] = {};
  uint8_t rows[16] = {};
};

// Row counts of the last block are configured instead of padding the activations.
static void configure_tiles(int64_t rows) {
  TileConfig c;
  uint8_t top = static_cast<uint8_t>(min64(rows, 16));
  uint8_t bottom = static_cast<uint8_t>(rows > 16 ? rows - 16 : 0);
  for (int t = 0; t < 8; ++t) {
    bool is_weight = t >= 6, is_bottom = t == 2 || t == 3 || t == 5;
    c.rows[t] = is_weight ? 16 : is_bottom ? bottom : top;
    c.bytes[t] = c.rows[t] ? 64 : 0;
  }
  _tile_loadconfig(&c);
}

struct Bf16Tiles {
  QPASS_INLINE void top() {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
  }
  QPASS_INLINE void bottom() {
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
};

struct Int8Tiles {
  QPASS_INLINE void top() {
    _tile_dpbusd(0, 4, 6);
    _tile_dpbusd(1, 4, 7);
  }
  QPASS_INLINE void bottom() {
    _tile_dpbusd(2, 5, 6);
    _tile_dpbusd(3, 5, 7);
  }
};

template <bool kTwo>
QPASS_INLINE void zero_tiles() {
  _tile_zero(0);
  _tile_zero(1);
  if (kTwo) {
    _tile_zero(2);
    _tile_zero(3);
  }
}

// One step covers 64 bytes of each activation row and 2 KiB of weights. Activations are packed into tiles: rows that
// are a multiple of 4 KiB apart would all fall into one set of L1. Cold weights are fetched well ahead.
template <class Tiles, bool kTwo, bool kCold>
QPASS_INLINE void tile_steps(const char* x, const char* w, int64_t steps) {
  for (int64_t s = 0; s < steps; ++s) {
    if (kCold)
      for (int i = 0; i < 2048; i += 64) _mm_prefetch(w + s * 2048 + 6144 + i, _MM_HINT_T0);
    _tile_loadd(4, x + s * 2048, 64);
    _tile_loadd(6, w + s * 2048, 128);
    _tile_loadd(7, w + s * 2048 + 64, 128);
    Tiles::top();
    if (kTwo) {
      _tile_loadd(5, x + s * 2048 + 1024, 64);
      Tiles::bottom();
    }
  }
}

template <bool kTwo>
QPASS_INLINE void load_tiles(const void* c) {
  const char* p = static_cast<const char*>(c);
  _tile_loadd(0, p, 128);
  _tile_loadd(1, p + 64, 128);
  if (kTwo) {
    _tile_loadd(2, p + 2048, 128);
    _tile_loadd(3, p + 2048 + 64, 128);
  }
}

// `c` is [32, 32] of 4-byte values.
template <bool kTwo>
QPASS_INLINE void store_tiles(void* c) {
  char* p = static_cast<char*>(c);
  _tile_stored(0, p, 128);
  _tile_stored(1, p + 64, 128);
  if (kTwo) {
    _tile_stored(2, p + 2048, 128);
    _tile_stored(3, p + 2048 + 64, 128);
  }
}

// Steps of k after which the next block takes over, so that its activations are still in L1: 32 rows of 512 bytes.
constexpr int64_t kStepsInL1 = 8;

struct alignas(64) PanelSums {
  char block[kPanelBlocks][4096];
};

// Weights of up to kPanelBlocks blocks, `full` steps each, and for a ragged k one more step from `tails`.
struct Panel {
  const char* weights;
  int64_t stride;
  int64_t full;
  const char* tails;  // [kPanelBlocks][2048] or null
  int64_t count;
};

template <class Tiles, bool kTwo, bool kCold>
QPASS_INLINE void resume_block(const char* x, const char* w, int64_t steps, bool fresh, char* sums) {
  fresh ? zero_tiles<kTwo>() : load_tiles<kTwo>(sums);
  tile_steps<Tiles, kTwo, kCold>(x, w, steps);
  store_tiles<kTwo>(sums);
}

// Sums of one block of rows with every block of the panel. `chunk` is the number of steps per block and turn.
template <class Tiles, bool kTwo, bool kCold>
static void panel_sums(const Panel& p, const char* x, int64_t chunk, PanelSums& sums) {
  for (int64_t step = 0; step < p.full; step += chunk) {
    int64_t steps = min64(chunk, p.full - step);
    for (int64_t i = 0; i < p.count; ++i)
      resume_block<Tiles, kTwo, kCold>(x + step * 2048, p.weights + i * p.stride + step * 2048, steps, step == 0,
                                       sums.block[i]);
  }
  for (int64_t i = 0; p.tails && i < p.count; ++i)
    resume_block<Tiles, kTwo, false>(x + p.full * 2048, p.tails + i * 2048, 1, p.full == 0, sums.block[i]);
}

// `first`: nothing has read these weights before. Only then is the order of memory worth more than L1.
template <class Tiles>
static void any_panel_sums(const Panel& p, const char* x, int64_t rows, bool first, bool last, PanelSums& sums) {
  const int64_t chunk = first && last ? p.full : kStepsInL1;
  if (rows > 16)
    first ? panel_sums<Tiles, true, true>(p, x, chunk, sums) : panel_sums<Tiles, true, false>(p, x, chunk, sums);
  else
    first ? panel_sums<Tiles, false, true>(p, x, chunk, sums) : panel_sums<Tiles, false, false>(p, x, chunk, sums);
}

}  // namespace qpass_cpu
