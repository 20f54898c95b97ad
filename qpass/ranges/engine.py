"""Bounds of every intermediate of a function of integer tensors: the function runs on meta tensors, op by op.

Nothing is assumed of an operator: what is interpreted is what it does, down to torch's own ops. Within a helper, a
number marked as a case is taken value by value, and what follows from each value is known of what it was made of
(``backward``); the results are joined at the helper's end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from qpass.capture.intercept import Intercept
from qpass.errors import UnsupportedError
from qpass.numerics.integer.marks import watched
from qpass.ranges import arithmetic, structure
from qpass.ranges.backward import refine
from qpass.ranges.contracts import CONTRACTS
from qpass.ranges.site import WIDTHS, Beyond, Overflow, Seen, Site, Wraps, site_of
from qpass.ranges.value import ELEMENT, FREE, ROW, Impossible, Value, hull, of

MOST_CASES = 128
MOST_HELD = 4096
STEP = 4096
_SHAPES: dict[Any, Any] = {}
_MEMO: dict[Any, tuple[Any, list[Value], dict[Any, Any]]] = {}  # of helpers, over programs: they are alike


class _Fork(Exception):
    def __init__(self, lo: int, hi: int) -> None:
        super().__init__()
        self.lo, self.hi = lo, hi


@dataclass
class _Frame:
    """One run of a helper: the values its cases take."""

    script: tuple[int, ...]
    at: int = 0


class Engine:
    """Interprets functions; ``seen`` has the bounds of every op by its site."""

    def __init__(self) -> None:
        self.count: int | None = None  # elements that the op between operators which runs now may sum; None: its own
        self.values: dict[int, tuple[Tensor, Value]] = {}
        self.frames: list[_Frame] = []
        self.seen: dict[Site, Seen] = {}
        if len(_MEMO) > MOST_HELD:
            _MEMO.clear()
        self.shapes, self.memo = _SHAPES, _MEMO

    # ---------------------------------------------------------------------------------------------- the table
    def look(self, tensor: Any) -> Value:
        """What is known of a tensor or a number."""
        if isinstance(tensor, Tensor):
            if id(tensor) not in self.values:
                raise UnsupportedError("a tensor that is read before it is written", where=str(site_of("read", 0)))
            return self.values[id(tensor)][1]
        return of(int(tensor))

    def hold(self, tensor: Tensor, value: Value) -> Tensor:
        """Know a tensor. It is kept alive, so that its identity is its own."""
        self.values[id(tensor)] = (tensor, value)
        return tensor

    def narrow(self, tensor: Tensor, value: Value) -> None:
        """Know more of a tensor, until the run of the helper ends."""
        self.hold(tensor, value)

    def run(self, fn: Callable[..., Any], *args: Any) -> Any:
        """``fn(*args)`` on tensors that ``hold`` has; results are held. Raises Wraps, UnsupportedError."""
        with torch.no_grad(), watched(self), Intercept(self.op):
            return fn(*args)

    def forget(self, kept: Sequence[Any]) -> None:
        """Drop every tensor but these."""
        keep = {id(leaf) for leaf in pytree.tree_leaves(kept) if isinstance(leaf, Tensor)}
        self.values = {key: (tensor, replace(value, made=None)) for key, (tensor, value) in self.values.items()
                       if key in keep}  # fmt: skip

    # -------------------------------------------------------------------------------------------------- ops
    def op(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an op on meta tensors, and its rule beside it."""
        name = func.overloadpacket.__name__
        if name in ("empty", "empty_like"):  # nothing is known of it, so nothing may read it before it is held
            return func(*args, **kwargs)
        result = self._shaped(func, args, kwargs)
        if isinstance(result, list):
            for part, value in zip(result, self._values(name, args, kwargs, result), strict=True):
                self.hold(part, value)
        else:
            self.hold(result, self._value(name, args, kwargs, result))
        return result

    def _shaped(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A result of the op's shape and dtype: found out once, as torch's own shape functions take long."""
        key = (func, _types(args), tuple((name, _types(arg)) for name, arg in kwargs.items()))
        if key not in self.shapes:
            result = func(*args, **kwargs)
            parts = list(result) if isinstance(result, list | tuple) else result
            self.shapes[key] = [_types(part) for part in parts] if isinstance(parts, list) else _types(parts)
        found = self.shapes[key]
        made = [torch.empty(size, dtype=dtype, device="meta")
                for size, dtype in (found if isinstance(found, list) else [found])]  # fmt: skip
        return made if isinstance(found, list) else made[0]

    def _grain(self, args: Any) -> int:
        leaves = [leaf for leaf in pytree.tree_leaves(args) if isinstance(leaf, Tensor)]
        return max((self.look(leaf).grain for leaf in leaves), default=FREE)

    def _values(
        self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], results: Sequence[Tensor]
    ) -> list[Value]:
        """Of an op with several results."""
        site = site_of(name, WIDTHS.get(results[0].dtype, 0))
        if name not in structure.SEVERAL:
            raise _unknown(name, site)
        if self._grain((args, kwargs)) != FREE:
            raise _mixing(name, site)
        values = structure.SEVERAL[name](self.look, args, kwargs, results)
        for value, result in zip(values, results):
            self._fits(value, result.dtype, site)
        return values

    def _value(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor) -> Value:
        site = site_of(name, WIDTHS.get(result.dtype, 0))
        grain = self._grain((args, kwargs))
        rule = arithmetic.rule_of(name)
        if rule is not None:
            value = self._pointwise(name, rule, args, kwargs, result, site)
        elif name in structure.RULES:
            if structure.mixes(name, args, self.look, grain, result):
                raise _mixing(name, site)
            if name == "index" and (beyond := structure.beyond(self.look, args)) is not None:
                raise Beyond(site, *beyond)
            value = structure.RULES[name](self.look, args, kwargs, result)
            if not site.file and name in ("sum", "cumsum") and self.count is not None:
                value = structure.many(self.look(args[0]), self.count)
            last = "last" if name == "sum" and structure.over_last(args) else None
            value = replace(value, made=(name, (args[0] if args else None, last)))
        else:
            raise _unknown(name, site)
        self._fits(value, result.dtype, site)
        return replace(value, grain=grain)

    def _pointwise(self, name: str, rule: Callable[..., Value], args: tuple[Any, ...], kwargs: dict[str, Any],
                   result: Tensor, site: Site) -> Value:  # fmt: skip
        given = list(args)
        if name == "clamp":
            given = [*args, *[None] * (3 - len(args))]
            given = [given[0], *(kwargs.get(key, given[at]) for at, key in ((1, "min"), (2, "max")))]
        operands = [None if part is None else self.look(part) for part in given]
        if name == "div" and kwargs.get("rounding_mode") != "floor":
            raise UnsupportedError("a division that does not floor", where=str(site), fix='rounding_mode="floor"')
        if kwargs.get("alpha", 1) != 1:
            raise UnsupportedError("a sum with a factor", where=str(site), fix="multiply first")
        bad = arithmetic.obligations(name, operands, WIDTHS[result.dtype])
        if bad:
            raise Wraps(Overflow(site, bad))
        value = replace(rule(*operands), made=(name, tuple(given)))
        if name == "sub":
            value = self._ordered(value, given)
        if name == "mul" and given[0] is given[1]:
            one = self.look(given[0])
            ends = abs(one.lo), abs(one.hi)
            low = 0 if one.lo <= 0 <= one.hi else min(ends) ** 2
            value = replace(value, lo=low, hi=max(ends) ** 2)
        return self._by_channel(name, value, operands)

    def _ordered(self, value: Value, given: list[Any]) -> Value:
        """a - min(.., a, ..) and max(.., b, ..) - b are not negative; a - min(a, c) is max(0, a - c)."""
        made = self.look(given[1]).made if isinstance(given[1], Tensor) else None
        if made is not None and made[0] == "clamp" and made[1][0] is given[0] and made[1][1] is None:
            over = arithmetic.sub(self.look(given[0]), self.look(made[1][2]))
            return replace(value, lo=max(value.lo, over.lo, 0), hi=min(value.hi, max(over.hi, 0)))
        for one, two, names in ((given[1], given[0], ("amin", "minimum")), (given[0], given[1], ("amax", "maximum"))):
            made = self.look(one).made if isinstance(one, Tensor) else None
            if made is not None and made[0] in names and any(part is two for part in made[1]):
                return replace(value, lo=max(value.lo, 0))
        return value

    def _by_channel(self, name: str, value: Value, operands: list[Any]) -> Value:
        """Bounds of each channel through the sums of a linear: sums - zero · w_sum."""
        if name not in ("mul", "sub", "add") or len(operands) != 2:
            return value
        vectors = [_channels(operand) for operand in operands]
        if all(vector is None for vector in vectors):
            return value
        ends = [vector or (operand.lo, operand.hi) for vector, operand in zip(vectors, operands)]
        (a, b), (c, d) = ends
        if max(abs(operand.lo) + abs(operand.hi) for operand in operands) >= 1 << 31:
            return value  # products would not fit the int64 that they are computed in
        if name == "mul":
            every = [x * y for x in (a, b) for y in (c, d)]
            lo, hi = every[0], every[0]
            for one in every[1:]:
                lo, hi = torch.minimum(lo, one), torch.maximum(hi, one)
        else:
            lo, hi = (a + c, b + d) if name == "add" else (a - d, b - c)
        return replace(value, lo=int(lo.min()), hi=int(hi.max()), channels=(lo, hi))

    def _fits(self, value: Value, dtype: torch.dtype, site: Site) -> None:
        width = WIDTHS.get(dtype)
        if width is None:
            raise UnsupportedError(f"a value of dtype {dtype}", where=str(site), fix="bounds are of integers")
        self._record(site, Seen(value.lo, value.hi, width))
        low, high = (0, 1) if dtype == torch.bool else (torch.iinfo(dtype).min, torch.iinfo(dtype).max)
        if value.lo < low or value.hi > high:
            raise Wraps(Overflow(site, f"{value.lo} to {value.hi} in int{width}"))

    def _record(self, site: Site, seen: Seen) -> None:
        old = self.seen.get(site)
        self.seen[site] = seen if old is None else Seen(min(old.lo, seen.lo), max(old.hi, seen.hi), seen.width)

    # ---------------------------------------------------------------------------------------------- helpers
    def case(self, value: Tensor) -> Tensor:
        """Take the next value of the script; with none left, ask for a run per value."""
        known = self.look(value)
        if known.lo == known.hi or not self.frames:
            return value
        frame = self.frames[-1]
        if frame.at == len(frame.script):
            raise _Fork(known.lo, known.hi)
        chosen = frame.script[frame.at]
        frame.at += 1
        grain = ROW if value.shape[-1] == 1 else ELEMENT
        refine(self, value, chosen, chosen, grain)
        return value

    def helper(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a helper once for each value of its cases; join the results, and take the contract into account."""
        leaves, tree = pytree.tree_flatten((args, kwargs))
        grain = max((self.look(leaf).grain for leaf in leaves if isinstance(leaf, Tensor)), default=FREE)
        contract = CONTRACTS.get(fn.__name__)
        inputs = [replace(self.look(leaf), made=None, channels=None, grain=FREE if contract else self.look(leaf).grain)
                  if isinstance(leaf, Tensor) else None for leaf in leaves]  # fmt: skip
        return self._joined(fn, leaves, tree, grain, _widened(fn.__name__, inputs), inputs)

    def _joined(self, fn: Callable[..., Any], leaves: list[Any], tree: Any, grain: int, inputs: list[Value | None],
                exact: list[Value | None]) -> Any:  # fmt: skip
        """``helper`` on bounds that may be wider than they are, so that alike calls share a run; else as they are."""
        shapes = [(tuple(leaf.shape), leaf.dtype) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        key = (fn.__name__, str(tree), tuple(str(shape) for shape in shapes),
               tuple(value.key() if value else None for value in inputs))  # fmt: skip
        if key not in self.memo:
            try:
                self.memo[key] = self._fresh(fn, leaves, tree, inputs)
            except Wraps:
                if inputs == exact:
                    raise
                return self._joined(fn, leaves, tree, grain, exact, exact)
        template, values, seen = self.memo[key]
        for site, one in seen.items():
            self._record(site, one)
        results = [
            torch.empty_like(leaf) if isinstance(leaf, Tensor) else leaf for leaf in pytree.tree_leaves(template)
        ]
        made = ("msb", (leaves[0],)) if fn.__name__ == "msb" else None
        for tensor, value in zip(results, values):
            self.hold(tensor, replace(value.plain(grain), made=made))
        return pytree.tree_unflatten(results, pytree.tree_structure(template))

    def _fresh(self, fn: Callable[..., Any], leaves: list[Any], tree: Any, inputs: list[Value | None]) -> Any:
        """(a result, bounds of its tensors, bounds inside) of a helper on its own."""
        outer_values, outer_frames, outer_seen = self.values, self.frames, self.seen
        found: list[list[Value]] = []
        result: Any = None
        pending: list[tuple[int, ...]] = [()]
        self.seen = {}
        try:
            while pending:
                script = pending.pop()
                self.values, self.frames = {}, [_Frame(script)]
                own = [self.hold(torch.empty_like(leaf), value) if value is not None else leaf
                       for leaf, value in zip(leaves, inputs)]  # fmt: skip
                args, kwargs = pytree.tree_unflatten(own, tree)
                try:
                    result = fn(*args, **kwargs)
                    found.append([self.look(leaf) for leaf in pytree.tree_leaves(result)])
                except _Fork as fork:
                    if fork.hi - fork.lo >= MOST_CASES:
                        raise UnsupportedError(f"{fork.hi - fork.lo + 1} cases in {fn.__name__}") from None
                    pending += [(*script, value) for value in range(fork.lo, fork.hi + 1)]
                except Impossible:
                    continue
            seen = self.seen
        finally:
            self.values, self.frames, self.seen = outer_values, outer_frames, outer_seen
        joined = [hull(column).plain() for column in zip(*found)]
        if fn.__name__ in CONTRACTS:
            joined = [_by_contract(fn.__name__, leaves, inputs, joined[0])]
        return result, joined, seen


def _unknown(name: str, site: Site) -> UnsupportedError:
    what = f"no bounds are known of the op {name}"
    return UnsupportedError(what, where=str(site), fix="add its rule to qpass/ranges")


def _mixing(name: str, site: Site) -> UnsupportedError:
    what = f"{name} brings together rows of different cases"
    return UnsupportedError(what, where=str(site), fix="end the helper before it")


def _types(arg: Any) -> Any:
    """Shape and dtype of a tensor, any other argument as it is, as a key."""
    if isinstance(arg, Tensor):
        return tuple(arg.shape), arg.dtype
    return tuple(_types(part) for part in arg) if isinstance(arg, list | tuple) else (type(arg), arg)


_ROWS = ("normalize", "quantize_rows", "unit_rows")  # take (x, k), and look at x bit by bit anyway


def _widened(name: str, inputs: list[Value | None]) -> list[Value | None]:
    """Bounds of a row out to 2^30 or the next power of two, those of its exponent to a multiple of 4096."""
    x, k = inputs[0], inputs[1] if len(inputs) > 1 else None
    if name not in _ROWS or x is None or k is None:
        return inputs
    most = 1 << (max(abs(x.lo), abs(x.hi), 1 << 30) - 1).bit_length()
    wide = (
        Value(-most, most, grain=x.grain),
        Value(min(k.lo // STEP, -1) * STEP, max(-(-k.hi // STEP), 1) * STEP, grain=k.grain),
    )
    return [*wide, *inputs[2:]]


def _channels(value: Value) -> tuple[Tensor, Tensor] | None:
    """Bounds by channel, int64 [C]: those of a sum, or a parameter of one dimension."""
    if value.channels is not None:
        return value.channels
    if value.const is not None and value.const.dim() == 1:
        wide = value.const.to(torch.int64)
        return wide, wide
    return None


def _by_contract(name: str, leaves: list[Any], inputs: list[Value | None], value: Value) -> Value:
    meaning, parameters = CONTRACTS[name]
    given = [known if known is not None else of(int(leaf)) for leaf, known in zip(leaves, inputs)]
    given += [of(default) for _, default in parameters[len(given) :] if default is not None]
    exact = meaning(*given)
    return Value(max(value.lo, exact.lo), min(value.hi, exact.hi))
