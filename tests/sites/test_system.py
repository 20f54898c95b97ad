"""The solver against a dense null space, on random equations."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from qpass.sites.system import NEUTRAL, System
from tests.sites.oracle import Dense, basis

WEIGHTS = [(1, 1), (1, -1), (2, 1), (0.5, -1), (2, -2)]


def _pairs(rng: random.Random, most: int) -> list[tuple[int, int]]:
    return [(rng.randint(-12, 12), rng.randint(-12, 12)) for _ in range(rng.randint(0, most))]


@pytest.mark.parametrize("seed", range(200))
def test_random_equations(seed: int) -> None:
    rng = random.Random(seed)
    ties, late = _pairs(rng, 10), _pairs(rng, 4)
    sums = [(a, b, rng.choice(WEIGHTS)) for a, b in _pairs(rng, 6)]
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
