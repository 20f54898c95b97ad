"""CAPTURED -> NORMAL: one spelling for one thing.

Patterns go through this same file, so a pattern and a model that mean the same thing are written the same way.
Every step keeps the numbers bit for bit.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from qpass.graph.program import Program, copy_graph
from qpass.graph.values import assign_names

aten = torch.ops.aten

_ASSERTS = {"_assert_tensor_metadata", "_assert_scalar", "_assert_async", "sym_constrain_range",
            "sym_constrain_range_for_size"}
_SAME = {aten.alias.default, aten.detach.default, aten.clone.default, aten.lift_fresh_copy.default,
         aten.detach_copy.default, aten.alias_copy.default, aten.contiguous.default}
_DIM = {aten.cat.default: 1, aten.slice.Tensor: 1, aten.softmax.int: 1, aten._softmax.default: 1, aten.mean.dim: 1,
        aten.sum.dim_IntList: 1, aten.amax.default: 1, aten.amin.default: 1, aten.select.int: 1,
        aten.split.Tensor: 2, aten.split_with_sizes.default: 2, aten.chunk.default: 2}
_RENAMED = {aten.view.default: aten.reshape.default, aten._unsafe_view.default: aten.reshape.default,
            aten.__and__.Tensor: aten.bitwise_and.Tensor, aten.__or__.Tensor: aten.bitwise_or.Tensor}

# Just so many arguments are written: a dimension always; layer_norm's eps, and not cudnn_enable, which does nothing.
_WRITTEN = {aten.layer_norm.default: 5, aten.cat.default: 2, aten.stack.default: 2, aten.chunk.default: 3,
            aten.split.Tensor: 3, aten.split_with_sizes.default: 3}


def normalise(program: Program) -> Program:
    """The same program without asserts, no-op casts, aliases and copies, with linears and dims in one spelling.

    Weights of linears are [N, K], stacked weights that rows fetch or are sorted for [E, N, K].
    """
    graph, _ = copy_graph(program.graph)
    params = dict(program.params)
    normalise_graph(graph)
    _linears(graph, params)
    _stacks(graph, params)
    graph.eliminate_dead_code()
    assign_names(graph)
    return program.with_graph(graph, params=params, stage="NORMAL")


def normalise_graph(graph: fx.Graph) -> None:
    """The steps that need no parameters, in place; patterns use it too."""
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        if op_base(node) in _ASSERTS:
            graph.erase_node(node)
            continue
        node.target = _RENAMED.get(node.target, node.target)
        _respell_cast(node)
        _respell_view(node)
        _respell_square(node)
        _respell_softmax(node)
        _respell_filled(node)
        _drop_defaults(node)
        same = _same_as(node)
        if same is not None:
            _keep_name(node, same)
            node.replace_all_uses_with(same)
            graph.erase_node(node)
            continue
        _respell_dims(node)
    graph.eliminate_dead_code()


def _keep_name(dropped: fx.Node, same: Any) -> None:
    """The result of a module keeps the module's name when the no-op that ended the module goes."""
    path = dropped.meta.get("name")
    inner = same.meta.get("scopes", ()) if isinstance(same, fx.Node) and same.op == "call_function" else ()
    if path in dropped.meta.get("scopes", ()) and path in inner and same.meta.get("name") not in inner:
        same.meta["name"] = dropped.meta.pop("name")


def op_base(node: fx.Node) -> str:
    """``linear`` for ``aten.linear.default``; the plain name of any other callable."""
    packet = getattr(node.target, "overloadpacket", None)
    return packet.__name__ if packet is not None else getattr(node.target, "__name__", "")


def _shape(arg: Any) -> tuple[Any, ...] | None:
    value = arg.meta.get("val") if isinstance(arg, fx.Node) else None
    return tuple(value.shape) if isinstance(value, torch.Tensor) else None


def _respell_cast(node: fx.Node) -> None:
    """``to(x, dtype)``, ``type_as`` and ``_to_copy(x, dtype=, device=same)`` -> ``_to_copy(x, dtype=)``."""
    if node.target in (aten.to.dtype, aten.to.dtype_layout, aten.type_as.default, aten._to_copy.default):
        source, value = node.args[0], node.meta["val"]
        if source.meta["val"].device == value.device and node.kwargs.get("memory_format") is None:
            node.target, node.args, node.kwargs = aten._to_copy.default, (source,), {"dtype": value.dtype}


