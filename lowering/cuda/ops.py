"""The operators behind the CUDA target, registered as ``qpass_cuda::`` triton ops. Importing this needs Triton.

Every one takes inputs with any leading shape and gives [..., N]; M is their product and may be symbolic. Packed words,
scales and zero points are as ``weights`` makes them. ``counters`` is int32, zeros, and zeros again afterwards. On CPU
tensors the kernels run in Triton's interpreter, in their plain form.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import triton
from torch import Tensor
from torch.library import triton_op, wrap_triton

from qpass.errors import UnsupportedError
from qpass.lowering.cuda import tiles
from qpass.lowering.cuda.added import low_rank, residual_rows, with_low_rank, with_residual
from qpass.lowering.cuda.weights import Grouped
from qpass.lowering.triton.dequantize import dequantize_bf16_kernel, dequantize_fp8_kernel
from qpass.lowering.triton.eight_bit import eight_bit_kernel
from qpass.lowering.triton.fp8_block import fp8_block_kernel
from qpass.lowering.triton.interpret import interpreted
from qpass.lowering.triton.layout import Layout, padded_rows
from qpass.lowering.triton.w4a8_fp8 import w4a8_fp8_kernel
from qpass.lowering.triton.w4a8_int8 import w4a8_int8_kernel
from qpass.lowering.triton.w4a16 import w4a16_kernel


def _assembly(x: Tensor) -> bool:
    """Whether PTX can be written into a kernel for this tensor's device."""
    return x.is_cuda and torch.version.hip is None


def _warp_groups(x: Tensor) -> bool:
    return not x.is_cuda or (_assembly(x) and torch.cuda.get_device_capability(x.device)[0] >= 9)


def _on_cpu(kernel: Any, x: Tensor) -> Any:
    """The interpreter; for a fake tensor, of which only types are asked, something that does nothing."""
    if type(x) is Tensor:
        return interpreted(kernel)
    if type(x).__name__ == "FakeTensor":
        return _Nothing()
    raise UnsupportedError(f"{kernel.__name__} compiles for GPUs only", fix="move model and inputs to a GPU")


class _Nothing:
    def __getitem__(self, grid: Any) -> Any:
        return lambda *args, **kwargs: None


def _flat(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1]).contiguous()


def _words(kernel: str, packed: Tensor, x: Tensor, rows: int, layout: str) -> Tensor:
    """The packed words as the kernel reads them.

    Raises:
        UnsupportedError: words of another shape than ``layout`` gives, with the kernel's name.
    """
    found = Layout.parse(layout)
    if packed.dtype is not torch.int32 or tuple(packed.shape) != found.shape(rows, x.shape[-1]):
        raise UnsupportedError(
            f"{kernel}: packed words {list(packed.shape)} of {packed.dtype} for a {rows} x {x.shape[-1]} weight in "
            f"{layout}",
            fix=f"pack it again: int32 {list(found.shape(rows, x.shape[-1]))}",
        )
    if not _assembly(x):
        return packed
    return packed.view(torch.int8 if found.parts == 2 else torch.int16)


