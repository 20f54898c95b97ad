"""Token ids -> rows, from a table of codes with one dyadic scale per id."""

from __future__ import annotations

import torch
from torch import Tensor


def embedding(ids: Tensor, codes: Tensor, mantissa: Tensor, exponent: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (x int32 [..., H], k int32 [..., 1]).

    Args:
        ids: int64 [...].
        codes: int8 or int16 [V, H].
        mantissa, exponent: int32 [V]; mantissas below 2^15.
    """
    return codes[ids].to(torch.int32) * mantissa[ids][..., None], exponent[ids][..., None]