def _respell_square(node: fx.Node) -> None:
    """``square(x)`` -> ``pow(x, 2)``, which is how ATen computes it."""
    if node.target is aten.square.default:
        node.target, node.args = aten.pow.Tensor_Scalar, (node.args[0], 2)


def _respell_softmax(node: fx.Node) -> None:
    """``softmax(x, dim, dtype)`` in the dtype that x has -> ``softmax(x, dim)``."""
    if node.target is aten.softmax.int and len(node.args) == 3 and node.args[2] == node.args[0].meta["val"].dtype:
        node.args = node.args[:2]


def _respell_filled(node: fx.Node) -> None:
    """``slice_scatter`` of pieces, one after another, that cover all of a tensor -> ``cat`` of the pieces."""
    pieces: dict[int, tuple[int, Any]] = {}
    at: Any = node
    while isinstance(at, fx.Node) and at.target is aten.slice_scatter.default and at.args[2:3] == node.args[2:3]:
        size = (_shape(at) or ())[at.args[2] if len(at.args) > 2 else 0]
        start, end, step = (*at.args[3:], *(None, None, 1)[len(at.args[3:]):])
        if not all(isinstance(bound, int) for bound in (size, start or 0, end or 0, step)) or step != 1:
            return
        start, end, _ = slice(start, end).indices(size)
        pieces[start] = (end, at.args[1])
        ends = [0, *(pieces[first][0] for first in sorted(pieces))]
        if sorted(pieces) == ends[:-1] and ends[-1] == size:
            node.target, node.args = aten.cat.default, ([pieces[first][1] for first in sorted(pieces)], *node.args[2:3])
            return
        at = at.args[0]


