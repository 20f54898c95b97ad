"""Codes, scales and zero points of a weight -> the tensors that the CUDA kernels read."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from qpass.formats import Format
from qpass.lowering.triton.layout import Layout, pack, padded_rows
from qpass.numerics import shift_cast
from qpass.numerics.scales import Scales

ONE_GROUP = 1 << 30
"""GROUP of a kernel where a whole row shares a scale."""


@dataclass(frozen=True)
class Grouped:
    """How a weight's groups lie in K blocks of a layout."""

    group: int
    layout: Layout

    def scales(self, width: int) -> int:
        """Rows of scales that a kernel may read: those of all K blocks, whole."""
        return -(-(-(-width // self.layout.block) * self.layout.block) // self.group)

    def spread(self, found: Tensor, rows: int, width: int) -> Tensor:
        """[N, G] of scales or zero points -> [groups, padded rows]; padding is zero."""
        extra = (0, padded_rows(rows) - rows, 0, self.scales(width) - found.shape[1])
        return F.pad(found.t(), extra).contiguous()


def unsigned(codes_NK: Tensor) -> Tensor:
    """Integer codes as four bits from 0 to 15: signed ones are moved up by 8, which is their zero point then."""
    return codes_NK if codes_NK.dtype is torch.uint8 else (codes_NK + 8).to(torch.uint8)


def sign_magnitude(codes_NK: Tensor) -> Tensor:
    """Codes as a sign bit and three bits: float codes are that already, integers from -7 to 7 become it."""
    if codes_NK.dtype is torch.uint8:
        return codes_NK
    return codes_NK.abs().to(torch.uint8) | ((codes_NK < 0).to(torch.uint8) << 3)


def pack_integers(codes_NK: Tensor, layout: Layout) -> Tensor:
    """The words of integer codes."""
    return pack(unsigned(codes_NK), layout)


def pack_signs(codes_NK: Tensor, layout: Layout) -> Tensor:
    """The words of codes that a table is looked up with."""
    return pack(sign_magnitude(codes_NK), layout)


def spread_scale(scale: Tensor, grouped: Grouped, rows: int, width: int) -> Tensor:
    """Scales as the kernel reads them."""
    return grouped.spread(scale, rows, width)


def spread_zero(scale: Tensor, zero: Tensor | None, grouped: Grouped, rows: int, width: int) -> Tensor:
    """Zero points as the kernel reads them; 8 for signed codes."""
    return grouped.spread(torch.full_like(scale, 8, dtype=torch.uint8) if zero is None else zero, rows, width)


def scaled_sums(codes_NK: Tensor, scale: Tensor, zero: Tensor | None, fmt: Format) -> Tensor:
    """float32 [padded rows]: sum over k of (code - zero) · scale, in float64 and rounded once."""
    rows, width = codes_NK.shape
    size = fmt.group or width
    padded = F.pad(codes_NK, (0, -width % size)).view(rows, -1, size)
    counts = torch.full((padded.shape[1],), size, dtype=torch.int64)
    counts[-1] -= padded.shape[1] * size - width
    groups = padded.sum(2, dtype=torch.int64)
    if zero is not None:
        groups = groups - zero.to(torch.int64) * counts.to(zero.device)
    sums = (groups.double() * scale.double()).sum(1).float()
    return F.pad(sums, (0, padded_rows(rows) - rows))


def row_sums(codes_NK: Tensor) -> Tensor:
    """int32 [N]."""
    return codes_NK.sum(1, dtype=torch.int32)


def zeros(codes: Tensor, *, size: int) -> Tensor:
    """int32 [size] where ``codes`` is: the counters of split K."""
    return torch.zeros(size, dtype=torch.int32, device=codes.device)


def tables(fmt: Format, width: int = 16) -> Tensor:
    """int32 [16, 2]: for each exact shift, the E4M3 bytes of the magnitudes 0 to 3, and 4 to 7."""
    words = torch.zeros(width, 2, dtype=torch.int64)
    for row, found in enumerate(shift_cast.table(fmt, "e4m3")):
        for part in range(2):
            words[row, part] = sum(found[4 * part + i] << (8 * i) for i in range(4))
    return words.to(torch.int32)


def real_table(fmt: Format) -> Tensor:
    """int32 [16, 2], whose first row is the grid's own values."""
    row = -shift_cast.exact_shifts(fmt, "e4m3")[0]
    return torch.cat([tables(fmt)[row : row + 1], torch.zeros(15, 2, dtype=torch.int32)])


def choices(codes_NK: Tensor, found: Scales, fmt: Format, grouped: Grouped) -> Tensor:
    """uint8 [groups, padded rows]: which table each group reads."""
    rows, width = codes_NK.shape
    return grouped.spread(shift_cast.shifts(codes_NK, found, fmt)[0], rows, width)


def factors(codes_NK: Tensor, found: Scales, fmt: Format) -> Tensor:
    """float32 [padded rows]: what is left for a row."""
    factor = shift_cast.shifts(codes_NK, found, fmt)[1].flatten()
    return F.pad(factor, (0, padded_rows(len(factor)) - len(factor)))
