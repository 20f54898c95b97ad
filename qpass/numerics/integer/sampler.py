"""A token drawn from softmax(logits / T) with integers alone, top-k and top-p included.

    z = (max - L) · log2(e) / T in Q24;   p = 2^-z in Q24;   the first index whose running sum exceeds r · total
"""

from __future__ import annotations

import torch
from torch import Tensor

from qpass.numerics.integer.shift import rsh

PLACES = 24
TABLE = tuple(round((1 << PLACES) * 2 ** (-j / 64)) for j in range(65))


def weights(logits: Tensor, exponent: Tensor, c_mantissa: int, c_exponent: int, table: Tensor) -> Tensor:
    """Unnormalized probabilities, int64 [..., V], 0 to 2^24.

    Args:
        logits, exponent: int32 [..., V], |L| <= 2^24, and [..., 1].
        c_mantissa, c_exponent: ``fit`` of log2(e) / T, 15 bits.
        table: int64 [65], ``TABLE``.
    """
    wide = logits.to(torch.int64)
    z = (wide.amax(-1, keepdim=True) - wide) * c_mantissa  # 40 bits
    shift = exponent.to(torch.int64) + c_exponent - PLACES
    z = rsh(rsh(z, shift.clamp(min=0)).clamp(max=1 << 40), shift.clamp(-22, 0)).clamp(max=62 << PLACES)
    fraction = z & ((1 << PLACES) - 1)
    index, rest = fraction >> 18, fraction & ((1 << 18) - 1)
    high, low = table[index], table[index + 1]
    return rsh(high - rsh((high - low) * rest, 18), z >> PLACES)


def keep_top_k(p: Tensor, count: int) -> Tensor:
    """p with all but the ``count`` largest set to 0; ties with the last are kept."""
    least = p.topk(min(count, p.shape[-1]), dim=-1).values[..., -1:]
    return torch.where(p >= least, p, torch.zeros_like(p))


def keep_top_p(p: Tensor, mass_q16: int) -> Tensor:
    """p with all but the least set of largest entries whose share reaches ``mass_q16`` / 2^16 set to 0."""
    ordered, order = p.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(-1) - ordered
    kept = (before << 16) < mass_q16 * p.sum(-1, keepdim=True)
    mask = torch.zeros_like(kept).scatter(-1, order, kept)
    return torch.where(mask, p, torch.zeros_like(p))


def draw(p: Tensor, words: Tensor) -> Tensor:
    """int64 [...]: the first index whose running sum exceeds floor(total · words / 2^31).

    Args:
        p: int64 [..., V], not negative, a row's total below 2^47 and above 0.
        words: int64 [...], 31 bits, from ``random_words``.
    """
    running = p.cumsum(-1)
    total, words = running[..., -1:], words[..., None]
    goal = (total >> 32) * 2 * words + (((total & 0xFFFFFFFF) * words) >> 31)
    return (running <= goal).sum(-1)
