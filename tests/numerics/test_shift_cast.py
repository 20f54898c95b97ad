"""The cast of four-bit codes to FP8: every code, every shift, every target, enumerated in exact arithmetic."""

import pytest
import torch

from qpass.errors import NumericsError, RecipeError
from qpass.formats import Format
from qpass.numerics import codec, groups, powers, scales, shift_cast, shift_search
from qpass.numerics.grids import decode
from qpass.numerics.scales import Scales

DTYPES = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2, "e4m3fnuz": torch.float8_e4m3fnuz,
          "e5m2fnuz": torch.float8_e5m2fnuz}  # fmt: skip
E2M1 = Format.parse("e2m1:g8:sym:m2")
INT4 = Format.parse("int4:g8:sym:m2")
INT4_FULL = Format.parse("int4:g8:full:m2")
VALUES = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
RAW_E4M3 = [0x00, 0x04, 0x08, 0x0C, 0x10, 0x14, 0x18, 0x1C, 0x80, 0x84, 0x88, 0x8C, 0x90, 0x94, 0x98, 0x9C]
RAW_E5M2 = [0x00, 0x02, 0x04, 0x06, 0x08, 0x0A, 0x0C, 0x0E, 0x80, 0x82, 0x84, 0x86, 0x88, 0x8A, 0x8C, 0x8E]
K0_E4M3 = [0x00, 0x30, 0x38, 0x3C, 0x40, 0x44, 0x48, 0x4C]
K0_E5M2 = [0x00, 0x38, 0x3C, 0x3E, 0x40, 0x42, 0x44, 0x46]
LUT_E4M3 = """
01 02 03 04 06 08 0C | 02 04 06 08 0C 10 14 | 04 08 0C 10 14 18 1C | 08 10 14 18 1C 20 24 | 10 18 1C 20 24 28 2C
18 20 24 28 2C 30 34 | 20 28 2C 30 34 38 3C | 28 30 34 38 3C 40 44 | 30 38 3C 40 44 48 4C | 38 40 44 48 4C 50 54
40 48 4C 50 54 58 5C | 48 50 54 58 5C 60 64 | 50 58 5C 60 64 68 6C | 58 60 64 68 6C 70 74 | 60 68 6C 70 74 78 7C
"""


def value_of(byte, target):
    return float(torch.tensor([byte], dtype=torch.uint8).view(DTYPES[target]).double())


def is_exact(value, target):
    """Whether a cast there and back returns the number, by torch; saturation and NaN do not."""
    there = torch.tensor([value], dtype=torch.float64).to(torch.float32).to(DTYPES[target])
    return float(there.double()) == value


@pytest.mark.parametrize(
    ("target", "first", "raw", "power"), [("e4m3", K0_E4M3, RAW_E4M3, 6), ("e5m2", K0_E5M2, RAW_E5M2, 14)]
)
def test_g18_the_sixteen_rows(target, first, raw, power):
    table = shift_cast.table(E2M1, target)[-shift_cast.exact_shifts(E2M1, target)[0]]
    assert list(table) == first + [byte | 0x80 for byte in first]
    for code, byte in enumerate(raw):
        value = VALUES[code & 7] * (-1 if code & 8 else 1)
        assert value_of(byte, target) * 2**power == value and value_of(table[code], target) == value
        assert byte == (code >> 3) << 7 | (code & 7) << (2 if target == "e4m3" else 1)


@pytest.mark.parametrize(
    ("fmt", "target", "first", "last"),
    [
        (E2M1, "e4m3", -8, 6), (E2M1, "e5m2", -15, 13), (E2M1, "e4m3fnuz", -9, 5), (E2M1, "e5m2fnuz", -16, 13),
        (INT4, "e4m3fnuz", -10, 5), (INT4, "e5m2fnuz", -17, 13), (INT4_FULL, "e4m3fnuz", -10, 4),
        (INT4_FULL, "e5m2fnuz", -17, 12),
        (INT4, "e4m3", -9, 6), (INT4_FULL, "e4m3", -9, 5), (INT4, "e5m2", -16, 13), (INT4_FULL, "e5m2", -16, 12),
    ],
)  # fmt: skip
def test_g19_g22_the_exact_shifts(fmt, target, first, last):
    """All codes inside the range, at both ends of it; one code or more outside, and for every k beyond."""
    found = shift_cast.exact_shifts(fmt, target)
    assert (found[0], found[-1]) == (first, last)
    values = list(shift_cast.code_values(fmt).values())
    for k in range(-40, 41):
        assert all(is_exact(value * 2.0**k, target) for value in values) == (k in found), k


def test_g19_what_is_beyond():
    at = torch.tensor(VALUES) * 2.0**7
    assert [is_exact(float(value), "e4m3") for value in at] == [True] * 6 + [False, False]
    assert (torch.tensor([0.5, 1.5]) * 2.0**-9).to(torch.float8_e4m3fn).float().tolist() == [0, 2 * 2.0**-9]


