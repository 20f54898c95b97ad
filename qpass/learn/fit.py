"""The training of one block: AdamW without decay, a cosine schedule, and nothing that can make the block worse.

    loss = Σ |y - t|² / Σ |t|²  (+ the same against what the float block makes of the same input)

A step that is not finite is skipped: the best leaves so far come back and the rates are halved. At the end the best
leaves are kept, and only where they beat round to nearest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from qpass.learn.block import BlockModel, Leaves
from qpass.learn.settings import Learning

_LEAST = 1e-3  # of the rates, at the end of the cosine
_LOOKS = 4  # at most: measurements of the loss over all batches while a block learns


@dataclass(frozen=True)
class Example:
    """One batch of a block: what it reads by value name, what it should give, and perhaps what the float block gives.

    Tensors are float32; ``targets`` and ``same`` have the block's ``results``.
    """

    inputs: Mapping[str, Any]
    targets: Mapping[str, Tensor]
    same: Mapping[str, Tensor] | None = None


@dataclass
class Fit:
    """What came of a block.

    Args:
        leaves: the learned tensors, or None where the block is left as round to nearest.
        losses: ``rtn``, ``start`` (of the leaves before the first step) and ``best``.
        halved: steps that were not finite.
        why: why there are no leaves.
    """

    leaves: Leaves | None
    losses: dict[str, float] = field(default_factory=dict)
    halved: int = 0
    why: str = ""


class Loss:
    """The distance of outputs from targets, without a unit. sizes: Σ t² / batches, by value name."""

    def __init__(self, kind: str, sizes: Mapping[str, float]) -> None:
        self.kind, self.sizes = kind, sizes

    def __call__(self, outputs: Mapping[str, Tensor], example: Example) -> Tensor:
        """A scalar."""
        total = self._one(outputs, example.targets)
        return total if example.same is None else total + self._one(outputs, example.same)

    def _one(self, outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> Tensor:
        parts = [self._part(outputs[name], target.to(outputs[name].device), self.sizes[name])
                 for name, target in targets.items()]  # fmt: skip
        return torch.stack(parts).mean()

    def _part(self, y: Tensor, t: Tensor, size: float) -> Tensor:
        if self.kind == "kl":
            return F.kl_div(F.log_softmax(y, -1), F.log_softmax(t, -1), log_target=True, reduction="batchmean")
        return (y - t).square().sum() / size


def fit(
    model: BlockModel, examples: Sequence[int], load: Callable[[int], Example], loss: Loss, settings: Learning,
    number: int, step_done: Callable[[float], None] | None = None,
) -> Fit:  # fmt: skip
    """Learn the leaves of a block.

    Args:
        examples: numbers of batches; ``load`` gives one.
        number: of the block: with ``settings.seed`` it makes the order of the batches.
        step_done: called with the loss of each step.
    """
    losses = {"rtn": _measure(model, None, examples, load, loss)}
    run = _Run(model, loss, settings, settings.total(len(examples)))
    losses["start"] = run.look(examples, load)
    looks = max(1, math.ceil(run.total / _LOOKS))
    looks = -(-looks // len(examples)) * len(examples) if run.total >= len(examples) else looks
    for step, batch in enumerate(_order(examples, run.total, settings, number), 1):
        value = run.step(load(batch), step - 1)
        if run.halved > settings.halvings:
            break
        if step % looks == 0 or step == run.total:
            run.look(examples, load)
        if step_done is not None:
            step_done(value)
    losses["best"] = run.best
    if not run.best < losses["rtn"]:
        why = f"its loss {run.best:.4g} is not below {losses['rtn']:.4g}, that of round to nearest"
        return Fit(None, losses, run.halved, why)
    return Fit(run.kept, losses, run.halved)


def _measure(
    model: BlockModel, leaves: Leaves | None, examples: Sequence[int], load: Callable[[int], Example], loss: Loss
) -> float:
    total = 0.0
    with torch.no_grad():
        for batch in examples:
            example = load(batch)
            total += float(loss(model.student(example.inputs, leaves), example))
    return total / len(examples)


def _order(examples: Sequence[int], total: int, settings: Learning, number: int) -> list[int]:
    """The batch of each step; a new order each time all have been taken."""
    order: list[int] = []
    draw = torch.Generator().manual_seed(settings.seed * 1_000_003 + number)
    while len(order) < total:
        turn = torch.randperm(len(examples), generator=draw).tolist() if settings.shuffle else range(len(examples))
        order += [examples[place] for place in turn]
    return order[:total]


class _Run:
    """The leaves under way, the best so far, and the optimizer."""

    def __init__(self, model: BlockModel, loss: Loss, settings: Learning, total: int) -> None:
        self.model, self.loss, self.settings, self.total = model, loss, settings, total
        self.best, self.halved = math.inf, 0
        self.kept = self._copy()
        self._fresh()

    def _copy(self) -> Leaves:
        return {key: leaf.detach().clone() for key, leaf in self.model.leaves.items()}

    def _fresh(self) -> None:
        rates = self.model.rates
        groups = [{"params": [leaf], "lr": rates[key], "key": key} for key, leaf in self.model.leaves.items()]
        self.optimizer = torch.optim.AdamW(groups, weight_decay=0.0, foreach=False)

    def look(self, examples: Sequence[int], load: Callable[[int], Example]) -> float:
        """Measure, and keep the leaves if they are the best."""
        value = _measure(self.model, self.model.leaves, examples, load, self.loss)
        if value < self.best:
            self.best, self.kept = value, self._copy()
        return value

    def step(self, example: Example, number: int) -> float:
        """One step; returns its loss."""
        fraction = number / max(self.total, 1)
        factor = 1.0
        if self.settings.schedule == "cosine":
            factor = _LEAST + (1 - _LEAST) * (1 + math.cos(math.pi * fraction)) / 2
        for group in self.optimizer.param_groups:
            group["lr"] = self.model.rates[group["key"]] * factor * 0.5**self.halved
        self.optimizer.zero_grad(set_to_none=True)
        value = self.loss(self.model.student(example.inputs, self.model.leaves), example)
        if bool(torch.isfinite(value)):
            value.backward()  # type: ignore[no-untyped-call]
            grads = [leaf.grad for leaf in self.model.leaves.values() if leaf.grad is not None]
            if all(bool(torch.isfinite(grad).all()) for grad in grads):
                self.optimizer.step()
                return float(value.detach())
        self._back()
        return math.nan

    def _back(self) -> None:
        """The best leaves so far, half the rates, no memory of the gradients."""
        self.halved += 1
        with torch.no_grad():
            for key, leaf in self.model.leaves.items():
                leaf.copy_(self.kept[key])
        self._fresh()
