"""The operators behind the CUDA target, registered as ``qpass_cuda::`` triton ops. Importing this needs Triton.

Every one takes inputs with any leading shape and gives [..., N]; M is their product and may be symbolic. Packed words,
scales and zero points are as ``weights`` makes them. ``counters`` is int32, zeros, and zeros again afterwards. On CPU
tensors the kernels run in Triton's interpreter, in their plain form.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.library import triton_op, wrap_triton

from qpass.errors import UnsupportedError
from qpass.lowering.cuda import tiles
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


def _words(packed: Tensor, x: Tensor, rows: int, layout: str) -> Tensor:
    """The packed words as the kernel reads them.

    Raises:
        UnsupportedError: words of another shape than ``layout`` gives, or a layout that is another GPU's.
    """
    found = Layout.parse(layout)
    if packed.dtype is not torch.int32 or tuple(packed.shape) != found.shape(rows, x.shape[-1]):
        raise UnsupportedError(
            f"packed words {list(packed.shape)} of {packed.dtype} for a {rows} x {x.shape[-1]} weight in {layout}",
            fix=f"pack it again: int32 {list(found.shape(rows, x.shape[-1]))}",
        )
    return packed.view(torch.int8) if _assembly(x) else packed


class _Run:
    """Sizes, tile, grid and workspace of one call."""

    def __init__(self, x: Tensor, out_features: int, block: int, table: Any, sums: torch.dtype) -> None:
        self.m, self.k, self.n = x.shape[0], x.shape[1], out_features
        bucket = tiles.current(self.m)
        self.tile = tiles.tile(table, bucket, warp_groups=_warp_groups(x))
        self.rows, blocks = padded_rows(out_features), -(-self.k // block)
        self.splits = tiles.splits(self.tile, bucket, self.rows, blocks)
        count = (self.rows // self.tile.bn) * ((self.m + self.tile.bm - 1) // self.tile.bm)
        self.grid = (count, self.splits)
        parts = count * self.splits * self.tile.bn * self.tile.bm if self.splits > 1 else 1
        self.workspace = torch.empty(parts, dtype=sums, device=x.device)
        self.common = {
            "SPLITS": self.splits, "EVEN_K": self.k % block == 0, "BM": self.tile.bm, "BN": self.tile.bn,
            "STAGES": self.tile.stages,
        }  # fmt: skip

    def launched(self, x: Tensor) -> dict[str, Any]:
        """Options of a launch, which the interpreter does not know."""
        return {**self.common, "num_warps": self.tile.warps} if x.is_cuda else self.common


@triton_op("qpass_cuda::w4a16_linear", mutates_args={"counters"})
def w4a16_linear(
    x: Tensor, packed: Tensor, scale: Tensor, zero: Tensor, bias: Tensor | None, counters: Tensor, out_features: int,
    group: int, layout: str,
) -> Tensor:  # fmt: skip
    """x ((code - zero) · scale)ᵀ + b. On a GPU the inputs are rounded to bfloat16; the result has their dtype."""
    asm, flat = _assembly(x), _flat(x)
    if x.is_cuda:
        flat = flat.to(torch.bfloat16)
    found = Layout.parse(layout)
    words = _words(packed, x, out_features, layout)
    run = _Run(flat, out_features, found.block, tiles.FOUR_BIT, torch.float32)
    if tiles.current(run.m) is None and x.is_cuda:
        dense = torch.empty(out_features, run.k, dtype=flat.dtype, device=x.device)
        wrap_triton(dequantize_bf16_kernel)[(run.rows // 64, packed.shape[0])](
            words, scale, zero, dense, run.n, run.k, run.rows,
            GROUP=group, KW=found.neighbors, BN=64, BK=found.block, ASM=asm, num_warps=4,
        )  # fmt: skip
        result = torch.nn.functional.linear(flat, dense, None if bias is None else bias.to(flat.dtype))
        return result.to(x.dtype).view(*x.shape[:-1], out_features)
    out = torch.empty(run.m, out_features, dtype=x.dtype, device=x.device)
    kernel = wrap_triton(w4a16_kernel) if x.is_cuda else _on_cpu(w4a16_kernel, x)
    kernel[run.grid](
        flat, words, scale, zero, scale if bias is None else bias, out, run.workspace, counters, run.m, run.n, run.k,
        run.k, out_features, run.rows,
        GROUP=group, HAS_BIAS=bias is not None, KW=found.neighbors, BK=found.block, ASM=asm, **run.launched(x),
    )  # fmt: skip
    return out.view(*x.shape[:-1], out_features)


@triton_op("qpass_cuda::w4a8_int8_linear", mutates_args={"counters"})
def w4a8_int8_linear(
    codes: Tensor, x_scale: Tensor, x_zero: Tensor | None, packed: Tensor, scale: Tensor, zero: Tensor, sums: Tensor,
    bias: Tensor | None, counters: Tensor, out_features: int, group: int, layout: str, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """s_x (x - z_x) ((code - zero) · scale)ᵀ + b: int8 codes, x_zero None for symmetric inputs; group 0: a row."""
    flat, found = _flat(codes), Layout.parse(layout)
    words = _words(packed, codes, out_features, layout)
    run = _Run(flat, out_features, found.block, tiles.WIDE_BLOCK, torch.float32 if group else torch.int32)
    out = torch.empty(run.m, out_features, dtype=dtype, device=codes.device)
    kernel = wrap_triton(w4a8_int8_kernel) if codes.is_cuda else _on_cpu(w4a8_int8_kernel, codes)
    kernel[run.grid](
        flat, x_scale, x_scale if x_zero is None else x_zero, words, scale, zero, sums,
        scale if bias is None else bias, out, run.workspace, counters, run.m, run.n, run.k, run.k, out_features,
        run.rows, GROUP=group, ZERO=x_zero is not None, HAS_BIAS=bias is not None, BK=found.block,
        ASM=_assembly(codes), **run.launched(codes),
    )  # fmt: skip
    return out.view(*codes.shape[:-1], out_features)


@triton_op("qpass_cuda::w4a8_fp8_linear", mutates_args={"counters"})
def w4a8_fp8_linear(
    codes: Tensor, x_scale: Tensor, packed: Tensor, tables: Tensor, choice: Tensor, factor: Tensor,
    bias: Tensor | None, counters: Tensor, out_features: int, group: int, layout: str, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """s_x c_n Σ x · byte + b: E4M3 codes; ``choice`` uint8 rows of the tables, or a float dtype: scales of groups."""
    flat, found, real = _flat(codes), Layout.parse(layout), choice.dtype is not torch.uint8
    words = _words(packed, codes, out_features, layout)
    run = _Run(flat, out_features, found.block, tiles.FOUR_BIT, torch.float32)
    asm = _assembly(codes)
    if tiles.current(run.m) is None and codes.is_cuda and not real and _stock_fp8(run.k, out_features, dtype):
        dense = torch.empty(out_features, run.k, dtype=codes.dtype, device=codes.device)
        wrap_triton(dequantize_fp8_kernel)[(run.rows // 64, packed.shape[0])](
            words, tables, choice, dense, run.n, run.k, run.rows,
            GROUP=group, BN=64, BK=found.block, ASM=asm, num_warps=4,
        )  # fmt: skip
        result = _scaled(flat, x_scale, dense, factor.narrow(0, 0, out_features), bias, dtype)
        return result.view(*codes.shape[:-1], out_features)
    out = torch.empty(run.m, out_features, dtype=dtype, device=codes.device)
    kernel = wrap_triton(w4a8_fp8_kernel) if codes.is_cuda else _on_cpu(w4a8_fp8_kernel, codes)
    kernel[run.grid](
        flat, x_scale, words, tables, choice, factor, factor if bias is None else bias, out, run.workspace, counters,
        run.m, run.n, run.k, run.k, out_features, run.rows,
        GROUP=group, REAL=real, HAS_BIAS=bias is not None, BK=found.block, ASM=asm, **run.launched(codes),
    )  # fmt: skip
    return out.view(*codes.shape[:-1], out_features)


@triton_op("qpass_cuda::int8_linear", mutates_args={"counters"})
def int8_linear(
    codes: Tensor, x_scale: Tensor, x_zero: Tensor | None, weight: Tensor, scale: Tensor, sums: Tensor,
    bias: Tensor | None, counters: Tensor, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """s_x s_w (x - z_x) Wᵀ + b: int8 codes [..., K] and weight [N, K]; x_zero None for symmetric inputs."""
    flat, out_features = _flat(codes), weight.shape[0]
    bucket = tiles.current(flat.shape[0])
    if codes.is_cuda and bucket not in (tiles.FEW, tiles.SOME) and codes.shape[-1] % 8 == out_features % 8 == 0:
        total = torch.ops.aten._int_mm.default(flat, weight.t())
        if x_zero is not None:
            total = total - x_zero.reshape(-1, 1) * sums
        result = total.to(torch.float32) * scale * x_scale.reshape(-1, 1)
        result = result if bias is None else result + bias
        return result.to(dtype).view(*codes.shape[:-1], out_features)
    out = _eight_bit(flat, x_scale, x_zero, weight, scale, sums, bias, counters, dtype, integer=True)
    return out.view(*codes.shape[:-1], out_features)


@triton_op("qpass_cuda::fp8_linear", mutates_args={"counters"})
def fp8_linear(
    codes: Tensor, x_scale: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, counters: Tensor,
    dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """s_x s_w x Wᵀ + b: E4M3 codes [..., K] and weight [N, K]."""
    flat, out_features = _flat(codes), weight.shape[0]
    few = tiles.current(flat.shape[0]) in (tiles.FEW, tiles.SOME)
    if codes.is_cuda and not few and _stock_fp8(codes.shape[-1], out_features, dtype):
        out = _scaled(flat, x_scale, weight, scale, bias, dtype)
    else:
        out = _eight_bit(flat, x_scale, None, weight, scale, scale, bias, counters, dtype, integer=False)
    return out.view(*codes.shape[:-1], out_features)


@triton_op("qpass_cuda::fp8_block_linear", mutates_args={"counters"})
def fp8_block_linear(
    codes: Tensor, x_scale: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, counters: Tensor,
    dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """E4M3 codes [..., K] with scales [..., K / 128], weight [N, K] with scales [N / 128, K / 128]."""
    flat, out_features = _flat(codes), weight.shape[0]
    run = _Run(flat, out_features, 128, tiles.FP8_BLOCK, torch.float32)
    out = torch.empty(run.m, out_features, dtype=dtype, device=codes.device)
    kernel = wrap_triton(fp8_block_kernel) if codes.is_cuda else _on_cpu(fp8_block_kernel, codes)
    kernel[run.grid](
        flat, x_scale, weight, scale, scale if bias is None else bias, out, run.workspace, counters, run.m, run.n,
        run.k, run.k, run.k, out_features, HAS_BIAS=bias is not None, **run.launched(codes),
    )  # fmt: skip
    return out.view(*codes.shape[:-1], out_features)


def _eight_bit(
    flat: Tensor, x_scale: Tensor, x_zero: Tensor | None, weight: Tensor, scale: Tensor, sums: Tensor,
    bias: Tensor | None, counters: Tensor, dtype: torch.dtype, *, integer: bool,
) -> Tensor:  # fmt: skip
    run = _Run(flat, weight.shape[0], 128, tiles.EIGHT_BIT, torch.int32 if integer else torch.float32)
    out = torch.empty(run.m, run.n, dtype=dtype, device=flat.device)
    kernel = wrap_triton(eight_bit_kernel) if flat.is_cuda else _on_cpu(eight_bit_kernel, flat)
    kernel[run.grid](
        flat, x_scale, x_scale if x_zero is None else x_zero, weight, scale, sums, scale if bias is None else bias,
        out, run.workspace, counters, run.m, run.n, run.k, run.k, run.k, run.n,
        INTEGER=integer, ZERO=x_zero is not None, HAS_BIAS=bias is not None, BK=128, **run.launched(flat),
    )  # fmt: skip
    return out


def _stock_fp8(width: int, out_features: int, dtype: torch.dtype) -> bool:
    """Whether ``scaled_mm`` takes it row by row."""
    return width % 16 == 0 and out_features % 16 == 0 and dtype is torch.bfloat16


def _scaled(
    x: Tensor, x_scale: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    rows, columns = x_scale.reshape(-1, 1), scale.reshape(1, -1)
    out = torch.ops.aten._scaled_mm.default(x, weight.t(), rows, columns, None, None, dtype, True)
    return out if bias is None else (out + bias).to(dtype)
