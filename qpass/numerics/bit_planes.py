"""Codes of any number of bits in exactly that many bits: plane i holds bit i of every code, eight codes a byte.

    planes[i, n, k // 8] bit (k % 8)  =  bit i of codes[n, k]

It is how weights lie in memory where no kernel has a layout of its own; K is padded to a multiple of 8.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def pack(codes_NK: Tensor, bits: int) -> Tensor:
    """uint8 [bits, N, ceil(K / 8)] from uint8 or int8 codes, of which the ``bits`` low bits count."""
    padded = F.pad(codes_NK.view(torch.uint8), (0, -codes_NK.shape[1] % 8)).unflatten(1, (-1, 8))
    packed = torch.zeros(bits, *padded.shape[:2], dtype=torch.uint8, device=codes_NK.device)
    for plane in range(bits):
        for position in range(8):
            packed[plane] |= ((padded[:, :, position] >> plane) & 1) << position
    return packed


def unpack(planes: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    """Codes [N, width] of ``dtype``: uint8, or int8 with the highest bit as the sign."""
    bits = len(planes)
    places = torch.arange(8, dtype=torch.uint8, device=planes.device)
    order = torch.arange(bits, dtype=torch.uint8, device=planes.device)[:, None, None, None]
    every = ((planes[..., None] >> places) & 1) << order
    codes = every.sum(0, dtype=torch.uint8).flatten(1)[:, :width]
    if dtype is torch.uint8:
        return codes
    sign = 1 << (bits - 1)
    return (codes ^ sign).to(torch.int8) - sign
