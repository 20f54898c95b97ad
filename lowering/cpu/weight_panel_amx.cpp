// Many rows on AMX. What stays in L2 are activations: rows of a slab of k. The weight, a fourth of their size or half,
// streams by: a part of one block at a time is decoded, between the tile instructions that use the part before.
#include "amx.h"
#include "panel_decode.h"

namespace qpass_cpu {
namespace {

constexpr int64_t kActivationBytes = 1024 * 1024;
constexpr int64_t kLeastRows = 128;  // of a pass; with fewer, decoding would take longer than the tile instructions
constexpr int64_t kPartSteps = 64;   // steps of a decoded part: 128 KiB, of which there are two

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
// The largest piece when `total` is cut into as few pieces as `most` allows, all about the same.
constexpr int64_t even_piece(int64_t total, int64_t most) { return ceil_div(total, ceil_div(total, most)); }

// Gives the decoder its turns, evenly over the steps.
template <int kBits>
class Shadow {
 public:
  Shadow(PartDecoder<kBits>& decoder, int64_t steps) : decoder_(decoder), rate_((decoder.left() << 16) / steps) {}
  QPASS_INLINE_MEMBER void operator()() {
    for (credit_ += rate_; credit_ >= 1 << 16; credit_ -= 1 << 16) decoder_.next();
  }

 private:
  PartDecoder<kBits>& decoder_;
  int64_t rate_, credit_ = 0;
};

void store_sums(const WeightArgs& a, int64_t row, int64_t rows, int64_t block, const char* sums) {
  const PanelEnd e = panel_end(a, block);
  for (int64_t i = 0; i < rows; ++i, sums += 128)
    store_panel(a, e, row + i, block, _mm512_load_ps(sums), _mm512_load_ps(sums + 64));
}

template <bool kTwo, int kBits>
void add_part(Fetch fetch, const char* x, const char* w, int64_t steps, bool fresh, char* sums, Shadow<kBits>& shadow) {
  fetch == kAhead ? resume_block<Bf16Tiles, Apart, kTwo, kAhead>(x, w, steps, fresh, sums, shadow)
                  : resume_block<Bf16Tiles, Apart, kTwo, kStream>(x, w, steps, fresh, sums, shadow);
}

// Rows r.m0 to r.m1 with the blocks of r, in steps step0 to step1 of k. Sums of every block are kept where k has other
// slabs.
struct Slab {
  const WeightArgs& a;
  Range r;
  int64_t step0, step1;
  char *panels, *sums;
  bool whole;

  int64_t part_steps() const { return even_piece(step1 - step0, kPartSteps); }
  int64_t parts_of_block() const { return ceil_div(step1 - step0, part_steps()); }
  Part part(int64_t i) const {
    int64_t steps = part_steps(), begin = step0 + i % parts_of_block() * steps;
    return {r.b0 + i / parts_of_block(), begin, min64(steps, step1 - begin)};
  }
  char* sums_of(int64_t row, int64_t block) const {
    int64_t kept = whole ? 0 : (block - r.b0) * ceil_div(r.m1 - r.m0, 32);
    return sums + (kept + (row - r.m0) / 32) * 4096;
  }
  template <int kBits>
  void run() const;
};

template <int kBits>
void Slab::run() const {
  static thread_local Tempo tempo;
  const int64_t parts = (r.b1 - r.b0) * parts_of_block(), panel_bytes = part_steps() * 2048;
  PartDecoder<kBits> decoder(a);
  decoder.start(part(0), panels);
  while (decoder.left()) decoder.next();
  int64_t configured = 0;
  for (int64_t i = 0; i < parts; ++i) {
    const Part p = part(i);
    if (i + 1 < parts) decoder.start(part(i + 1), panels + (i + 1) % 2 * panel_bytes);
    Shadow<kBits> shadow(decoder, ceil_div(r.m1 - r.m0, 32) * p.steps);
    for (int64_t row = r.m0; row < r.m1; row += 32) {
      const int64_t rows = min64(32, r.m1 - row);
      if (rows != configured) configure_tiles(configured = rows);
      const char* x = reinterpret_cast<const char*>(a.x + row * a.ldx) + p.step0 * 2048;
      const char* w = panels + i % 2 * panel_bytes;
      char* to = sums_of(row, p.block);
      const Fetch fetch = tempo.choose();
      rows > 16 ? add_part<true>(fetch, x, w, p.steps, p.step0 == 0, to, shadow)
                : add_part<false>(fetch, x, w, p.steps, p.step0 == 0, to, shadow);
      tempo.done(fetch, p.steps);
      if (p.step0 + p.steps == a.ldx / 32) store_sums(a, row, rows, p.block, to);
    }
    while (decoder.left()) decoder.next();
  }
  _tile_release();
}

}  // namespace

void weight_panel_amx(const WeightArgs& a, const Range& r) {
  const int64_t k_steps = a.ldx / 32, steps = even_piece(k_steps, kMaxSteps);
  const int64_t fitting = kActivationBytes / (steps * 2048) * 32;
  const int64_t rows = ceil_div(even_piece(r.m1 - r.m0, fitting < kLeastRows ? kLeastRows : fitting), 32) * 32;
  const int64_t kept = ceil_div(rows, 32) * (steps < k_steps ? r.b1 - r.b0 : 1);
  char* panels = static_cast<char*>(thread_scratch(2 * kPartSteps * 2048 + kept * 4096));
  for (int64_t row = r.m0; row < r.m1; row += rows) {
    for (int64_t step = 0; step < k_steps; step += steps) {
      const Range range{row, min64(row + rows, r.m1), r.b0, r.b1};
      const Slab slab{a, range, step, min64(step + steps, k_steps), panels, panels + 2 * kPartSteps * 2048,
                      steps == k_steps};
      a.bits == 8 ? slab.run<8>() : slab.run<4>();
    }
  }
}

}  // namespace qpass_cpu
