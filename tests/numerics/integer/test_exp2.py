"""2^-z on every argument that counts."""

from __future__ import annotations

import torch

from qpass.numerics.integer.exp2 import ONE, TABLE, exp2_negative, to_q15
from qpass.numerics.integer.shift import rsh

TABLE_T = torch.tensor(TABLE, dtype=torch.int32)


def test_exhaustive_over_thirty_two_octaves() -> None:
    z = torch.arange(0, 32 * ONE, dtype=torch.int32)
    e = exp2_negative(z, TABLE_T)
    want = torch.exp2(-z.double() / ONE)
    assert float((e.double() / ONE - want).abs().max()) <= 1.6e-4
    assert bool((e[1:] <= e[:-1]).all()), "not monotone"
    assert int(e[0]) == ONE and int(e[-1]) == 0
    octaves = torch.arange(0, 16 * ONE, ONE)
    assert e[octaves].tolist() == [ONE >> n for n in range(16)]


def test_beyond_thirty_two_octaves_it_is_zero() -> None:
    assert exp2_negative(torch.tensor([32 * ONE, 2**30], dtype=torch.int32), TABLE_T).tolist() == [0, 0]


def test_to_q15_rounds_or_saturates() -> None:
    u = torch.tensor([0, 1, 3, 1000, 2**20, 2**30], dtype=torch.int32)
    for shift in range(-70, 40):
        got = to_q15(u, torch.tensor(shift, dtype=torch.int32))
        want = [min(int(rsh(v, shift)) if shift >= 0 else int(v) << -shift, 1 << 20) for v in u]
        assert got.tolist() == want, shift
