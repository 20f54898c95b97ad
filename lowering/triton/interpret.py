"""Run a kernel on CPU tensors by Triton's interpreter, whatever ``TRITON_INTERPRET`` was when it was made."""

from __future__ import annotations

import contextlib
import functools
import types
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import triton.language as tl
from triton.runtime.interpreter import InterpretedFunction, InterpreterBuilder
from triton.runtime.jit import JITFunction


class Interpreter:
    """``Interpreter(kernel)[grid](...)`` runs a ``triton.jit`` function program by program, on CPU tensors."""

    def __init__(self, kernel: Any) -> None:
        self._kernel = _interpreted(kernel)

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def run(*args: Any, **kwargs: Any) -> None:
            with _library(), contextlib.ExitStack() as stack:
                for name, new in (("create_splat", _splat), ("create_dot", _dot), ("cast_impl", _cast)):
                    stack.enter_context(mock.patch.object(InterpreterBuilder, name, new))
                self._kernel[grid](*args, **kwargs)

        return run


@functools.cache
def interpreted(kernel: Any) -> Interpreter:
    """The interpreter of a kernel."""
    return Interpreter(kernel)


_made: dict[int, Any] = {}


def _interpreted(kernel: Any) -> Any:
    """``kernel``, and the jit functions that it calls by name, as interpreted ones."""
    if not isinstance(kernel, JITFunction):
        return kernel
    if id(kernel) not in _made:
        fn = kernel.fn
        scope = dict(fn.__globals__)
        scope |= {name: _interpreted(scope[name]) for name in fn.__code__.co_names if name in scope}
        copy = types.FunctionType(fn.__code__, scope, fn.__name__, fn.__defaults__, fn.__closure__)
        copy.__annotations__, copy.__module__, copy.__qualname__ = fn.__annotations__, fn.__module__, fn.__qualname__
        _made[id(kernel)] = InterpretedFunction(copy)
    return _made[id(kernel)]


_create_splat, _create_dot = InterpreterBuilder.create_splat, InterpreterBuilder.create_dot
_cast_impl = InterpreterBuilder.cast_impl


def _splat(builder: Any, kind: Any, scalar: Any) -> Any:
    """A scalar as a tensor. That of a comparison is int32 in the interpreter, which Triton 3.9 takes for no mask."""
    made = _create_splat(builder, kind, scalar)
    if scalar.data.dtype == bool:
        made.data = made.data.astype(bool)
    return made


def _dot(builder: Any, a: Any, b: Any, *rest: Any) -> Any:
    """Numbers of bfloat16 are held as their bits, and the interpreter multiplies those: here as float32."""
    a, b = (_cast_impl(builder, one, tl.float32) if one.dtype.scalar == tl.bfloat16 else one for one in (a, b))
    return _create_dot(builder, a, b, *rest)


def _cast(builder: Any, source: Any, kind: Any) -> Any:
    """Between bfloat16 and any type but float32 the interpreter casts the bits: here by way of float32."""
    types_ = source.dtype.scalar, kind.scalar
    if tl.bfloat16 in types_ and tl.float32 not in types_ and types_[0] != types_[1]:
        source = _cast_impl(builder, source, tl.float32)
    return _cast_impl(builder, source, kind)


@contextlib.contextmanager
def _library() -> Iterator[None]:
    """``tl.cdiv`` and the like, which are jit functions themselves, as interpreted ones; afterwards all as it was.

    The interpreter puts its own functions in place of the language's, and leaves some of them there (Triton 3.7):
    nothing could be compiled any more in the same process.
    """
    places: tuple[Any, ...] = (tl, tl.standard, tl.core, tl.math, tl.tensor, tl.core.tensor_descriptor_base)
    before = [dict(vars(place)) for place in places]
    try:
        for name, value in before[0].items():
            if isinstance(value, JITFunction):
                setattr(tl, name, _interpreted(value))
        # sums and maxima are known by the functions that they combine with; other reductions run value by value
        for name, value in before[1].items():
            if isinstance(value, JITFunction) and name not in before[0]:
                setattr(tl.standard, name, _interpreted(value))
        yield
    finally:
        for place, saved in zip(places, before):
            for name, value in dict(vars(place)).items():
                if name not in saved:
                    delattr(place, name)
                elif value is not saved[name]:
                    setattr(place, name, saved[name])
