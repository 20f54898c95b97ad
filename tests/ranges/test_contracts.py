"""Helpers against the meaning that the analysis takes them to have: by algebra, exhaustively, on extreme operands."""

from __future__ import annotations

import math
from typing import Any

import pytest
import sympy as sp
import torch
from torch import Tensor

from qpass.numerics.integer.isqrt import isqrt
from qpass.numerics.integer.shift import msb, mul_high, mul_shift, rsh
from qpass.ranges.arithmetic import rule_of
from qpass.ranges.contracts import CONTRACTS, round_shift, top_bit
from qpass.ranges.value import of


def some(bits: int, count: int = 400) -> list[int]:
    """Powers of two and their neighbors, both signs, and random numbers of every size."""
    near = {sign * (1 << n) + d for n in range(bits) for d in (-1, 0, 1) for sign in (-1, 1)} | {0}
    drawn = {int((torch.rand(()).item() * 2 - 1) * 2 ** (bits * torch.rand(()).item())) for _ in range(count)}
    return sorted(value for value in near | drawn if abs(value) <= 1 << bits)


def as_tensor(values: list[int], dtype: torch.dtype = torch.int32) -> Tensor:
    return torch.tensor(values, dtype=dtype)


def test_rsh_is_round_shift() -> None:
    for dtype, bits in ((torch.int32, 30), (torch.int64, 60)):
        values = some(bits)
        for k in [*range(0, 40), 63, 64, 100]:
            want = [round_shift(value, k) for value in values]
            assert rsh(as_tensor(values, dtype), k).tolist() == want
            assert rsh(as_tensor(values, dtype), torch.tensor([k], dtype=dtype)).tolist() == want
    for k in range(1, 31):
        fits = [value for value in some(30) if abs(value) << k < 1 << 31]
        assert rsh(as_tensor(fits), torch.tensor([-k], dtype=torch.int32)).tolist() == [value << k for value in fits]


def test_round_shift_is_monotone_as_corners_need() -> None:
    for a in range(-40, 41):
        ends = [round_shift(a, k) for k in range(-4, 9)]
        assert ends == sorted(ends, reverse=a >= 0)
        assert all(round_shift(a, k) <= round_shift(a + 1, k) for k in range(-4, 9))


def test_split_products_are_the_products_by_algebra() -> None:
    """a = 2^s h + l: h b + floor((l b + 2^(s-1)) / 2^s) = floor((a b + 2^(s-1)) / 2^s), as h b is whole."""
    h, low, b = sp.symbols("h l b", integer=True)
    s = sp.Symbol("s", integer=True, positive=True)
    whole = sp.floor(sp.expand(((2**s * h + low) * b + 2 ** (s - 1)) / 2**s))
    assert sp.simplify(whole - (h * b + sp.floor(sp.expand((low * b + 2 ** (s - 1)) / 2**s)))) == 0
    hb, lb = sp.symbols("hb lb", integer=True)  # and both operands split at 15
    exact = (2**15 * h + low) * (2**15 * hb + lb)
    assert sp.expand(exact - (2**30 * h * hb + 2**15 * (h * lb + hb * low) + low * lb)) == 0


def test_products_are_rounded_products() -> None:
    a, b = (grid.flatten().tolist() for grid in torch.meshgrid(as_tensor(some(30)), as_tensor(some(15)), indexing="ij"))
    for s in (1, 7, 14, 15):
        fits = [(x, y) for x, y in zip(a, b) if abs(x * y) < 1 << (30 + s)]
        x, y = (as_tensor(list(part)) for part in zip(*fits))
        assert mul_shift(x, y, s).tolist() == [round_shift(p * q, s) for p, q in fits]
    a, b = (grid.flatten() for grid in torch.meshgrid(as_tensor(some(29)), as_tensor(some(29)), indexing="ij"))
    assert mul_high(a, b).tolist() == [round_shift(p * q, 30) for p, q in zip(a.tolist(), b.tolist())]


def test_msb_and_isqrt() -> None:
    for dtype, bits in ((torch.int32, 30), (torch.int64, 62)):
        values = [value for value in some(bits) if value >= 0]
        assert msb(as_tensor(values, dtype)).tolist() == [top_bit(value) for value in values]
    values = sorted({value for n in some(16) for value in (n * n - 1, n * n, n * n + 1) if 0 <= value < 1 << 32})
    assert isqrt(as_tensor(values, torch.int64)).tolist() == [math.isqrt(value) for value in values]


PARAMETERS = {"rsh": [(-9, 9), (-3, 5)], "mul_shift": [(-9, 9), (-6, 6)], "mul_high": [(-9, 9), (-6, 6)],
              "msb": [(0, 40)], "isqrt": [(0, 40)]}  # fmt: skip
MEANING: dict[str, Any] = {
    "rsh": round_shift, "mul_shift": lambda a, b: round_shift(a * b, 2), "msb": top_bit, "isqrt": math.isqrt,
    "mul_high": lambda a, b: round_shift(a * b, 30),
}  # fmt: skip
EXTRA = {"mul_shift": [of(2)], "isqrt": [of(16)]}


@pytest.mark.parametrize("name", CONTRACTS)
def test_bounds_of_a_contract_hold_for_all_pairs(name: str) -> None:
    for _ in range(60):
        bounds = [sorted(torch.randint(lo, hi + 1, (2,)).tolist()) for lo, hi in PARAMETERS[name]]
        value = CONTRACTS[name][0](*(of(*bound) for bound in bounds), *EXTRA.get(name, []))
        every = torch.cartesian_prod(*(torch.arange(lo, hi + 1) for lo, hi in bounds)).reshape(-1, len(bounds))
        found = [MEANING[name](*row) for row in every.tolist()]
        assert (value.lo, value.hi) == (min(found), max(found))


BINARY = {
    "add": lambda a, b: a + b, "sub": lambda a, b: a - b, "mul": lambda a, b: a * b, "bitwise_and": lambda a, b: a & b,
    "bitwise_or": lambda a, b: a | b, "bitwise_xor": lambda a, b: a ^ b, "minimum": min, "maximum": max,
    "gt": lambda a, b: a > b, "ge": lambda a, b: a >= b, "lt": lambda a, b: a < b, "le": lambda a, b: a <= b,
    "eq": lambda a, b: a == b, "ne": lambda a, b: a != b, "rsub": lambda a, b: b - a,
    "bitwise_left_shift": lambda a, b: a << abs(b), "bitwise_right_shift": lambda a, b: a >> abs(b),
    "floor_divide": lambda a, b: a // (abs(b) + 1),
}  # fmt: skip
LOOSE = ("bitwise_and", "bitwise_or", "bitwise_xor")


@pytest.mark.parametrize("name", BINARY)
def test_bounds_of_an_op_hold_for_all_pairs_and_are_reached(name: str) -> None:
    rule = rule_of(name)
    assert rule is not None
    for _ in range(80):
        (a, b), (c, d) = (sorted(torch.randint(-9, 10, (2,)).tolist()) for _ in range(2))
        found = [int(BINARY[name](x, y)) for x in range(a, b + 1) for y in range(c, d + 1)]
        if "shift" in name or "divide" in name:
            sizes = [abs(y) + ("divide" in name) for y in range(c, d + 1)]
            c, d = min(sizes), max(sizes)
        value = rule(of(a, b), of(c, d))
        assert value.lo <= min(found) and max(found) <= value.hi
        assert name in LOOSE or (value.lo, value.hi) == (min(found), max(found))
