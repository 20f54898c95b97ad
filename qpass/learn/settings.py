"""Settings of the block loop, as a recipe has them under ``learning``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from qpass.errors import RecipeError
from qpass.formats import nearest

_WORDS = {
    "inputs": ("quantized", "teacher"),
    "loss": ("mse", "kl"),
    "precision": ("float32", "bfloat16"),
    "schedule": ("cosine", "constant"),
}


@dataclass(frozen=True)
class Learning:
    """How the blocks are learned. What a method learns, and how fast, is the method's own.

    Args:
        epochs: passes over the calibration batches a block; a batch is a step.
        steps: steps a block instead, if not 0; the batches are taken round and round.
        batches: how many calibration batches are used; more are left unread.
        inputs: what a block learns on: the output of the quantized blocks before it, or of the ``teacher``, the float
            model.
        same_input: add the distance to what the float block makes of the same input.
        loss: ``mse``, divided by the mean square of the target, or ``kl``, of the softmax over the last dimension.
        schedule: of the learning rates: ``cosine`` to a thousandth, or ``constant``.
        precision: of the forward pass; what is learned is float32.
        halvings: how often a step that is not finite may halve the rates before the block is left as it was.
        shuffle: take the batches in another order each epoch.
        seed: of that order.
        cache_mib: activations in memory; what does not fit goes to files.
        folder: for checkpoints, one a block; a run that finds its own there goes on behind them. Empty for none.
        device: where a block is computed, for example ``cuda``; empty for where its parameters are.
        progress: show a bar on a terminal.
    """

    epochs: int = 20
    steps: int = 0
    batches: int = 128
    inputs: str = "quantized"
    same_input: bool = False
    loss: str = "mse"
    schedule: str = "cosine"
    precision: str = "float32"
    halvings: int = 8
    shuffle: bool = True
    seed: int = 0
    cache_mib: float = 4096
    folder: str = ""
    device: str = ""
    progress: bool = True

    def __post_init__(self) -> None:
        for name, legal in _WORDS.items():
            value = getattr(self, name)
            if value not in legal:
                raise RecipeError(f"{name} is {value!r}", where="learning",
                                  fix=nearest(str(value), legal) or f"use one of {', '.join(legal)}")  # fmt: skip
        for name, least in (("epochs", 0), ("steps", 0), ("batches", 1), ("halvings", 0), ("seed", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise RecipeError(f"{name} is {value!r}", where="learning", fix=f"use a whole number from {least}")
        for name in ("same_input", "shuffle", "progress"):
            if not isinstance(getattr(self, name), bool):
                raise RecipeError(f"{name} is {getattr(self, name)!r}", where="learning", fix="use true or false")
        check_positive("cache_mib", self.cache_mib, "learning", zero=True)

    def as_dict(self) -> dict[str, Any]:
        """The fields that differ from their defaults."""
        return {field.name: getattr(self, field.name) for field in fields(self)
                if getattr(self, field.name) != field.default}  # fmt: skip

    def total(self, batches: int) -> int:
        """Steps a block."""
        return self.steps or self.epochs * batches

    @staticmethod
    def parse(data: Any) -> Learning:
        """From a mapping of some of the fields. RecipeError for others, with the nearest."""
        if data is None:
            return DEFAULTS
        if isinstance(data, Learning):
            return data
        if not isinstance(data, Mapping):
            raise RecipeError(f"{data!r} is no mapping", where="learning", fix='write {"epochs": 10}')
        legal = [field.name for field in fields(Learning)]
        for name in data:
            if name not in legal:
                raise RecipeError(f"unknown field {name!r}", where="learning",
                                  fix=nearest(str(name), legal) or f"use one of {', '.join(legal)}")  # fmt: skip
        return Learning(**data)


def check_positive(name: str, value: Any, where: str, *, zero: bool = False) -> None:
    """Raise RecipeError for what is not a positive finite number (or 0)."""
    good = not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value)
    if not good or value < 0 or (value == 0 and not zero):
        raise RecipeError(f"{name} is {value!r}", where=where, fix="use a positive number")


DEFAULTS = Learning()
