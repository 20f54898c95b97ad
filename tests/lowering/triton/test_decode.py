"""The decoders' assembly, as it is compiled, run on every code with every zero point and table."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from qpass.formats import Format
from qpass.lowering.cuda import weights
from qpass.lowering.triton.layout import Layout, pack
from qpass.numerics import shift_cast
from tests.lowering.triton.built import built
from tests.lowering.triton.ptx import bf16, inline_blocks, operands, run

GROUPS = np.arange(16, dtype=np.uint32)


def words_of(order: str) -> tuple[np.ndarray, np.ndarray]:
    """(words [U, n] of n units, their codes [P · KW, n], part by part): each code among many others."""
    layout = Layout(64 if order == "lut" else 128, order)
    block, parts, near = layout.block, layout.parts, layout.neighbors
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 16, (16, 32 * block), dtype=torch.uint8, generator=generator)
    codes[:, 0:block], codes[:, block : 2 * block] = 0, 15
    codes[:, 2 * block : 3 * block] = torch.arange(16, dtype=torch.uint8)[:, None]
    words = pack(codes, layout)[:, 0].numpy().view(np.uint32)  # [32 blocks, chunk, row 8, lane, J, half, U]
    # half (row + 8), row, block, part, chunk, J, lane, neighbor
    cut = codes.view(2, 8, 32, parts, block // 64, 16 // (parts * near), 4, near)
    each = cut.permute(3, 7, 2, 4, 1, 6, 5, 0)  # part, neighbor | block, chunk, row, lane, J, half
    return words.reshape(-1, parts * near // 8).T, each.reshape(parts * near, -1).numpy()


def decoded(name: str, inputs: list[np.ndarray], **options: object) -> list[np.ndarray]:
    """The decoder's output registers for its distinct inputs, in the order in which it reads them."""
    block = inline_blocks(built(name, 16, **options)[0].assembly)[0]
    written, read = operands(block)
    assert len(read) == len(inputs)
    after = run(block, dict(zip(read, inputs)))
    return [after[name] for name in written]


def int8_values(registers: list[np.ndarray]) -> np.ndarray:
    return np.stack([(reg >> np.uint32(8 * i)).astype(np.uint8).view(np.int8) for reg in registers for i in range(4)])


def test_bf16_codes() -> None:
    (words,), codes = words_of("bf16")
    for zero in range(16):
        zeros = [(zero + 5 * part) % 16 for part in range(4)]  # each part is a group
        metas = [np.full_like(words, 0x12340000 | 0xC300 | value) for value in zeros]  # whatever the scale is
        found = decoded("w4a16", [*metas, words], group=64)
        values = np.stack([bf16((reg >> np.uint32(half)) & np.uint32(0xFFFF)) for reg in found for half in (0, 16)])
        taken = np.repeat(zeros, 2)[:, None]
        assert np.array_equal(values, codes.astype(np.float32) - taken)


def test_int8_codes() -> None:
    words, codes = words_of("plain")
    for zero in range(16):
        zeros = [(zero + 5 * part) % 16 for part in range(4)]
        metas = [np.full_like(words[0], 0x12340000 | 128 - value) for value in zeros]
        found = decoded("w4a8_int8", [*metas, *words], group=64)
        taken = np.repeat(zeros, 4)[:, None]
        assert np.array_equal(int8_values(found), codes.astype(int) - taken)


def test_signed_codes() -> None:
    words, codes = words_of("signed")
    values = int8_values(decoded("w4a8_int8", [*words], signed=True))
    assert np.array_equal(values, 16 * np.where(codes < 8, codes.astype(int), codes.astype(int) - 16))


@pytest.mark.parametrize("text", ["e2m1:g256:sym:m2", "e3m0:g256:sym:m2", "int4:g256:sym:m2"])
def test_fp8_codes_are_the_bytes_of_the_exact_cast(text: str) -> None:
    fmt = Format.parse(text)
    (words,), codes = words_of("lut")
    tables = weights.tables(fmt).numpy().view(np.uint32)
    exact = shift_cast.table(fmt, "e4m3")
    for row, expected in enumerate(exact):
        near, far = (np.full_like(words, tables[row, part]) for part in range(2))
        found = decoded("w4a8_fp8", [words, near, far, near, far], group=64)
        values = np.stack([(reg >> np.uint32(8 * i)) & np.uint32(255) for reg in found for i in range(4)])
        pattern = codes if fmt.grid.is_float else np.where(codes < 8, codes, -(codes.astype(int) & 7) & 15)
        wanted = np.array(expected)[pattern]
        zero = (codes & 7) == 0  # -0 for the integer 0 with a sign, which no weight has
        assert np.array_equal(np.where(zero, 0, values), np.where(zero, 0, wanted))
        assert not (values[codes == 0]).any()


def test_sign_and_magnitude_of_integers() -> None:
    codes = torch.arange(-7, 8, dtype=torch.int8)[None]
    found = weights.sign_magnitude(codes)
    assert found.tolist()[0] == [15, 14, 13, 12, 11, 10, 9, 0, 1, 2, 3, 4, 5, 6, 7]
    assert weights.unsigned(codes).tolist()[0] == list(range(1, 16))