def test_g20_the_look_up_table_of_e4m3():
    want = [[int(byte, 16) for byte in row.split()] for row in LUT_E4M3.replace("\n", "|").split("|") if row.strip()]
    assert len(want) == 15
    assert [list(row[1:8]) for row in shift_cast.table(E2M1, "e4m3")] == want
    ends = [list(shift_cast.table(E2M1, "e5m2")[k][1:8]) for k in (0, -1)]
    assert ends == [[1, 2, 3, 4, 6, 8, 0x0A], [0x6C, 0x70, 0x72, 0x74, 0x76, 0x78, 0x7A]]


@pytest.mark.parametrize("target", shift_cast.TARGETS)
def test_g20_the_closed_form_is_the_table(target):
    for k, row in zip(shift_cast.exact_shifts(E2M1, target), shift_cast.table(E2M1, target)):
        assert [shift_cast.shifted_byte(code, k, target) for code in range(16)] == list(row), k


@pytest.mark.parametrize("target", shift_cast.TARGETS)
@pytest.mark.parametrize("fmt", [E2M1, INT4, INT4_FULL, Format.parse("e3m0:g8:sym:m2"), Format.parse("int3:g8:sym:m2")])
def test_every_byte_of_a_table_is_the_value(fmt, target):
    values = shift_cast.code_values(fmt)
    for k, row in zip(shift_cast.exact_shifts(fmt, target), shift_cast.table(fmt, target)):
        for code, value in values.items():
            assert value_of(row[code], target) == value * 2.0**k


def test_g21_adding_the_shift_to_the_raw_byte_is_wrong():
    for k in range(-5, 7):
        for code in range(8):
            got = value_of(RAW_E4M3[code] + ((k + 6) << 3), "e4m3")
            want = VALUES[code] * 2.0**k
            if code == 0:
                assert (got != 0) == (k > -6)
            elif code == 1:
                assert got == want * (1.5 if k > -6 else 1)
            else:
                assert got == want


