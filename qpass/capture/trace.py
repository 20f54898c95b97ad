"""torch.export and functionalisation in one place, with every global that tracing touches put back."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import io
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import sympy
import torch
from torch import nn
from torch._dynamo import config as dynamo_config
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind, TensorArgument
from torch.utils import _pytree as pytree

from qpass.capture.blame import capture_error
from qpass.capture.interrupt import exclusive
from qpass.errors import QPassError, UnsupportedError

# Noise of tracing that a user can do nothing about. Everything else passes.
_NOISE = (
    r".*`isinstance\(treespec, LeafSpec\)` is deprecated.*",
    r".*is an Enum subclass and is now natively supported.*",
    r".*The .grad attribute of a Tensor that is not a leaf.*",
    r".*converting a tensor to a Python (boolean|integer|number).*",
)


@contextmanager
def session() -> Iterator[None]:
    """Everything a capture runs under: lock, late Ctrl-C, no_grad, and RNG, default dtype, warnings as they were."""
    with exclusive(), torch.random.fork_rng(devices=[]), torch.no_grad(), warnings.catch_warnings():
        for noise in _NOISE:
            warnings.filterwarnings("ignore", message=noise)
        dtype = torch.get_default_dtype()
        try:
            with _quiet("transformers"), _quiet("torch.fx.experimental.symbolic_shapes"):
                yield
        finally:
            torch.set_default_dtype(dtype)


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Errors only from this logger, unless the user asked for more than warnings (TORCH_LOGS, verbosity)."""
    logger = logging.getLogger(name)
    level = logger.level
    if logger.getEffectiveLevel() >= logging.WARNING:
        logger.setLevel(max(level, logging.ERROR))
    try:
        yield
    finally:
        logger.setLevel(level)


def trace(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    dynamic_shapes: Any,
    *,
    strict: bool,
    owner: nn.Module,
) -> ExportedProgram:
    """Functional ATen of `model(*args, **kwargs)`: `linear`, SDPA, `layer_norm` and the like stay whole.

    Args:
        owner: the user's model, for messages; `model` may be a wrapper around it.

    Raises:
        CaptureError: torch.export refuses the model.
        UnsupportedError: the forward writes to a buffer or to an input.
    """
    # The fake-tensor cache costs more than it saves with symbolic sizes: each hit re-derives every stride. Half time.
    with dynamo_config.patch(fake_tensor_cache_enabled=False), _without_partial_graphs():
        try:
            # Dynamo would trace the hook itself.
            with _naming_kwargs(model, kwargs), contextlib.nullcontext() if strict else _registering_dataclasses(model):
                raw = torch.export.export(model, args, kwargs, dynamic_shapes=dynamic_shapes, strict=strict)
            exported = raw.run_decompositions({})
        except QPassError:
            raise
        except Exception as error:
            raise capture_error(error, owner) from error
    _refuse_mutation(exported)
    return exported


@contextmanager
def _without_partial_graphs() -> Iterator[None]:
    """Keep torch.export from printing a half-made graph to stderr when it fails; all other text passes."""
    seen = io.StringIO()
    partial = ""
    try:
        with contextlib.redirect_stderr(seen):
            yield
    except QPassError as error:
        partial = getattr(error.__cause__, "partial_fx_graph", "")
        raise
    finally:
        rest = seen.getvalue().replace(str(partial), "") if partial else seen.getvalue()
        sys.stderr.write(rest if rest.strip() else "")


@contextmanager
def _naming_kwargs(model: nn.Module, kwargs: Mapping[str, Any]) -> Iterator[None]:
    """While tracing, show torch.export a forward that names what goes into `**kwargs`.

    torch 2.13 loses track of dynamic_shapes when any argument goes there.
    """
    forward = model.forward
    signature = inspect.signature(forward)
    parameters = list(signature.parameters.values())
    catch_all = [p for p in parameters if p.kind is inspect.Parameter.VAR_KEYWORD]
    unnamed = [name for name in kwargs if name not in signature.parameters]
    if not catch_all or not unnamed or "forward" in model.__dict__:
        yield
        return

    def named(*args: Any, **kwargs: Any) -> Any:
        return forward(*args, **kwargs)

    extra = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in unnamed]
    named.__signature__ = signature.replace(parameters=[*parameters[:-1], *extra])  # type: ignore[attr-defined]
    object.__setattr__(model, "forward", named)
    try:
        yield
    finally:
        object.__delattr__(model, "forward")


