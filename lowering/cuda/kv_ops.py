"""The operator behind attention over a cache of codes, ``qpass_cuda::kv_attention``. Importing this needs Triton.

On CPU tensors the kernels run in Triton's interpreter, whose dots take no bfloat16: queries are float32 there, and
weights are rounded all the same.
"""

from __future__ import annotations

from typing import Any

import torch
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

from qpass.formats import Format
from qpass.lowering.cuda import kv_tiles
from qpass.lowering.cuda.ops import _assembly, _on_cpu
from qpass.lowering.triton.kv_attention import kv_attention_kernel, kv_combine_kernel
from qpass.numerics import kv_rows

_TYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


def _form(fmt: Format, width: int, side: str) -> dict[str, Any]:
    """How the kernel reads rows of ``fmt``: the kind of codes, bytes that share a scale (0: all), and zero points."""
    half = fmt.bits <= 4
    kind = fmt.element if fmt.grid.is_float else "int8" if not half else "int4" if fmt.symmetric else "uint4"
    each = 0 if fmt.groups(width) == 1 else fmt.group // 2 if half else fmt.group
    return {f"{side}_KIND": kind, f"{side}_EACH": each, f"{side}_ZERO": not fmt.symmetric}


def _steps(cache: Tensor) -> tuple[Tensor, list[Any]]:
    """The cache with neighbors in a row and rows at multiples of 16 bytes, and its strides in these."""
    even = all(isinstance(step, int) and step % kv_rows.ALIGN == 0 for step in cache.stride()[:3])
    cache = cache if cache.stride(-1) == 1 and even else cache.contiguous()
    return cache, [step // kv_rows.ALIGN for step in cache.stride()[:3]]


def _mask(mask: Tensor | None, q: Tensor, length: Any) -> tuple[Tensor, str, list[Any]]:
    if mask is None:
        return q, "none", [0, 0, 0]
    wide = mask if mask.shape[-1] == length and mask.stride(-1) == 1 else (
        mask.expand(*mask.shape[:-1], length).contiguous())  # fmt: skip
    wide = wide.expand(q.shape[0], q.shape[1], q.shape[2], length)
    return wide, "bool" if mask.dtype is torch.bool else "float", list(wide.stride()[:3])


@triton_op("qpass_cuda::kv_attention", mutates_args=())
def kv_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, k_format: str, v_format: str, k_width: int, v_width: int,
    causal: bool, scale: float, softcap: float, eager: bool,
) -> Tensor:  # fmt: skip
    """softmax(scale · q kᵀ + mask) v over rows of codes, [B, Hq, T, DV], stored token by token."""
    batch, heads, tokens, _ = q.shape
    shared, length, dtype, on_gpu = k.shape[1], k.shape[2], q.dtype, q.is_cuda
    group = heads // shared
    q = q if q.stride(-1) == 1 else q.contiguous()
    given = q if on_gpu or dtype is not torch.bfloat16 else q.float()
    (k, k_steps), (v, v_steps) = _steps(k), _steps(v)
    seen, kind, m_steps = _mask(mask, q, length)
    tile = kv_tiles.attention_tile(group * tokens, k_width, v_width, k_format, v_format)
    count, pairs = (group * tokens + tile.rows - 1) // tile.rows, batch * shared
    splits = kv_tiles.splits(count * pairs, length, tile)
    rows = batch * heads * tokens
    out = torch.empty((batch, tokens, heads, v_width), dtype=dtype, device=q.device)
    parts = torch.empty(rows * splits * (v_width + 2) if tile.split else 1, dtype=torch.float32, device=q.device)
    constants = {
        **_form(Format.parse(k_format), k_width, "K"), **_form(Format.parse(v_format), v_width, "V"), "D": k_width,
        "DV": v_width, "G": group, "CAUSAL": causal, "MASK": kind, "CAPPED": bool(softcap), "BLIND": not eager,
        "SPLIT": tile.split, "DTYPE": _TYPES[given.dtype], "ROUND": _TYPES[dtype], "BM": tile.rows, "BS": tile.keys,
        "BD": tile.width, "BV": tile.v_width, "STAGES": tile.stages, "ASM": _assembly(q),
        "PRECISION": "ieee" if dtype is torch.float32 else "tf32",
    }  # fmt: skip
    args = (given, k, v, seen, out, parts, shared, tokens, length, splits, *given.stride()[:3], *k_steps, *v_steps,
            *m_steps, scale, softcap or 1.0)  # fmt: skip
    _launch(kv_attention_kernel, (count, splits, pairs), q, args, tile.warps, **constants)
    if tile.split:
        wide = kv_tiles.power(v_width)
        _launch(kv_combine_kernel, (rows,), q, (parts, out, splits), 4, DV=v_width, BLIND=not eager,
                PARTS=kv_tiles.MOST_SPLITS, BV=wide)  # fmt: skip
    return out.transpose(1, 2)


def _launch(kernel: Any, grid: tuple[Any, ...], x: Tensor, args: tuple[Any, ...], warps: int, **constants: Any) -> None:
    if x.is_cuda:
        wrap_triton(kernel)[grid](*args, **constants, num_warps=warps)
    else:
        _on_cpu(kernel, x)[grid](*args, **constants)
