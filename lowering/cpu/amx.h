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

// How the tiles of a step arrive. Which of kStream and kAhead is faster depends on what else runs on the core: see Tempo.
enum Fetch {
  kPlain,   // as is
  kStream,  // past L1: loads that allocate there run at two thirds of the speed
  kAhead,   // the next step is prefetched into L1, which hides what a busy hyperthread adds to every load
  kCold,    // weights nothing has read before are fetched well ahead
};

// A macro, as the number of a tile must be a literal.
#define QPASS_LOAD_TILE(tile, p, stride)     \
  do {                                       \
    if (kFetch == kStream) {                 \
      _tile_stream_loadd(tile, p, stride);   \
    } else {                                 \
      _tile_loadd(tile, p, stride);          \
    }                                        \
  } while (0)

template <int kCount>
QPASS_INLINE void prefetch_lines(const char* p) {
#pragma GCC unroll 32
  for (int i = 0; i < kCount; ++i) _mm_prefetch(p + i * 64, _MM_HINT_T0);
}

// Where the two weight tiles of a step are: rows of 64 bytes side by side, or one tile behind the other.
struct Paired {
  static constexpr int64_t kStride = 128, kRight = 64;
};
struct Apart {
  static constexpr int64_t kStride = 64, kRight = 1024;
};

// One step covers 64 bytes of each activation row and 2 KiB of weights. Activations are packed into tiles: rows that
// are a multiple of 4 KiB apart would all fall into one set of L1. Prefetches stand between the tile instructions so
// that no load waits behind all of them.
template <class Tiles, class Layout, bool kTwo, Fetch kFetch>
QPASS_INLINE void tile_step(const char* x, const char* w) {
  constexpr bool kNext = kFetch == kAhead;
  if (kFetch == kCold) prefetch_lines<32>(w + 6144);
  QPASS_LOAD_TILE(4, x, 64);
  if (kNext) prefetch_lines<16>(x + 2048);
  QPASS_LOAD_TILE(6, w, Layout::kStride);
  if (kNext) prefetch_lines<16>(w + 2048);
  QPASS_LOAD_TILE(7, w + Layout::kRight, Layout::kStride);
  Tiles::top();
  if (kNext) prefetch_lines<16>(w + 2048 + 1024);
  if (kTwo) {
    QPASS_LOAD_TILE(5, x + 1024, 64);
    if (kNext) prefetch_lines<16>(x + 2048 + 1024);
    Tiles::bottom();
  }
}

template <class Tiles, bool kTwo>
QPASS_INLINE void tile_steps(const char* x, const char* w, int64_t steps) {
  for (int64_t s = 0; s < steps; ++s) tile_step<Tiles, Paired, kTwo, kPlain>(x + s * 2048, w + s * 2048);
}

// Chooses between kStream and kAhead by timing both. A core that is alone is a third faster with kStream; beside a
// busy hyperthread, which halves L1 and delays every load, kAhead was up to twice as fast. Results are the same bits.
class Tempo {
 public:
  QPASS_INLINE_MEMBER Fetch choose() {
    bool ahead = ticks_[1] < ticks_[0];
    if (calls_++ % kAgain == 0) ahead = !ahead;
    begin_ = __rdtsc();
    return ahead ? kAhead : kStream;
  }
  QPASS_INLINE_MEMBER void done(Fetch fetch, int64_t steps) {
    double now = static_cast<double>(__rdtsc() - begin_) / steps;
    double& known = ticks_[fetch == kAhead];
    known = known == 0 ? now : (known + now) / 2;
  }

 private:
  static constexpr unsigned kAgain = 33;  // how often the other one gets a turn
  unsigned calls_ = 0;
  uint64_t begin_ = 0;
  double ticks_[2] = {0, 0};
};

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

// Steps of k that are summed in the tiles at a time: 32 rows of them are 384 KiB of L2, beside the weights. Sums of a
// longer k are stored and loaded again, which costs as much as two steps.
constexpr int64_t kMaxSteps = 192;

struct alignas(64) PanelSums {
  char block[kPanelBlocks][4096];
};

// Called after each step, for work that runs in the shadow of the tile instructions.
struct Nothing {
  QPASS_INLINE_MEMBER void operator()() const {}
};

template <class Tiles, class Layout, bool kTwo, Fetch kFetch, class Between>
QPASS_INLINE void resume_block(const char* x, const char* w, int64_t steps, bool fresh, char* sums, Between& between) {
  fresh ? zero_tiles<kTwo>() : load_tiles<kTwo>(sums);
  for (int64_t s = 0; s < steps; ++s) {
    tile_step<Tiles, Layout, kTwo, kFetch>(x + s * 2048, w + s * 2048);
    between();
  }
  store_tiles<kTwo>(sums);
}

}  // namespace qpass_cpu
