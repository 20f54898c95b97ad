"""The weights that a plan gives a format, and how large their inputs are: for methods that choose scales."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from qpass.formats import Format
from qpass.graph.program import Program
from qpass.methods.method import Data
from qpass.observe.run import gather
from qpass.observe.squares import Squares


@dataclass(frozen=True)
class Planned:
    """One weight.

    Attributes:
        name: of the parameter.
        format: without its low-rank branch.
        inputs: names of the values that its linears read.
    """

    name: str
    format: Format
    inputs: tuple[str, ...]


def planned_weights(program: Program) -> list[Planned]:
    """Each weight once, in graph order; linears that share one have one format."""
    found: dict[str, Planned] = {}
    for node in program.nodes():
        scheme = getattr(node.meta.get("plan"), "scheme", None)
        if scheme is None:
            continue
        x, weight = node.args[:2]
        assert isinstance(x, fx.Node) and isinstance(weight, fx.Node)
        name = str(weight.target)
        before = found[name].inputs if name in found else ()
        inputs = tuple(dict.fromkeys((*before, str(x.meta["name"]))))
        found[name] = Planned(name, scheme.weight.plain, inputs)
    return list(found.values())


def mean_squares(program: Program, data: Data, weights: Iterable[Planned]) -> dict[str, Tensor]:
    """[K] float32 for each weight: the mean of x_k² over all that its linears read on the calibration batches.

    Raises:
        InputError: no batch, or one that does not fit the model's call.
        NumericsError: NaN or Inf in an input, with its name and the batch's number.
    """
    weights = list(weights)
    seen = gather(program, data(), {name: Squares() for weight in weights for name in weight.inputs})
    result = {}
    for weight in weights:
        parts = [seen[name] for name in weight.inputs]
        totals = [part.total for part in parts if part.total is not None]
        if totals:
            mean = torch.stack(totals).sum(0) / sum(part.count for part in parts)
            result[weight.name] = mean.to(torch.float32)
    return result
