"""Codes of the key-value cache in registers: bytes, or halves of bytes, to floats that a dot takes. All exact.

Integers of up to eight bits are exact in bfloat16 and float16, and so are the four- and eight-bit floats. The assembly
takes four bytes of a row, neighbors, in one word; the plain twins run in the interpreter, on other machines, and for
kinds without assembly. Kinds: int8 (a byte with a sign), uint4 and int4 (half a byte), and the float grids by name.
"""

import triton
import triton.language as tl


def _block(first: str, source: str, other: str, low: str, high: str, rest: str) -> tl.constexpr:
    """Bytes 0 and 1 of a word in the halves of a, bytes 2 and 3 in those of b, then ``rest``. One line: Inductor copies
    it into a text of its own."""
    spread = f"prmt.b32 a, {source}, {other}, {low}; prmt.b32 b, {source}, {other}, {high};"
    return tl.constexpr(f"{{ .reg .b32 a, b, c, d, e, f; {first} {spread} {rest} }}")


def _int8_bf16() -> tl.constexpr:
    """0x4300 | the low seven bits is 128 + them; off goes 0x4300 | the sign bit, which is 128 or 256."""
    rest = " ".join(
        f"lop3.b32 c, {half}, 0x007f007f, 0x43004300, 0xea; lop3.b32 d, {half}, 0x00800080, 0x43004300, 0xea; "
        f"fma.rn.bf16x2 ${out}, d, e, c;" for out, half in enumerate("ab"))  # fmt: skip
    return _block("mov.b32 e, 0xbf80bf80;", "$2", "0", "0x4140", "0x4342", rest)


def _int8_f16() -> tl.constexpr:
    """0x6400 | (code + 128) is 1024 + code + 128."""
    first = "xor.b32 c, $2, 0x80808080; mov.b32 d, 0x64646464; mov.b32 e, 0x3c003c00; mov.b32 f, 0xe480e480;"
    rest = "fma.rn.f16x2 $0, a, e, f; fma.rn.f16x2 $1, b, e, f;"
    return _block(first, "c", "d", "0x4140", "0x4342", rest)


def _float8(kind: str, shift: int, mask: str, factor: str) -> tl.constexpr:
    """Its bits where a wider float has them, times the power of two between the biases; subnormals too."""
    rest = " ".join(
        f"shr.u32 c, {half}, {shift}; and.b32 c, c, {mask}; lop3.b32 c, {half}, 0x80008000, c, 0xea; "
        f"fma.rn.{kind}x2 ${out}, c, e, f;" for out, half in enumerate("ab"))  # fmt: skip
    return _block(f"mov.b32 e, {factor}; mov.b32 f, 0x80008000;", "$2", "0", "0x1404", "0x3424", rest)


def _halves(kind: str, one: str, unit: int, signed: bool) -> tl.constexpr:
    """``unit`` ^ code is a number whose last bits are the code; a sign bit is turned, which adds 8 to all."""
    unit += 8 if signed else 0
    whole, less = f"0x{unit:04x}{unit:04x}", f"0x{unit | 0x8000:04x}{unit | 0x8000:04x}"
    rest = []
    for out, (half, high) in enumerate((("a", False), ("b", False), ("a", True), ("b", True))):
        rest += [f"shr.u32 c, {half}, 4;"] if high else []
        rest += [f"lop3.b32 c, {'c' if high else half}, 0x000f000f, {whole}, 0x6a;",  # (a & b) ^ c
                 f"fma.rn.{kind}x2 ${out}, c, e, f;"]  # fmt: skip
    return _block(f"mov.b32 e, {one}; mov.b32 f, {less};", "$4", "0", "0x4140", "0x4342", " ".join(rest))


_INT8_BF16, _INT8_F16 = _int8_bf16(), _int8_f16()
_E4M3_BF16 = _float8("bf16", 4, "0x07f007f0", "0x7b807b80")  # 2^120
_E4M3_F16 = _float8("f16", 1, "0x3f803f80", "0x5c005c00")  # 2^8
_UINT4_BF16, _INT4_BF16 = (_halves("bf16", "0x3f803f80", 0x4300, signed) for signed in (False, True))
_UINT4_F16, _INT4_F16 = (_halves("f16", "0x3c003c00", 0x6400, signed) for signed in (False, True))


