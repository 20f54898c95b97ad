"""A float value that follows from positions alone (cos and sin of rotary embedding) -> a table of integers.

The part of the float graph that makes it is run once, when the model is compiled, for every position there is a table
for. So any scaling of frequencies is covered, as long as a position's row depends on that position only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from qpass.errors import UnsupportedError
from qpass.graph.values import ancestors, op_name
from qpass.numerics.integer.rotary import PLACES
from qpass.passes.integer.state import State, refused

aten = torch.ops.aten


def angle_table(state: State, node: Any, user: fx.Node) -> fx.Node:
    """int16 Q14, of the shape of ``node``. Raises UnsupportedError where it is no function of positions."""
    if not isinstance(node, fx.Node):
        raise refused("rotary embedding by a number has no integer form", user)
    found = state.values.get(node)
    if isinstance(found, fx.Node):
        return found
    shape = tuple(node.meta["val"].shape)
    if node.target is aten.unsqueeze.default:
        base = angle_table(state, node.args[0], user)
        made = state.call(node.target, base, node.args[1], like=node, val=state.type(shape, torch.int16))
    else:
        made = _looked_up(state, node, user)
    state.values[node] = made
    return made


def _looked_up(state: State, node: fx.Node, user: fx.Node) -> fx.Node:
    """table[positions] for a value of shape [batch, seq, D]."""
    value, count = node.meta["val"], state.options.positions
    sources = [source for source in _placeholders(node) if not source.meta["val"].dtype.is_floating_point]
    by_value = [source for source in sources if source in _read(node)]
    if value.dim() != 3 or len(by_value) != 1 or by_value[0].meta["val"].dim() != 2:
        raise _no_table(user)
    positions = by_value[0]
    computed = _evaluate(state, node, positions, torch.arange(count, device=state.device)[None])
    alone = [(_evaluate(state, node, positions, torch.tensor([[place]], device=state.device)), place)
             for place in {0, count // 2}]  # what depends on the greatest position is seen in both
    if computed.shape != (1, count, value.shape[-1]) or not all(
        torch.allclose(row[0, 0], computed[0, place], rtol=0, atol=2.0**-PLACES) for row, place in alone
    ):
        raise refused("a rotary embedding whose rows depend on each other has no integer form", user)
    if float(computed.abs().max()) >= 2:
        raise refused("a rotary embedding that scales by 2 or more has no integer form", user)
    table = torch.round(computed[0].double() * 2**PLACES).to(torch.int16)
    name = f"integer.{node.meta['name'].replace('/', '.')}"
    held = state.param(name, table, f"{op_name(node.target)} at positions 0 to {count - 1}, Q{PLACES}")
    index = state.plain(positions, user)
    return state.call(aten.index.Tensor, held, [index], like=node, val=state.type(value.shape, torch.int16))


def _no_table(user: fx.Node) -> UnsupportedError:
    """What to say of cos or sin that no table of [batch, seq, D] holds: interleaved pairs spread them over heads."""
    if len(user.args) > 3 and user.args[3]:
        what = ("a rotary embedding of interleaved pairs, channels 2i and 2i + 1, whose cos and sin are not "
                "[batch, seq, D], has no integer form")  # fmt: skip
        return refused(what, user, "use a recipe that is not integer-only for this model, such as w8a8-int8")
    return refused("a rotary embedding that is no function of positions has no integer form", user)


def _placeholders(node: fx.Node) -> list[fx.Node]:
    return [source for source in ancestors(node) if source.op == "placeholder"]


def _read(node: fx.Node) -> set[fx.Node]:
    """The placeholders whose elements are read, not only their sizes."""
    every = ancestors(node)
    return {source for source in every if source.op == "placeholder"
            and any(user in every and user.target is not aten.sym_size.int for user in source.users)}  # fmt: skip


def _evaluate(state: State, node: fx.Node, positions: fx.Node, value: Tensor) -> Tensor:
    """The float value of ``node`` for those positions, each op as the float program has it."""
    known: dict[fx.Node, Any] = {positions: value}
    every = ancestors(node)
    for source in state.program.graph.nodes:
        if source not in every or source in known:
            continue
        if source.op == "get_attr":
            known[source] = state.program.tensor(str(source.target))
        elif source.op == "placeholder":
            # only its sizes are read: one sequence of that many positions and no past
            known[source] = value if source.meta["val"].dim() == 2 else value.new_zeros(1, 1, 0, 1)
        else:
            args, kwargs = fx.map_arg((source.args, source.kwargs), lambda arg: known[arg])
            known[source] = source.target(*args, **kwargs)  # type: ignore[operator]
    result = known[node]
    assert isinstance(result, Tensor)
    return result
