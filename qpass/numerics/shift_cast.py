"""Four-bit codes with scales that are powers of two apart become FP8 bytes, exactly: ZeroQuant-FP's cast by a shift.

    Ŝ = S_max / 2^t    v = value(code) · Ŝ = [value(code) · 2^(k0 - t)] · c,    c = S_max / 2^k0, one a row

The bracket is an FP8 number, for every code, if k = k0 - t lies in a range that follows from the two grids alone. Then
a linear multiplies FP8 by FP8, and scales the sum once:

    y = s_x · c_n · Σ_k x_k · byte_nk

The ranges are found by enumeration (``exact_shifts``): E2M1 to E4M3 -8 to 6, to E5M2 -15 to 13; so with k0 = 6 all t
from 0 to 14 are exact. A nonzero E2M1 value has two significant bits, so the mantissa of the target never binds: the
upper end is its largest value, and the lower end its least step, of which 0.5 · 2^k and 1.5 · 2^k must be multiples.
M1's powers of two are the same thing with S_max a power of two. Source: ZeroQuant-FP (Wu et al. 2023); the tables are
our own.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from qpass.errors import NumericsError, RecipeError
from qpass.formats import GRIDS, Format, Grid, suggest
from qpass.numerics import groups, powers
from qpass.numerics.scales import Scales

TARGETS = ("e4m3", "e5m2", "e4m3fnuz", "e5m2fnuz")
_AT_ONCE = 1 << 22
_NO_BYTE = -1


class CastWeight(NamedTuple):
    """A weight in FP8: v = bytes · factor, exact in float64.

    Attributes:
        bytes: [N, K] of the target's dtype.
        factor: [N, 1] float32, c_n.
    """

    bytes: Tensor
    factor: Tensor


def code_values(fmt: Format) -> dict[int, float]:
    """Every four-bit pattern (at most) that a code of the format may have, and the value it stands for."""
    if fmt.grid.is_float:
        return dict(enumerate(fmt.grid.values))
    least, most = fmt.range
    return {value & (2**fmt.bits - 1): float(value) for value in range(least, most + 1)}


@functools.cache
def exact_shifts(fmt: Format, target: str) -> range:
    """The k for which value · 2^k is a value of ``target`` for every code of ``fmt``: one unbroken range.

    Raises:
        RecipeError: codes of more than four bits, zero points, or another target.
    """
    _check(fmt, target)
    known = _bytes_of(GRIDS[target])
    values = code_values(fmt).values()
    found = [k for k in range(-64, 65) if all(abs(value) * 2.0**k in known for value in values)]
    assert found == list(range(found[0], found[-1] + 1))
    return range(found[0], found[-1] + 1)


@functools.cache
def table(fmt: Format, target: str) -> tuple[tuple[int, ...], ...]:
    """For each k of ``exact_shifts``, the FP8 byte of every four-bit pattern; 0 for one that is no code."""
    known = _bytes_of(GRIDS[target])
    values = code_values(fmt)
    # fnuz has no -0: its byte is NaN there.
    sign = {pattern: 0x80 if _negative(value) and (value or not target.endswith("fnuz")) else 0
            for pattern, value in values.items()}  # fmt: skip
    return tuple(
        tuple(known[abs(values[code]) * 2.0**k] | sign[code] if code in values else 0 for code in range(2**fmt.bits))
        for k in exact_shifts(fmt, target)
    )


def shifted_byte(code: int, k: int, target: str) -> int:
    """The byte of an E2M1 code times 2^k in closed form, in integers. k must be one of ``exact_shifts``.

    With the target's bias b and m mantissa bits, e and f the code's exponent and mantissa bit:
    magnitude 0: 0.  Below 2^(1-b): value · 2^(k+b-1+m).  Code 1: (k-1+b) · 2^m.  Else: (e-1+k+b) · 2^m + f · 2^(m-1).
    """
    grid = GRIDS[target]
    magnitude, exponent, fraction = code & 7, (code >> 1) & 3, code & 1
    halves = fraction if exponent == 0 else (2 + fraction) << (exponent - 1)  # the value in units of 1/2
    if magnitude == 0:
        byte = 0
    elif halves.bit_length() - 2 + k < 1 - grid.bias:  # ⌊log2 value⌋ + k
        power = k + grid.bias - 2 + grid.mantissa
        byte = halves << power if power >= 0 else halves >> -power
    elif magnitude == 1:
        byte = (k - 1 + grid.bias) << grid.mantissa
    else:
        byte = ((exponent - 1 + k + grid.bias) << grid.mantissa) | (fraction << (grid.mantissa - 1))
    negative = code & 8 and (magnitude or not target.endswith("fnuz"))
    return byte | 0x80 if negative else byte


def cast_weight(codes_NK: Tensor, found: Scales, fmt: Format, target: str = "e4m3") -> CastWeight:
    """FP8 bytes and one factor a row, from codes and scales that are powers of two apart.

    Args:
        codes_NK: of ``fmt.code_dtype``.
        found: scales of a kind m1, m2, m2plus or e8m0.
        fmt: four-bit codes at most, no zero point.
        target: of ``TARGETS``.

    Raises:
        RecipeError: a format or target that has no such cast.
        NumericsError: groups whose shift is not exact, or factors that float32 cannot hold, with count and first index.
    """
    row_NG, factor = shifts(codes_NK, found, fmt, target)
    return CastWeight(_look_up(codes_NK, row_NG.to(torch.int32), fmt, target), factor)


def shifts(codes_NK: Tensor, found: Scales, fmt: Format, target: str = "e4m3") -> tuple[Tensor, Tensor]:
    """(uint8 [N, G]: the row of ``table`` that casts each group, float32 [N, 1]: the factor of each row).

    Arguments and errors as in ``cast_weight``. Groups of zeros have any row.
    """
    exact = exact_shifts(fmt, target)
    if not fmt.scale_kind.is_power_of_two:
        raise RecipeError(f"scales of the kind {fmt.scale}", where=str(fmt), fix="use m2 or m1")
    top, base = _exponents(codes_NK, found, fmt)
    k_NG = exact[-1] + top
    _check_shifts(codes_NK, k_NG, exact, fmt, target)
    factor = (base.double() * 2.0 ** -exact[-1]).to(torch.float32)
    lost = (factor.double() * 2.0 ** exact[-1] != base.double()).any(1)
    if bool(lost.any()):
        raise NumericsError(f"{int(lost.sum())} factors are too small for float32, the first at row "
                            f"{int(lost.nonzero()[0])}", fix="use the weight without this cast")  # fmt: skip
    return (k_NG - exact[0]).clamp(0, len(exact) - 1).to(torch.uint8), factor


def shift_gemm(x_codes: Tensor, x_scale: Tensor, weight: CastWeight, dtype: torch.dtype = torch.float32) -> Tensor:
    """y [..., N]: s_x · c_n · Σ_k x_k · byte_nk, the meaning of a kernel: the sum exact, then rounded once.

    Args:
        x_codes: [..., K] of an FP8 dtype.
        x_scale: [..., 1] float32.
        weight: from ``cast_weight``.

    The sum is in float64: products of two E4M3 numbers are multiples of 2^-18 below 2^18, so it is exact for K up to
    2^17; of two E5M2 numbers it is rounded like any float64 sum.
    """
    total = x_codes.double() @ weight.bytes.double().T
    return (total * x_scale.double() * weight.factor.double().T).to(dtype)


def _check(fmt: Format, target: str) -> None:
    if target not in TARGETS:
        raise RecipeError(f"a cast to {target!r}", fix=suggest(target, TARGETS))
    if fmt.bits > 4 or not fmt.symmetric:
        what = f"codes of {fmt.bits} bits" if fmt.bits > 4 else "zero points"
        raise RecipeError(f"{what} have no exact FP8 form", where=str(fmt), fix="use e2m1 or int4 with sym")


@functools.cache
def _bytes_of(grid: Grid) -> dict[float, int]:
    """Every finite magnitude of an eight-bit grid and its byte."""
    assert grid.dtype is not None
    values = torch.arange(128, dtype=torch.uint8).view(grid.dtype).double().tolist()
    return {value: byte for byte, value in enumerate(values) if value < float("inf")}


def _negative(value: float) -> bool:
    return str(value).startswith("-")


def _exponents(codes_NK: Tensor, found: Scales, fmt: Format) -> tuple[Tensor, Tensor]:
    """[N, G] int32 exponents, at most 0, and [N, 1] float32 bases: scale = base · 2^exponent."""
    rows = len(codes_NK)
    if found.outer is not None:
        return -found.scale.to(torch.int32), found.outer
    nan = found.scale == powers.NAN
    if bool(nan.any()):
        raise NumericsError(f"{int(nan.sum())} scales are NaN, the first at {_first(nan)} of [row, group]",
                            fix="repair the checkpoint")  # fmt: skip
    exponent = found.scale.to(torch.int32) - powers.BIAS
    if fmt.granularity == "tensor":
        exponent = exponent.expand(rows, -1)
    elif fmt.rows:
        exponent = exponent.repeat_interleave(fmt.rows, 0)[:rows]
    # Groups of zeros may have any scale; they must not push the row's own groups out of range.
    zero = ~_any_nonzero(codes_NK, fmt)
    largest = exponent.masked_fill(zero, -powers.BIAS).amax(1, keepdim=True)
    largest = torch.where(zero.all(1, keepdim=True), 0, largest)
    return torch.where(zero, 0, exponent - largest), powers.exp2(largest)


def _check_shifts(codes_NK: Tensor, k_NG: Tensor, shifts: range, fmt: Format, target: str) -> None:
    bad = ((k_NG < shifts[0]) | (k_NG > shifts[-1])) & _any_nonzero(codes_NK, fmt)
    if bool(bad.any()):
        least = int(k_NG[bad].min())
        raise NumericsError(
            f"{int(bad.sum())} groups have a shift that is not exact in {target}, the first at {_first(bad)} of "
            f"[row, group]; the farthest is {least}, and {fmt.element} may be shifted by {shifts[0]} to {shifts[-1]}",
            fix="put power-of-two-scales in the recipe, which keeps scales near enough",
        )


def _any_nonzero(codes_NK: Tensor, fmt: Format) -> Tensor:
    """[N, G]: whether a group has a code other than zero."""
    magnitude = codes_NK & (2 ** (fmt.bits - 1) - 1) if fmt.grid.is_float else codes_NK
    return groups.grouped(magnitude != 0, fmt).any(-1)


def _look_up(codes_NK: Tensor, row_NG: Tensor, fmt: Format, target: str) -> Tensor:
    """Bytes of codes, each group with its own row of the table."""
    flat = torch.tensor(table(fmt, target), dtype=torch.uint8, device=codes_NK.device).flatten()
    width = codes_NK.shape[1]
    result = torch.empty(codes_NK.shape, dtype=torch.uint8, device=codes_NK.device)
    step = max(1, _AT_ONCE // max(1, width))
    for first in range(0, len(codes_NK), step):
        rows = slice(first, first + step)
        pattern = codes_NK[rows].to(torch.int32) & (2**fmt.bits - 1)
        result[rows] = flat[groups.spread(row_NG[rows], width, fmt) * 2**fmt.bits + pattern]
    dtype = GRIDS[target].dtype
    assert dtype is not None
    return result.view(dtype)


def _first(bad: Tensor) -> tuple[int, ...]:
    return tuple(int(index) for index in bad.nonzero()[0])
