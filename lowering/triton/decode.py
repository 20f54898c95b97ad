"""Unpacking of 4-bit words in registers: each in PTX assembly, and as a plain twin with the same result.

The assembly takes one 32-bit word as four int8 (``pack=4``), which holds where a word's elements are neighbors in a
register; ``qpass.lowering.triton.properties`` checks that in the compiled code. A twin computes the same from words,
element by element: it runs in the interpreter and on other machines. The tricks themselves are enumerated in the tests.
"""

import triton
import triton.language as tl

from qpass.lowering.triton.tile import to_rows, words_to_elements


@triton.jit
def bf16_codes(tile, zero, zero2, BN: tl.constexpr, BK: tl.constexpr, KW: tl.constexpr, ASM: tl.constexpr):
    """code - zero as bfloat16, two of [BN, BK / 2]; exact. Order bf16. zero, zero2: int32 [BN], of each half.

    0x4300 | code is the number 128 + code; one exact addition of -(128 + zero) follows.
    """
    if ASM:
        minus = ((zero | 0xC300) * 0x10001)[:, None]
        minus2 = ((zero2 | 0xC300) * 0x10001)[:, None]
        low, high = tl.inline_asm_elementwise(
            """
            {
            .reg .b32 t4, t8, t12, one;
            mov.b32 one, 0x3f803f80;
            shr.u32 t4, $4, 4;
            shr.u32 t8, $4, 8;
            shr.u32 t12, $4, 12;
            lop3.b32 $0, $4, 0x000f000f, 0x43004300, 0xea;
            lop3.b32 $1, t4, 0x000f000f, 0x43004300, 0xea;
            lop3.b32 $2, t8, 0x000f000f, 0x43004300, 0xea;
            lop3.b32 $3, t12, 0x000f000f, 0x43004300, 0xea;
            fma.rn.bf16x2 $0, $0, one, $5;
            fma.rn.bf16x2 $1, $1, one, $5;
            fma.rn.bf16x2 $2, $2, one, $9;
            fma.rn.bf16x2 $3, $3, one, $9;
            }
            """,
            "=&r,=&r,=&r,=&r,r,r,r,r,r,r,r,r,r",
            [to_rows(tile, BN, BK, KW), minus, minus2],
            dtype=(tl.bfloat16, tl.bfloat16), is_pure=True, pack=4,
        )  # fmt: skip
    else:
        place = (tl.arange(0, 4) % 2) * 16 + (tl.arange(0, 4) // 2) * 4
        low = (words_to_elements(tile, place, BN, BK, KW) & 15) - zero[:, None]
        high = (words_to_elements(tile, place + 8, BN, BK, KW) & 15) - zero2[:, None]
        low = low.to(tl.float32).to(tl.bfloat16)  # in two steps: the interpreter has no cast of integers to bfloat16
        high = high.to(tl.float32).to(tl.bfloat16)
    return low, high


@triton.jit
def int8_codes(tile, zero, zero2, BN: tl.constexpr, BK: tl.constexpr, KW: tl.constexpr, ASM: tl.constexpr):
    """code - zero as int8, two of [BN, BK / 2]. Order plain. zero, zero2: int32 [BN], of each half.

    Four bytes at once: code + (128 - zero) carries into no neighbor, and the exclusive or takes 128 away again.
    """
    if ASM:
        plus = ((128 - zero) * 0x01010101)[:, None]
        plus2 = ((128 - zero2) * 0x01010101)[:, None]
        low, high = tl.inline_asm_elementwise(
            """
            {
            .reg .b32 h;
            shr.u32 h, $2, 4;
            and.b32 $0, $2, 0x0f0f0f0f;
            and.b32 $1, h, 0x0f0f0f0f;
            add.u32 $0, $0, $3;
            add.u32 $1, $1, $7;
            xor.b32 $0, $0, 0x80808080;
            xor.b32 $1, $1, 0x80808080;
            }
            """,
            "=&r,=&r,r,r,r,r,r,r,r,r,r",
            [to_rows(tile, BN, BK, KW), plus, plus2],
            dtype=(tl.int8, tl.int8), is_pure=True, pack=4,
        )  # fmt: skip
    else:
        place = tl.arange(0, 4) * 8
        low = (words_to_elements(tile, place, BN, BK, KW) & 15) - zero[:, None]
        high = (words_to_elements(tile, place + 4, BN, BK, KW) & 15) - zero2[:, None]
        low, high = low.to(tl.int8), high.to(tl.int8)
    return low, high


@triton.jit
def fp8_codes(tile, near, far, near2, far2, BN: tl.constexpr, BK: tl.constexpr, KW: tl.constexpr, ASM: tl.constexpr):
    """E4M3 bytes of codes of a sign and three bits, two of [BN, BK / 2], by a look-up in the row's own table.

    Order lut. near, far, and near2, far2 for the other half: int32 [BN], the bytes of the magnitudes 0 to 3 and 4 to 7.
    """
    if ASM:
        low, high = tl.inline_asm_elementwise(
            """
            {
            .reg .b32 m, mh, sh;
            and.b32 m, $2, 0x77777777;
            shr.u32 mh, m, 16;
            shl.b32 sh, $2, 4;
            prmt.b32 $0, $3, $7, m;
            prmt.b32 $1, $11, $15, mh;
            lop3.b32 $0, $2, 0x80808080, $0, 0xea;
            lop3.b32 $1, sh, 0x80808080, $1, 0xea;
            }
            """,
            "=&r,=&r,r,r,r,r,r,r,r,r,r,r,r,r,r,r,r,r,r",
            [to_rows(tile, BN, BK, KW), near[:, None], far[:, None], near2[:, None],
             far2[:, None]],
            dtype=(tl.float8e4nv, tl.float8e4nv), is_pure=True, pack=4,
        )  # fmt: skip
    else:
        place = tl.arange(0, 4)
        low = words_to_elements(tile, place * 4, BN, BK, KW)
        high = words_to_elements(tile, place * 4 + 16, BN, BK, KW)
        low_sign = words_to_elements(tile, place * 8, BN, BK, KW) & 0x80
        high_sign = (words_to_elements(tile, place * 8, BN, BK, KW) << 4) & 0x80
        low = _looked_up(low, low_sign, near, far)
        high = _looked_up(high, high_sign, near2, far2)
    return low, high


@triton.jit
def _looked_up(code, sign, near, far):
    table = tl.where((code & 4) != 0, far[:, None], near[:, None])
    byte = (table >> ((code & 3) * 8)) & 0x7F
    return (byte | sign).to(tl.uint8).to(tl.float8e4nv, bitcast=True)
