"""How 4-bit weights lie in memory for the tensor cores: one pre-shuffled order for decode and prefill.

A dot takes the weight as its left operand from registers, where the hardware says which lane holds which element. The
stored order is the registers' order, so that a 16-byte load gives a lane four words that it unpacks in place: nothing
is exchanged between lanes, and one 32-bit word is the input of one unpacking.

    bytes   [K / BK][N / 16][BK / 64][8 rows][4 lanes][J / (BK / 64)][row, row + 8][KW],   J = BK / 2 / (4 KW)
    byte of (n, k) for k < BK / 2: the codes of (n, k) and (n, k + BK / 2); the eight codes of a word lie as ``order``
    says. The low halves of a K block are then one dot, the high halves another.

KW is how many elements along K are neighbors in a register: 2 for 16-bit dots of sm_90, else 4. Nothing depends on the
tile of N or on the number of warps, so kernels of any M read the same bytes. docs/gpu.md has a picture.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from qpass.errors import InputError
from qpass.formats.words import suggest

ROWS = 128
"""Output channels are padded to a multiple of this, with codes of zero."""

_LINEAR = {
    "plain": ((0, 8, 16, 24), (4, 12, 20, 28)),
    "bf16": ((0, 16, 4, 20), (8, 24, 12, 28)),
}
ORDERS = (*_LINEAR, "lut")
"""Where the codes e0..e3 of the low half and f0..f3 of the high half lie in a word.

plain: e at 0, 8, 16, 24, f four bits above: a mask gives four int8.
bf16: e at 0, 16, 4, 20, f eight bits above: a shift and a mask give two bfloat16 mantissas.
lut: three bits of magnitude, e at 0, 4, 8, 12, f at 16, 20, 24, 28, are four selectors of a byte permutation; the sign
of e is at 7, 15, 23, 31, that of f four bits below.
"""


@dataclass(frozen=True)
class Layout:
    """One variant of the order.

    Attributes:
        block: BK, inputs of a K block: 128, or 64 for groups of 32.
        neighbors: KW, 2 or 4.
        order: of ``ORDERS``.
    """

    block: int
    neighbors: int
    order: str

    def __post_init__(self) -> None:
        if self.order not in ORDERS:
            raise InputError(f"unknown order {self.order!r}", fix=suggest(self.order, ORDERS))
        if self.block not in (64, 128, 256) or self.neighbors not in (2, 4):
            raise InputError(f"a layout with blocks of {self.block} and {self.neighbors} neighbors",
                             fix="use blocks of 64, 128 or 256, and 2 or 4 neighbors")  # fmt: skip

    def __str__(self) -> str:
        return f"k{self.block}n{self.neighbors}-{self.order}"

    @staticmethod
    def parse(text: str) -> Layout:
        """The layout of that text, as ``str`` writes it."""
        head, _, order = text.partition("-")
        block, _, neighbors = head.removeprefix("k").partition("n")
        if not (block.isdigit() and neighbors.isdigit()):
            raise InputError(f"{text!r} is not a layout", fix="write it as in k128n4-plain")
        return Layout(int(block), int(neighbors), order)

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
    word = torch.zeros(elements.shape[1:-1], dtype=torch.int64, device=codes_NK.device)
    for half, positions in zip(elements, _positions(layout.order)):
        for element, bits in zip(half.unbind(-1), positions):
            for bit, place in enumerate(bits):
                word |= ((element >> bit) & 1) << place
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
    halves = []
    for positions in _positions(layout.order):
        elements = [sum(((words >> place) & 1) << bit for bit, place in enumerate(bits)) for bits in positions]
        halves.append(torch.stack(elements, -1))  # type: ignore[arg-type]
    return _from_words(torch.stack(halves), layout).to(torch.uint8)[:rows, :width].contiguous()


def _positions(order: str) -> tuple[tuple[tuple[int, ...], ...], tuple[tuple[int, ...], ...]]:
    """For each half and element, the place in a word of each of its four bits, the lowest first."""
    if order == "lut":
        low = tuple((4 * i, 4 * i + 1, 4 * i + 2, 8 * i + 7) for i in range(4))
        return low, tuple((16 + 4 * i, 17 + 4 * i, 18 + 4 * i, 8 * i + 3) for i in range(4))
    low, high = (tuple(tuple(start + bit for bit in range(4)) for start in half) for half in _LINEAR[order])
    return low, high


def _to_words(codes_NK: Tensor, layout: Layout) -> Tensor:
    """[low or high, K blocks, slabs, chunk, row, lane, words of a lane, 4 elements of a word]."""
    rows, width = codes_NK.shape
    chunks, per_lane = layout.block // 64, 8 // layout.neighbors
    # slab, half (row, row + 8), row | block, low or high, chunk, J / CH, lane, KW
    cut = codes_NK.view(rows // 16, 2, 8, width // layout.block, 2, chunks, per_lane, 4, layout.neighbors)
    order = cut.permute(4, 3, 0, 5, 2, 7, 6, 1, 8).contiguous()
    return order.view(2, width // layout.block, rows // 16, chunks, 8, 4, 4, 4)


def _from_words(elements: Tensor, layout: Layout) -> Tensor:
    _, blocks, slabs = elements.shape[:3]
    chunks, per_lane = layout.block // 64, 8 // layout.neighbors
    cut = elements.view(2, blocks, slabs, chunks, 8, 4, per_lane, 2, layout.neighbors)
    return cut.permute(2, 7, 4, 1, 0, 3, 6, 5, 8).reshape(slabs * 16, blocks * layout.block)
