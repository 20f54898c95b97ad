"""Formats parse, print, count bytes, and refuse with a suggestion."""

import pytest
import torch

from qpass.errors import RecipeError
from qpass.formats import SCHEMES, Format, Scheme


@pytest.mark.parametrize("text", ["int8:channel:sym", "int8:token:asym", "int4:g128:asym", "int4:channel:sym"])
def test_print_is_parse(text):
    assert str(Format.parse(text)) == text


@pytest.mark.parametrize("name", SCHEMES)
def test_named_schemes_print_and_parse(name):
    assert Scheme.parse(str(SCHEMES[name])) == SCHEMES[name] == Scheme.parse(name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("int9:channel:sym", "unknown element 'int9'. Fix: use 'int"),
        ("int8:chanel:sym", "unknown granularity 'chanel'. Fix: use 'channel'."),
        ("int8:channel:asymm", "'asymm' in 'int8:channel:asymm'. Fix: use 'asym'."),
        ("int4:g1:asym", "a group of 1 values. Fix: use a group of at least 2, for example g128."),
        ("int8", "unknown scheme 'int8'. Fix: use 'w8a8-int8'."),
        ("w8a8-int", "unknown scheme 'w8a8-int'. Fix: use 'w8a8-int8'."),
        ("w4a16-g0", "a group of 0 values"),
        ("int8:token:sym", "a weight has no tokens"),
        ("int8:channel:sym x int8:channel:sym", "inputs are quantized per token"),
    ],
)
def test_errors_say_what_is_legal(text, message):
    with pytest.raises(RecipeError) as error:
        Scheme.parse(text)
    assert message in str(error.value)


def test_bytes_count_codes_scales_and_zeros():
    assert Format.parse("int8:channel:sym").weight_bytes(10, 64) == 640 + 10 * 4
    # 704 = 5 groups of 128 and one of 64: 6 scales of 2 bytes and 6 zero points a row
    assert Format.parse("int4:g128:asym").weight_bytes(256, 704) == 256 * 704 // 2 + 256 * 6 * 3


def test_ranges():
    assert Format.parse("int8:channel:sym").range == (-127, 127)
    assert Format.parse("int4:g32:asym").range == (0, 15)
    assert Format.parse("int4:g32:asym").code_dtype is torch.uint8
