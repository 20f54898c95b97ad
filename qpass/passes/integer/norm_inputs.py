"""Static scales of what norms read, one a channel: for the integer modes that are after the paper.

SOLVED   %x feeds a norm            ->   param integer.x.low, integer.x.high : f32[C], the ends seen on calibration data
INTEGER  integer_rms_norm(%x, ...)  ->   integer_rms_norm(%x, ..., integer.x.channels : i32[4, C])
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from qpass import ops
from qpass.graph.program import Program
from qpass.numerics.integer.channels import MOST
from qpass.numerics.integer.dyadic import fit, fit_one
from qpass.observe.run import observe
from qpass.passes.integer.state import State, refused

_MANTISSA = 8
_FRACTION = 8
_APART = 13  # a ratio has 22 bits: channels further below the widest have fewer fraction bits
_NORMS = (ops.rms_norm, ops.layer_norm)


def with_norm_inputs(program: Program, batches: Iterable[Any]) -> Program:
    """The program with the least and greatest value of each channel that a norm reads. Errors as in ``observe``."""
    names = list(dict.fromkeys(_inputs(program)))
    stats = observe(program, batches, names) if names else {}
    params = dict(program.params)
    for name in names:
        seen = stats[name]
        assert seen.low is not None and seen.high is not None
        params |= {f"{_base(name)}.low": seen.low, f"{_base(name)}.high": seen.high}
    return replace(program, params=params)


def _inputs(program: Program) -> Iterator[str]:
    for node in program.nodes():
        if node.target in _NORMS:
            yield str(node.args[0].meta["name"])  # type: ignore[union-attr]


def _base(name: str) -> str:
    return f"integer.{name.replace('/', '.')}"


def norm_options(state: State, node: fx.Node, eps: float) -> tuple[Any, ...]:
    """eps' mantissa and exponent, the mode, and in the modes that need them the channels, of a norm's op.

    Raises:
        UnsupportedError: no static scales in the program.
    """
    mode, width = state.options.mode, node.meta["val"].shape[-1]
    if not state.options.static:
        return (*fit_one(width * eps), mode)
    source = node.args[0]
    assert isinstance(source, fx.Node)
    base = _base(str(source.meta["name"]))
    if f"{base}.low" not in state.params:
        raise refused(f"the mode {mode!r} reads a norm's input by static scales, and there are none", node,
                      "pass calibration data, with the mode in the recipe")  # fmt: skip
    ends = (state.program.tensor(f"{base}.{end}") for end in ("low", "high"))
    channels, unit = fit_channels(*ends, literal=mode == "literal")
    what = "static scales, zero points and ratios a channel"
    made = state.param(f"{base}.channels", channels.to(state.device), what)
    return (*fit_one(width * eps / unit**2), mode, made)


def fit_channels(low: Tensor, high: Tensor, *, literal: bool) -> tuple[Tensor, float]:
    """(channels int32 [4, C] as in ``numerics.integer.channels``, value of one shared unit).

    Args:
        low, high: [C], the ends of each channel; 0 is always within.
        literal: ratios as they are printed: integers, of mantissas shifted to the least exponent, floored. Otherwise
            they have eight fraction bits.
    """
    low, high = low.double().clamp(max=0), high.double().clamp(min=0)
    step = (high - low) / MOST
    m, k = fit(step.clamp(min=max(float(step.max()) * 2.0**-20, 2.0**-60)), _MANTISSA)
    scale = m.double() * torch.exp2(-k.double())
    inverse, exponent = fit(1 / scale)
    zero = torch.round(-low / scale).clamp(0, MOST)
    if literal:
        shifted = (m >> (k - k.min()).clamp(max=62)).clamp(min=1)
        ratio, unit = shifted // shifted.min(), float(scale.min())
    else:
        least = max(float(scale.min()), float(scale.max()) * 2.0**-_APART)
        ratio, unit = torch.round(scale / least * 2**_FRACTION).clamp(min=1), least / 2**_FRACTION
    return torch.stack([part.to(torch.int32) for part in (inverse, exponent, zero, ratio)]), unit
