"""Unpacking of 4-bit words in registers: each in PTX assembly, and as a plain twin with the same result.

The assembly takes one 32-bit word, or two, as elements that are neighbors in registers (``pack``);
``qpass.lowering.triton.properties`` checks in the compiled code that they are. A twin computes the same from words,
element by element: it runs in the interpreter and on other machines. The tricks themselves are enumerated in the tests.

A group of integers comes with one word, its scale in the high half (``group_scale``), its zero point in the low one.
"""

import triton
import triton.language as tl

from qpass.lowering.triton.tile import to_rows, words_to_elements


@triton.jit
def group_scale(word, scales, SCALE: tl.constexpr):
    """float32 scales. word: int32; SCALE: bf16 or f16, the high half of it, or apart, at the pointers ``scales``."""
    if SCALE == "apart":
        found = tl.load(scales).to(tl.float32)
    elif SCALE == "bf16":
        found = (word & -65536).to(tl.float32, bitcast=True)
    else:
        found = (word >> 16).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
    return found


@triton.jit
def bf16_codes(tile, word0, word1, word2, word3, BN: tl.constexpr, BK: tl.constexpr, ASM: tl.constexpr):
    """code - zero as bfloat16, four of [BN, BK / 4]; exact. Order bf16. word0 to word3: int32 [BN], of each part.

    0x4300 | code is the number 128 + code; one exact addition of -(128 + zero), the low half of the word, follows.
    """
    if ASM:
        c0, c1, c2, c3 = tl.inline_asm_elementwise(
            """
            {
            .reg .b32 t4, t8, t12, one, z0, z1, z2, z3;
            mov.b32 one, 0x3f803f80;
            prmt.b32 z0, $5, $5, 0x1010;
            prmt.b32 z1, $7, $7, 0x1010;
            prmt.b32 z2, $9, $9, 0x1010;
            prmt.b32 z3, $11, $11, 0x1010;
            shr.u32 t4, $4, 4;
            shr.u32 t8, $4, 8;
            shr.u32 t12, $4, 12;
            lop3.b32 $0, $4, 0x000f000f, 0x43004300, 0xea;
            lop3.b32 $1, t4, 0x000f000f, 0x43004300, 0xea;
            lop3.b32 $2, t8, 0x000f000f, 0x43004300, 0xea;
            lop3.b32 $3, t12, 0x000f000f, 0x43004300, 0xea;
            fma.rn.bf16x2 $0, $0, one, z0;
            fma.rn.bf16x2 $1, $1, one, z1;
            fma.rn.bf16x2 $2, $2, one, z2;
            fma.rn.bf16x2 $3, $3, one, z3;
            }
            """,
            "=&r,=&r,=&r,=&r,r,r,r,r,r,r,r,r,r",
            [to_rows(tile, BN, BK, 4, 2), word0[:, None], word1[:, None], word2[:, None], word3[:, None]],
            dtype=(tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16), is_pure=True, pack=2,
        )  # fmt: skip
    else:
        c0, c1 = _bf16_part(tile, word0, 0, BN, BK), _bf16_part(tile, word1, 1, BN, BK)
        c2, c3 = _bf16_part(tile, word2, 2, BN, BK), _bf16_part(tile, word3, 3, BN, BK)
    return c0, c1, c2, c3