def _drop_defaults(node: fx.Node) -> None:
    """Trailing arguments that equal the schema's defaults are not written; ops of ``_WRITTEN`` have a fixed number."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return
    plain = [argument for argument in schema.arguments if not argument.kwarg_only]
    keep = _WRITTEN.get(node.target, 0)
    args = list(node.args[:keep or None])
    args += [argument.default_value for argument in plain[len(args):keep]]
    while len(args) > keep and plain[len(args) - 1].has_default_value():
        if not _same_literal(args[-1], plain[len(args) - 1].default_value):
            break
        args.pop()
    node.args = tuple(args)


def _same_literal(one: Any, two: Any) -> bool:
    return type(one) is type(two) and not isinstance(one, fx.Node | list) and bool(one == two)


def _respell_view(node: fx.Node) -> None:
    """``flatten`` and ``reshape(x, [.., -1])`` with a known size -> ``reshape`` with every size written.

    But ``flatten(-2)`` of a stack is left, or made: it interleaves, whatever the sizes are.
    """
    if _joins_stack(node):
        node.target, node.args = aten.flatten.using_ints, (node.args[0], -2)
        return
    if node.target is aten.flatten.using_ints:
        sizes: list[Any] | None = list(node.meta["val"].shape)
    elif node.target in (aten.reshape.default, aten.expand.default) and -1 in node.args[1]:
        sizes = [known if size == -1 and isinstance(known, int) else size
                 for size, known in zip(node.args[1], node.meta["val"].shape)]
    else:
        return
    if node.target is aten.flatten.using_ints and all(isinstance(size, int) for size in sizes):
        node.target = aten.reshape.default
    if node.target is not aten.flatten.using_ints:
        node.args = (node.args[0], sizes)


def _joins_stack(node: fx.Node) -> bool:
    if node.target not in (aten.flatten.using_ints, aten.reshape.default) or not isinstance(node.args[0], fx.Node):
        return False
    before, after = _shape(node.args[0]) or (), _shape(node) or ()
    if node.args[0].target is not aten.stack.default or len(before) != len(after) + 1:
        return False
    return all(_equal(one, two) for one, two in zip(before[:-2], after[:-1]))


def _same_as(node: fx.Node) -> Any:
    """The operand that this node equals bit for bit, or None."""
    first = node.args[0] if node.args else None
    if node.target in _SAME:
        return first
    if node.target is aten._to_copy.default and "memory_format" not in node.kwargs:
        return first if first.meta["val"].dtype == node.meta["val"].dtype and _same_device(first, node) else None
    if node.target is aten.copy.default:
        source = node.args[1]
        return _if_same_type(source, node) if _same_device(source, node) else None
    if node.target is aten.dropout.default and not node.args[2]:
        return first
    if node.target in (aten.mul.Tensor, aten.mul.Scalar) and _is_number(node.args[1], 1):
        return _if_same_type(first, node)
    if node.target is aten.add.Tensor and _is_number(node.args[1], 0) and not node.meta["val"].is_floating_point():
        return _if_same_type(first, node)
    if node.target is aten.expand.default or node.target is aten.reshape.default:
        return first if _same_shape(first, node) else None
    if node.target is aten.slice.Tensor:
        return _whole_slice(node)
    if node.target is aten.cat.default:
        return _cat(node)
    if node.target is operator.getitem and isinstance(first, list | tuple):
        return first[node.args[1]]
    return None


def _is_number(arg: Any, number: float) -> bool:
    return isinstance(arg, int | float) and not isinstance(arg, bool) and arg == number


def _same_device(one: fx.Node, two: fx.Node) -> bool:
    return bool(one.meta["val"].device == two.meta["val"].device)


def _same_shape(one: Any, two: fx.Node) -> bool:
    shapes = _shape(one), _shape(two)
    if shapes[0] is None or len(shapes[0]) != len(shapes[1] or ()):
        return False
    return all(_equal(a, b) for a, b in zip(*shapes))


def _equal(one: Any, two: Any) -> bool:
    """Whether two sizes are the same expression; never evaluates a symbolic guard."""
    if isinstance(one, int) and isinstance(two, int):
        return one == two
    if isinstance(one, torch.SymInt) and isinstance(two, torch.SymInt):
        return bool(one.node.expr == two.node.expr)
    return False


def _if_same_type(one: Any, two: fx.Node) -> Any:
    return one if one.meta["val"].dtype == two.meta["val"].dtype and _same_shape(one, two) else None


def _whole_slice(node: fx.Node) -> Any:
    step = node.args[4] if len(node.args) > 4 else 1
    start = node.args[2] if len(node.args) > 2 else None
    return node.args[0] if start in (0, None) and step == 1 and _same_shape(node.args[0], node) else None


def _cat(node: fx.Node) -> Any:
    """Drop operands of shape [0], which cat ignores; a cat of one operand is that operand."""
    dtype = node.meta["val"].dtype
    kept = [arg for arg in node.args[0] if not _is_nothing(arg)] or list(node.args[0][:1])
    if any(arg.meta["val"].dtype != dtype for arg in node.args[0]):
        return None
    if len(kept) == 1:
        return kept[0]
    node.args = (kept, *node.args[1:])
    return None


def _is_nothing(arg: Any) -> bool:
    shape = _shape(arg)
    return shape is not None and len(shape) == 1 and isinstance(shape[0], int) and shape[0] == 0


def _respell_dims(node: fx.Node) -> None:
    """Dimensions count from the end, so that one pattern serves any rank."""
    target = node.target
    if target in _DIM and len(node.args) > _DIM[target]:
        position = _DIM[target]
        operand = node.args[0][0] if isinstance(node.args[0], list | tuple) else node.args[0]
        _set_arg(node, position, _negative(node.args[position], len(_shape(operand) or ())))
    elif target is aten.unsqueeze.default or (target is aten.stack.default and len(node.args) > 1):
        _set_arg(node, 1, _negative(node.args[1], len(_shape(node) or ())))
    elif target is aten.transpose.int:
        rank = len(_shape(node) or ())
        dims = sorted(_negative(dim, rank) for dim in node.args[1:3])
        node.args = (node.args[0], *dims)


def _negative(dim: Any, rank: int) -> Any:
    if isinstance(dim, list | tuple):
        return [_negative(item, rank) for item in dim]
    return dim - rank if isinstance(dim, int) and dim >= 0 else dim


def _set_arg(node: fx.Node, position: int, value: Any) -> None:
    args = list(node.args)
    args[position] = value
    node.args = tuple(args)


def _linears(graph: fx.Graph, params: dict[str, Any]) -> None:
    """``addmm(b, reshape(x), W)`` and ``matmul(x, t(W))`` -> ``linear(x, W', b)``, W' a transposed view."""
    for node in list(graph.nodes):
        respell: Callable[..., Any] | None = {aten.addmm.default: _addmm, aten.mm.default: _mm,
                                              aten.matmul.default: _mm}.get(node.target)
        if respell is not None:
            respell(graph, params, node)


def _addmm(graph: fx.Graph, params: dict[str, Any], node: fx.Node) -> None:
    if len(node.args) == 3 and not node.kwargs and len(_shape(node.args[0]) or ()) == 1:
        _to_linear(graph, params, node, x=node.args[1], weight=node.args[2], bias=node.args[0])


def _mm(graph: fx.Graph, params: dict[str, Any], node: fx.Node) -> None:
    _to_linear(graph, params, node, x=node.args[0], weight=node.args[1], bias=None)


def _to_linear(graph: fx.Graph, params: dict[str, Any], node: fx.Node, *, x: Any, weight: Any, bias: Any) -> None:
    if weight.op == "call_function" and _is_transpose(weight):
        source = weight.args[0]
        if source.op != "get_attr" or len(_shape(source) or ()) != 2:
            return
    elif weight.op == "get_attr" and len(_shape(weight) or ()) == 2 and len(weight.users) == 1:
        params[weight.target] = params[weight.target].t()
        weight.meta["val"] = weight.meta["val"].t()
        source = weight
    else:
        return
    with graph.inserting_before(node):
        linear = graph.call_function(aten.linear.default, (x, source) if bias is None else (x, source, bias))
    linear.meta = dict(node.meta)
    node.replace_all_uses_with(linear)
    graph.erase_node(node)
    _merge_views(graph, linear)


def _is_transpose(node: fx.Node) -> bool:
    """Whether this transposes a matrix, in whatever spelling; torch.export makes a permute of ``W.T``."""
    if node.target is aten.permute.default:
        return [dim % 2 for dim in node.args[1]] == [1, 0]
    return node.target in (aten.t.default, aten.transpose.int, aten.numpy_T.default)


_GROUPED = ("_grouped_mm", "grouped_mm_fallback")
_BATCHED = (aten.bmm.default, aten.matmul.default)


def _stacks(graph: fx.Graph, params: dict[str, Any]) -> None:
    """``_grouped_mm(x, w)`` and ``bmm(x, w[ids])`` with w [E, K, N] -> the same with a transposed view of [E, N, K]."""
    readers = Counter(node.target for node in graph.nodes if node.op == "get_attr")
    for node in [node for node in graph.nodes if node.op == "get_attr" and len(_shape(node) or ()) == 3]:
        if len(node.users) != 1 or readers[node.target] > 1 or not _multiplies(node, next(iter(node.users))):
            continue
        reader = next(iter(node.users))
        with graph.inserting_before(reader):
            turned = graph.call_function(aten.transpose.int, (node, -2, -1))
        turned.meta = {"val": node.meta["val"], "scopes": reader.meta.get("scopes", ())}
        params[node.target], node.meta["val"] = params[node.target].mT, node.meta["val"].mT
        reader.replace_input_with(node, turned)


def _multiplies(weight: fx.Node, reader: fx.Node) -> bool:
    """Whether ``reader`` sums over the second dimension of a weight [E, K, N], or what it fetches is so read."""
    if op_base(reader) in _GROUPED:
        return reader.args[1] is weight
    if reader.target is not aten.index.Tensor or len(reader.args[1]) != 1 or reader.args[0] is not weight:
        return False
    return all(user.target in _BATCHED and user.args[1] is reader for user in reader.users)


def _merge_views(graph: fx.Graph, linear: fx.Node) -> None:
    """``reshape(linear(reshape(x)))`` that only flattens the leading dims -> ``linear(x)``."""
    flat, users = linear.args[0], list(linear.users)
    if flat.target is not aten.reshape.default or len(users) != 1 or users[0].target is not aten.reshape.default:
        return
    x, after = flat.args[0], users[0]
    x_shape, out_shape = _shape(x) or (), _shape(after) or ()
    if len(x_shape) == len(out_shape) and all(_equal(a, b) for a, b in zip(x_shape[:-1], out_shape[:-1])):
        linear.replace_input_with(flat, x)
        linear.meta["val"] = after.meta["val"]
        after.replace_all_uses_with(linear)
        graph.erase_node(after)
