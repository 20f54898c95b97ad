"""Two four-bit codes a byte, in either order: ecosystems differ, so the order has a name.

    even_low     byte = code[2i] | code[2i + 1] << 4      torchao, NVFP4 and MXFP4 checkpoints, DeepGEMM
    even_high    byte = code[2i] << 4 | code[2i + 1]      DeepSpeed's four-bit inference weights

An odd last code has a zero beside it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from qpass.errors import InputError
from qpass.formats.words import suggest

ORDERS = ("even_low", "even_high")


def pack(codes: Tensor, order: str = "even_low") -> Tensor:
    """[..., ⌈K / 2⌉ uint8] of codes [..., K], uint8 from 0 to 15 or int8 from -8 to 7, whose low four bits are kept.

    Raises:
        InputError: codes of another dtype or beyond four bits; an unknown order.
    """
    low_first = _low_first(order)
    if codes.dtype not in (torch.uint8, torch.int8):
        raise InputError(f"codes of {codes.dtype}", fix="pass uint8, or int8 for signed codes")
    least, most = (0, 15) if codes.dtype is torch.uint8 else (-8, 7)
    if codes.numel() and not (least <= int(codes.min()) and int(codes.max()) <= most):
        raise InputError(f"codes from {int(codes.min())} to {int(codes.max())}", fix=f"pass {least} to {most}")
    bits = F.pad(codes, (0, codes.shape[-1] % 2)).view(torch.uint8) & 15
    even, odd = bits[..., 0::2], bits[..., 1::2]
    return even | odd << 4 if low_first else even << 4 | odd


def unpack(packed: Tensor, width: int, order: str = "even_low", *, signed: bool = False) -> Tensor:
    """Codes [..., width] of what ``pack`` gave: uint8 from 0 to 15, or int8 from -8 to 7 if ``signed``.

    Raises:
        InputError: a width that does not belong to the packed length; another dtype; an unknown order.
    """
    low_first = _low_first(order)
    if packed.dtype is not torch.uint8 or packed.shape[-1] != (width + 1) // 2:
        raise InputError(f"{packed.shape[-1]} bytes of {packed.dtype} for {width} codes",
                         fix=f"pass {(width + 1) // 2} of uint8")  # fmt: skip
    halves = (packed & 15, packed >> 4) if low_first else (packed >> 4, packed & 15)
    codes = torch.stack(halves, -1).flatten(-2)[..., :width]
    return ((codes ^ 8).to(torch.int8) - 8) if signed else codes


def _low_first(order: str) -> bool:
    if order not in ORDERS:
        raise InputError(f"unknown order {order!r}", fix=suggest(order, ORDERS))
    return order == "even_low"
