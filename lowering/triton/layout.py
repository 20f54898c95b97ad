"""How 4-bit weights lie in memory for the tensor cores: one pre-shuffled order for decode and prefill.

A dot takes the weight as its left operand from registers, where the hardware says which lane holds which element. The
stored order is the registers' order, so that a 16-byte load gives a lane four words that it unpacks in place: nothing
is exchanged between lanes, and one 32-bit word, or two, are the input of one unpacking.

    memory  [K / BK][N / 16][BK / 64][8 rows][4 lanes][J][row, row + 8][KW] elements
    element of (n, k) for k < BK / P: the codes of (n, k + p BK / P) for p < P; ``order`` says where in it each lies.
            The parts p of a K block are dots of their own, and a group is a part, or several.

KW is how many elements along K are neighbors in registers: four bytes of them after unpacking. Nothing depends on the
tile of N or on the number of warps, so kernels of any M read the same bytes. docs/gpu.md has a picture.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from qpass.errors import InputError
from qpass.formats.words import suggest

ROWS = 128
"""Output channels are padded to a multiple of this, with codes of zero."""

ORDERS = {"bf16": (4, 2), "plain": (4, 4), "signed": (4, 4), "lut": (2, 4)}
"""By name, P and KW; and where a code lies, element e of part p:

