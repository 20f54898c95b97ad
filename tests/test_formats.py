"""Formats parse, print, count bytes, and refuse with a suggestion."""

import itertools

import pytest
import torch

from qpass.errors import RecipeError
from qpass.formats import GRIDS, NAMED, SCALES, SCHEMES, Format, Scheme

TEXTS = [
    "int8:channel:sym", "int8:token:asym", "int4:g128:asym", "int4:channel:sym", "int2:g64:asym", "int3:g128:asym:f16",
    "int8:channel:full", "e2m1:g32:sym:e8m0", "e2m1:g16:sym:e4m3", "e2m1:g256:sym:f16", "e2m1:g256:sym:m2:r8",
    "int4:g256:sym:m1:r16-f16", "e4m3:b128x128:sym", "e4m3:tensor:sym", "int8:tensor:asym:static",
    "e3m0:g256:sym:m2plus", "e5m2:token:sym", "e4m3fnuz:channel:sym", "e4m3:g128:sym:f32",
]  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
def test_print_is_parse(text):
    assert str(Format.parse(text)) == text


def test_every_legal_format_prints_and_parses():
    legal = 0
    for element, granularity, symmetric, scale in itertools.product(
        GRIDS, ("tensor", "channel", "token", "group", "block"), (True, False), SCALES
    ):
        sizes = {"group": {"group": 32}, "block": {"group": 32, "rows": 16}}.get(granularity, {})
        try:
            fmt = Format(element, granularity, symmetric=symmetric, scale=scale, **sizes)
        except RecipeError:
            continue
        assert Format.parse(str(fmt)) == fmt
        legal += 1
    assert legal > 500


@pytest.mark.parametrize("name", SCHEMES)
def test_named_schemes_print_and_parse(name):
    assert Scheme.parse(str(SCHEMES[name])) == SCHEMES[name] == Scheme.parse(name)


@pytest.mark.parametrize("name", NAMED)
def test_named_formats_print_and_parse(name):
    assert Format.parse(str(NAMED[name])) == NAMED[name] == Format.parse(name)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("w4a4", "int4:channel:asym x int4:token:asym"),
        ("w8a8", "int8:channel:sym x int8:token:asym"),
        ("w3a16-g128", "int3:g128:asym"),
        ("w4a6-g64", "int4:g64:asym x int6:token:asym"),
        ("w4a8-fp-g64-m2", "e2m1:g64:sym:m2 x e4m3:token:sym"),
        ("w4a8-int-fp-m1", "int4:g256:sym:m1 x e4m3:token:sym"),
        ("mxfp4 x mxfp8", "e2m1:g32:sym:e8m0 x e4m3:g32:sym:e8m0"),
    ],
)
def test_names_with_numbers(name, text):
    assert str(Scheme.parse(name)) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("int9:channel:sym", "unknown element 'int9'. Fix: use 'int"),
        ("e2m3:g32:sym", "unknown element 'e2m3'. Fix: use 'e"),
        ("int8:chanel:sym", "unknown granularity 'chanel'. Fix: use 'channel'."),
        ("int8:channel:asymm", "'asymm' in 'int8:channel:asymm'. Fix: use 'asym'."),
        ("int4:g1:asym", "a group of 1 values. Fix: use a group of at least 2, for example g128."),
        ("e4m3:b1x128:sym", "a block of 1 rows. Fix: use a block of at least 2"),
        ("e2m1:g32:asym", "e2m1 with a zero point. Fix: write sym: floats have none."),
        ("e2m1:channel:sym:m2", "the scale kind m2 without groups. Fix: write gN, as in g256:sym:m2."),
        ("int4:g32:asym:e8m0", "a zero point with the scale kind e8m0. Fix: use sym, or a scale of f32 or f16."),
        ("int4:g32:asym:f61", "'f61' in 'int4:g32:asym:f61'. Fix: use 'f16'."),
        ("int4:g32:asym:f16:f16", "'f16' in 'int4:g32:asym:f16:f16'."),
        ("int8:token:asym:static", "a static scale per token. Fix: use tensor, as in int8:tensor:asym:static."),
        ("int8", "unknown scheme 'int8'. Fix: use 'w8a8-int8'."),
        ("w8a8-int", "unknown scheme 'w8a8-int'. Fix: use 'w8a8-int8'."),
        ("mxpf4", "unknown scheme 'mxpf4'. Fix: use 'mxfp4'."),
        ("mxfp4 x mxpf8", "'mxpf8' is not a format. Fix: use 'mxfp8'."),
        ("w4a16-g0", "a group of 0 values"),
        ("int8:token:sym", "a weight has no tokens"),
        ("int8:tensor:sym:static", "a weight is always static"),
        ("int8:channel:sym x int8:channel:sym", "inputs are quantized per token"),
        ("int8:channel:sym x int8:token:sym:r8", "a low-rank branch of an input"),
        ("int8:channel:sym x e2m1:g32:sym:m2", "inputs with the scale kind m2"),
        ("int8:channel:sym x int8:g32:asym", "inputs with scales of bf16 (at int8:g32:asym). Fix: add :f32"),
        ("int4:b16x16:asym", "zero points of a block"),
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
    # blocks of 128 x 128: 2 x 6 scales of 4 bytes
    assert Format.parse("fp8-block").weight_bytes(200, 704) == 200 * 704 + 2 * 6 * 4
    # three codes of 3 bits fill 9 bits: no padding inside a tensor
    assert Format.parse("int3:channel:sym").weight_bytes(1, 8) == 3 + 4
    branch = Format.parse("int4:g128:asym:r8").weight_bytes(256, 704) - 256 * 704 // 2 - 256 * 6 * 3
    assert branch == 8 * (256 + 704) + 4 * (256 + 8)
    assert Format.parse("int4:g128:asym:r8-f16").branch_bytes(256, 704) == 2 * 8 * (256 + 704)


