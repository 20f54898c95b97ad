"""linear(x, w, b) -> quantize the rows of x, int8 products, one dyadic factor a channel and one a row."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, fx

from qpass import ops
from qpass.formats import Format
from qpass.graph.program import Derived
from qpass.numerics import codec
from qpass.numerics.integer.dyadic import fit
from qpass.numerics.integer.linear import room
from qpass.numerics.integer.quantize import largest_code
from qpass.numerics.scales import Scales
from qpass.passes.integer.dyadics import constant_row, dyadic_vector
from qpass.passes.integer.state import Row, State, name_of, refused
from qpass.passes.quantise import check_finite

aten = torch.ops.aten


def _check(node: fx.Node) -> tuple[Format, Format]:
    """The formats of weight and input. Raises UnsupportedError for those that have no integer form."""
    choice = node.meta["plan"]
    if choice.scheme is None:
        raise refused(f"a linear that stays in float ({choice.reason})", node, "give it a scheme in the recipe")
    weight, inputs = choice.scheme.weight, choice.scheme.input
    integer = not weight.grid.is_float and weight.granularity == "channel" and weight.scale == "f32"
    if not integer or not weight.symmetric or weight.rank or weight.bits > 8:
        raise refused(f"the weight format {weight} in an integer-only program", node,
                      "use int8:channel:sym, or fewer bits")  # fmt: skip
    if inputs is None or inputs.grid.is_float or inputs.granularity != "token" or inputs.static or inputs.full:
        raise refused(f"the input format {inputs or 'float'} in an integer-only program", node,
                      "use int8:token:asym or int8:token:sym")  # fmt: skip
    return weight, inputs


def linear(state: State, node: fx.Node) -> Row:
    """The rule of aten.linear."""
    weight, inputs = _check(node)
    source, name = node.args[0], name_of(node.args[1], node)
    x = state.row(source, node)
    assert isinstance(source, fx.Node)
    codes, zero, m, k = state.quantized(source, x, inputs.bits, inputs.symmetric)
    rows, width = state.program.like(name).shape
    parts = weight_parts(state, name, weight, rows)
    bias: tuple[Any, ...] = (None, None)
    if len(node.args) > 2 and node.args[2] is not None:
        bias = constant_row(state, name_of(node.args[2], node), rows)
    most = largest_code(weight.bits, True) + weight.full
    up = room(width, largest_code(inputs.bits, inputs.symmetric), most)
    offsets = (None, None) if inputs.symmetric else (zero, parts[-1])
    result = state.rows(ops.integer_linear, codes, offsets[0], m, k, *parts[:-1], offsets[1], *bias, up, like=node)
    result.x.meta["plan"] = node.meta["plan"]
    return result


def weight_parts(state: State, name: str, fmt: Format, rows: int) -> tuple[fx.Node, ...]:
    """Codes, the dyadic vector of the scales, and sums of the codes' rows; codes and scales as a method left them."""
    value = state.program.like(name)
    if f"{name}.scale" not in state.params:
        tensor = state.program.tensor(name)
        check_finite(name, tensor)
        state.params[f"{name}.scale"] = codec.choose(tensor, fmt).scale
    if f"{name}.codes" not in state.params:
        if state.options.mantissa < 15:  # codes are those of the scale that is stored: short mantissas cost range only
            state.params[f"{name}.scale"] = _short(_scale(state, name), state.options.mantissa)
        like = torch.empty(value.shape, dtype=fmt.code_dtype, device="meta")
        compute = functools.partial(_round, fmt=fmt)
        state.params[f"{name}.codes"] = Derived((name, f"{name}.scale"), compute, like)
        state.history[f"{name}.codes"] = (*state.history.get(name, ()), f"round to nearest {fmt}")
    codes = state.param(f"{name}.codes")
    scale = dyadic_vector(state, name, f"{name}.scale", rows, torch.flatten, "scales as m / 2^k",
                          state.options.mantissa)  # fmt: skip
    sums = state.derive(name, [("sum", (rows,), torch.int32)], [f"{name}.codes"], _sums, "sums of codes")
    return codes, *scale, *sums


def _scale(state: State, name: str) -> Tensor:
    found = state.params[f"{name}.scale"]
    return found if isinstance(found, Tensor) else state.program.tensor(f"{name}.scale")


def _short(scale: Tensor, bits: int) -> Tensor:
    m, k = fit(scale, bits)
    return (m * torch.exp2(-k.double())).to(scale.dtype)


def _round(weight: Tensor, scale: Tensor, fmt: Format) -> Tensor:
    return codec.quantize(weight, Scales(scale, None, None), fmt)


def _sums(codes: Tensor) -> tuple[Tensor]:
    return (codes.sum(1, dtype=torch.int32),)


RULES = {aten.linear.default: linear}