def row_weights(rows=12, width=64):
    torch.manual_seed(0)
    return torch.randn(rows, width) * torch.exp(2 * torch.randn(rows, width // 8).repeat_interleave(8, 1))


CASTS = ["e2m1:g8:sym:m2", "e2m1:g8:sym:m2plus", "int4:g8:sym:m2", "e2m1:g10:sym:m2", "int3:g16:sym:m2plus",
         "int2:g16:sym:m2"]  # fmt: skip


@pytest.mark.parametrize("target", shift_cast.TARGETS)
@pytest.mark.parametrize("text", CASTS)
def test_g30_the_cast_is_exact_in_float64(text, target):
    fmt = Format.parse(text)
    w = row_weights()
    w[:, 24:40] *= 2.0**-11  # so that shifts are large
    w[3] = 0
    found = codec.choose(w, fmt)
    codes = codec.quantize(w, found, fmt)
    assert int(found.scale.max()) >= 8
    cast = shift_cast.cast_weight(codes, found, fmt, target)
    assert cast.bytes.dtype is DTYPES[target] and cast.bytes.shape == w.shape and cast.factor.shape == (12, 1)
    values = codec.decode(codes, fmt)
    shifts = codec.expand(found.scale, w.shape, fmt).double()
    real = values.double() * (found.outer.double() / torch.exp2(shifts))
    assert torch.equal(cast.bytes.double() * cast.factor.double(), real)
    assert torch.equal((cast.bytes.double() * cast.factor.double()).float(), codec.fake_quantize(w, fmt, found))


@pytest.mark.parametrize("text", ["e2m1:g8:sym:m1", "e2m1:channel:sym:m1", "e2m1:b4x16:sym:m1", "int4:tensor:sym:m1",
                                  "mxfp4", "e2m1:g16:sym:e8m0-even"])  # fmt: skip
def test_g30_m1_and_mx(text):
    fmt = Format.parse(text)
    w = row_weights(10)
    w[2, :32] = 0  # whose scale is 2^-127
    w[3] = 0
    found = codec.choose(w, fmt)
    codes = codec.quantize(w, found, fmt)
    cast = shift_cast.cast_weight(codes, found, fmt)
    values = codec.decode(codes, fmt).double() * codec.expand(scales.effective(found, fmt), w.shape, fmt).double()
    assert torch.equal(cast.bytes.double() * cast.factor.double(), values)
    assert (torch.frexp(cast.factor)[0] == 0.5).all()


def test_k0_puts_fifteen_shifts_into_e4m3():
    codes, fmt = torch.arange(16, dtype=torch.uint8).repeat(1, 15), Format.parse("e2m1:g16:sym:m2")
    found = Scales(torch.arange(15, dtype=torch.uint8)[None], outer=torch.tensor([[0.7]]))
    cast = shift_cast.cast_weight(codes, found, fmt)
    assert float(cast.factor) == float(torch.tensor(0.7) / 64)
    rows = [list(row) for row in reversed(shift_cast.table(fmt, "e4m3"))]
    assert cast.bytes.view(torch.uint8).view(15, 16).tolist() == rows


def test_g30_the_product_with_fp8_inputs():
    fmt, inputs = E2M1, Format.parse("e4m3:token:sym")
    w, x = row_weights(), torch.randn(3, 5, 64)
    found = codec.choose(w, fmt)
    codes = codec.quantize(w, found, fmt)
    x_codes, x_scale, _ = codec.quantize_rows(x, inputs)
    got = shift_cast.shift_gemm(x_codes, x_scale, shift_cast.cast_weight(codes, found, fmt), torch.float64)
    values = codec.decode(codes, fmt).double() * codec.expand(scales.effective(found, fmt), w.shape, fmt).double()
    want = (x_codes.double() * x_scale.double()) @ values.T
    size = (x_codes.double() * x_scale.double()).abs() @ values.abs().T
    assert ((got - want).abs() <= 2.0**-53 * 70 * size).all()


def test_groups_out_of_range_are_named():
    w = row_weights()
    w[5, 16:24] *= 2.0**-30
    fmt = Format.parse("e2m1:g8:sym:m1")
    found = codec.choose(w, fmt)
    with pytest.raises(NumericsError) as error:
        shift_cast.cast_weight(codec.quantize(w, found, fmt), found, fmt)
    text = str(error.value)
    assert "1 groups have a shift that is not exact in e4m3, the first at (5, 2) of [row, group]" in text
    assert "e2m1 may be shifted by -8 to 6. Fix: put power-of-two-scales in the recipe" in text
    near = shift_search.choose(w, fmt, limit=True)
    codes = codec.quantize(w, near, fmt)
    cast = shift_cast.cast_weight(codes, near, fmt)
    assert torch.equal((cast.bytes.double() * cast.factor.double()).float(), codec.fake_quantize(w, fmt, near))
    assert int(shift_search.limited(groups.group_amax(w, fmt), fmt).sum()) == 1
    # wide enough for the codes as they came: E5M2 has 29 shifts
    w[5, 16:24] *= 2.0**10
    found = codec.choose(w, fmt)
    shift_cast.cast_weight(codec.quantize(w, found, fmt), found, fmt, "e5m2")


def test_shifts_beyond_the_limit_and_factors_too_small():
    codes = torch.full((2, 16), 3, dtype=torch.uint8)
    far = Scales(torch.tensor([[0, 14], [15, 0]], dtype=torch.uint8), outer=torch.ones(2, 1))
    with pytest.raises(NumericsError, match=r"1 groups have a shift .* first at \(1, 0\)"):
        shift_cast.cast_weight(codes, far, E2M1)
    codes[1, :8] = 8  # a group of -0: nothing to lose
    assert (shift_cast.cast_weight(codes, far, E2M1).bytes[1, :8].float() == 0).all()
    tiny = Scales(torch.zeros(2, 2, dtype=torch.uint8), outer=torch.tensor([[1.0], [2.0**-126 * 1.0000001]]))
    with pytest.raises(NumericsError, match="1 factors are too small for float32, the first at row 1"):
        shift_cast.cast_weight(codes, tiny, E2M1)
    nan = Scales(torch.full((2, 2), powers.NAN, dtype=torch.uint8))
    with pytest.raises(NumericsError, match=r"4 scales are NaN, the first at \(0, 0\)"):
        shift_cast.cast_weight(codes, nan, Format.parse("e2m1:g8:sym:m1"))


@pytest.mark.parametrize(
    ("text", "target", "message"),
    [
        ("e2m1:g8:sym:f16", "e4m3", r"scales of the kind f16 \(at e2m1:g8:sym:f16\). Fix: use m2 or m1"),
        ("nvfp4", "e4m3", "scales of the kind e4m3"),
        ("int8:channel:sym:m1", "e4m3", "codes of 8 bits have no exact FP8 form"),
        ("int5:channel:sym:m1", "e4m3", "codes of 5 bits have no exact FP8 form"),
        ("int4:g8:asym:f16", "e4m3", "zero points have no exact FP8 form"),
        ("e2m1:g8:sym:m2", "e4m4", "a cast to 'e4m4'. Fix: use 'e4m3"),
    ],
)
def test_what_has_no_cast(text, target, message):
    fmt = Format.parse(text)
    w = row_weights()
    found = codec.choose(w, fmt)
    with pytest.raises(RecipeError, match=message):
        shift_cast.cast_weight(codec.quantize(w, found, fmt), found, fmt, target)


def test_the_values_are_those_of_the_grid():
    codes = torch.arange(16, dtype=torch.uint8)
    assert list(shift_cast.code_values(E2M1).values()) == decode(codes, E2M1.grid).tolist()
    assert shift_cast.code_values(INT4)[0xF] == -1 and 8 not in shift_cast.code_values(INT4)
    assert shift_cast.code_values(INT4_FULL)[8] == -8
