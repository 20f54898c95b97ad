"""The second moment of a linear's inputs, streamed: the Hessian of GPTQ (Frantar et al. 2023), up to its damping.

    H = (2 / n) Σ x xᵀ,    and for a batch of m more rows    H ← H · n / (n + m) + 2 / (n + m) · Xᵀ X
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from qpass.errors import InputError, NumericsError


@dataclass
class SecondMoment:
    """H of one value. Empty until the first ``update``.

    Attributes:
        matrix: [K, K] of ``dtype``, symmetric; None before the first row.
        count: rows seen, n.
        dtype: float32, or float64 for tests.
    """

    matrix: Tensor | None = field(default=None, repr=False)
    count: int = 0
    dtype: torch.dtype = torch.float32

    def update(self, x: Tensor) -> None:
        """Take in one batch. x: [..., K], any float dtype.

        Raises:
            NumericsError: NaN or Inf.
            InputError: another K than before.
        """
        rows = x.detach().reshape(-1, x.shape[-1]).to(self.dtype)
        if not rows.shape[0]:
            return
        if self.matrix is not None and self.matrix.shape[0] != rows.shape[1]:
            raise InputError(f"{rows.shape[1]} channels, there were {self.matrix.shape[0]} before",
                             fix="pass batches of one kind")  # fmt: skip
        if not all(bool(torch.isfinite(end)) for end in torch.aminmax(rows)):
            bad = (~torch.isfinite(rows)).any(0).nonzero()
            raise NumericsError(f"NaN or Inf in {len(bad)} channels, the first is {int(bad[0])}",
                                fix="repair the checkpoint or the batch")  # fmt: skip
        total = self.count + len(rows)
        added = rows.T @ rows * (2 / total)
        self.matrix = added if self.matrix is None else self.matrix.mul_(self.count / total).add_(added)
        self.count = total
