"""Statistics of a value, per channel of its last dimension, in one pass over any number of batches.

    absmax    max |x|
    middle    (max + min) / 2 of each batch, averaged as 0.99 · old + 0.01 · new; the first batch sets it (Wei et al.
              2023, Shao et al. 2024)
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from qpass.errors import InputError, NumericsError

_KEEP = 0.99


@dataclass
class Stats:
    """What was seen of one value. Empty until the first ``update``.

    Attributes:
        absmax: [C] float32, or None.
        middle: [C] float32, or None.
        low, high: [C] float32, the least and greatest value; or None.
        count: rows seen: elements of a channel.
        batches: updates.
    """

    absmax: Tensor | None = field(default=None, repr=False)
    middle: Tensor | None = field(default=None, repr=False)
    low: Tensor | None = field(default=None, repr=False)
    high: Tensor | None = field(default=None, repr=False)
    count: int = 0
    batches: int = 0

    def update(self, value: Tensor) -> None:
        """Take in one batch. value: [..., C], any float dtype.

        Raises:
            NumericsError: NaN or Inf; with the first channel.
            InputError: another number of channels than before.
        """
        rows = value.detach().reshape(-1, value.shape[-1]) if value.dim() else value.detach().reshape(1, 1)
        if not rows.shape[0]:
            return
        low, high = (end.to(torch.float32) for end in torch.aminmax(rows, dim=0))
        bad = ~(torch.isfinite(low) & torch.isfinite(high))
        if bool(bad.any()):
            raise NumericsError(f"NaN or Inf in {int(bad.sum())} channels, the first is {int(bad.nonzero()[0])}",
                                fix="repair the checkpoint or the batch")
        if self.low is not None and self.low.shape != low.shape:
            raise InputError(f"{len(low)} channels, there were {len(self.low)} before",
                             fix="pass batches of one kind")  # fmt: skip
        self._merge(low, high)
        self.count += rows.shape[0]
        self.batches += 1

    def _merge(self, low: Tensor, high: Tensor) -> None:
        middle = (low + high) / 2
        if self.low is None or self.high is None or self.middle is None:
            self.low, self.high, self.middle = low, high, middle
        else:
            self.low, self.high = torch.minimum(self.low, low), torch.maximum(self.high, high)
            self.middle = _KEEP * self.middle + (1 - _KEEP) * middle
        self.absmax = torch.maximum(self.low.abs(), self.high.abs())