@contextmanager
def _registering_dataclasses(model: nn.Module) -> Iterator[None]:
    """While tracing, make the dataclasses that `model` returns known to pytree: torch.export wants that beforehand."""

    def hook(module: nn.Module, args: Any, output: Any) -> None:
        for leaf in pytree.tree_leaves(output):
            if dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
                torch.export.register_dataclass(type(leaf))

    handle = model.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _refuse_mutation(exported: ExportedProgram) -> None:
    for spec in exported.graph_signature.output_specs:
        if spec.kind is OutputKind.BUFFER_MUTATION:
            fix = "keep that state outside of forward, or compile the module that does not write it"
            raise UnsupportedError("The model's forward writes to a buffer", where=f"buffer `{spec.target}`", fix=fix)
        if spec.kind is OutputKind.USER_INPUT_MUTATION:
            fix = "return the new value instead of writing into the argument"
            raise UnsupportedError("The model's forward writes to its input", where=f"input `{spec.target}`", fix=fix)


def user_inputs(exported: ExportedProgram) -> list[tuple[str, Any]]:
    """(placeholder name, fake tensor or Python constant) of each flat user input, in order."""
    values = {node.name: node.meta.get("val") for node in exported.graph.nodes if node.op == "placeholder"}
    inputs = []
    for spec in exported.graph_signature.input_specs:
        if spec.kind is InputKind.USER_INPUT:
            constant = None if isinstance(spec.arg, TensorArgument) else getattr(spec.arg, "value", None)
            inputs.append((spec.arg.name, values.get(spec.arg.name, constant)))
    return inputs


def dim_names(exported: ExportedProgram, names: Sequence[Mapping[int, str]]) -> dict[str, str]:
    """Readable name of each symbol of the graph: `str(symbol) -> name`.

    Args:
        names: for each flat tensor input, the name of each dynamic dim. A symbol without one is named after its input.
    """
    found: dict[str, str] = {}
    tensors = [(name, value) for name, value in user_inputs(exported) if isinstance(value, torch.Tensor)]
    for (_, value), wanted in zip(tensors, names, strict=True):
        for dim, name in wanted.items():
            expr = symbol_of(value.shape[dim])
            if isinstance(expr, sympy.Symbol):
                found.setdefault(str(expr), name)
    for name, value in tensors:
        for dim, size in enumerate(value.shape):
            expr = symbol_of(size)
            if isinstance(expr, sympy.Symbol):
                found.setdefault(str(expr), f"{name}_dim{dim}")
    return found


def dim_ranges(exported: ExportedProgram, dims: Mapping[str, str]) -> dict[str, tuple[int, int | None]]:
    """Smallest and largest legal size of each readable dim; None for no bound.

    A lower bound of 2 is torch's mark for "0 and 1 were not specialised on", not a limit: it reads 1.
    """
    ranges = {}
    for symbol, bounds in exported.range_constraints.items():
        if str(symbol) in dims:
            low = int(bounds.lower)
            high = None if bounds.upper > 2**40 else int(bounds.upper)
            ranges[dims[str(symbol)]] = (1 if low == 2 else low, high)
    return ranges


def symbol_of(size: Any) -> sympy.Basic | None:
    """The sympy expression of a symbolic size, None for an int."""
    return size.node.expr if isinstance(size, torch.SymInt) else None


def readable_shape(shape: Sequence[Any], dims: Mapping[str, str]) -> tuple[int | str, ...]:
    """Sizes as ints or readable dim names; a sum reads `past + seq`."""
    readable: list[int | str] = []
    for size in shape:
        expr = symbol_of(size)
        if expr is None or expr.is_number:
            readable.append(int(size))
        else:
            named = {symbol: sympy.Symbol(dims.get(str(symbol), str(symbol))) for symbol in expr.free_symbols}
            readable.append(str(expr.xreplace(named)))
    return tuple(readable)
