"""Grids against tables and brute force: every code, every tie, both neighbors of every tie, every 16-bit float."""

import pytest
import torch

from qpass.formats import GRIDS
from qpass.numerics import grids

FOUR_BIT = ["e2m1", "e3m0"]
EIGHT_BIT = ["e4m3", "e5m2", "e4m3fnuz", "e5m2fnuz"]
E2M1 = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
E3M0 = [0, 0.25, 0.5, 1, 2, 4, 8, 16]


def finite(grid):
    """Every code of a grid and its value, those that are finite, by increasing value; -0 left out."""
    codes = torch.arange(2**grid.bits, dtype=torch.uint8)
    if grid.dtype is not None:
        codes = codes.view(grid.dtype)
    values = grids.decode(codes, grid)
    keep = torch.isfinite(values) & ~((values == 0) & torch.signbit(values))
    order = values[keep].argsort()
    return codes.view(torch.uint8)[keep][order], values[keep][order]


def nearest(x, grid):
    """Brute force: the nearest of all values; of two equally near ones, the one with the even code."""
    codes, values = finite(grid)
    x = x.clamp(-grid.max, grid.max)
    distance = (x.double()[:, None] - values.double()).abs()
    tied = distance == distance.amin(1, keepdim=True)
    score = torch.where(tied, codes.to(torch.int32) % 2, 9)
    return values[score.argmin(1)]


@pytest.mark.parametrize(("name", "table"), [("e2m1", E2M1), ("e3m0", E3M0)])
def test_codes_of_four_bits(name, table):
    values = grids.decode(torch.arange(16, dtype=torch.uint8), GRIDS[name])
    assert values.tolist() == [*table, *(-value for value in table)]
    assert torch.signbit(values[8]) and GRIDS[name].values == tuple(values.tolist())
    assert GRIDS[name].max == table[-1]


@pytest.mark.parametrize("name", FOUR_BIT + EIGHT_BIT)
def test_every_code_comes_back(name):
    grid = GRIDS[name]
    codes, values = finite(grid)
    assert torch.equal(grids.encode(values, grid).view(torch.uint8), codes)


@pytest.mark.parametrize("name", FOUR_BIT + EIGHT_BIT)
def test_rounding_is_to_nearest_ties_to_even(name):
    grid = GRIDS[name]
    _, values = finite(grid)
    middles = (values[:-1] + values[1:]) / 2
    ends = torch.tensor([float("-inf"), float("inf")])
    beside = [torch.nextafter(middles, end.expand_as(middles)) for end in ends]
    points = torch.cat([middles, *beside, values, 3 * values])
    assert torch.equal(grids.decode(grids.encode(points, grid), grid), nearest(points, grid))


@pytest.mark.parametrize("name", FOUR_BIT)
def test_every_bfloat16_is_rounded_to_nearest(name):
    grid = GRIDS[name]
    x = torch.arange(2**16, dtype=torch.int32).to(torch.uint16).view(torch.bfloat16).float()
    x = x[torch.isfinite(x)]
    assert torch.equal(grids.decode(grids.encode(x, grid), grid), nearest(x, grid))


def test_ties_of_e2m1():
    x = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5, 6, 7, 1e30, -0.25])
    want = [0, 1, 1, 2, 2, 4, 4, 6, 6, 6, -0.0]
    got = grids.decode(grids.encode(x, GRIDS["e2m1"]), GRIDS["e2m1"])
    assert got.tolist() == want and torch.signbit(got[-1])


@pytest.mark.parametrize(
    ("name", "count", "distinct", "largest", "least_normal", "least"),
    [
        ("e4m3", 254, 253, 448, 2**-6, 2**-9),
        ("e5m2", 248, 247, 57344, 2**-14, 2**-16),
        ("e4m3fnuz", 255, 255, 240, 2**-7, 2**-10),
        ("e5m2fnuz", 255, 255, 57344, 2**-15, 2**-17),
    ],
)
def test_eight_bit_grids(name, count, distinct, largest, least_normal, least):
    grid = GRIDS[name]
    every = grids.decode(torch.arange(256, dtype=torch.int32).to(torch.uint8).view(grid.dtype), grid)
    every = every[torch.isfinite(every)]
    positive = every[every > 0]
    assert len(every) == count and len(every.unique()) == distinct
    assert float(positive.max()) == largest == grid.max and float(positive.min()) == least
    assert torch.finfo(grid.dtype).smallest_normal == least_normal
    if name == "e4m3":
        assert len(positive) == 126 and float(positive.double().sum()) == 5407.875
    if name == "e5m2":
        assert len(positive) == 123


def test_bytes_of_the_ofp8_specification():
    def byte(name, code):
        return float(grids.decode(torch.tensor([code], dtype=torch.uint8).view(GRIDS[name].dtype), GRIDS[name]))

    assert [byte("e4m3", code) for code in (0x7E, 0x08, 0x01)] == [448, 2**-6, 2**-9]
    assert [byte("e5m2", code) for code in (0x7B, 0x7C, 0x04, 0x01)] == [57344, float("inf"), 2**-14, 2**-16]
    assert byte("e4m3", 0x7F) != byte("e4m3", 0x7F) and byte("e4m3fnuz", 0x80) != byte("e4m3fnuz", 0x80)


def test_numbers_above_the_largest_saturate():
    assert torch.isinf(torch.tensor([61440.0]).to(torch.float8_e5m2).float())  # a cast alone does not
    for name, x in (("e4m3", 464.1), ("e5m2", 61440.0), ("e4m3fnuz", 1e9), ("e2m1", 1e9), ("e3m0", float("inf"))):
        assert float(grids.decode(grids.encode(torch.tensor([x]), GRIDS[name]), GRIDS[name])) == GRIDS[name].max


@pytest.mark.parametrize("name", EIGHT_BIT)
def test_nan_goes_through(name):
    assert torch.isnan(grids.decode(grids.encode(torch.tensor([float("nan")]), GRIDS[name]), GRIDS[name])).all()
