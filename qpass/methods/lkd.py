"""Layer-by-layer knowledge distillation (ZeroQuant, Yao et al. 2022): a block's parameters learn from the float ones.

    min over W of  ‖B(h) - B̂_W(h)‖²,   h = the float model's input of the block

before   param layers.0.mlp.down_proj.weight
after    the same name with learned values; quantized as the recipe says
Not exact. All floating-point parameters of a block that no other block reads are learned, weights through their
quantizer with the gradient of the identity. No labels are used. With the learning setting ``inputs: quantized`` the
block learns on the output of the quantized blocks before it instead, and with ``loss: kl`` by divergence.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from qpass.errors import RecipeError
from qpass.learn.block import BlockModel
from qpass.learn.settings import check_positive
from qpass.learn.view import View
from qpass.methods.together import Learned
from qpass.observe.statistics import Stats

_WHAT = ("all", "weights")


@dataclass(frozen=True)
class LKD(Learned):
    """Options of a recipe.

    Args:
        rate: learning rate.
        what: ``all`` parameters of a block, or only the ``weights`` that get a scheme.
    """

    rate: float = 5e-6
    what: str = "all"

    name: ClassVar[str] = "lkd"

    def __post_init__(self) -> None:
        check_positive("rate", self.rate, self.name)
        if self.what not in _WHAT:
            raise RecipeError(f"what is {self.what!r}", where=self.name, fix=f"use one of {', '.join(_WHAT)}")

    def reaches(self, view: View) -> bool:
        """Whether a weight of the block gets a scheme: otherwise the float block is the teacher itself."""
        return bool(view.weights)

    def attach(self, model: BlockModel, stats: Mapping[str, Stats]) -> None:
        """Every parameter of the block."""
        if not model.view.weights:
            return
        names = model.view.private if self.what == "all" else model.view.weights
        chosen = model.view.program.params
        for name in model.view.segment.params:
            if name in names and f"{name}.codes" not in chosen and model.base[name].is_floating_point():
                model.train(name, model.learn(f"lkd.{name}", model.base[name], self.rate))
