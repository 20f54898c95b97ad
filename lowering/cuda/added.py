"""What is added to a linear's sums: a low-rank branch and a residual, as operands of our kernels and beside Inductor's.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor


def low_rank(
    other: Tensor, branch: Tensor | None, up: Tensor | None, up_scale: Tensor | None
) -> tuple[tuple[Tensor, Tensor, Tensor], dict[str, Any]]:
    """(branch, U and its scales, the kernel's options) of a second dot; without a branch ``other`` in their place.

    That has to be a parameter: what is computed would be written once for each place where it is passed."""
    if branch is None or up is None:
        return (other, other, other), {"RANK": 0, "PADDED": 16, "INT8_UP": False}
    rank = up.shape[1]
    flat = branch.reshape(-1, branch.shape[-1]).contiguous()
    if branch.is_cuda:
        flat = flat.to(torch.bfloat16)
        up = up if up.dtype is torch.int8 else up.to(torch.bfloat16)
    up = up.contiguous()  # as a decomposition gave it
    options = {"RANK": rank, "PADDED": max(16, triton.next_power_of_2(rank)), "INT8_UP": up.dtype is torch.int8}
    return (flat, up, other if up_scale is None else up_scale), options


def with_low_rank(result: Tensor, branch: Tensor | None, up: Tensor | None, up_scale: Tensor | None) -> Tensor:
    """The same where the dot is Inductor's."""
    if branch is None or up is None:
        return result
    dense = up.to(result.dtype) if up_scale is None else (up * up_scale[:, None]).to(result.dtype)
    flat = branch.reshape(-1, branch.shape[-1]).contiguous()
    return result + torch.nn.functional.linear(flat.to(result.dtype), dense)


def residual_rows(other: Tensor, residual: Tensor | None, out_features: int) -> tuple[Tensor, Any]:
    """(the residual as [M, N], how far apart its rows are); without one ``other``, a parameter as in ``low_rank``."""
    if residual is None:
        return other, out_features
    flat = residual.reshape(-1, out_features)
    if flat.stride(1) != 1:
        flat = flat.contiguous()
    return flat, flat.stride(0)


def with_residual(result: Tensor, residual: Tensor | None) -> Tensor:
    """The sum where the dot is Inductor's, which adds in the same kernel. Both have the same shape but for views."""
    return result if residual is None else result + residual.reshape(result.shape)
