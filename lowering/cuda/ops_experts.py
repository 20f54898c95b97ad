"""Linears of experts, registered as ``qpass_cuda::grouped_*``. Importing this needs Triton.

Rows [S, K] are sorted by expert; ``offsets`` int32 [E] says where the rows of each end, and those behind the last are
0. Weights are as ``weights`` makes them, with a first dimension of E. S may be symbolic; offsets are never read on the
host. On CPU tensors the kernels run in Triton's interpreter, in their plain form.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.library import triton_op, wrap_triton

from qpass.lowering.cuda import tiles
from qpass.lowering.cuda.ops import _assembly, _four_bit, _joined, _on_cpu, _warp_groups, _words
from qpass.lowering.triton.experts import (
    grouped_eight_bit_kernel,
    grouped_fp8_block_kernel,
    grouped_w4a8_fp8_kernel,
    grouped_w4a8_int8_kernel,
    grouped_w4a16_kernel,
)
from qpass.lowering.triton.layout import Layout, padded_rows

_ONE_EXPERT = {tiles.FEW: tiles.FEW, tiles.SOME: tiles.FEW, tiles.DENSE: tiles.SOME, None: None}
"""For all rows of a bucket, the bucket that the rows of one expert are taken to be in. Any tile is right."""


class _Run:
    """Sizes, tile and grid of one call."""

    def __init__(self, x: Tensor, offsets: Tensor, out_features: int, block: int, table: Any) -> None:
        self.m, self.k, self.n, self.experts = x.shape[0], x.shape[1], out_features, offsets.shape[0]
        self.tile = tiles.tile(table, _ONE_EXPERT[tiles.current(self.m)], warp_groups=_warp_groups(x))
        # an expert without rows has no tile; each other has at most one that is not full
        self.tiles_m = self.m // self.tile.bm + self.experts + 1
        self.grid = (-(-out_features // self.tile.bn) * self.tiles_m,)
        self.common = {
            "EVEN_K": self.k % block == 0, "BM": self.tile.bm, "BN": self.tile.bn, "BK": block,
            "STAGES": self.tile.stages, "ET": 1 << self.experts.bit_length(),
        }  # fmt: skip

    def launched(self, x: Tensor) -> dict[str, Any]:
        """Options of a launch, which the interpreter does not know."""
        return {**self.common, "num_warps": self.tile.warps} if x.is_cuda else self.common


def _kernel(kernel: Any, x: Tensor) -> Any:
    return wrap_triton(kernel) if x.is_cuda else _on_cpu(kernel, x)


@triton_op("qpass_cuda::grouped_int8_linear", mutates_args=())
def grouped_int8_linear(
    codes: Tensor, x_scale: Tensor, x_zero: Tensor | None, weight: Tensor, scale: Tensor, sums: Tensor,
    offsets: Tensor, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """s_x s_w (x - z_x) W_eᵀ: int8 codes [S, K] and weight [E, N, K]; x_zero None for symmetric inputs."""
    return _eight_bit(codes, x_scale, x_zero, weight, scale, sums, offsets, dtype)


@triton_op("qpass_cuda::grouped_fp8_linear", mutates_args=())
def grouped_fp8_linear(
    codes: Tensor, x_scale: Tensor, weight: Tensor, scale: Tensor, offsets: Tensor, dtype: torch.dtype
) -> Tensor:
    """s_x s_w x W_eᵀ: E4M3 codes [S, K] and weight [E, N, K]."""
    return _eight_bit(codes, x_scale, None, weight, scale, None, offsets, dtype)


@triton_op("qpass_cuda::grouped_fp8_block_linear", mutates_args=())
def grouped_fp8_block_linear(
    codes: Tensor, x_scale: Tensor, weight: Tensor, scale: Tensor, offsets: Tensor, dtype: torch.dtype
) -> Tensor:
    """E4M3 codes [S, K] with scales [S, K blocks], weight [E, N, K] with scales [E · N / 128, K blocks] of 128 x 128.

    Raises:
        ValueError: if 128 does not divide N, so that a block would be of two experts.
    """
    if weight.shape[1] % 128:
        raise ValueError(f"grouped_fp8_block_linear takes experts of multiples of 128 rows, not {weight.shape[1]}")
    rows = codes.contiguous()
    run = _Run(rows, offsets, weight.shape[1], 128, tiles.FP8_BLOCK)
    out = torch.empty(run.m, run.n, dtype=dtype, device=codes.device)
    options = {key: value for key, value in run.launched(codes).items() if key != "BK"}
    _kernel(grouped_fp8_block_kernel, codes)[run.grid](
        rows, x_scale.contiguous(), weight, scale, offsets, out, run.experts, run.m, run.n, run.k, run.tiles_m, run.k,
        run.k, run.n, **options,
    )  # fmt: skip
    return out


def _eight_bit(
    codes: Tensor, x_scale: Tensor, x_zero: Tensor | None, weight: Tensor, scale: Tensor, sums: Tensor | None,
    offsets: Tensor, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    rows = codes.contiguous()
    run = _Run(rows, offsets, weight.shape[1], 128, tiles.EIGHT_BIT)
    out = torch.empty(run.m, run.n, dtype=dtype, device=codes.device)
    _kernel(grouped_eight_bit_kernel, codes)[run.grid](
        rows, x_scale, x_scale if x_zero is None else x_zero, weight, scale, scale if sums is None else sums, offsets,
        out, run.experts, run.m, run.n, run.k, run.tiles_m, run.k, run.k, run.n,
        INTEGER=sums is not None, ZERO=x_zero is not None, **run.launched(codes),
    )  # fmt: skip
    return out


@triton_op("qpass_cuda::grouped_w4a16_linear", mutates_args=())
def grouped_w4a16_linear(
    x: Tensor, packed: Tensor, meta: Tensor, scale: Tensor | None, offsets: Tensor, out_features: int, group: int,
    layout: str, scales: str,
) -> Tensor:  # fmt: skip
    """x ((code - zero) · scale)ᵀ. On a GPU the inputs are rounded to bfloat16; the result has their dtype."""
    asm, found = _assembly(x), Layout.parse(layout)
    rows = (x.to(torch.bfloat16) if x.is_cuda else x).contiguous()
    words = _stack(packed, x, out_features, layout)
    own = meta if scale is None else scale
    run = _Run(rows, offsets, out_features, found.block, _four_bit(found, group))
    out = torch.empty(run.m, run.n, dtype=x.dtype, device=x.device)
    _kernel(grouped_w4a16_kernel, x)[run.grid](
        rows, words, meta, own, offsets, out, run.experts, run.m, run.n, run.k, run.tiles_m, run.k, run.n,
        padded_rows(run.n), meta.shape[1], GROUP=group, SCALE=scales, JOINED=_joined(x, group, found), ASM=asm,
        **run.launched(x),
    )  # fmt: skip
    return out


@triton_op("qpass_cuda::grouped_w4a8_int8_linear", mutates_args=())
def grouped_w4a8_int8_linear(
    codes: Tensor, x_scale: Tensor, x_zero: Tensor | None, packed: Tensor, meta: Tensor, scale: Tensor | None,
    sums: Tensor, offsets: Tensor, out_features: int, group: int, layout: str, scales: str, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """s_x (x - z_x) ((code - zero) · scale)ᵀ: int8 codes, x_zero None for symmetric inputs; group 0: a row."""
    rows, found = codes.contiguous(), Layout.parse(layout)
    words = _stack(packed, codes, out_features, layout)
    own = meta if scale is None else scale
    run = _Run(rows, offsets, out_features, found.block, _four_bit(found, group))
    out = torch.empty(run.m, run.n, dtype=dtype, device=codes.device)
    _kernel(grouped_w4a8_int8_kernel, codes)[run.grid](
        rows, x_scale, x_scale if x_zero is None else x_zero, words, meta, own, sums, offsets, out, run.experts,
        run.m, run.n, run.k, run.tiles_m, run.k, run.n, padded_rows(run.n), meta.shape[1],
        GROUP=group, SCALE=scales, SIGNED=found.order == "signed", ZERO=x_zero is not None,
        JOINED=_joined(codes, group, found), ASM=_assembly(codes), **run.launched(codes),
    )  # fmt: skip
    return out


@triton_op("qpass_cuda::grouped_w4a8_fp8_linear", mutates_args=())
def grouped_w4a8_fp8_linear(
    codes: Tensor, x_scale: Tensor, packed: Tensor, tables: Tensor, choice: Tensor, factor: Tensor, offsets: Tensor,
    out_features: int, group: int, layout: str, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """s_x c_n Σ x · byte: E4M3 codes; tables [16, 2] of all experts; ``choice`` [E, groups, rows] uint8 rows of them,
    or a float dtype: scales of groups; factor float32 [E, rows]."""
    rows, found, real = codes.contiguous(), Layout.parse(layout), choice.dtype is not torch.uint8
    words = _stack(packed, codes, out_features, layout)
    run = _Run(rows, offsets, out_features, found.block, tiles.FOUR_BIT)
    out = torch.empty(run.m, run.n, dtype=dtype, device=codes.device)
    _kernel(grouped_w4a8_fp8_kernel, codes)[run.grid](
        rows, x_scale, words, tables, choice, factor, offsets, out, run.experts, run.m, run.n, run.k, run.tiles_m,
        run.k, run.n, padded_rows(run.n), choice.shape[1], GROUP=group, REAL=real, ASM=_assembly(codes),
        **run.launched(codes),
    )  # fmt: skip
    return out


def _stack(packed: Tensor, x: Tensor, rows: int, layout: str) -> Tensor:
    """The words of all experts; errors as for one weight."""
    _words("a kernel of experts", packed.select(0, 0), x, rows, layout)
    if not _assembly(x):
        return packed
    return packed.view(torch.int8 if Layout.parse(layout).parts == 2 else torch.int16)
