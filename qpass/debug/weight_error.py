"""How far the weights of a quantized program are from those it was made of."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from qpass.formats import Format
from qpass.graph.program import Program
from qpass.numerics import codec
from qpass.numerics.low_rank import DOWN, UP
from qpass.numerics.scales import Scales
from qpass.passes.plan import Choice, choice_of


@dataclass(frozen=True)
class WeightErrors:
    """Of all weights that have codes, each counted once.

    Attributes:
        relative: mean of ‖W - Ŵ‖ / ‖W‖ over the weights (Frobenius norms).
        sqnr_db: 10 log10 (Σ ‖W‖² / Σ ‖W - Ŵ‖²), over all of them together; inf where nothing changed.
        bits: bits per weight, scales, zero points and branches included.
        count: weights.
    """

    relative: float
    sqnr_db: float
    bits: float
    count: int


def weight_errors(solved: Program, quantised: Program) -> WeightErrors | None:
    """Compare each weight after the methods' exact edits with what its codes, scales and branch stand for.

    Both are rounded to the model's dtype, as they are when the model runs. None where no weight has codes.

    Args:
        solved, quantised: SOLVED and QUANTISED of one run.
    """
    choices: dict[str, Choice] = {}
    for node in solved.nodes():
        choice = choice_of(node)
        if choice is not None and choice.scheme is not None:
            choices.setdefault(choice.weight, choice)
    if not choices:
        return None
    ratios, signal, noise, size, numbers = [], 0.0, 0.0, 0.0, 0
    for name, choice in choices.items():
        weight = solved.tensor(name).flatten(0, -2)
        one, error = weight.double(), weight.double() - stored(quantised, choice, weight.dtype).double()
        squares = float(one.square().sum()), float(error.square().sum())
        ratios.append(math.sqrt(squares[1] / squares[0]) if squares[0] else 0.0)
        signal, noise = signal + squares[0], noise + squares[1]
        size, numbers = size + choice.bytes_after, numbers + weight.numel()
    decibels = 10 * math.log10(signal / noise) if signal and noise else math.inf
    return WeightErrors(sum(ratios) / len(ratios), decibels, 8 * size / numbers, len(choices))


def stored(quantised: Program, choice: Choice, dtype: torch.dtype) -> Tensor:
    """[N, K] of ``dtype``: what the codes of a weight, and its branch, stand for."""
    assert choice.scheme is not None
    fmt = choice.scheme.weight
    value = _decoded(quantised, choice.weight, fmt.plain, dtype)
    if not fmt.rank:
        return value
    down, up = (
        _decoded(quantised, f"{choice.weight}.{part}", factor.scheme.weight, dtype) if factor.scheme
        else quantised.tensor(f"{choice.weight}.{part}")
        for part, factor in zip((DOWN, UP), choice.branch)
    )  # fmt: skip
    return (value.float() + up.float() @ down.float()).to(dtype)


def _decoded(program: Program, name: str, fmt: Format, dtype: torch.dtype) -> Tensor:
    parts = [f"{name}.{part}" for part in ("scale", "zero", "outer")]
    found = Scales(*(program.tensor(part) if part in program.params else None for part in parts))  # type: ignore[arg-type]
    return codec.dequantize(program.tensor(f"{name}.codes"), found, fmt, dtype)
