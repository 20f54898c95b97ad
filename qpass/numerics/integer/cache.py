"""Keys and values as they lie in the cache: int8 [..., D + 2], the codes, then mantissa - 192 and exponent.

One tensor a layer and side, as a float cache is: it can be cut, repeated and reordered by whoever knows that one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qpass.numerics.integer.quantize import quantize_rows

EXTRA = 2
MANTISSA = 8
_MIDDLE = 192  # mantissas are 128 to 255


def pack(x: Tensor, k: Tensor, bits: int = 8) -> Tensor:
    """int8 [..., D + 2] of rows [..., D]: symmetric codes, and a scale of 2 bytes a row."""
    codes, _, m, k = quantize_rows(x, k, bits, True, MANTISSA)
    return torch.cat((codes, (m - _MIDDLE).to(torch.int8), k.clamp(-128, 127).to(torch.int8)), dim=-1)


def unpack(cache: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(codes [..., D], m [..., 1], k [..., 1]), int32 each."""
    wide = cache.to(torch.int32)
    return wide[..., :-EXTRA], wide[..., -2:-1] + _MIDDLE, wide[..., -1:]