@pytest.mark.parametrize(
    ("text", "bits"),
    [
        ("e2m1:g256:sym:f16", 4.0625),
        ("e2m1:g128:sym:f16", 4.125),
        ("mxfp4", 4.25),
        ("nvfp4", 4.5 + 32 / 4096**2),
        ("e2m1:g256:sym:m2", 4.015625 + 32 / 4096),
        ("int8:channel:sym", 8 + 32 / 4096),
        ("fp8-block", 8 + 32 / 128**2),
        ("int4:g256:sym:m2", 4.015625 + 32 / 4096),
    ],
)
def test_g49_bits_per_weight(text, bits):
    assert Format.parse(text).bits_per_weight(4096, 4096) == bits


def test_g38_bits_of_a_branch():
    """r · b (N + K) / (N K): 0.03125 at 4096 x 4096, rank 8, int8; the row scales of the factors come on top."""
    fmt, size = Format.parse("int4:g128:sym:r8"), 4096
    assert (fmt.branch_bytes(size, size) - 4 * (size + 8)) * 8 / size**2 == 0.03125


def test_g45_a_block_in_w4_and_w8_is_three_times_smaller():
    h = 64
    sixteen = 12 * h * h * 16
    four_and_eight = 4 * h * h * GRIDS["int8"].bits + 8 * h * h * GRIDS["int4"].bits
    assert sixteen / four_and_eight == 3.0


def test_ranges():
    assert Format.parse("int8:channel:sym").range == (-127, 127)
    assert Format.parse("int8:channel:full").range == (-128, 127)
    assert Format.parse("int4:g32:asym").range == (0, 15)
    assert Format.parse("int2:g32:sym").range == (-1, 1)
    assert Format.parse("int4:g32:asym").code_dtype is torch.uint8
    assert Format.parse("e4m3:token:sym").code_dtype is torch.float8_e4m3fn
    assert Format.parse("mxfp4").code_dtype is torch.uint8
