"""Small random inputs that fit a program: what an edit is checked on."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx
from transformers import DynamicCache

from qpass.capture.causal_call import CausalLMCall, store
from qpass.capture.module_call import ModuleCall
from qpass.graph.program import Program

aten = torch.ops.aten

_SMALL = (2, 5, 3, 4, 6, 7)
_BATCH, _SEQ, _PAST = 2, 5, 3
_MOVES = frozenset({
    "view", "reshape", "_unsafe_view", "unsqueeze", "squeeze", "expand", "slice", "_to_copy", "clone", "permute",
    "transpose", "contiguous",
})  # fmt: skip


def random_inputs(program: Program, *, seed: int = 0, captured_sizes: bool = False) -> list[Any]:
    """Flat inputs for the program's placeholders, on their devices.

    Token ids are random rows of the table that they index; masks are all ones; other integers are ones; floats are
    normal; a language model's cache holds a past of 3 tokens. Symbolic sizes are small and legal, or, with
    ``captured_sizes``, what the program was captured with.
    """
    generator = torch.Generator().manual_seed(seed)
    if isinstance(program.call, CausalLMCall) and len(program.call.inputs) == len(program.placeholders()):
        return _causal(program, program.call, generator)
    sizes = _sizes(program, captured_sizes)
    fill = program.call.fill if isinstance(program.call, ModuleCall) else {}
    names = [spec.name for spec in program.call.inputs] if program.call is not None else []
    inputs = []
    for number, node in enumerate(program.placeholders()):
        known = names[number] if len(names) == len(program.placeholders()) else ""
        inputs.append(_input(node, sizes, fill.get(known), generator))
    return inputs


def _causal(program: Program, call: CausalLMCall, generator: torch.Generator) -> list[Any]:
    """Ids, mask, positions and kept rows as the model's own call makes them, after a past of 3 tokens."""
    node = program.placeholders()[0]
    ids = torch.randint(0, _table(node, {}) or 2, (_BATCH, _SEQ), generator=generator).to(call.device)
    shapes = [(_BATCH, spec.heads, _PAST, spec.head_dim) for spec in call.kv]
    past = [torch.randn(shape, generator=generator).to(call.device, spec.dtype) for shape, spec in zip(shapes, call.kv)]
    cache = DynamicCache()
    store(cache, past)
    arguments: dict[str, Any] = {"input_ids": ids, call.cache_argument: cache}
    if call.takes_positions:
        arguments["position_ids"] = torch.arange(_PAST, _PAST + _SEQ, device=call.device).expand(_BATCH, -1)
    return list(call.flatten((), arguments))


def _input(node: fx.Node, sizes: Mapping[Any, int], fill: int | None, generator: torch.Generator) -> Any:
    value = node.meta["val"]
    if not isinstance(value, Tensor):
        return _size(value, sizes) if isinstance(value, torch.SymInt | int) else value
    shape = [_size(size, sizes) for size in value.shape]
    if value.dtype.is_floating_point or value.dtype.is_complex:
        made = torch.randn(shape, generator=generator)
    elif value.dtype is torch.bool or fill is not None:
        made = torch.full(shape, 1 if fill is None else fill)
    else:
        rows = _table(node, sizes)
        made = torch.randint(0, rows, shape, generator=generator) if rows else torch.ones(shape)
    return made.to(device=value.device, dtype=value.dtype)


def _table(node: fx.Node, sizes: Mapping[Any, int]) -> int | None:
    """Rows of the smallest table that an integer input indexes, perhaps after some moving; None if it indexes none."""
    found: list[int] = []
    left, seen = deque([node]), {node}
    while left:
        value = left.popleft()
        for user in value.users:
            name = str(getattr(user.target, "_schema", user.target)).split("(")[0].split("::")[-1].split(".")[0]
            if name == "embedding" and user.args[1] is value:
                found.append(_size(user.args[0].meta["val"].shape[0], sizes))  # type: ignore[union-attr]
            elif name == "index" and value in (user.args[1] or ()):  # type: ignore[operator]
                place = list(user.args[1]).index(value)  # type: ignore[arg-type]
                found.append(_size(user.args[0].meta["val"].shape[place], sizes))  # type: ignore[union-attr]
            elif name in ("index_select", "gather") and user.args[2] is value:
                found.append(_size(user.args[0].meta["val"].shape[user.args[1]], sizes))  # type: ignore[union-attr]
            elif name in _MOVES and user not in seen:
                seen.add(user)
                left.append(user)
    return min(found, default=None)


def _sizes(program: Program, captured: bool) -> dict[Any, int]:
    """A size for each symbol of the inputs' shapes, within its range."""
    sizes: dict[Any, int] = {}
    for node in program.placeholders():
        value = node.meta["val"]
        for size in value.shape if isinstance(value, Tensor) else (value,):
            if not isinstance(size, torch.SymInt):
                continue
            for symbol in sorted(size.node.expr.free_symbols, key=str):
                if symbol not in sizes:
                    sizes[symbol] = _legal(size, symbol, _SMALL[len(sizes) % len(_SMALL)], captured)
    return sizes


def _legal(size: torch.SymInt, symbol: Any, small: int, captured: bool) -> int:
    environment = size.node.shape_env
    # renamed in torch 2.13
    examples = getattr(environment, "backed_var_to_val", None) or getattr(environment, "var_to_val", {})
    if captured and symbol in examples:
        return int(examples[symbol])
    bounds = environment.var_to_range.get(symbol)
    if bounds is None:
        return small
    return int(min(max(small, int(bounds.lower)), bounds.upper))


def _size(size: Any, sizes: Mapping[Any, int]) -> int:
    return int(size.node.expr.subs(sizes)) if isinstance(size, torch.SymInt) else int(size)
