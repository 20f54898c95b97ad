"""Products with stacked weights [E, N, K] become ``qpass.grouped_linear``, found from the dataflow.

before   %y = _grouped_mm(%x, transpose(w, -2, -1), %offsets)           rows are sorted by expert
before   %y = squeeze(bmm(index(w, [%ids]), unsqueeze(%x, -1)), -1)     each row fetches the weight of its expert
after    %y = qpass.grouped_linear(%x, w, %offsets)

In the second, rows are sorted by expert first and put back behind. Exact but for the order of the sums of a row. In the
first, experts that a histogram and its running sum count are looked up in the sorted ids instead: the same numbers, in
one kernel.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from qpass import ops
from qpass.graph.program import Change, Program, copy_graph
from qpass.graph.rewrite import infer
from qpass.graph.values import assign_names, op_name

aten = torch.ops.aten


def raise_experts(program: Program) -> Program:
    """Apply both spellings wherever the weight is a parameter of the model."""
    if not any(_is_stack(node) for node in program.graph.nodes):
        return program
    graph, _ = copy_graph(program.graph)
    state = _State(program, graph)
    for node in list(graph.nodes):
        spelling = _SPELLINGS.get(op_name(node.target)) if node.op == "call_function" else None
        if spelling is not None:
            spelling(state, node)
    graph.eliminate_dead_code()
    assign_names(graph)
    return program.with_graph(graph, log=(*program.log, *state.log))


def _is_stack(node: Any) -> bool:
    return isinstance(node, fx.Node) and node.op == "get_attr" and node.meta["val"].dim() == 3


class _State:
    """One run. ``sorts``: expert ids of rows -> the order by expert, where each expert ends, the way back. ``counted``:
    counts of rows, added up -> the same, looked up."""

    def __init__(self, program: Program, graph: fx.Graph) -> None:
        self.graph, self.weights = graph, program.weights
        self.log: list[Change] = []
        self.sorts: dict[fx.Node, tuple[fx.Node, fx.Node, fx.Node]] = {}
        self.counted: dict[fx.Node, fx.Node] = {}

    def stack(self, node: Any) -> fx.Node | None:
        """The weight [E, N, K] that ``node`` is."""
        return node if _is_stack(node) and node.target in self.weights else None

    def columns_first(self, node: Any) -> fx.Node | None:
        """The weight [E, N, K] that ``node`` is the transposed view [E, K, N] of, as ``normalise`` leaves it."""
        return self.stack(node.args[0]) if isinstance(node, fx.Node) and _is_transposed(node) else None

    def call(self, before: fx.Node, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """A typed call before ``before``."""
        with self.graph.inserting_before(before):
            made = self.graph.call_function(target, args, kwargs)
        made.meta.update(scopes=before.meta.get("scopes", ()), rule="raise/experts")
        infer(made)
        return made

    def replace(self, node: fx.Node, result: fx.Node, how: str) -> None:
        """``result`` stands for ``node`` from now on."""
        result.meta["name"] = node.meta["name"]
        node.meta["name"] += ".stacked"
        node.replace_all_uses_with(result)
        self.log.append(Change("raise/experts", result.meta["name"], how))

    def by_expert(self, ids: fx.Node, experts: int) -> tuple[fx.Node, fx.Node, fx.Node]:
        """What ``sorts`` holds for these ids; made where they are."""
        if ids not in self.sorts:
            at = ids.next
            ordered = self.call(at, aten.sort.default, ids)
            values, order = (self.call(at, operator.getitem, ordered, index) for index in (0, 1))
            ends = self.ends(at, values, experts)
            back = self.call(at, operator.getitem, self.call(at, aten.sort.default, order), 1)
            self.sorts[ids] = order, ends, back
        return self.sorts[ids]

    def ends(self, at: fx.Node, ordered: fx.Node, experts: int) -> fx.Node:
        """int32 [E]: where the rows of each expert end, of sorted ids."""
        numbers = self.call(at, aten.arange.default, experts, device=ordered.meta["val"].device)
        return self.call(at, aten.searchsorted.Tensor, ordered, numbers, right=True, out_int32=True)

    def looked_up(self, offsets: fx.Node) -> fx.Node:
        """``cumsum(histc(sorted ids, E, 0, E - 1))`` by ``ends``; other offsets as they are."""
        if offsets not in self.counted:
            ordered = _counted(offsets)
            ends = None if ordered is None else self.ends(offsets, ordered, offsets.meta["val"].shape[0])
            self.counted[offsets] = offsets if ends is None else ends
        return self.counted[offsets]


def _counted(offsets: fx.Node) -> fx.Node | None:
    """The sorted ids, 0 or more, whose histogram of one bin for each expert ``offsets`` adds up."""
    counts = offsets.args[0] if offsets.target is aten.cumsum.default else None
    if not isinstance(counts, fx.Node) or counts.target is not aten.histc.default:
        return None
    (ids, *bins), experts = counts.args, offsets.meta["val"].shape[0]
    if ids.target is aten._to_copy.default and counts.meta["val"].dtype.itemsize >= 4:  # type: ignore[union-attr]
        ids = ids.args[0]  # type: ignore[union-attr]  # a dtype that holds any number of an expert
    ordered = _item(ids, aten.sort.default, 0)
    plain = ordered is not None and not ordered.args[1:] and not ordered.kwargs
    if bins != [experts, 0, experts - 1] or not plain or offsets.meta["val"].dtype is not torch.int32:
        return None
    chosen = ordered.args[0]  # type: ignore[union-attr]
    while isinstance(chosen, fx.Node) and chosen.target in (aten.reshape.default, aten.view.default):
        chosen = chosen.args[0]
    return ids if _item(chosen, aten.topk.default, 1) is not None else None  # type: ignore[return-value]


def _item(node: Any, target: Any, index: int) -> fx.Node | None:
    """The call of ``target`` whose result of that number ``node`` is."""
    if not isinstance(node, fx.Node) or node.target is not operator.getitem or node.args[1] != index:
        return None
    source = node.args[0]
    return source if isinstance(source, fx.Node) and source.target is target else None


def _is_transposed(node: fx.Node) -> bool:
    """Whether this swaps the last two of three dimensions."""
    if node.target is aten.permute.default:
        return [dim % 3 for dim in node.args[1]] == [0, 2, 1]  # type: ignore[union-attr]
    return node.target is aten.transpose.int and sorted(dim % 3 for dim in node.args[1:3]) == [1, 2]  # type: ignore[operator]


def _sorted_rows(state: _State, node: fx.Node) -> None:
    """``_grouped_mm(x [S, K], w [E, K, N], offsets)``."""
    x, weight, offsets, *rest = (*node.args, *node.kwargs.values())
    if offsets is None or any(arg is not None for arg in rest) or x.meta["val"].dim() != 2:  # type: ignore[union-attr]
        return
    found = state.columns_first(weight)
    if found is not None and x.meta["val"].dtype == found.meta["val"].dtype:  # type: ignore[union-attr]
        ends = state.looked_up(offsets)  # type: ignore[arg-type]
        state.replace(node, state.call(node, ops.grouped_linear, x, found, ends), "rows sorted by expert")


def _batched(state: _State, node: fx.Node) -> None:
    """A batch of products of one row each, with the weight that it fetches."""
    one, two = node.args[:2]
    for fetched, x, last in ((one, two, True), (two, one, False)):
        if isinstance(fetched, fx.Node) and fetched.target is aten.index.Tensor:
            return _fetched(state, node, fetched, x, last=last)
    return None


def _fetched(state: _State, node: fx.Node, fetched: fx.Node, x: Any, *, last: bool) -> None:
    """``bmm(w[ids], x [S, K, 1])``, or with x [S, 1, K] on the left and weights [E, K, N]."""
    source, indices = fetched.args[:2]
    single = -1 if last else -2
    if len(indices) != 1 or indices[0] is None or x.meta["val"].shape[single] != 1:  # type: ignore[arg-type, index]
        return
    ids = indices[0]  # type: ignore[index]
    if ids.meta["val"].dim() != 1 or ids.meta["val"].dtype not in (torch.int64, torch.int32):
        return
    if len(fetched.users) > 1 or (weight := state.stack(source) if last else state.columns_first(source)) is None:
        return
    order, ends, back = state.by_expert(ids, weight.meta["val"].shape[0])
    rows = state.call(node, aten.squeeze.dim, x, single)
    rows = state.call(node, aten.index.Tensor, rows, [order])
    result = state.call(node, ops.grouped_linear, rows, weight, ends)
    name = result.meta["name"] = f"{node.meta['name']}.sorted"
    result = state.call(node, aten.index.Tensor, result, [back])
    state.replace(node, state.call(node, aten.unsqueeze.default, result, single), f"rows sorted by expert for %{name}")


_SPELLINGS = {
    "_grouped_mm": _sorted_rows, "transformers.grouped_mm_fallback": _sorted_rows, "bmm": _batched, "matmul": _batched,
}  # fmt: skip
