"""The solver against a dense null space, on random equations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qpass.sites.system import NEUTRAL, System
from tests.sites.oracle import Dense, basis

LABEL = st.integers(-12, 12)
WEIGHTS = [(1, 1), (1, -1), (2, 1), (0.5, -1), (2, -2)]


@settings(max_examples=200, deadline=None)
@given(ties=st.lists(st.tuples(LABEL, LABEL), max_size=10),
       sums=st.lists(st.tuples(LABEL, LABEL, st.sampled_from(WEIGHTS)), max_size=6),
       late=st.lists(st.tuples(LABEL, LABEL), max_size=4))  # fmt: skip
def test_random_equations(
    ties: list[tuple[int, int]], sums: list[tuple[int, int, tuple[float, float]]], late: list[tuple[int, int]]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        dense, system = Dense(patch), System()
        system.fresh(12)
        for a, b in ties:
            system.equal(torch.tensor(a), torch.tensor(b), "a tie")
        for a, b, (one, two) in sums:
            made = system.combine([(one, torch.tensor(a)), (two, torch.tensor(b))], "a sum")
            assert made.shape == ()
        for a, b in late:
            system.equal(torch.tensor(a), torch.tensor(b), "a tie")
        solution = system.solve()
        matrix, found = dense.matrix(system.count), basis(solution, system.count)
    rank = np.linalg.matrix_rank(matrix) if len(matrix) else 0
    assert solution.size == system.count - 1 - rank
    assert np.abs(matrix @ found).max(initial=0) < 1e-9
    assert np.linalg.matrix_rank(found) == solution.size if solution.size else True


def test_a_tie_to_its_own_negative_is_zero() -> None:
    system = System()
    a = system.fresh(3)
    system.equal(a[:2], -a[:2], "x = -x")
    assert system.is_zero(a[:2]) and not system.is_zero(a)
    assert system.why(1) == "x = -x" and system.solve().size == 1


def test_neutral_takes_any_factor() -> None:
    system = System()
    a, neutral = system.fresh(2), torch.full((2,), NEUTRAL)
    system.equal(a, neutral, "an exact zero")
    assert system.solve().size == 2
    assert torch.equal(system.combine([(1, a), (1, neutral)], "0 · x"), neutral)


def test_the_reason_is_that_of_the_class() -> None:
    system = System()
    a = system.fresh(4)
    system.equal(a[:3], a[1:], "a chain")
    system.zero(a[3:], "it is an output")
    assert {system.why(label) for label in (1, 2, 3, 4)} == {"it is an output"}


def test_a_doubled_label_is_half_as_free() -> None:
    system = System()
    a = system.fresh(1)
    square = system.combine([(2, a)], "x²")
    root = system.combine([(0.5, square)], "√")
    solution = system.solve()
    assert solution.size == 1
    powers = {name: solution.resolve(label)[1].item() for name, label in (("a", a), ("square", square), ("root", root))}
    assert powers["square"] == 2 * powers["a"] and powers["root"] == powers["a"]


def test_ties_are_near_linear() -> None:
    """A million unknowns in chains of a thousand are one pass, not a million."""
    system = System()
    a = system.fresh(1000, 1000)
    system.equal(a[:, :1], a, "rows")
    assert system.solve().size == 1000