bf16: at 16 e + 4 p: a shift and a mask give two bfloat16 mantissas. Codes are unsigned.
plain: two words, p // 2 of them, at 8 e + 4 (p % 2): a shift and a mask give four int8. Codes are unsigned.
signed: the same for codes in two's complement: a mask gives four int8 that are 16 times the code.
lut: three bits of magnitude, at 16 p + 4 e, are four selectors of a byte permutation; the sign is at 8 e + 7 - 4 p.
"""


@dataclass(frozen=True)
class Layout:
    """One variant of the order.

    Attributes:
        block: BK, inputs of a K block: 64, 128 or 256; each part has 32 or more.
        order: of ``ORDERS``.
    """

    block: int
    order: str

    def __post_init__(self) -> None:
        if self.order not in ORDERS:
            raise InputError(f"unknown order {self.order!r}", fix=suggest(self.order, ORDERS))
        if self.block not in (64, 128, 256) or self.block < 32 * self.parts:
            sizes = " or ".join(str(size) for size in (64, 128, 256) if size >= 32 * self.parts)
            raise InputError(f"a layout with blocks of {self.block} in order {self.order}", fix=f"use {sizes}")

    @property
    def parts(self) -> int:
        """P: codes of one row that share an element."""
        return ORDERS[self.order][0]

    @property
    def neighbors(self) -> int:
        """KW."""
        return ORDERS[self.order][1]

    def __str__(self) -> str:
        return f"k{self.block}-{self.order}"

    @staticmethod
    def parse(text: str) -> Layout:
        """The layout of that text, as ``str`` writes it."""
        head, _, order = text.partition("-")
        if not head.removeprefix("k").isdigit():
            raise InputError(f"{text!r} is not a layout", fix="write it as in k128-plain")
        return Layout(int(head.removeprefix("k")), order)

    def shape(self, rows: int, width: int) -> tuple[int, int, int]:
        """Of the packed int32 words of a [rows, width] weight."""
        return -(-width // self.block), padded_rows(rows) // 16, 2 * self.block


def padded_rows(rows: int) -> int:
    """``rows``, up to a multiple of ``ROWS``."""
    return -(-rows // ROWS) * ROWS


def pack(codes_NK: Tensor, layout: Layout) -> Tensor:
    """int32 words [K blocks, slabs of 16 rows, 2 · BK] of 4-bit codes.

    Args:
        codes_NK: uint8 from 0 to 15: the four bits themselves, whatever they stand for.
        layout: which variant.

    Raises:
        InputError: codes of another dtype or beyond four bits.
    """
    if codes_NK.dtype is not torch.uint8 or codes_NK.dim() != 2 or 0 in codes_NK.shape:
        raise InputError(f"codes {list(codes_NK.shape)} of {codes_NK.dtype}", fix="pass non-empty uint8 [N, K]")
    if int(codes_NK.max()) > 15:
        raise InputError(f"a code of {int(codes_NK.max())}", fix="pass codes from 0 to 15")
    words = [_words(rows, layout) for rows in codes_NK.split(_AT_ONCE)]
    return torch.cat(words, 1)


_AT_ONCE = 4096  # rows widened to int32 at a time; a multiple of ROWS


def _words(codes_NK: Tensor, layout: Layout) -> Tensor:
    rows, width = codes_NK.shape
    padded = F.pad(codes_NK, (0, -width % layout.block, 0, -rows % ROWS))
    elements = _to_words(padded, layout).to(torch.int64)
    units = layout.parts * layout.neighbors // 8
    word = torch.zeros((*elements.shape[1:-1], units), dtype=torch.int64, device=codes_NK.device)
    for part, element, at, bits in _places(layout):
        for bit, place in enumerate(bits):
            word[..., at] |= ((elements[part, ..., element] >> bit) & 1) << place
    word = torch.where(word >= 1 << 31, word - (1 << 32), word)
    return word.to(torch.int32).view(layout.shape(rows, width))


def unpack(words: Tensor, rows: int, width: int, layout: Layout) -> Tensor:
    """Codes uint8 [rows, width] of what ``pack`` gave.

    Raises:
        InputError: words that are not of that shape.
    """
    if words.dtype is not torch.int32 or tuple(words.shape) != layout.shape(rows, width):
        raise InputError(f"{list(words.shape)} words of {words.dtype} for a {rows} x {width} weight in {layout}",
                         fix=f"pass int32 {list(layout.shape(rows, width))}")  # fmt: skip
    units = layout.parts * layout.neighbors // 8
    word = words.view(*words.shape[:-1], -1, units)
    elements = torch.empty(layout.parts, *word.shape[:-1], layout.neighbors, dtype=torch.uint8, device=words.device)
    for part, element, at, bits in _places(layout):
        code = sum(((word[..., at] >> place) & 1) << bit for bit, place in enumerate(bits))
        elements[part, ..., element] = code  # type: ignore[assignment]
    return _from_words(elements, layout)[:rows, :width].contiguous()


def _places(layout: Layout) -> Iterator[tuple[int, int, int, tuple[int, ...]]]:
    """For each part and element: in which of the words that KW elements fill, and the places of its four bits, the
    lowest first."""
    for part in range(layout.parts):
        for element in range(layout.neighbors):
            if layout.order == "lut":
                start = 16 * part + 4 * element
                yield part, element, 0, (start, start + 1, start + 2, 8 * element + 7 - 4 * part)
                continue
            wide = layout.order == "bf16"
            start = 16 * element + 4 * part if wide else 8 * element + 4 * (part % 2)
            yield part, element, 0 if wide else part // 2, tuple(start + bit for bit in range(4))


def _lanes(layout: Layout) -> tuple[int, int]:
    """(chunks of a K block, J)."""
    return layout.block // 64, 16 // (layout.parts * layout.neighbors)


def _to_words(codes_NK: Tensor, layout: Layout) -> Tensor:
    """[part, K blocks, slabs, chunk, row, lane, words of a lane over those of KW elements, KW]."""
    rows, width = codes_NK.shape
    chunks, per_lane = _lanes(layout)
    # slab, half (row, row + 8), row | block, part, chunk, J, lane, KW
    cut = codes_NK.view(
        rows // 16, 2, 8, width // layout.block, layout.parts, chunks, per_lane, 4, layout.neighbors
    )
    order = cut.permute(4, 3, 0, 5, 2, 7, 6, 1, 8).contiguous()
    return order.view(
        layout.parts, width // layout.block, rows // 16, chunks, 8, 4, 2 * per_lane, layout.neighbors
    )


def _from_words(elements: Tensor, layout: Layout) -> Tensor:
    _, blocks, slabs = elements.shape[:3]
    chunks, per_lane = _lanes(layout)
    cut = elements.view(layout.parts, blocks, slabs, chunks, 8, 4, per_lane, 2, layout.neighbors)
    return cut.permute(2, 7, 4, 1, 0, 3, 6, 5, 8).reshape(slabs * 16, blocks * layout.block)
