"""dynamic_shapes of plain modules: the default, the user's in our spelling of the call, and the names of dims."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim
from torch.utils import _pytree as pytree

from qpass.capture.module_call import by_parameter
from qpass.errors import InputError


def batched_examples(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any], list[bool]]:
    """Example inputs, and for each leaf whether it is a tensor whose first dim equals that of the first tensor.

    torch.export takes a size of 1 for a constant, so a batch of 1 is repeated to a batch of 2 first.
    """
    values, spec = pytree.tree_flatten((args, kwargs))
    batch = next((value.shape[0] for value in values if isinstance(value, Tensor) and value.dim() > 0), None)
    flags = [isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == batch for value in values]
    if batch == 1:
        values = [torch.cat([value, value]) if flag else value for value, flag in zip(values, flags)]
        args, kwargs = pytree.tree_unflatten(values, spec)
    return args, kwargs, flags


def batch_shapes(
    signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any], flags: Sequence[bool], dim: Any
) -> dict[str, Any]:
    """dynamic_shapes in which the first dim of the flagged leaves is `dim` and all else static."""
    spec = pytree.tree_structure((args, kwargs))
    shaped_args, shaped_kwargs = pytree.tree_unflatten([{0: dim} if flag else None for flag in flags], spec)
    return by_parameter(signature, shaped_args, shaped_kwargs)


def align_shapes(
    signature: inspect.Signature, given: Mapping[str, Any], args: tuple[Any, ...], kwargs: dict[str, Any], shapes: Any
) -> dict[str, Any]:
    """The user's dynamic_shapes, a dict by parameter or a sequence in the order of the call, as a dict by parameter."""
    if isinstance(shapes, (list, tuple)):
        if len(shapes) != len(given):
            what = f"dynamic_shapes has {len(shapes)} entries for {len(given)} arguments"
            raise InputError(what, fix="give one entry (or None) for each argument of the example call")
        shapes = dict(zip(given, shapes))
    if not isinstance(shapes, Mapping):
        fix = "pass {parameter name: {dim: torch.export.Dim}}"
        raise InputError(f"dynamic_shapes is a {type(shapes).__name__}", fix=fix)
    shapes = _without_catch_all(signature, shapes)
    names = list(by_parameter(signature, args, kwargs))
    unknown = [name for name in shapes if name not in names]
    if unknown:
        fix = f"use the names of the example arguments: {', '.join(names)}"
        raise InputError(f"dynamic_shapes names `{unknown[0]}`, which is no argument of the example call", fix=fix)
    return {name: shapes.get(name) for name in names}


def flat_dim_names(
    signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any], shapes: dict[str, Any] | None
) -> list[dict[int, str]]:
    """For each tensor of the call, in graph order, the names that dynamic_shapes gives to its dims."""
    values = by_parameter(signature, args, kwargs)
    if shapes is None:
        leaves = pytree.tree_leaves(list(values.values()))
        return [{} for leaf in leaves if isinstance(leaf, Tensor)]
    names: list[dict[int, str]] = []
    for name, value in values.items():
        names += _walk(value, shapes.get(name))
    return names


def _without_catch_all(signature: inspect.Signature, shapes: Mapping[str, Any]) -> dict[str, Any]:
    """torch.export wants the shapes of `**kwargs` under that name; here each argument stands alone."""
    flat = dict(shapes)
    for key, parameter in signature.parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD and isinstance(flat.get(key), Mapping):
            flat.update(flat.pop(key))
    return flat


def _walk(value: Any, shape: Any) -> list[dict[int, str]]:
    if isinstance(value, Tensor):
        return [_dim_names(shape)]
    children, spec = pytree.tree_flatten(value, is_leaf=lambda x: x is not value)
    if spec.is_leaf():
        return []
    if isinstance(value, Mapping) and isinstance(shape, Mapping):
        parts = [shape.get(key) for key in value]
    elif isinstance(shape, Sequence) and len(shape) == len(children):
        parts = list(shape)
    else:
        shaped = pytree.tree_flatten(shape, is_leaf=lambda x: x is not shape)[0] if shape is not None else []
        parts = shaped if len(shaped) == len(children) else [None] * len(children)
    return [names for child, part in zip(children, parts) for names in _walk(child, part)]


def _dim_names(shape: Any) -> dict[int, str]:
    if isinstance(shape, Mapping):
        pairs = list(shape.items())
    elif isinstance(shape, (list, tuple)):
        pairs = list(enumerate(shape))
    else:
        return {}
    return {int(index): dim.__name__ for index, dim in pairs if isinstance(dim, Dim)}
