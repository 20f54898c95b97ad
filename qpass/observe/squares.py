"""The mean square of each channel of a value, streamed: the diagonal of the second moment, without the rest of it."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from qpass.errors import InputError, NumericsError


@dataclass
class Squares:
    """Σ x² of each channel. Empty until the first ``update``.

    Attributes:
        total: [C] float64, or None.
        count: rows seen.
    """

    total: Tensor | None = field(default=None, repr=False)
    count: int = 0

    def update(self, value: Tensor) -> None:
        """Take in one batch. value: [..., C], any float dtype.

        Raises:
            NumericsError: NaN or Inf, with the first channel.
            InputError: another number of channels than before.
        """
        rows = value.detach().reshape(-1, value.shape[-1])
        if not rows.shape[0]:
            return
        if self.total is not None and len(self.total) != rows.shape[1]:
            raise InputError(f"{rows.shape[1]} channels, there were {len(self.total)} before",
                             fix="pass batches of one kind")  # fmt: skip
        added = rows.to(torch.float64).square_().sum(0) if rows.dtype != torch.float64 else rows.square().sum(0)
        if not bool(torch.isfinite(added).all()):
            bad = ~torch.isfinite(added)
            raise NumericsError(f"NaN or Inf in {int(bad.sum())} channels, the first is {int(bad.nonzero()[0])}",
                                fix="repair the checkpoint or the batch")  # fmt: skip
        self.total = added if self.total is None else self.total + added
        self.count += rows.shape[0]
