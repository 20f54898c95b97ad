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
    """(words, their codes [8, words]: the low half's four, then the high half's): each code among many others."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 16, (16, 64 * 64), dtype=torch.uint8, generator=generator)
    codes[:, 0:64], codes[:, 64:128] = 0, 15
    codes[:, 128:192] = torch.arange(16, dtype=torch.uint8)[:, None]
    layout = Layout(64, 4, order)
    words = pack(codes, layout)[:, 0].numpy().view(np.uint32)  # [64 blocks, chunk, row 8, lane, J / half] words
    cut = codes.view(2, 8, 64, 2, 2, 4, 4)  # half (row + 8), row, block, low or high, J, lane, neighbor
    each = cut.permute(3, 6, 2, 1, 5, 4, 0)  # low or high, neighbor | block, row, lane, J, half
    return words.reshape(-1), each.reshape(8, -1).numpy()


def decoded(name: str, inputs: list[np.ndarray], **options: object) -> list[np.ndarray]:
    """The decoder's output registers for its distinct inputs: the word first."""
    block = inline_blocks(built(name, 16, **options)[0].assembly)[0]
    written, read = operands(block)
    assert len(read) == len(inputs)
    after = run(block, dict(zip(read, inputs)))
    return [after[name] for name in written]


def test_bf16_codes() -> None:
    words, codes = words_of("bf16")
    for zero in range(16):
        minus = np.full_like(words, (0xC300 | zero) * 0x10001)
        found = decoded("w4a16", [words, minus, minus], group=64)
        values = np.stack([bf16((reg >> np.uint32(half)) & np.uint32(0xFFFF)) for reg in found for half in (0, 16)])
        assert np.array_equal(values, codes.astype(np.float32) - zero)


def test_each_half_has_its_own_zero_point() -> None:
    words, codes = words_of("plain")
    plus, plus2 = (np.full_like(words, (128 - zero) * 0x01010101) for zero in (3, 11))
    values = np.stack([(reg >> np.uint32(8 * i)).astype(np.uint8).view(np.int8)
                       for reg in decoded("w4a8_int8", [words, plus, plus2], group=64) for i in range(4)])  # fmt: skip
    assert np.array_equal(values[:4], codes[:4].astype(int) - 3)
    assert np.array_equal(values[4:], codes[4:].astype(int) - 11)


def test_int8_codes() -> None:
    words, codes = words_of("plain")
    for zero in range(16):
        plus = np.full_like(words, (128 - zero) * 0x01010101)
        found = decoded("w4a8_int8", [words, plus, plus], group=64)
        values = np.stack([(reg >> np.uint32(8 * i)).astype(np.uint8).view(np.int8) for reg in found for i in range(4)])
        assert np.array_equal(values, codes.astype(int) - zero)


@pytest.mark.parametrize("text", ["e2m1:g256:sym:m2", "e3m0:g256:sym:m2", "int4:g256:sym:m2"])
def test_fp8_codes_are_the_bytes_of_the_exact_cast(text: str) -> None:
    fmt = Format.parse(text)
    words, codes = words_of("lut")
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
