"""Quantizers with gradients: what a weight or an input becomes, in float32, as the integers will say it.

    v̂ = (clamp(⌈v / h⌋ + z, least, most) - z) · h        ⌈·⌋ rounds half to even; backward it is the identity

Learned clipping (OmniQuant, Shao et al. 2024), on ranges that hold 0, so that z is a code and a group that is constant
or of one sign is no special case:

    M' = σ(γ) max(max w, 0),  m' = σ(β) min(min w, 0)
    asymmetric   h = (M' - m') / most,  z = ⌈-m' / h⌋ without a gradient
    symmetric    h = max(M', -m') / most,  z = 0

h is rounded to the dtype that the format stores, as in the codes that are folded from it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from qpass.formats import Format
from qpass.numerics import codec
from qpass.numerics.affine import EPSILON
from qpass.numerics.scales import Scales


class _Round(torch.autograd.Function):
    """v̂ of values [..., G, K] with h and z [..., G, 1]. Saves v, h and z only."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, h: Tensor, z: Tensor, least: int, most: int) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(v, h, z)
        ctx.range = least, most
        return (v * (1.0 / h)).round_().add_(z).clamp_(least, most).sub_(z).mul_(h)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        v, h, z = ctx.saved_tensors
        least, most = ctx.range
        a = v * (1.0 / h)
        code = a.round().add_(z)
        inside = (code >= least) & (code <= most)
        grad_v = grad * inside if ctx.needs_input_grad[0] else None
        grad_h = None
        if ctx.needs_input_grad[1]:
            slope = code.clamp_(least, most).sub_(z).sub_(torch.where(inside, a, 0.0))
            grad_h = (grad * slope).sum(-1, keepdim=True)
        return grad_v, grad_h, None, None, None


class _Straight(torch.autograd.Function):
    """Another value forward, the identity backward."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, other: Tensor) -> Tensor:  # type: ignore[override]
        return other

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        return grad, None


def clippable(fmt: Format) -> bool:
    """Whether the range of a weight's format can be learned: integers with a real scale per channel or group."""
    return not fmt.grid.is_float and fmt.scale_kind.is_real and fmt.granularity in ("channel", "group")


def ends(w_NK: Tensor, fmt: Format) -> tuple[Tensor, Tensor]:
    """min(min w, 0) and max(max w, 0) of each group, [N, G, 1]; a short last group has its own."""
    groups = _grouped(w_NK, fmt)
    return groups.amin(-1, keepdim=True).clamp(max=0), groups.amax(-1, keepdim=True).clamp(min=0)


def clipped(low: Tensor, high: Tensor, beta: Tensor | None, gamma: Tensor | None, fmt: Format) -> tuple[Tensor, Tensor]:
    """h and z [N, G, 1] of a weight. beta, gamma: [N, G], or None where nothing is clipped."""
    if beta is not None and gamma is not None:
        low, high = torch.sigmoid(beta).unsqueeze(-1) * low, torch.sigmoid(gamma).unsqueeze(-1) * high
    if fmt.symmetric:
        wide = torch.maximum(high, -low)
        h = _stored(torch.where(wide == 0, 1.0, wide / fmt.max), fmt)
        return h, torch.zeros_like(h)
    h = _stored(((high - low) / fmt.range[1]).clamp(min=EPSILON), fmt)
    return h, torch.round(-low / h).clamp(*fmt.range).detach()


def fake_weight(
    w_NK: Tensor, fmt: Format, beta: Tensor | None = None, gamma: Tensor | None = None,
    known: tuple[Tensor, Tensor] | None = None,
) -> Tensor:  # fmt: skip
    """ŵ [N, K] float32. known: ``ends`` of a weight that does not change."""
    if not clippable(fmt):
        return _Straight.apply(w_NK, codec.fake_quantize(w_NK.detach(), fmt.plain))  # type: ignore[no-any-return]
    h, z = clipped(*(ends(w_NK, fmt) if known is None else known), beta, gamma, fmt)
    found = _Round.apply(_grouped(w_NK, fmt), h, z, *fmt.range)
    return found.flatten(-2)[:, : w_NK.shape[1]]  # type: ignore[no-any-return]


def fake_input(x: Tensor, fmt: Format) -> Tensor:
    """x̂ [..., K] float32: what ``codec`` makes of the input row by row, with gradients through its range."""
    if fmt.grid.is_float or fmt.granularity != "token" or not fmt.scale_kind.is_real or fmt.full:
        codes, scale, zero = codec.quantize_rows(x.detach(), fmt)
        return _Straight.apply(x, codec.dequantize_rows(codes, scale, zero, fmt, x.dtype))  # type: ignore[no-any-return]
    low, high = x.amin(-1, keepdim=True).clamp(max=0), x.amax(-1, keepdim=True).clamp(min=0)
    least, most = fmt.range
    if fmt.symmetric:
        h = (torch.maximum(high, -low) / most).clamp(min=EPSILON)
        z = torch.zeros_like(h)
    else:
        h = ((high - low) / most).clamp(min=EPSILON)
        z = torch.round(-low / h).clamp(least, most).detach()
    return _Round.apply(x, h, z, least, most)  # type: ignore[no-any-return]


def folded(w_NK: Tensor, fmt: Format, beta: Tensor | None, gamma: Tensor | None) -> Scales:
    """The scales that the trained quantizer has for a final weight, as ``codec`` takes them."""
    if not clippable(fmt):
        return codec.choose(w_NK, fmt.plain)
    wide = w_NK.to(torch.float32)
    h, z = clipped(*ends(wide, fmt), beta, gamma, fmt)
    zero = None if fmt.symmetric else z.squeeze(-1).to(torch.uint8)
    return Scales(h.squeeze(-1).to(fmt.scale_dtype), zero)


def _stored(h: Tensor, fmt: Format) -> Tensor:
    if fmt.scale_dtype is torch.float32:
        return h
    return _Straight.apply(h, h.detach().to(fmt.scale_dtype).to(torch.float32))  # type: ignore[no-any-return]


def _grouped(w_NK: Tensor, fmt: Format) -> Tensor:
    """[N, G, group]; zeros complete the last group and change nothing, as a range holds 0."""
    if not fmt.group:
        return w_NK.unsqueeze(-2)
    extra = -w_NK.shape[-1] % fmt.group
    return (F.pad(w_NK, (0, extra)) if extra else w_NK).unflatten(-1, (-1, fmt.group))