@triton.jit
def _bf16_part(tile, word, PART: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    code = words_to_elements(tile, tl.arange(0, 2) * 16 + 4 * PART, BN, BK, 4, 2) & 15
    exact = (code - (word & 15)[:, None]).to(tl.float32)
    return exact.to(tl.bfloat16)  # in two steps: the interpreter has no cast of integers to bfloat16


@triton.jit
def int8_codes(tile, word0, word1, word2, word3, BN: tl.constexpr, BK: tl.constexpr, ASM: tl.constexpr):
    """code - zero as int8, four of [BN, BK / 4]. Order plain. word0 to word3: int32 [BN], of each part.

    Four bytes at once: code + (128 - zero), the low byte of the word, carries into no neighbor, and the exclusive or
    takes 128 away again.
    """
    if ASM:
        c0, c1, c2, c3 = tl.inline_asm_elementwise(
            """
            {
            .reg .b32 h, g, z0, z1, z2, z3;
            prmt.b32 z0, $6, $6, 0x0000;
            prmt.b32 z1, $10, $10, 0x0000;
            prmt.b32 z2, $14, $14, 0x0000;
            prmt.b32 z3, $18, $18, 0x0000;
            shr.u32 h, $4, 4;
            shr.u32 g, $5, 4;
            and.b32 $0, $4, 0x0f0f0f0f;
            and.b32 $1, h, 0x0f0f0f0f;
            and.b32 $2, $5, 0x0f0f0f0f;
            and.b32 $3, g, 0x0f0f0f0f;
            add.u32 $0, $0, z0;
            add.u32 $1, $1, z1;
            add.u32 $2, $2, z2;
            add.u32 $3, $3, z3;
            xor.b32 $0, $0, 0x80808080;
            xor.b32 $1, $1, 0x80808080;
            xor.b32 $2, $2, 0x80808080;
            xor.b32 $3, $3, 0x80808080;
            }
            """,
            "=&r,=&r,=&r,=&r,r,r,r,r,r,r,r,r,r,r,r,r,r,r,r,r,r,r",
            [to_rows(tile, BN, BK, 4, 4), word0[:, None], word1[:, None], word2[:, None], word3[:, None]],
            dtype=(tl.int8, tl.int8, tl.int8, tl.int8), is_pure=True, pack=4,
        )  # fmt: skip
    else:
        first, second = _words_of_units(tile, BN, BK)
        c0, c1 = _int8_part(first, word0, 0, BN, BK), _int8_part(first, word1, 4, BN, BK)
        c2, c3 = _int8_part(second, word2, 0, BN, BK), _int8_part(second, word3, 4, BN, BK)
    return c0, c1, c2, c3


@triton.jit
def _words_of_units(tile, BN: tl.constexpr, BK: tl.constexpr):
    """The first and the second word of the two that four elements fill."""
    return tl.split(tile.reshape(BN * BK // 32, 2, 2))


@triton.jit
def _int8_part(words, word, PLACE: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    code = words_to_elements(words, tl.arange(0, 4) * 8 + PLACE, BN, BK, 4, 4) & 15
    return (code - (128 - (word & 255))[:, None]).to(tl.int8)


@triton.jit
def signed_codes(tile, BN: tl.constexpr, BK: tl.constexpr, ASM: tl.constexpr):
    """16 times the code as int8, four of [BN, BK / 4]. Order signed: a code in the high half of a byte is that."""
    if ASM:
        c0, c1, c2, c3 = tl.inline_asm_elementwise(
            """
            {
            .reg .b32 h, g;
            shl.b32 h, $4, 4;
            shl.b32 g, $5, 4;
            and.b32 $0, h, 0xf0f0f0f0;
            and.b32 $1, $4, 0xf0f0f0f0;
            and.b32 $2, g, 0xf0f0f0f0;
            and.b32 $3, $5, 0xf0f0f0f0;
            }
            """,
            "=&r,=&r,=&r,=&r,r,r",
            [to_rows(tile, BN, BK, 4, 4)],
            dtype=(tl.int8, tl.int8, tl.int8, tl.int8), is_pure=True, pack=4,
        )  # fmt: skip
    else:
        first, second = _words_of_units(tile, BN, BK)
        c0, c1 = _signed_part(first << 4, BN, BK), _signed_part(first, BN, BK)
        c2, c3 = _signed_part(second << 4, BN, BK), _signed_part(second, BN, BK)
    return c0, c1, c2, c3


@triton.jit
def _signed_part(words, BN: tl.constexpr, BK: tl.constexpr):
    return (words_to_elements(words, tl.arange(0, 4) * 8, BN, BK, 4, 4) & 0xF0).to(tl.uint8).to(tl.int8, bitcast=True)


@triton.jit
def fp8_codes(tile, near, far, near2, far2, BN: tl.constexpr, BK: tl.constexpr, ASM: tl.constexpr):
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
            [to_rows(tile, BN, BK, 2, 4), near[:, None], far[:, None], near2[:, None],
             far2[:, None]],
            dtype=(tl.float8e4nv, tl.float8e4nv), is_pure=True, pack=4,
        )  # fmt: skip
    else:
        place = tl.arange(0, 4)
        low = words_to_elements(tile, place * 4, BN, BK, 2, 4)
        high = words_to_elements(tile, place * 4 + 16, BN, BK, 2, 4)
        low_sign = words_to_elements(tile, place * 8, BN, BK, 2, 4) & 0x80
        high_sign = (words_to_elements(tile, place * 8, BN, BK, 2, 4) << 4) & 0x80
        low = _looked_up(low, low_sign, near, far)
        high = _looked_up(high, high_sign, near2, far2)
    return low, high


@triton.jit
def _looked_up(code, sign, near, far):
    table = tl.where((code & 4) != 0, far[:, None], near[:, None])
    byte = (table >> ((code & 3) * 8)) & 0x7F
    return (byte | sign).to(tl.uint8).to(tl.float8e4nv, bitcast=True)
