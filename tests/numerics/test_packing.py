"""Two codes a byte: both orders, signs, odd lengths, every byte."""

import itertools

import pytest
import torch

from qpass.errors import InputError
from qpass.numerics.packing import ORDERS, pack, unpack

CODES = torch.tensor([[0x1, 0x2, 0xA, 0x3], [0xF, 0x0, 0x0, 0xE]], dtype=torch.uint8)


def test_g50_the_two_orders_on_an_asymmetric_pattern():
    assert pack(CODES).tolist() == [[0x21, 0x3A], [0x0F, 0xE0]]
    assert pack(CODES, "even_high").tolist() == [[0x12, 0xA3], [0xF0, 0x0E]]
    # read in the other order, neighbors change places
    swapped = unpack(pack(CODES), 4, "even_high")
    assert torch.equal(swapped, CODES.view(2, 2, 2).flip(-1).view(2, 4)) and not torch.equal(swapped, CODES)


@pytest.mark.parametrize("order", ORDERS)
def test_every_pair_comes_back(order):
    pairs = torch.tensor(list(itertools.product(range(16), repeat=2)), dtype=torch.uint8)
    packed = pack(pairs, order)
    assert packed.shape == (256, 1) and len(packed.unique()) == 256
    assert torch.equal(unpack(packed, 2, order), pairs)
    signed = pairs.to(torch.int8) - 8
    assert torch.equal(pack(signed, order), pack(signed.view(torch.uint8) & 15, order)), "two's complement"
    assert torch.equal(unpack(pack(signed, order), 2, order, signed=True), signed)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("width", [0, 1, 2, 5, 7])
def test_odd_lengths(order, width):
    codes = torch.arange(2 * 3 * width, dtype=torch.uint8).view(2, 3, width) * 7 % 16
    packed = pack(codes, order)
    assert packed.shape == (2, 3, (width + 1) // 2)
    assert torch.equal(unpack(packed, width, order), codes)
    if width % 2:
        assert (packed[..., -1] == (codes[..., -1] if order == "even_low" else codes[..., -1] << 4)).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pack(CODES, "even-low"), "unknown order 'even-low'. Fix: use 'even_low'"),
        (lambda: pack(CODES + 10), "codes from 10 to 25. Fix: pass 0 to 15"),
        (lambda: pack(CODES.to(torch.int8) - 9), "codes from -9 to 6. Fix: pass -8 to 7"),
        (lambda: pack(CODES.float()), "codes of torch.float32. Fix: pass uint8"),
        (lambda: unpack(CODES, 9), "4 bytes of torch.uint8 for 9 codes. Fix: pass 5 of uint8"),
        (lambda: unpack(CODES.to(torch.int8), 8), "4 bytes of torch.int8 for 8 codes"),
    ],
)
def test_mistakes(call, message):
    with pytest.raises(InputError, match=message):
        call()
