// Plain structs shared by the kernels and the operators. No torch header: each kernel file is compiled for its own
// instruction set, and a template of torch that the linker merged across files could then run on a machine without it.
#pragma once
#include <cstdint>

namespace qpass_cpu {

constexpr int64_t kBlockN = 32;    // output channels per packed block
constexpr int64_t kPanelBlocks = 8;  // blocks whose weights stay in L2 while activations stream by
constexpr int64_t kPanelBytes = 1280 * 1024;

enum OutType : int { kOutFloat = 0, kOutBFloat16 = 1, kOutHalf = 2 };

// Ordered: each level can run everything that a lower one can.
enum Isa : int { kIsaNone = 0, kIsaAvx512 = 1, kIsaAvx512Bf16 = 2, kIsaAmx = 3 };

struct Output {
  void* data;
  OutType type;
  int64_t n;  // row stride and number of channels
};

// Half-open ranges of rows and of packed blocks that one call computes.
struct Range {
  int64_t m0, m1, b0, b1;
};

// Of an integer-only linear: out = RSH(RSH(RSH(sum · 2^up · mantissa, 15), shift) · row, 15), int32 [m, n].
struct DyadicArgs {
  const int32_t *mantissa, *shift;  // [n]
  const int32_t* row;               // [m]
  int32_t up;
  int32_t* out;
};

struct Int8Args {
  // Zero behind k. AVX-512: rows of ldx; AMX: [ceil(m / 32), ceil(k / 64), 32, 64].
  const uint8_t* x;
  int64_t ldx;
  const float* x_scale;
  const int32_t* x_zero;
  const int8_t* w;  // [blocks, k4, 32, 4]
  const float* w_scale;
  const int32_t* w_sum;
  const float* bias;  // may be null
  Output out;
  int64_t k;
  int64_t k4;  // number of quads of k, the last one zero padded
  const DyadicArgs* dyadic = nullptr;  // given: it says what becomes of the sums, and scales, bias and out are not read
};

// Weight-only: int4 uses `scale16`, `zero` and `group`; int8 uses `scale32` (one row).
struct WeightArgs {
  // bfloat16, zero behind k. AVX-512: rows of ldx; AMX: [ceil(m / 32), ldx / 32, 32, 32].
  const uint16_t* x;
  int64_t ldx;  // k rounded up to 32
  const float* x_sum;  // [m, groups], only where `zero` is given and the path needs it
  const uint8_t* w;    // int4: [blocks, k8, 32, 4]; int8: [blocks, k4, 32, 4]
  int bits;
  const uint16_t* scale16;  // bfloat16 [groups, n]
  const float* scale32;     // [n]
  const uint8_t* zero;      // [groups, n], null means 8
  const float* bias;        // may be null
  Output out;
  int64_t k;
  int64_t chunks;  // 128-byte steps of one packed block: k8 or k4
  int64_t group;
  int64_t groups;
};

enum MaskType : int { kMaskNone = 0, kMaskBool = 1, kMaskFloat = 2, kMaskBFloat16 = 3 };

// bfloat16 q [b, heads, queries, d], k [b, heads / repeats, keys, d], v [..., dv]; strides in elements, of the last
// dimension 1. `out` [b, queries, heads, dv] is dense. The mask is broadcast by strides of 0.
struct AttentionArgs {
  const uint16_t *q, *k, *v;
  int64_t q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t;
  const void* mask;
  MaskType mask_type;
  int64_t mask_b, mask_h, mask_t;
  bool causal;
  float scale;
  int64_t heads, repeats, queries, keys, d, dv;
  uint16_t* out;
};

// Rows row0 to row1 of the queries * repeats that belong to one key head.
void attention_fp32(const AttentionArgs& a, int64_t batch, int64_t head, int64_t row0, int64_t row1);
void attention_bf16(const AttentionArgs& a, int64_t batch, int64_t head, int64_t row0, int64_t row1);

void int8_avx512(const Int8Args& a, const Range& r);
void int8_amx(const Int8Args& a, const Range& r);

// Few rows, weights decoded in registers; int4 needs group % 8 == 0.
void weight_rows_fp32(const WeightArgs& a, const Range& r);
void weight_rows_bf16(const WeightArgs& a, const Range& r);
// At most 32 rows, weights decoded to exact integers in L1; int4 needs group % 32 == 0.
void weight_small_amx(const WeightArgs& a, const Range& r);
// Any number of rows, weights decoded to (rounded) bfloat16: once, with AMX once for some hundred rows.
void weight_panel_fp32(const WeightArgs& a, const Range& r);
void weight_panel_bf16(const WeightArgs& a, const Range& r);
void weight_panel_amx(const WeightArgs& a, const Range& r);

// Decoded layout [ldx / 2, 32, 2]: pairs of k next to each other, as dpbf16 and AMX want them.
void decode_block_scaled(const WeightArgs& a, int64_t block, uint16_t* dst);
void decode_chunks_exact(const WeightArgs& a, int64_t block, int64_t k0, int64_t k1, uint16_t* dst);

// Rows r0..r1 of contiguous x [m, k] as bfloat16 rows of ldx, or as tiles; `from` is an OutType.
void rows_to_bf16(const void* x, int from, int64_t r0, int64_t r1, int64_t k, uint16_t* dst, int64_t ldx, bool tiles);
void rows_to_tiles(const uint8_t* x, int64_t r0, int64_t r1, int64_t k, uint8_t* dst);
// Sum of x over each group, [rows, groups]; tiles need group % 32 == 0.
void group_sums(const WeightArgs& a, int64_t rows, bool tiles, float* dst);

// Scratch memory of the calling thread: 64-byte aligned, kept and reused between calls. Throws std::bad_alloc.
void* thread_scratch(int64_t bytes);

Isa detected_isa();
bool request_amx();

}  // namespace qpass_cpu
