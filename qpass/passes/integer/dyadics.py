"""Dyadic vectors and constant rows as derived parameters of a program."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from qpass.numerics.integer.dyadic import row_of, vector
from qpass.passes.integer.state import State

LOG2E = 1.4426950408889634


def dyadic_vector(
    state: State, base: str, source: str, count: int, change: Callable[[Tensor], Tensor], what: str, bits: int = 15
) -> tuple[fx.Node, ...]:
    """``base.mantissa``, ``.shift``, ``.exponent`` of change(source), [count]."""
    parts = [("mantissa", (count,), torch.int32), ("shift", (count,), torch.int32), ("exponent", (1,), torch.int32)]
    return state.derive(base, parts, [source], partial(_vector, change=change, bits=bits), what)


def constant_vector(state: State, base: str, value: float, bits: int = 15) -> tuple[fx.Node, ...]:
    """A dyadic vector of one channel that is a number."""
    made = vector(torch.tensor([value], dtype=torch.float64), bits)
    return tuple(state.param(f"{base}.{part}", tensor.to(state.device), f"the number {value:.6g}")
                 for part, tensor in zip(("mantissa", "shift", "exponent"), made))  # fmt: skip


def constant_row(state: State, source: str, count: int) -> tuple[fx.Node, ...]:
    """``source.row`` and ``source.row_exponent``: a bias as a row."""
    parts = [("row", (count,), torch.int32), ("row_exponent", (1,), torch.int32)]
    return state.derive(source, parts, [source], _row, "as integers with one exponent")


def _vector(source: Tensor, change: Callable[[Tensor], Tensor], bits: int) -> Sequence[Any]:
    mantissa, shift, exponent = vector(change(source.double()), bits)
    return mantissa << 15 - bits, shift, exponent + (15 - bits)  # of 15 bits, so that products keep their width


def _row(source: Tensor) -> Sequence[Any]:
    return row_of(source.double())
