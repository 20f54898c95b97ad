"""Rules of ops that move, sum or make tensors. Each is ``(look, args, kwargs, result) -> Value``.

Bounds of a sum over n elements hold for every count from 1 to n, so a proof for a length is one for all shorter ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from qpass.ranges.value import ELEMENT, ROW, Part, Value, hull, of, of_tensor

Look = Callable[[Any], Value]
Rule = Callable[[Look, tuple[Any, ...], Mapping[str, Any], Any], Value]
Several = Callable[[Look, tuple[Any, ...], Mapping[str, Any], Sequence[Any]], list[Value]]


def keeps_last(look: Look, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> Value:
    """A view, a copy, a cast, an expand: elements as they are; facts of the last dimension where it stays."""
    value = look(args[0])
    same = args[0].dim() > 0 and result.dim() > 0 and args[0].shape[-1] == result.shape[-1]
    if same:
        return Value(value.lo, value.hi, value.parts, value.channels, value.sum)
    return of(value.lo, value.hi)


def moves(look: Look, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> Value:
    """Elements of the first operand, in any order."""
    value = look(args[0])
    return of(value.lo, value.hi)


def transposes(look: Look, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> Value:
    """As ``keeps_last`` where the last dimension stays the last; a parameter stays known."""
    value, rank = look(args[0]), args[0].dim()
    if value.const is not None:
        return Value(value.lo, value.hi, const=value.const.t() if rank == 2 else None, serial=value.serial)
    dims = args[1] if isinstance(args[1], list | tuple) else args[1:3]
    last = (
        int(dims[-1]) % rank == rank - 1
        if isinstance(args[1], list | tuple)
        else all(int(dim) % rank != rank - 1 for dim in dims)
    )
    return Value(value.lo, value.hi, value.parts, sum=value.sum) if last else of(value.lo, value.hi)


def cuts(look: Look, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> Value:
    """A slice: of the last dimension, the parts within; of another, all of them."""
    value, (dim, start, stop) = look(args[0]), (*args[1:4], 0, None, None)[:3]
    if value.parts is None:
        return Value(value.lo, value.hi, sum=value.sum)
    if dim % args[0].dim() != args[0].dim() - 1:
        return Value(value.lo, value.hi, value.parts)
    width = args[0].shape[-1]
    begin, end = (start or 0) % width if (start or 0) < 0 else start or 0, width if stop is None else min(stop, width)
    end = end + width if end < 0 else end
    found: list[Part] = []
    at = 0
    for size, lo, hi in value.parts:
        inside = min(at + size, end) - max(at, begin)
        if inside > 0:
            found.append((inside, lo, hi))
        at += size
    return Value(min(part[1] for part in found), max(part[2] for part in found), tuple(found))


def joins(look: Look, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> Value:
    """cat and stack: of the last dimension, a part each; of another, what holds for all. Tensors without elements add
    nothing."""
    full = [part for part in args[0] if part.numel()]
    if not full:
        return of(0)
    values = [look(part) for part in full]
    rank = result.dim()
    dim = args[1] if len(args) > 1 else kwargs.get("dim", 0)
    if dim % rank == rank - 1 and result.dim() == full[0].dim():
        parts = tuple(part for tensor, value in zip(full, values)
                      for part in value.parts or ((tensor.shape[-1], value.lo, value.hi),))  # fmt: skip
        return Value(min(part[1] for part in parts), max(part[2] for part in parts), parts)
    joined = hull(values)
    return Value(joined.lo, joined.hi, joined.parts)


def gathers(look: Look, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> Value:
    """table[i]: of a parameter of one dimension, the entries that i can reach; else every element."""
    value, indices = look(args[0]), [part for part in args[1] if part is not None]
    if value.const is not None and len(indices) == 1 and value.const.dim() == 1 and indices[0].dtype != torch.bool:
        reach = look(indices[0])
        lo, hi = max(reach.lo, -len(value.const)), min(reach.hi, len(value.const) - 1)
        if lo >= 0 or hi < 0:
            part = value.const[lo : hi + 1 or None]
            return of(int(part.min()), int(part.max()))
    return Value(value.lo, value.hi, value.parts if len(args[1]) < args[0].dim() else None)


def beyond(look: Look, args: tuple[Any, ...]) -> tuple[int, int, int] | None:
    """(least index, largest, rows) of table[i] where i could leave the table; None where it stays within.

    Of parameters: what a program cuts out of its own values it does with sizes, which the call convention checks.
    """
    indices = [part for part in args[1] if part is not None]
    if look(args[0]).const is None or len(indices) != 1 or indices[0].dtype == torch.bool:
        return None
    reach, rows = look(indices[0]), int(args[0].shape[next(at for at, part in enumerate(args[1]) if part is not None)])
    return None if -rows <= reach.lo and reach.hi < rows else (reach.lo, reach.hi, rows)


def picks(look: Look, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> Value:
    """select: of a parameter, what stands there; else as ``moves``."""
    value = look(args[0])
    if value.const is not None and result.dim() > 0:
        return _row(value, int(args[1]), int(args[2]))
    return of(value.lo, value.hi)


def _row(value: Value, dim: int, index: int) -> Value:
    assert value.const is not None
    found = of_tensor(value.const.select(dim, index))
    return replace(found, serial=(value.serial, dim, index))


def parts_of(look: Look, args: tuple[Any, ...], kwargs: Mapping[str, Any], results: Sequence[Any]) -> list[Value]:
    """unbind: a ``select`` each."""
    value, dim = look(args[0]), args[1] if len(args) > 1 else kwargs.get("dim", 0)
    if value.const is None:
        return [of(value.lo, value.hi) for _ in results]
    return [_row(value, dim, number) for number in range(len(results))]


def spread(look: Look, args: tuple[Any, ...], kwargs: Mapping[str, Any], results: Sequence[Any]) -> list[Value]:
    """split: elements of the whole in each piece."""
    value = look(args[0])
    return [of(value.lo, value.hi) for _ in results]


def ordered(look: Look, args: tuple[Any, ...], kwargs: Mapping[str, Any], results: Sequence[Any]) -> list[Value]:
    """sort and topk: elements in another order, and where they stood."""
    value, known = look(args[0]), {"dim": -1, **kwargs}
    dim = known["dim"] % max(1, args[0].dim())
    return [of(value.lo, value.hi), of(0, max(0, args[0].shape[dim] - 1))]


def scatters(look: Look, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> Value:
    """Elements of the first operand and of the last."""
    return hull([of(value.lo, value.hi) for value in (look(args[0]), look(args[-1]))])


def extremes(look: Look, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> Value:
    """amax, amin, any, all, max, min."""
    return moves(look, args, kwargs, result)


def _count(args: tuple[Any, ...], result: Any) -> int:
    return int(max(1, args[0].numel() // max(1, result.numel())))


def sums(look: Look, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> Value:
    """sum over some dimensions, of 1 to n elements."""
    value = look(args[0])
    total = many(value, _count(args, result))
    if value.sum is not None and over_last(args):
        return of(max(total.lo, -value.sum), min(total.hi, value.sum))
    return total


def many(value: Value, n: int) -> Value:
    """The sum of 1 to n such elements."""
    return of(min(value.lo, n * value.lo), max(value.hi, n * value.hi))


def over_last(args: tuple[Any, ...]) -> bool:
    """Whether a reduction is over the last dimension alone."""
    dims = args[1] if len(args) > 1 else None
    dims = [dims] if isinstance(dims, int) else dims
    return bool(dims is not None and len(dims) == 1 and dims[0] % args[0].dim() == args[0].dim() - 1)


def running(look: Look, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> Value:
    """cumsum."""
    return many(look(args[0]), max(1, args[0].shape[args[1]]))


def matmul(look: Look, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> Value:
    """Sums of products: with a parameter, by the sums of its positive and its negative entries, channel by channel."""
    a, b, n = look(args[0]), look(args[1]), max(1, args[0].shape[-1])
    if b.const is not None and b.const.dim() == 2:
        w = b.const.to(torch.int64)
        plus, minus = w.clamp(min=0).sum(0), w.clamp(max=0).sum(0)
        ends = [plus * a.lo + minus * a.hi, plus * a.hi + minus * a.lo]
        return Value(int(ends[0].min()), int(ends[1].max()), channels=(ends[0], ends[1]))
    products = [x * y for x in (a.lo, a.hi) for y in (b.lo, b.hi)]
    lo, hi = min(min(products), n * min(products)), max(max(products), n * max(products))
    if a.sum is not None:
        most = a.sum * max(abs(b.lo), abs(b.hi))
        lo, hi = max(lo, -most), min(hi, most)
    return of(lo, hi)


def constant(look: Look, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> Value:
    """full, full_like, new_full: a number."""
    return of(int(args[1]))


def new_constant(look: Look, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> Value:
    """new_full."""
    return of(int(args[2]))


def zeros(look: Look, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> Value:
    """zeros and its kin."""
    return of(0)


def ones(look: Look, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> Value:
    """ones and its kin."""
    return of(1)


def arange(look: Look, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> Value:
    """arange(end), arange(start, end), arange(start, end, step)."""
    start, step = (args[0] if len(args) > 1 else 0), (args[2] if len(args) > 2 else 1)
    last = start + step * max(0, result.numel() - 1)
    return of(min(start, last), max(start, last))


def triangle(look: Look, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> Value:
    """tril, triu."""
    value = look(args[0])
    return of(min(value.lo, 0), max(value.hi, 0))


_VIEWS = ("view", "_unsafe_view", "reshape", "clone", "alias", "detach", "unsqueeze", "squeeze", "expand", "_to_copy",
          "lift_fresh", "contiguous", "flatten")  # fmt: skip
RULES: dict[str, Rule] = {
    **dict.fromkeys(_VIEWS, keeps_last), "permute": transposes, "transpose": transposes, "t": transposes,
    "slice": cuts, "select": picks, "scatter": scatters, "repeat": moves, "cat": joins, "stack": joins,
    "index": gathers,
    "amax": extremes, "amin": extremes, "any": extremes, "all": extremes, "sum": sums, "cumsum": running,
    "mm": matmul, "bmm": matmul, "_int_mm": matmul, "full": constant, "full_like": constant, "new_full": new_constant,
    "zeros": zeros, "zeros_like": zeros, "new_zeros": zeros, "ones": ones, "ones_like": ones, "new_ones": ones,
    "arange": arange, "tril": triangle, "triu": triangle,
}  # fmt: skip
SEVERAL: dict[str, Several] = {
    "unbind": parts_of, "sort": ordered, "topk": ordered, "split": spread, "split_with_sizes": spread,
}  # fmt: skip
"""Rules of ops with several results: ``(look, args, kwargs, results) -> [Value]``."""
_LAST = ("amax", "amin", "sum", "any", "all")


def mixes(name: str, args: tuple[Any, ...], look: Look, grain: int, result: Any) -> bool:
    """Whether an op could bring together rows or elements of different cases, so that bounds of one do not hold."""
    if grain == 0:
        return False
    if name in ("view", "_unsafe_view", "reshape", "flatten", "squeeze"):
        return bool(args[0].dim() != 0 and tuple(args[0].shape[-1:]) != tuple(result.shape[-1:]))
    if name in _VIEWS:
        return False
    if name in ("full_like", "zeros_like", "ones_like"):
        return False
    if name in _LAST:
        return not (grain == ROW and over_last(args))
    if name in ("mm", "bmm", "_int_mm"):
        return grain == ELEMENT or look(args[1]).grain != 0
    return not (name == "index" and look(args[0]).grain == 0)
