"""One choice of Inductor's made otherwise: rows of up to 16384 values are kept in registers while they are reduced.

Its own limit is 1024. Above that a norm with the quantize behind it is one kernel, but one that reads its row again for
each of its passes: the mean, the largest magnitude, the codes.
"""

from __future__ import annotations

from typing import Any

from torch._inductor.choices import InductorChoices
from torch._inductor.runtime.hints import ReductionHint
from torch.utils._sympy.value_ranges import bound_sympy

LONGEST = 16384


class RowsInRegisters(InductorChoices):
    """Inductor's choices but for long rows."""

    @staticmethod
    def should_use_persistent_reduction(features: Any, cooperative_reduction: bool) -> bool:
        """Whether a program reads its row once and keeps it."""
        if InductorChoices.should_use_persistent_reduction(features, cooperative_reduction):
            return True
        if cooperative_reduction or features.get_reduction_hint() != ReductionHint.INNER:
            return False
        upper = bound_sympy(features.reduction_numel).upper
        return bool(upper.is_number and upper <= LONGEST)

    def uuid(self) -> str:
        """What compiled code depends on."""
        return f"rows of {LONGEST} in registers"
