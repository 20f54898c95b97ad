"""A row of the key-value cache as codes: one token of one head, in bytes.

    codes | 0 up to a multiple of 4 bytes | scales | zero points | 0 up to a multiple of 16 bytes

    codes         5 to 8 bits: a byte each. Unsigned integers (formats with zero points) are stored as code - 128,
                  signed ones and FP8 as they are. Up to 4 bits: two a byte, the first in the low half, unsigned or in
                  two's complement; an odd last one has 0 beside it.
    scales        float32, low byte first, one a group of the head (G = 1 for a token): what a code is multiplied with,
                  whatever the format's scale kind is.
    zero points   int32, as scales; only of formats that have them.

``unpack(pack(x))`` is ``codec.round_rows(x)`` bit for bit. Shapes: D values of a head, G groups, W bytes of a row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qpass.formats import Format
from qpass.numerics import codec

ALIGN = 16
"""Rows are a multiple of this many bytes, so that each begins where a wide load may."""


def code_bytes(fmt: Format, width: int) -> int:
    """Bytes of ``width`` codes, without what comes behind them."""
    return -(-width // 2) if fmt.bits <= 4 else width


def scales_at(fmt: Format, width: int) -> int:
    """Where the scales of a row begin, in bytes: behind the codes, at a multiple of 4."""
    return -(-code_bytes(fmt, width) // 4) * 4


def zeros_at(fmt: Format, width: int) -> int:
    """Where the zero points of a row begin, or would, in bytes."""
    return scales_at(fmt, width) + 4 * fmt.groups(width)


def width(fmt: Format, D: int) -> int:
    """W, the bytes of a row of ``D`` values."""
    used = zeros_at(fmt, D) + (0 if fmt.symmetric else 4 * fmt.groups(D))
    return -(-used // ALIGN) * ALIGN


def pack(x: Tensor, fmt: Format) -> Tensor:
    """int8 [..., W] of x [..., D] of any float dtype, each row on its own.

    Put together as int32: Inductor's C++ joins no concatenation of bytes with what is around it (torch 2.13).
    """
    codes, scale, zero = codec.quantize_rows(x, fmt)
    held = _pack_codes(codes, fmt).to(torch.int32)
    count = x.shape[-1]
    parts = [held, *_zeros(held, scales_at(fmt, count) - held.shape[-1]), _to_bytes(scale.view(torch.int32))]
    parts += [] if fmt.symmetric else [_to_bytes(zero)]
    used = zeros_at(fmt, count) + (0 if fmt.symmetric else 4 * fmt.groups(count))
    return torch.cat([*parts, *_zeros(held, width(fmt, count) - used)], -1).to(torch.int8)


def _zeros(like: Tensor, count: int) -> list[Tensor]:
    """``count`` zeros behind each row; none if it is 0. A padding would make numbers of symbolic sizes (torch 2.13)."""
    return [like.new_zeros((*like.shape[:-1], count))] if count else []


def unpack(rows: Tensor, fmt: Format, D: int, dtype: torch.dtype) -> Tensor:
    """The values [..., D] of ``dtype`` that rows int8 [..., W] hold."""
    first, groups = scales_at(fmt, D), fmt.groups(D)
    codes = _unpack_codes(rows[..., : code_bytes(fmt, D)], fmt, D)
    scale = _from_bytes(rows[..., first : first + 4 * groups]).view(torch.float32)
    if fmt.symmetric:
        zero = torch.zeros_like(scale, dtype=torch.int32)
    else:
        zero = _from_bytes(rows[..., first + 4 * groups : first + 8 * groups])
    return codec.dequantize_rows(codes, scale, zero, fmt, dtype)


def _pack_codes(codes: Tensor, fmt: Format) -> Tensor:
    if fmt.bits > 4:
        held = codes.view(torch.int8)
        return held ^ -128 if codes.dtype is torch.uint8 else held
    bits = torch.cat([codes, *_zeros(codes, codes.shape[-1] % 2)], -1).view(torch.uint8) & 15
    return (bits[..., 0::2] | bits[..., 1::2] << 4).view(torch.int8)


def _unpack_codes(held: Tensor, fmt: Format, count: int) -> Tensor:
    if fmt.bits > 4:
        held = held ^ -128 if fmt.code_dtype is torch.uint8 else held
        return held.contiguous().view(fmt.code_dtype)
    bits = held.to(torch.int32) & 255
    order = torch.arange(count, device=held.device)  # an index, and no view: other sizes may be symbolic
    order = order // 2 + order % 2 * bits.shape[-1]
    codes = torch.cat((bits & 15, bits >> 4), -1).index_select(-1, order).to(torch.uint8)
    return (codes ^ 8).view(torch.int8) - 8 if fmt.code_dtype is torch.int8 else codes


def _to_bytes(words: Tensor) -> Tensor:
    """Bytes [..., 4 G], in int32, of int32 [..., G], low byte first: shifts, which a compiler joins with others."""
    every = [words[..., g : g + 1] >> shift for g in range(words.shape[-1]) for shift in (0, 8, 16, 24)]
    return torch.cat(every, -1)


def _from_bytes(held: Tensor) -> Tensor:
    """int32 [..., G] of int8 [..., 4 G]."""
    parts = [(held[..., at::4].to(torch.int32) & 255) << 8 * at for at in range(4)]
    return parts[0] | parts[1] | parts[2] | parts[3]