@triton.jit
def byte_values(tile, KIND: tl.constexpr, DTYPE: tl.constexpr, ASM: tl.constexpr):
    """Values, of ``DTYPE``, of codes of a byte each. tile: int8."""
    if ASM and tl.bfloat16 == DTYPE and KIND == "int8":
        value = _four_bytes(tile, _INT8_BF16, DTYPE)
    elif ASM and tl.float16 == DTYPE and KIND == "int8":
        value = _four_bytes(tile, _INT8_F16, DTYPE)
    elif ASM and tl.bfloat16 == DTYPE and KIND == "e4m3":
        value = _four_bytes(tile, _E4M3_BF16, DTYPE)
    elif ASM and tl.float16 == DTYPE and KIND == "e4m3":
        value = _four_bytes(tile, _E4M3_F16, DTYPE)
    elif KIND == "int8":
        value = tile.to(tl.float32).to(DTYPE)
    else:
        value = _float(tile.to(tl.int32) & 255, 8, KIND).to(DTYPE)
    return value


@triton.jit
def half_values(tile, KIND: tl.constexpr, DTYPE: tl.constexpr, ASM: tl.constexpr):
    """(values of the low halves, of the high halves), of ``DTYPE``, of codes of half a byte. tile: int8."""
    if ASM and tl.bfloat16 == DTYPE and KIND == "uint4":
        low, high = _eight_halves(tile, _UINT4_BF16, DTYPE)
    elif ASM and tl.bfloat16 == DTYPE and KIND == "int4":
        low, high = _eight_halves(tile, _INT4_BF16, DTYPE)
    elif ASM and tl.float16 == DTYPE and KIND == "uint4":
        low, high = _eight_halves(tile, _UINT4_F16, DTYPE)
    elif ASM and tl.float16 == DTYPE and KIND == "int4":
        low, high = _eight_halves(tile, _INT4_F16, DTYPE)
    else:
        code = tile.to(tl.int32)
        low, high = _half(code & 15, KIND).to(DTYPE), _half((code >> 4) & 15, KIND).to(DTYPE)
    return low, high


@triton.jit
def _four_bytes(tile, TEXT: tl.constexpr, DTYPE: tl.constexpr):
    if tl.bfloat16 == DTYPE:
        value = tl.inline_asm_elementwise(TEXT, "=&r,=&r,r", [tile], dtype=tl.bfloat16, is_pure=True, pack=4)
    else:
        value = tl.inline_asm_elementwise(TEXT, "=&r,=&r,r", [tile], dtype=tl.float16, is_pure=True, pack=4)
    return value


@triton.jit
def _eight_halves(tile, TEXT: tl.constexpr, DTYPE: tl.constexpr):
    if tl.bfloat16 == DTYPE:
        low, high = tl.inline_asm_elementwise(
            TEXT, "=&r,=&r,=&r,=&r,r", [tile], dtype=(tl.bfloat16, tl.bfloat16), is_pure=True, pack=4
        )
    else:
        low, high = tl.inline_asm_elementwise(
            TEXT, "=&r,=&r,=&r,=&r,r", [tile], dtype=(tl.float16, tl.float16), is_pure=True, pack=4
        )
    return low, high


@triton.jit
def _half(code, KIND: tl.constexpr):
    """float32 of codes int32 from 0 to 15."""
    if KIND == "uint4":
        value = code.to(tl.float32)
    elif KIND == "int4":
        value = ((code ^ 8) - 8).to(tl.float32)
    else:
        value = _float(code, 4, KIND)
    return value


@triton.jit
def _float(code, BITS: tl.constexpr, KIND: tl.constexpr):
    """float32 of codes of a float grid, int32 with nothing above them."""
    MANTISSA: tl.constexpr = 3 if KIND == "e4m3" else 2 if KIND == "e5m2" else 1 if KIND == "e2m1" else 0
    BIAS: tl.constexpr = 7 if KIND == "e4m3" else 15 if KIND == "e5m2" else 1 if KIND == "e2m1" else 3
    FACTOR: tl.constexpr = 1 << (127 - BIAS)
    SIGN: tl.constexpr = 1 << (BITS - 1)
    bits = (code & (SIGN - 1)) << (23 - MANTISSA)
    value = bits.to(tl.float32, bitcast=True) * (1.0 * FACTOR)
    return tl.where((code & SIGN) != 0, -value, value)
