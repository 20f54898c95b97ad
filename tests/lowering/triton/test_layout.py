"""The pre-shuffled order of 4-bit weights: exact both ways, and where the formula puts each code."""

from __future__ import annotations

import pytest
import torch

from qpass.errors import InputError
from qpass.lowering.triton.layout import ORDERS, Layout, pack, padded_rows, unpack

LAYOUTS = [Layout(block, order) for block in (64, 128, 256) for order in ORDERS if order == "lut" or block > 64]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (16, 64), (128, 256), (137, 300)], ids=str)
def test_unpack_gives_back_every_code(layout: Layout, shape: tuple[int, int]) -> None:
    codes = torch.randint(0, 16, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    words = pack(codes, layout)
    assert words.dtype is torch.int32 and words.is_contiguous() and tuple(words.shape) == layout.shape(*shape)
    assert torch.equal(unpack(words, *shape, layout), codes)
    assert Layout.parse(str(layout)) == layout


def expected_place(n: int, k: int, rows: int, layout: Layout) -> tuple[int, int]:
    """(word, bit) of a code, from the formula in words: K block, slab, chunk, row, lane, J, row + 8, neighbor."""
    block, near, parts = layout.block, layout.neighbors, layout.parts
    part, within = divmod(k % block, block // parts)
    chunk, rest = divmod(within, 64 // parts)
    j, rest = divmod(rest, 4 * near)
    lane, neighbor = divmod(rest, near)
    unit = k // block
    for size, digit in ((rows // 16, n // 16), (block // 64, chunk), (8, n % 8), (4, lane), (16 // (parts * near), j),
                        (2, n % 16 // 8)):  # fmt: skip
        unit = unit * size + digit
    if layout.order == "bf16":
        return unit, 16 * neighbor + 4 * part
    return 2 * unit + part // 2, 8 * neighbor + 4 * (part % 2)


@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout.order != "lut"], ids=str)
def test_codes_lie_where_the_formula_says(layout: Layout) -> None:
    rows, width = 20, 2 * layout.block
    generator = torch.Generator().manual_seed(1)
    codes = torch.randint(0, 16, (rows, width), dtype=torch.uint8, generator=generator)
    words = pack(codes, layout).flatten().tolist()
    for n in range(rows):
        for k in torch.randperm(width, generator=generator)[:40].tolist():
            word, bit = expected_place(n, k, padded_rows(rows), layout)
            assert (words[word] >> bit) & 15 == codes[n, k]


def test_every_code_in_every_place_of_a_word() -> None:
    for layout in (Layout(64, "lut"), Layout(128, "bf16"), Layout(128, "plain")):
        for code in range(16):
            for other in (0, 15):
                for k in range(64):
                    codes = torch.full((16, 64), other, dtype=torch.uint8)
                    codes[5, k] = code
                    if k % 8 == code % 8:  # each code meets each place once in a while, which is enough and quick
                        assert torch.equal(unpack(pack(codes, layout), 16, 64, layout), codes)


def test_a_slice_of_sixteen_rows_is_a_slice_of_the_words() -> None:
    layout = Layout(128, "plain")
    codes = torch.randint(0, 16, (256, 256), dtype=torch.uint8)
    assert torch.equal(pack(codes[128:], layout), pack(codes, layout)[:, 8:])


@pytest.mark.parametrize(
    ("codes", "text"),
    [
        (torch.zeros(16, 64, dtype=torch.int8), r"codes \[16, 64\] of torch.int8.*uint8 \[N, K\]"),
        (torch.zeros(0, 64, dtype=torch.uint8), r"codes \[0, 64\]"),
        (torch.full((16, 64), 16, dtype=torch.uint8), "a code of 16.*0 to 15"),
    ],
)
def test_what_is_no_code_is_refused(codes: torch.Tensor, text: str) -> None:
    with pytest.raises(InputError, match=text):
        pack(codes, Layout(128, "plain"))


def test_wrong_words_and_layouts_are_refused() -> None:
    layout = Layout(128, "plain")
    words = pack(torch.zeros(16, 128, dtype=torch.uint8), layout)
    with pytest.raises(InputError, match=r"words of torch\.int32 for a 16 x 256 weight in k128-plain"):
        unpack(words, 16, 256, layout)
    with pytest.raises(InputError, match=r"use 'plain'|use one of plain"):
        Layout(128, "plane")
    with pytest.raises(InputError, match="blocks of 96"):
        Layout(96, "plain")
    with pytest.raises(InputError, match=r"blocks of 64 in order plain.*use 128 or 256"):
        Layout(64, "plain")
    with pytest.raises(InputError, match="is not a layout"):
        Layout.parse("plain")
