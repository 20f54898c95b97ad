"""Widths of sums in closed form (sympy), and that the bounds found are at most those, and exact at the limit."""

from __future__ import annotations

import pytest
import sympy as sp
import torch

from qpass.numerics.integer import attention, linear, norm, sampler
from qpass.ranges.engine import Engine
from qpass.ranges.site import Wraps
from qpass.ranges.value import Value, of, of_tensor

K, T, B = sp.symbols("K T B", integer=True, positive=True)
LIMIT = sp.Integer(2) ** 31

DOT = K * 2 ** (B - 1) * (2 ** (B - 1) - 1)
"""|sum of K products| of codes of B bits down to -2^(B-1), and weights of B bits."""
SQUARES = K * (2**16 - 1)
"""Sum of the low halves of K squares of 15 bits; the high halves sum to K · 2^14 at most."""
MASS = sp.Symbol("V", integer=True, positive=True) * 2**24 * 2**16
"""Running sums of the sampler's probabilities of V tokens, as parts of 2^16."""
VALUES = T * 2**15 * 255 * 127
"""sum_j e_j m_j v_j over T tokens, before the shift by 8 and more that a seen key has."""


def greatest(form: sp.Expr, symbol: sp.Symbol, limit: sp.Expr) -> int:
    """The greatest whole number for which a linear form is within a limit."""
    return int(sp.floor(limit / sp.diff(form, symbol)))


def meta(shape: tuple[int, ...], dtype: torch.dtype = torch.int32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def bounds_of_dot(width: int, weight: int = 127, low: int = -128) -> Value:
    engine = Engine()
    x = engine.hold(meta((2, width), torch.int8), of(low, 127))
    w = engine.hold(meta((3, width), torch.int8), of_tensor(torch.full((3, width), weight, dtype=torch.int8)))
    return engine.look(engine.run(linear.matmul, x, w))


@pytest.mark.parametrize("width", [1, 7, 512, 16384])
def test_a_dot_is_within_its_closed_form(width: int) -> None:
    form = int(DOT.subs({K: width, B: 8}))
    value = bounds_of_dot(width)
    assert -form == value.lo and value.hi <= form
    assert form.bit_length() <= int(sp.ceiling(sp.log(width, 2))) + 14
    random = Engine()
    w = torch.randint(-127, 128, (5, width)).to(torch.int8)
    result = random.run(linear.matmul, random.hold(meta((2, width), torch.int8), of(-128, 127)),
                        random.hold(meta((5, width), torch.int8), of_tensor(w)))  # fmt: skip
    found, row = random.look(result), int(w.long().abs().sum(1).max())
    assert max(-found.lo, found.hi) <= 128 * row <= form
    x = torch.where(w[:, None] < 0, -128, 127)  # what reaches it
    x = torch.cat((x, torch.where(w[:, None] < 0, 127, -128))).reshape(-1, width).long() @ w.long().t()
    assert (int(x.min()), int(x.max())) == (found.lo, found.hi)


def test_a_dot_one_longer_than_the_limit_is_refused() -> None:
    most = greatest(DOT.subs(B, 8), K, LIMIT)
    assert most == 132104
    assert bounds_of_dot(most).lo == -int(DOT.subs({K: most, B: 8})) >= -(2**31)
    with pytest.raises(Wraps, match=r"-2147498880 to 2130721545 in int32") as error:
        bounds_of_dot(most + 1)
    assert error.value.found.site.file == "linear.py"


def squares(width: int) -> Value:
    engine = Engine()
    x, k = engine.hold(meta((2, width)), of(-(1 << 15), 1 << 15)), engine.hold(meta((2, 1)), of(-200, 200))
    v, _ = engine.run(norm._mean_square, x, k, 17180, 29)
    return engine.look(v)


def test_sums_of_squares() -> None:
    most = greatest(SQUARES, K, LIMIT - 1)
    assert most == 32768 and most >= norm.WIDEST
    assert squares(norm.WIDEST).hi <= int(((2**14 * K * 2**16) + SQUARES).subs(K, norm.WIDEST)) + 2**60
    squares(most)
    with pytest.raises(Wraps, match="in int32"):
        squares(most + 1)


def weighted(length: int) -> int:
    """The largest |sum of e v| that the analysis finds, for that many tokens."""
    engine = Engine()
    e = engine.hold(meta((1, 1, 1, 2, length)), of(0, 1 << 15))
    values, m, k = (engine.hold(meta((1, 1, length, width)), of(lo, hi))
                    for width, lo, hi in ((8, -127, 127), (1, 128, 255), (1, -128, 127)))  # fmt: skip
    keep = engine.hold(meta((1, 1, 1, 2, length), torch.bool), of(0, 1))
    engine.run(attention.weighted_values, e, values, m, k, keep)
    return max(max(-seen.lo, seen.hi) for site, seen in engine.seen.items() if site.op == "bmm")


def test_sums_of_values_are_within_their_closed_form_and_so_is_the_context() -> None:
    for length in (1, 100, 1 << 20):
        assert weighted(length) <= int(VALUES.subs(T, length))
    most = greatest(VALUES, T, sp.Integer(2) ** 63 - 1)
    weighted(most)
    with pytest.raises(Wraps, match="in int64"):
        weighted(2 * most)


def kept(vocabulary: int) -> Value:
    engine = Engine()
    p = engine.hold(meta((1, vocabulary), torch.int64), of(0, 1 << sampler.PLACES))
    return engine.look(engine.run(sampler.keep_top_p, p, 60000))


def test_top_p_of_the_largest_vocabulary() -> None:
    (symbol,) = MASS.free_symbols
    most = greatest(MASS, symbol, sp.Integer(2) ** 63 - 1)
    assert most == (1 << 23) - 1 and kept(most).hi == 1 << sampler.PLACES
    with pytest.raises(Wraps, match="in int64"):
        kept(most + 1)
