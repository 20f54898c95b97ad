"""A counter-based generator in integer operations: Threefry-2x32 with 20 rounds (Salmon et al. 2011)."""

from __future__ import annotations

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_ROTATIONS = (13, 15, 26, 6, 17, 29, 16, 24)
_PARITY = 0x1BD11BDA


def threefry(key: tuple[int, int], counter: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Two random words of 32 bits, as int64, for each counter.

    Args:
        key: two words of 32 bits.
        counter: two int64 tensors of words of 32 bits, of one shape.
    """
    keys = (key[0], key[1], key[0] ^ key[1] ^ _PARITY)
    x, y = (counter[0] + keys[0]) & _MASK, (counter[1] + keys[1]) & _MASK
    for number in range(20):
        turn = _ROTATIONS[number % 8]
        x = (x + y) & _MASK
        y = (((y << turn) | (y >> (32 - turn))) & _MASK) ^ x
        if number % 4 == 3:
            step = number // 4 + 1
            x = (x + keys[step % 3]) & _MASK
            y = (y + keys[(step + 1) % 3] + step) & _MASK
    return x, y


def random_words(seed: int, step: int, rows: int, device: torch.device | None = None, copies: int = 1) -> Tensor:
    """int64 [rows], each 31 random bits that depend on the seed, the step, the prompt and the copy alone.

    Row r is copy r % copies of prompt r // copies; the counter is (prompt + 2^16 · copy, step). Copy 0 of a prompt has
    the words that it has alone. With more copies than one, neither prompts nor copies may be more than 2^16.
    """
    row = torch.arange(rows, device=device)
    key = (seed & _MASK, (seed >> 32) & _MASK)
    return threefry(key, (row // copies + (row % copies << 16), torch.full_like(row, step)))[0] >> 1