def _check_groups(kernel: str, meta: Tensor, grouped: Grouped, x: Tensor, rows: int) -> None:
    """Raise UnsupportedError for words of groups that are not where the kernel reads them."""
    block, group = grouped.layout.block, grouped.group
    wanted = (grouped.scales(x.shape[-1]), padded_rows(rows))
    if group % block and group not in (block // 2, block // 4):
        raise UnsupportedError(f"{kernel}: groups of {group} in K blocks of {block}",
                               fix="a group is a fourth of a block, half of one, or whole blocks")  # fmt: skip
    if meta.dtype is not torch.int32 or tuple(meta.shape) != wanted or not meta.is_contiguous():
        raise UnsupportedError(f"{kernel}: words of groups {list(meta.shape)} of {meta.dtype}, strides {meta.stride()}",
                               fix=f"pass contiguous int32 {list(wanted)}")  # fmt: skip


def _check_inputs(kernel: str, codes: Tensor, weight: Tensor) -> None:
    """Raise UnsupportedError for operands that do not belong together, or a weight that is not dense."""
    if codes.shape[-1] != weight.shape[1] or codes.dtype != weight.dtype or not weight.is_contiguous():
        raise UnsupportedError(
            f"{kernel}: inputs {list(codes.shape)} of {codes.dtype} for a weight {list(weight.shape)} of "
            f"{weight.dtype}, strides {weight.stride()}",
            fix=f"pass {weight.dtype} [..., {weight.shape[1]}] and a contiguous weight",
        )


class _Run:
    """Sizes, tiles, grid and workspace of one call. ``kind``: of ``candidates``, empty where there are none."""

    def __init__(
        self, x: Tensor, out_features: int, block: int, table: Any, sums: torch.dtype, kind: str = ""
    ) -> None:  # fmt: skip
        self.m, self.k, self.n = x.shape[0], x.shape[1], out_features
        bucket = tiles.current(self.m)
        default = tiles.tile(table, bucket, warp_groups=_warp_groups(x))
        self.rows, blocks = padded_rows(out_features), -(-self.k // block)
        self.choices = tiles.choices(default, kind, _architecture(x), bucket, self.rows, blocks)
        split = [self._tiles(tile.bm, tile.bn) * count * tile.bn * tile.bm for tile, count in self.choices if count > 1]
        self.workspace = torch.empty(functools.reduce(torch.sym_max, split, 1), dtype=sums, device=x.device)
        self.even = {"EVEN_K": self.k % block == 0}

    def _tiles(self, bm: int, bn: int) -> Any:
        return (self.rows // bn) * ((self.m + bm - 1) // bm)

    def of(self, kernel: Any, x: Tensor) -> Any:
        """The kernel with its grid and what its tile decides: to be called with the rest."""
        tile, count = self.choices[0]
        sizes = {"BM": tile.bm, "BN": tile.bn, "STAGES": tile.stages, "SPLITS": count}
        grid = (self._tiles(tile.bm, tile.bn), count)
        if not x.is_cuda:
            return functools.partial(_on_cpu(kernel, x)[grid], **sizes, **self.even)
        if len(self.choices) == 1:
            return functools.partial(wrap_triton(kernel)[grid], num_warps=tile.warps, **sizes, **self.even)

        def chosen(meta: dict[str, Any]) -> tuple[Any, int]:
            return self._tiles(meta["BM"], meta["BN"]), meta["SPLITS"]

        return functools.partial(wrap_triton(_tuner(kernel, self.choices))[chosen], **self.even)


@functools.cache
def _tuner(kernel: Any, choices: tuple[tuple[tiles.Tile, int], ...]) -> Any:
    """A kernel that is timed with each tile. Every run leaves the counters as they were."""
    configs = [
        triton.Config({"BM": tile.bm, "BN": tile.bn, "STAGES": tile.stages, "SPLITS": count}, num_warps=tile.warps)
        for tile, count in choices
    ]
    return triton.autotune(configs, key=[])(kernel)


def _architecture(x: Tensor) -> str | None:
    if not _assembly(x):
        return None
    major, minor = torch.cuda.get_device_capability(x.device)
    return f"sm_{major}{minor}"


def _joined(x: Tensor, group: int, layout: Layout) -> bool:
    """Whether two parts of a K block are one dot: those of one group, where dots are waited for one by one."""
    return (not x.is_cuda or (_assembly(x) and _warp_groups(x))) and 4 * group != layout.block


def _four_bit(layout: Layout, group: int) -> Any:
    if 4 * group == layout.block:
        return tiles.PART_GROUP
    return tiles.WIDE_BLOCK if layout.block == 256 else tiles.FOUR_BIT


def _kind(kernel: str, layout: Layout, group: int) -> str:
    return f"{kernel}-part" if 4 * group == layout.block else kernel


@triton_op("qpass_cuda::w4a16_linear", mutates_args={"counters"})
def w4a16_linear(
    x: Tensor, packed: Tensor, meta: Tensor, scale: Tensor | None, bias: Tensor | None, counters: Tensor,
    out_features: int, group: int, layout: str, scales: str, branch: Tensor | None = None, up: Tensor | None = None,
    up_scale: Tensor | None = None, residual: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """x ((code - zero) · scale)ᵀ + b. On a GPU the inputs are rounded to bfloat16; the result has their dtype.

    group 0: a row. scales: bf16 or f16, in ``meta``, or apart, in ``scale``. branch [..., r], up [N, r], up_scale [N]:
    of a low-rank branch, + branch (up · up_scale)ᵀ. residual [..., N] of the result's dtype: added to the
    rounded result.
    """
    asm, flat = _assembly(x), _flat(x)
    if x.is_cuda:
        flat = flat.to(torch.bfloat16)
    found = Layout.parse(layout)
    words, own = _words("w4a16_linear", packed, x, out_features, layout), meta if scale is None else scale
    _check_groups("w4a16_linear", meta, Grouped(group, found), x, out_features)
    run = _Run(flat, out_features, found.block, _four_bit(found, group), torch.float32, _kind("w4a16", found, group))
    if tiles.current(run.m) is None and x.is_cuda:
        dense = torch.empty(out_features, run.k, dtype=flat.dtype, device=x.device)
        wrap_triton(dequantize_bf16_kernel)[(run.rows // 64, packed.shape[0])](
            words, meta, own, dense, run.n, run.k, run.rows,
            GROUP=group, SCALE=scales, BN=64, BK=found.block, ASM=asm, num_warps=4,
        )  # fmt: skip
        result = torch.nn.functional.linear(flat, dense, None if bias is None else bias.to(flat.dtype))
        result = with_low_rank(result, branch, up, up_scale)
        return with_residual(result.to(x.dtype).view(*x.shape[:-1], out_features), residual)
    out = torch.empty(run.m, out_features, dtype=x.dtype, device=x.device)
    second, options = low_rank(meta, branch, up, up_scale)
    added, stride = residual_rows(meta, residual, out_features)
    run.of(w4a16_kernel, x)(
        flat, words, meta, own, own if bias is None else bias, *second, added, out, run.workspace, counters, run.m,
        run.n, run.k, run.k, out_features, stride, run.rows, GROUP=group, SCALE=scales, HAS_BIAS=bias is not None,
        HAS_RESIDUAL=residual is not None, BK=found.block, JOINED=_joined(x, group, found), ASM=asm, **options,
    )  # fmt: skip
    return out.view(*x.shape[:-1], out_features)


@triton_op("qpass_cuda::w4a8_int8_linear", mutates_args={"counters"})
def w4a8_int8_linear(
    codes: Tensor, x_scale: Tensor, x_zero: Tensor | None, packed: Tensor, meta: Tensor, scale: Tensor | None,
    sums: Tensor, bias: Tensor | None, counters: Tensor, out_features: int, group: int, layout: str, scales: str,
    dtype: torch.dtype, branch: Tensor | None = None, up: Tensor | None = None, up_scale: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """s_x (x - z_x) ((code - zero) · scale)ᵀ + b: int8 codes, x_zero None for symmetric inputs; else as w4a16."""
    flat, found = _flat(codes), Layout.parse(layout)
    words, own = _words("w4a8_int8_linear", packed, codes, out_features, layout), meta if scale is None else scale
    _check_groups("w4a8_int8_linear", meta, Grouped(group, found), codes, out_features)
    sums_dtype, kind = torch.float32 if group else torch.int32, _kind("w4a8_int8", found, group)
    run = _Run(flat, out_features, found.block, _four_bit(found, group), sums_dtype, kind)
    out = torch.empty(run.m, out_features, dtype=dtype, device=codes.device)
    second, options = low_rank(meta, branch, up, up_scale)
    added, stride = residual_rows(meta, residual, out_features)
    run.of(w4a8_int8_kernel, codes)(
        flat, x_scale, counters if x_zero is None else x_zero, words, meta, own, sums, own if bias is None else bias,
        *second, added, out, run.workspace, counters, run.m, run.n, run.k, run.k, out_features, stride, run.rows,
        GROUP=group, SCALE=scales, SIGNED=found.order == "signed", ZERO=x_zero is not None, HAS_BIAS=bias is not None,
        HAS_RESIDUAL=residual is not None, BK=found.block, JOINED=_joined(codes, group, found), ASM=_assembly(codes),
        **options,
    )  # fmt: skip
    return out.view(*codes.shape[:-1], out_features)


@triton_op("qpass_cuda::w4a8_fp8_linear", mutates_args={"counters"})
def w4a8_fp8_linear(
    codes: Tensor, x_scale: Tensor, packed: Tensor, tables: Tensor, choice: Tensor, factor: Tensor,
    bias: Tensor | None, counters: Tensor, out_features: int, group: int, layout: str, dtype: torch.dtype,
    branch: Tensor | None = None, up: Tensor | None = None, up_scale: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """s_x c_n Σ x · byte + b: E4M3 codes; ``choice`` uint8 rows of the tables, or a float dtype: scales of groups.

    branch, up, up_scale, residual: as for w4a16."""
    flat, found, real = _flat(codes), Layout.parse(layout), choice.dtype is not torch.uint8
    words = _words("w4a8_fp8_linear", packed, codes, out_features, layout)
    kind = "w4a8_fp8" if found.block == 128 else ""
    run = _Run(flat, out_features, found.block, tiles.FOUR_BIT, torch.float32, kind)
    asm = _assembly(codes)
    if tiles.current(run.m) is None and codes.is_cuda and not real and _stock_fp8(run.k, out_features, dtype):
        dense = torch.empty(out_features, run.k, dtype=codes.dtype, device=codes.device)
        wrap_triton(dequantize_fp8_kernel)[(run.rows // 64, packed.shape[0])](
            words, tables, choice, dense, run.n, run.k, run.rows,
            GROUP=group, BN=64, BK=found.block, ASM=asm, num_warps=4,
        )  # fmt: skip
        result = _scaled(flat, x_scale, dense, factor.narrow(0, 0, out_features), bias, dtype)
        result = with_low_rank(result, branch, up, up_scale)
        return with_residual(result.view(*codes.shape[:-1], out_features), residual)
    out = torch.empty(run.m, out_features, dtype=dtype, device=codes.device)
    added, stride = residual_rows(factor, residual, out_features)
    second, options = low_rank(factor, branch, up, up_scale)
    run.of(w4a8_fp8_kernel, codes)(
        flat, x_scale, words, tables, choice, factor, factor if bias is None else bias, *second, added, out,
        run.workspace, counters, run.m, run.n, run.k, run.k, out_features, stride, run.rows, GROUP=group, REAL=real,
        HAS_BIAS=bias is not None, HAS_RESIDUAL=residual is not None, BK=found.block, ASM=asm, **options,
    )  # fmt: skip
    return out.view(*codes.shape[:-1], out_features)


@triton_op("qpass_cuda::int8_linear", mutates_args={"counters"})
def int8_linear(
    codes: Tensor, x_scale: Tensor, x_zero: Tensor | None, weight: Tensor, scale: Tensor, sums: Tensor,
    bias: Tensor | None, counters: Tensor, dtype: torch.dtype, residual: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """s_x s_w (x - z_x) Wᵀ + b: int8 codes [..., K] and weight [N, K]; x_zero None for symmetric inputs.

    residual: as for w4a16."""
    _check_inputs("int8_linear", codes, weight)
    flat, out_features = _flat(codes), weight.shape[0]
    bucket = tiles.current(flat.shape[0])
    if codes.is_cuda and bucket not in (tiles.FEW, tiles.SOME) and codes.shape[-1] % 8 == out_features % 8 == 0:
        total = torch.ops.aten._int_mm.default(flat, weight.t())
        if x_zero is not None:
            total = total - x_zero.reshape(-1, 1) * sums
        result = total.to(torch.float32) * scale * x_scale.reshape(-1, 1)
        result = result if bias is None else result + bias
        return with_residual(result.to(dtype).view(*codes.shape[:-1], out_features), residual)
    out = _eight_bit(flat, x_scale, x_zero, weight, scale, sums, bias, counters, dtype, residual, integer=True)
    return out.view(*codes.shape[:-1], out_features)


@triton_op("qpass_cuda::fp8_linear", mutates_args={"counters"})
def fp8_linear(
    codes: Tensor, x_scale: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, counters: Tensor,
    dtype: torch.dtype, residual: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """s_x s_w x Wᵀ + b: E4M3 codes [..., K] and weight [N, K]. residual: as for w4a16."""
    _check_inputs("fp8_linear", codes, weight)
    flat, out_features = _flat(codes), weight.shape[0]
    few = tiles.current(flat.shape[0]) in (tiles.FEW, tiles.SOME)
    if codes.is_cuda and not few and _stock_fp8(codes.shape[-1], out_features, dtype):
        out = _scaled(flat, x_scale, weight, scale, bias, dtype).view(*codes.shape[:-1], out_features)
        return with_residual(out, residual)
    out = _eight_bit(flat, x_scale, None, weight, scale, scale, bias, counters, dtype, residual, integer=False)
    return out.view(*codes.shape[:-1], out_features)


@triton_op("qpass_cuda::fp8_block_linear", mutates_args={"counters"})
def fp8_block_linear(
    codes: Tensor, x_scale: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, counters: Tensor,
    dtype: torch.dtype, residual: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """E4M3 codes [..., K] with scales [..., K / 128], weight [N, K] with scales [N / 128, K / 128].

    residual: as for w4a16."""
    _check_inputs("fp8_block_linear", codes, weight)
    flat, out_features = _flat(codes), weight.shape[0]
    run = _Run(flat, out_features, 128, tiles.FP8_BLOCK, torch.float32, "fp8_block")
    out = torch.empty(run.m, out_features, dtype=dtype, device=codes.device)
    added, stride = residual_rows(scale, residual, out_features)
    run.of(fp8_block_kernel, codes)(
        flat, x_scale, weight, scale, scale if bias is None else bias, added, out, run.workspace, counters, run.m,
        run.n, run.k, run.k, run.k, out_features, stride, HAS_BIAS=bias is not None,
        HAS_RESIDUAL=residual is not None,
    )  # fmt: skip
    return out.view(*codes.shape[:-1], out_features)


def _eight_bit(
    flat: Tensor, x_scale: Tensor, x_zero: Tensor | None, weight: Tensor, scale: Tensor, sums: Tensor,
    bias: Tensor | None, counters: Tensor, dtype: torch.dtype, residual: Tensor | None, *, integer: bool,
) -> Tensor:  # fmt: skip
    sums_dtype, kind = (torch.int32, "int8") if integer else (torch.float32, "fp8")
    run = _Run(flat, weight.shape[0], 128, tiles.EIGHT_BIT, sums_dtype, kind)
    out = torch.empty(run.m, run.n, dtype=dtype, device=flat.device)
    added, stride = residual_rows(scale, residual, run.n)
    run.of(eight_bit_kernel, flat)(
        flat, x_scale, counters if x_zero is None else x_zero, weight, scale, sums, scale if bias is None else bias,
        added, out, run.workspace, counters, run.m, run.n, run.k, run.k, run.k, run.n, stride,
        INTEGER=integer, ZERO=x_zero is not None, HAS_BIAS=bias is not None, HAS_RESIDUAL=residual is not None, BK=128,
    )  # fmt: skip
    return out


@triton_op("qpass_cuda::low_rank_up", mutates_args=())
def low_rank_up(x: Tensor, up: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """x (up · scale)ᵀ + b: up int8 [N, r], scale [N]. By itself it is Inductor's; ``branch`` joins it to its linear."""
    dense = (up.to(torch.float32) * scale.to(torch.float32)[:, None]).to(x.dtype)
    return torch.nn.functional.linear(x, dense, bias)


def _stock_fp8(width: int, out_features: int, dtype: torch.dtype) -> bool:
    """Whether ``scaled_mm`` takes it row by row."""
    return width % 16 == 0 and out_features % 16 == 0 and dtype is torch.bfloat16


def _scaled(
    x: Tensor, x_scale: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    rows, columns = x_scale.reshape(-1, 1), scale.reshape(1, -1)
    out = torch.ops.aten._scaled_mm.default(x, weight.t(), rows, columns, None, None, dtype, True)
    return out if bias is None else (out + bias).to(dtype)
