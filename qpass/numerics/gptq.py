"""GPTQ (Frantar et al. 2023): round a weight column by column, each error made good by the columns that are left.

    λ = 0.01 · mean(diag H),  (H + λI)⁻¹ = Uᵀ U
    for each column i:  q_i = Quant(w_i),  e_i = (w_i - q_i) / U_ii,  w_j -= e_i U_ij for j > i
    Σ ‖e_i‖² = tr((W - Q)(H + λI)(W - Q)ᵀ)

For any format: only ``Quant`` knows the grid. Asymmetric (GPTAQ, Li et al. 2025): the same with W + W D (H + λI)⁻¹ in
the place of W, which brings Q X near W X̃ of the float model; ``hessian.float_target`` derives it. It is applied as a
whole before the sweep, so no column's share of it is lost to columns that are rounded already.

Columns with H_jj = 0 become 0. What comes out is compared with round to nearest on (2/n) ‖W X̃ - Q X‖², row by row
(block by block where rows share scales of their own), and the better is kept, so the loss is never above that of round
to nearest: nearest-plane rounding, which GPTQ is, has no such bound by itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from qpass.errors import RecipeError
from qpass.formats import Format
from qpass.numerics import codec, grids, scales
from qpass.numerics.hessian import Factor, Inputs, factor, float_target, row_losses
from qpass.numerics.scales import Scales


@dataclass(frozen=True)
class Settings:
    """How to sweep.

    Attributes:
        block: columns whose updates of the rest are one matrix product. It changes the speed only.
        damping: λ as a share of H's mean diagonal.
        act_order: columns in descending order of H's diagonal. Scales stay those of the original order.
        static: scales from the whole weight before the sweep; else those of each group from its columns as they are
            when the sweep gets there. None: by the kind of scale, see ``is_static``.
        dtype: of the arithmetic, float32 or float64. Quant itself is that of ``codec``, in float32.
    """

    block: int = 128
    damping: float = 0.01
    act_order: bool = False
    static: bool | None = None
    dtype: torch.dtype = torch.float32


@dataclass(frozen=True)
class Swept:
    """What a sweep gives.

    Attributes:
        codes: [N, K] of ``fmt.code_dtype``, contiguous.
        scales: that they are to be dequantized with.
        loss, nearest: (2/n) ‖W X̃ - Q X‖² of this rounding and of round to nearest.
        damped: Σ ‖e_i‖² of the sweep alone; 0 where there was none.
        kept: rows in which round to nearest was better, and is what ``codes`` hold.
        dead: columns with H_jj = 0.
        damping: λ; with ``times``, how often it was multiplied by 10.
        failed: why there was no sweep and all is rounded to nearest, or empty.
    """

    codes: Tensor
    scales: Scales
    loss: float
    nearest: float
    damped: float = 0.0
    kept: int = 0
    dead: int = 0
    damping: float = 0.0
    times: int = 0
    failed: str = ""


def is_static(fmt: Format, settings: Settings) -> bool:
    """Whether scales are chosen before the sweep. By default those that are powers of two or have an outer factor.

    Raises:
        RecipeError: scales that must be, and ``static`` is False.
    """
    if settings.static is False and (fmt.scale_kind.outer or settings.act_order):
        why = "columns in another order" if settings.act_order else f"the scale kind {fmt.scale}"
        raise RecipeError(f"group scales chosen on the way, with {why}", where=str(fmt),
                          fix="leave static_groups out, or set it to true")  # fmt: skip
    usual = not fmt.scale_kind.is_real or settings.act_order
    return not fmt.group or (usual if settings.static is None else settings.static)


def sweep(
    w_NK: Tensor, fmt: Format, inputs: Inputs, *, given: Scales | None = None, settings: Settings | None = None
) -> Swept:
    """Codes and scales of a weight.

    Args:
        w_NK: any float dtype, finite.
        fmt: of a weight, without a low-rank branch.
        inputs: with ``cross`` and ``drift`` the target is the float model's.
        given: scales to round with; None chooses them.

    Raises:
        RecipeError: see ``is_static``.
        NumericsError: real scales that the format cannot hold.
    """
    settings = settings or Settings()
    static = is_static(fmt, settings) or given is not None
    original, inputs = w_NK.to(settings.dtype), inputs.to(settings.dtype)
    dead = inputs.hessian.diagonal() == 0
    found = None if bool(dead.all()) else _factored(inputs.hessian, dead, settings)
    if found is None:
        failed = "no input was ever other than 0" if bool(dead.all()) else "the second moment of its inputs is singular"
        return _nearest_only(w_NK, fmt, inputs, given, failed, original)
    (upper, damping, times), order = found
    live = original.masked_fill(dead, 0)
    nearest = codec.choose(live, fmt) if given is None else given
    near = codec.quantize(live, nearest, fmt)
    if inputs.cross is not None:
        live = live + float_target(original, inputs, upper, order)
    columns = _Columns(fmt, original.shape, nearest if static else None, w_NK.device)
    damped = _sweep(live[:, order].T.contiguous(), upper, order.tolist(), columns, settings)
    codes, chosen = columns.codes_KN.T.contiguous(), columns.stored(nearest)
    losses = [row_losses(original, codec.dequantize(part, with_, fmt, torch.float32).to(original), inputs)
              for part, with_ in ((codes, chosen), (near, nearest))]  # fmt: skip
    worse = _by_unit(losses[0], fmt, static) > _by_unit(losses[1], fmt, static)
    codes[worse] = near[worse]
    loss = torch.where(worse, losses[1], losses[0]).sum()
    return Swept(codes, _mixed(chosen, nearest, worse, fmt, static), float(loss), float(losses[1].sum()), damped,
                 int(worse.sum()), int(dead.sum()), damping, times)  # fmt: skip


def _factored(hessian_KK: Tensor, dead: Tensor, settings: Settings) -> tuple[Factor, Tensor] | None:
    """The factor of H in the order of the sweep, and that order."""
    order = torch.arange(len(hessian_KK), device=hessian_KK.device)
    if settings.act_order:
        order = torch.argsort(hessian_KK.diagonal(), descending=True, stable=True)
    hessian_KK = hessian_KK.clone()
    hessian_KK.diagonal()[dead] = 1
    found = factor(hessian_KK[order][:, order] if settings.act_order else hessian_KK, settings.damping)
    return None if found is None else (found, order)


def _nearest_only(
    w_NK: Tensor, fmt: Format, inputs: Inputs, given: Scales | None, failed: str, original: Tensor
) -> Swept:
    found = codec.choose(w_NK, fmt) if given is None else given
    codes = codec.quantize(w_NK, found, fmt)
    values = codec.dequantize(codes, found, fmt, torch.float32).to(original)
    loss = float(row_losses(original, values, inputs).sum())
    return Swept(codes, found, loss, loss, kept=len(codes), failed=failed)


def _sweep(w_KN: Tensor, upper_KK: Tensor, order: list[int], columns: _Columns, settings: Settings) -> float:
    """Σ ‖e_i‖². ``w_KN`` is in the order of the sweep and is used up: a column of the weight is a row here."""
    total = 0.0
    for first, last in _blocks(len(w_KN), settings.block, columns.group if columns.live else 0):
        block, upper = w_KN[first:last], upper_KK[first:last, first:last]
        errors = torch.empty_like(block)
        for i, pivot in enumerate(upper.diagonal().tolist()):
            if columns.live and (first + i) % columns.group == 0:
                columns.enter(w_KN, first + i)
            torch.sub(block[i], columns.round(order[first + i], block[i]), out=errors[i])
            errors[i] /= pivot
            block[i + 1 :].addr_(upper[i, i + 1 :], errors[i], alpha=-1)
        w_KN[last:].addmm_(upper_KK[first:last, last:].T, errors, alpha=-1)
        total += float(errors.square().sum())
    return total


def _blocks(width: int, size: int, group: int) -> Iterator[tuple[int, int]]:
    """Ends of blocks of columns. A group that is read on the way begins a block unless it ends in the same one.

    So the columns that its scale is chosen from have had all updates.
    """
    first = 0
    while first < width:
        last = min(first + size, width)
        start = last // group * group if group else 0
        if first < start < last and min(start + group, width) > last:
            last = start
        yield first, last
        first = last


class _Columns:
    """Quant of one column at a time, with the codes that it gave. Bit for bit what ``codec`` makes of a whole weight.

    Args:
        found: the scales; None where they are chosen on the way, group by group.
    """

    def __init__(self, fmt: Format, shape: torch.Size, found: Scales | None, device: torch.device) -> None:
        rows, width = shape
        self.fmt, self.rows, self.live, self.group = fmt, rows, found is None, fmt.group or width
        self.affine = codec.spelling(fmt) == codec.AFFINE  # torchao multiplies with 1 / scale
        self.codes_KN = torch.empty((width, rows), dtype=fmt.code_dtype, device=device)
        self.scale_GN = torch.empty((fmt.groups(width), rows), device=device)
        self.zero_GN = None if fmt.symmetric else torch.empty_like(self.scale_GN)
        self.parts: list[Scales] = []
        if found is not None:
            self._put(0, found)

    def _put(self, group: int, found: Scales) -> None:
        """Take scales [R, G'] for the groups from ``group`` on."""
        spread = self._rows(scales.effective(found, self.fmt))
        self.scale_GN[group : group + len(spread)] = spread
        if self.zero_GN is not None and found.zero is not None:
            self.zero_GN[group : group + len(spread)] = self._rows(found.zero.float())

    def _rows(self, part_RG: Tensor) -> Tensor:
        """[G, N]."""
        if self.fmt.rows:
            part_RG = part_RG.repeat_interleave(self.fmt.rows, 0)[: self.rows]
        return part_RG.T.expand(-1, self.rows)

    def enter(self, w_KN: Tensor, first: int) -> None:
        """Choose the scale of the group that begins at column ``first`` from its columns as they are now."""
        found = codec.choose(w_KN[first : first + self.group].T, self.fmt)
        self._put(first // self.group, found)
        self.parts.append(found)

    def round(self, column: int, w_N: Tensor) -> Tensor:
        """The values that stand for a column, [N] of its dtype; the codes are kept."""
        fmt, group = self.fmt, column // self.group
        scale = self.scale_GN[group]
        scaled = w_N.float() * (1 / scale) if self.affine else w_N.float() / scale
        if fmt.grid.is_float:
            codes = grids.encode(scaled, fmt.grid)
            self.codes_KN[column] = codes
            return (grids.decode(codes, fmt.grid) * scale).to(w_N)
        if self.zero_GN is None:
            whole = scaled.round_().clamp_(*fmt.range)
            self.codes_KN[column] = whole
            return (whole * scale).to(w_N)
        whole = scaled.round_().add_(self.zero_GN[group]).clamp_(*fmt.range)
        self.codes_KN[column] = whole
        return ((whole - self.zero_GN[group]) * scale).to(w_N)

    def stored(self, found: Scales) -> Scales:
        """The scales in the form that a format keeps them; ``found`` where they were given."""
        if not self.live:
            return found
        zeros = [part.zero for part in self.parts if part.zero is not None]
        return Scales(torch.cat([part.scale for part in self.parts], 1), torch.cat(zeros, 1) if zeros else None)


def _by_unit(losses_N: Tensor, fmt: Format, static: bool) -> Tensor:
    """Each row's loss, or where rows share scales that another rounding does not have, that of its block."""
    if static or not fmt.rows:
        return losses_N
    pieces = torch.split(losses_N, fmt.rows)
    return torch.cat([piece.sum().expand(len(piece)) for piece in pieces])


def _mixed(chosen: Scales, nearest: Scales, worse_N: Tensor, fmt: Format, static: bool) -> Scales:
    """The scales of round to nearest in the rows that are rounded so."""
    if static or not bool(worse_N.any()):
        return chosen
    worse_R = (worse_N[:: fmt.rows] if fmt.rows else worse_N)[:, None]
    zero = None
    if chosen.zero is not None and nearest.zero is not None:
        zero = torch.where(worse_R, nearest.zero, chosen.zero)
    return Scales(torch.where(worse_R, nearest.scale, chosen.scale), zero)
