"""Learned weight clipping (OmniQuant, Shao et al. 2024): the range of a channel or group is shrunk by learned factors.

    M' = σ(γ) max(max w, 0),  m' = σ(β) min(min w, 0);  h = (M' - m') / (2^N - 1),  z = ⌈-m' / h⌋

before   %q = linear(%x, w)
after    the same graph with codes, scales and zero points from that range
Not exact. γ and β, one each a channel or group, are learned from the output of the block, with the gradients of
``learn.fake``. Symmetric formats learn the larger of the two ends.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from qpass.errors import RecipeError
from qpass.learn.block import BlockModel
from qpass.learn.fake import clippable
from qpass.learn.settings import check_positive
from qpass.learn.view import View
from qpass.methods.together import Learned
from qpass.observe.statistics import Stats


@dataclass(frozen=True)
class LWC(Learned):
    """Options of a recipe.

    Args:
        rate: learning rate of γ and β.
        start: their first value: σ(4) = 0.982 of the range.
    """

    rate: float = 1e-2
    start: float = 4.0

    name: ClassVar[str] = "lwc"

    def __post_init__(self) -> None:
        check_positive("rate", self.rate, self.name)
        if isinstance(self.start, bool) or not isinstance(self.start, int | float):
            raise RecipeError(f"start is {self.start!r}", where=self.name, fix="use a number such as 4")

    def reaches(self, view: View) -> bool:
        """Whether a weight of the block has an integer format with real scales per channel or group."""
        return any(clippable(scheme.weight) for scheme in view.weights.values())

    def attach(self, model: BlockModel, stats: Mapping[str, Stats]) -> None:
        """γ and β of every such weight."""
        for weight, scheme in model.view.weights.items():
            fmt = scheme.weight
            if clippable(fmt):
                rows, width = model.base[weight].shape
                start = torch.full((rows, fmt.groups(width)), float(self.start))
                keys = [model.learn(f"lwc.{end}.{weight}", start, self.rate) for end in ("beta", "gamma")]
                model.clip(weight, *keys)
