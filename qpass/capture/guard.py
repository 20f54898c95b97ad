"""A run-time proof that no float is touched: a mode that sees every op torch runs, and raises at the first float."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from qpass.capture.integer_call import IntegerCall
from qpass.errors import InputError, VerifyError


class IntegerOnly(TorchDispatchMode):
    """Inside, an op that reads or makes a float or complex tensor raises VerifyError with the op's name."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Look at what goes in, run the op, look at what comes out."""
        _check(func, "reads", (args, kwargs))
        result = func(*args, **(kwargs or {}))
        _check(func, "makes", result)
        return result


def _check(func: Any, verb: str, values: Any) -> None:
    for leaf in pytree.tree_leaves(values):
        if isinstance(leaf, Tensor) and (leaf.dtype.is_floating_point or leaf.dtype.is_complex):
            dtype = str(leaf.dtype).removeprefix("torch.")
            raise VerifyError(f"{func} {verb} {dtype}{list(leaf.shape)} in a part that is integer-only")


@contextlib.contextmanager
def integer_guard(model: nn.Module | None = None) -> Iterator[None]:
    """Raise VerifyError at the first float tensor.

    Args:
        model: an integer-only model from ``qpass.compile``: its program is watched, from token ids to logits and cache,
            in every call inside the block; not the shell around it, which hands logits to transformers as float32.
            None: everything that runs inside the block is watched.

    Raises:
        InputError: a model that is not integer-only.
    """
    if model is None:
        with IntegerOnly():
            yield
        return
    runner = getattr(model, "_qpass_runner", None)
    if runner is None or not isinstance(getattr(model, "_qpass_call", None), IntegerCall):
        raise InputError("the model is not integer-only", fix='compile it with a recipe such as "int-only-w8a8"')
    inner, outer = runner.forward, vars(runner).get("forward")  # there is one where guards are nested

    def watched(*inputs: Any) -> Any:
        with IntegerOnly():
            return inner(*inputs)

    for name, buffer in runner.named_buffers():
        _check(f"the weight {name}", "is", buffer)
    runner.forward = watched
    try:
        yield
    finally:
        vars(runner).pop("forward", None)
        if outer is not None:
            runner.forward = outer


def integer_logits(model: nn.Module, **inputs: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of an integer-only model as they are: (x int32 [batch, seq, V], k int32 [batch, seq, 1]), value x · 2^-k.

    Args:
        model: from ``qpass.compile`` with an integer-only recipe.
        inputs: keywords of the model's forward.

    Raises:
        InputError: a model that is not integer-only, or a call that does not fit.
    """
    call = getattr(model, "_qpass_call", None)
    if not isinstance(call, IntegerCall):
        raise InputError("the model is not integer-only", fix='compile it with a recipe such as "int-only-w8a8"')
    runner: Any = model._qpass_runner
    logits, exponent, *_ = runner(*call.flatten((), inputs))
    return logits, exponent
