"""Packing is exact for every number of bits, width and sign."""

import pytest
import torch

from qpass.numerics import bit_planes


@pytest.mark.parametrize("bits", range(2, 8))
@pytest.mark.parametrize("width", [1, 7, 8, 9, 70])
def test_round_trip(bits, width):
    unsigned = torch.randint(0, 2**bits, (5, width), dtype=torch.uint8)
    signed = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (5, width), dtype=torch.int8)
    for codes in (unsigned, signed):
        planes = bit_planes.pack(codes, bits)
        assert planes.shape == (bits, 5, -(-width // 8)) and planes.dtype is torch.uint8
        assert torch.equal(bit_planes.unpack(planes, width, codes.dtype), codes)


def test_the_layout_is_the_one_that_is_written_down():
    codes = torch.randint(0, 8, (3, 21), dtype=torch.uint8)
    planes = bit_planes.pack(codes, 3)
    for n in range(3):
        for k in range(21):
            bits = [int(planes[i, n, k // 8]) >> (k % 8) & 1 for i in range(3)]
            assert sum(bit << i for i, bit in enumerate(bits)) == int(codes[n, k])
