"""The qpass_cpu operators from Python: loading, shapes for the compiler, and the packed layouts.

Packed weights are plain tensors, so they can be buffers, be saved, shared and cached. A block of 32 output channels is
stored as ``[steps, 32 lanes, 4 bytes]``; one lane holds four int8 codes of consecutive k, or eight int4 codes with
k = 0 2 4 6 in its low half and k = 1 3 5 7 in its high half, lowest nibble first. Channels are padded to 32 and k to
4 (int8) or 8 (int4) with zero codes, which meet zero activations.

Three of the operators are linears, each for any leading shape (M = product of the leading dimensions, dynamic, may be
0):

``qpass_cpu::int8_linear(x_codes, x_scale, x_zero, w_packed, w_scale, w_sum, bias, out_features, dtype)``
    ``out = x_scale * w_scale * (sum_k x_codes * w - x_zero * w_sum) + bias``. x_codes uint8 [..., K]; x_scale float32
    [..., 1]; x_zero int32 [..., 1]; w_scale float32 [N]; w_sum int32 [N]; bias None or [N] of float32, bfloat16 or
    float16. The bracket is exact in int32 (for K up to 2**31 / 255 / 128 = 65793); after it, four float32 roundings:
    ``|out - exact| <= 2**-22 * |exact - bias| + 2**-24 * |out|``, then one rounding to dtype. A row's result does not
    depend on the other rows nor on M.
``qpass_cpu::int4_linear(x, w_packed, w_scale, w_zero, bias, out_features, group_size, dtype)``
    ``out = sum_k bf16(x) * (code - zero) * scale + bias``. x float32, bfloat16 or float16 [..., K], rounded to bfloat16
    first; w_scale bfloat16 [G, N]; w_zero uint8 [G, N] or None for 8; G = ceil(K / group_size), the last group may be
    short; group_size even, or >= K for one group. Up to 32 rows (16 without AVX512-BF16) weights are exact: error of a
    float32 sum, ``<= 2**-24 * (K + G + 8) * sum_k |x| * (|code - 8| + |8 - zero|) * scale``. Above that, and where
    group_size is not a multiple of 8 (with AMX of 32, from 5 rows on), a weight is rounded to bfloat16:
    ``+ 2**-8 * sum_k |x * w|``.
``qpass_cpu::int8_weight_linear(x, w_packed, w_scale, bias, out_features, dtype)``
    ``out = w_scale * sum_k bf16(x) * code + bias``. w_scale float32 [N]. Codes are exact in bfloat16 at every M, so
    only the error of a float32 sum is left.
``qpass_cpu::grouped_int8_linear(x_codes, x_scale, x_zero, w_packed, w_scale, w_sum, offsets, out_features, dtype)``,
``qpass_cpu::grouped_int4_linear(x, w_packed, w_scale, w_zero, offsets, out_features, group_size, dtype)``,
``qpass_cpu::grouped_int8_weight_linear(x, w_packed, w_scale, offsets, out_features, dtype)``
    The three above without a bias, on rows [S, K] sorted by expert: the weight's tensors have a first dimension more,
    of E experts, and ``offsets`` int32 [E] says where the rows of each end. Rows behind the last are 0. A row's result
    is what the linear gives for the rows of its expert.
``qpass_cpu::attention(q, k, v, mask, causal, scale)``
    ``out = softmax(scale * q k' + mask) v``, all bfloat16. q [B, H, T, D]; k [B, H / r, S, D]; v [B, H / r, S, E]; the
    mask None, bool (True is kept), float32 or bfloat16 (added), broadcast to [B, H, T, S]; causal keeps keys up to the
    query's own index. A row that keeps no key is 0. Scores and sums are float32. With d the largest error of a score,
    ``2**-24 * (D + 8) * scale * sum |q k|``, a result is off by no more than
    ``(2**-8 + 2 * d + 2**-24 * (S + 8)) * softmax |v|``, before it is rounded to bfloat16.

Products of subnormal bfloat16 numbers may be flushed to zero, as the instructions do.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from qpass.errors import InputError
from qpass.lowering.cpu import kernels_integer
from qpass.lowering.cpu.build import available, load_library

__all__ = ["available", "load", "pack_int4", "pack_int8", "pack_int8_weight", "unpack_int4", "unpack_int8"]

BLOCK = 32
INT8_PER_LANE = 4
INT4_PER_LANE = 8
ISA_LEVELS = {1: "avx512", 2: "avx512_bf16", 3: "amx"}


@functools.lru_cache
def load() -> None:
    """Compile if needed, load, and register what torch.compile needs. Raises UnsupportedError where it cannot.

    ``QPASS_CPU_ISA=avx512`` or ``avx512_bf16`` forces a lower instruction set, to test or to compare.
    """
    load_library()
    torch.library.register_fake("qpass_cpu::int8_linear", _fake_int8)
    torch.library.register_fake("qpass_cpu::int4_linear", _fake_int4)
    torch.library.register_fake("qpass_cpu::int8_weight_linear", _fake_int8_weight)
    torch.library.register_fake("qpass_cpu::grouped_int8_linear", _fake_int8)
    torch.library.register_fake("qpass_cpu::grouped_int4_linear", _fake_grouped_int4)
    torch.library.register_fake("qpass_cpu::grouped_int8_weight_linear", _fake_int8_weight)
    torch.library.register_fake("qpass_cpu::attention", _fake_attention)
    kernels_integer.register()


def isa() -> str:
    """The instruction set in use: avx512, avx512_bf16 or amx."""
    load()
    return ISA_LEVELS[torch.ops.qpass_cpu.get_isa()]


def _fake_int8(x_codes, x_scale, x_zero, w_packed, w_scale, w_sum, bias, out_features, dtype):  # type: ignore[no-untyped-def]
    return x_codes.new_empty((*x_codes.shape[:-1], out_features), dtype=dtype)


def _fake_int4(x, w_packed, w_scale, w_zero, bias, out_features, group_size, dtype):  # type: ignore[no-untyped-def]
    return x.new_empty((*x.shape[:-1], out_features), dtype=dtype)


def _fake_grouped_int4(x, w_packed, w_scale, w_zero, offsets, out_features, group_size, dtype):  # type: ignore[no-untyped-def]
    return x.new_empty((*x.shape[:-1], out_features), dtype=dtype)


def _fake_int8_weight(x, w_packed, w_scale, bias, out_features, dtype):  # type: ignore[no-untyped-def]
    return x.new_empty((*x.shape[:-1], out_features), dtype=dtype)


def _fake_attention(q, k, v, mask, causal, scale):  # type: ignore[no-untyped-def]
    batch, heads, queries, _ = q.shape
    return q.new_empty((batch, queries, heads, v.shape[-1])).transpose(1, 2)


def _check_codes(codes: Tensor, dtype: torch.dtype, name: str) -> None:
    if codes.dim() != 2 or 0 in codes.shape or codes.dtype != dtype:
        raise InputError(
            f"codes must be a non-empty [N, K] tensor of {dtype}, not {list(codes.shape)} of {codes.dtype}",
            where=f"{name}(codes)",
        )


def _padded(codes: Tensor, per_lane: int) -> Tensor:
    n, k = codes.shape
    pad = (0, -k % per_lane, 0, -n % BLOCK)
    return F.pad(codes, pad) if any(pad) else codes.contiguous()


def _to_blocks(lanes: Tensor) -> Tensor:
    """[N, steps * 4] bytes to [N / 32, steps, 32, 4]: one transpose of whole 32-bit lanes."""
    words = lanes.view(torch.int32)
    words = words.view(-1, BLOCK, words.shape[1]).transpose(1, 2).clone(memory_format=torch.contiguous_format)
    return words.view(lanes.dtype).view(*words.shape, 4)


def _from_blocks(packed: Tensor) -> Tensor:
    blocks, steps = packed.shape[:2]
    words = packed.contiguous().view(torch.int32).view(blocks, steps, BLOCK)
    words = words.transpose(1, 2).clone(memory_format=torch.contiguous_format)
    return words.view(blocks * BLOCK, steps).view(packed.dtype)


def pack_int8(codes: Tensor) -> tuple[Tensor, Tensor]:
    """int8 [N, K] to (w_packed int8 [ceil(N/32), ceil(K/4), 32, 4], w_sum int32 [N] = sum over K)."""
    return pack_int8_weight(codes), codes.sum(1, dtype=torch.int32)


def pack_int8_weight(codes: Tensor) -> Tensor:
    """int8 [N, K] to w_packed; the layout of :func:`pack_int8`, so one packed weight serves both operators."""
    _check_codes(codes, torch.int8, "pack_int8")
    return _to_blocks(_padded(codes, INT8_PER_LANE))


def unpack_int8(w_packed: Tensor, n: int, k: int) -> Tensor:
    """Inverse of :func:`pack_int8_weight`: int8 [n, k]."""
    return _from_blocks(w_packed)[:n, :k].contiguous()


def pack_int4(codes: Tensor) -> Tensor:
    """uint8 [N, K] of 0..15 to w_packed uint8 [ceil(N/32), ceil(K/8), 32, 4], two codes per byte.

    A code above 15 would spill into its neighbor and is refused, except while tracing, where values are unknown.
    """
    _check_codes(codes, torch.uint8, "pack_int4")
    if not torch.compiler.is_compiling() and type(codes) is Tensor and int(codes.max()) > 15:
        raise InputError("codes must be 0..15", where="pack_int4(codes)", fix="clamp the codes to four bits")
    codes = _padded(codes, INT4_PER_LANE)
    n, k = codes.shape
    quads = codes.view(n, k // 8, 2, 2, 2)  # k = 8 c + 4 half + 2 nibble + odd
    lanes = torch.bitwise_or(quads[:, :, :, 0], quads[:, :, :, 1] << 4)
    return _to_blocks(lanes.transpose(2, 3).reshape(n, k // 2))


def unpack_int4(w_packed: Tensor, n: int, k: int) -> Tensor:
    """Inverse of :func:`pack_int4`: uint8 [n, k]."""
    lanes = _from_blocks(w_packed)
    lanes = lanes.view(lanes.shape[0], -1, 2, 2).transpose(2, 3)
    codes = torch.stack((lanes & 15, lanes >> 4), 3)
    return codes.reshape(lanes.shape[0], -1)[:n, :k].contiguous()
