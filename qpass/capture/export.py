"""From the user's module to a functional ATen graph with dynamic sizes, and the way back."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.export import ExportedProgram
from transformers import PreTrainedModel

from qpass.capture.causal_lm import PREFIX, capture_causal_lm, is_causal_lm
from qpass.capture.checks import check_attention, check_examples, check_model
from qpass.capture.interface import CallConvention
from qpass.capture.module import capture_encoder, capture_module
from qpass.capture.trace import session
from qpass.errors import CaptureError, InputError


@dataclass(frozen=True)
class Captured:
    """A captured model.

    Args:
        exported: functional ATen; `linear`, `scaled_dot_product_attention`, `silu`, `layer_norm` are whole.
        call: how the user's call maps to the graph's flat inputs, and flat outputs to the user's result.
        prefix: what capture put before the user's module paths: strip it from names and from nn_module_stack.
        dims: readable name of each symbol of the graph, e.g. `{"s33": "batch"}`.
    """

    exported: ExportedProgram
    call: CallConvention
    prefix: str
    dims: dict[str, str]


def export_model(
    model: nn.Module,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic_shapes: Any = None,
    strict: bool = False,
) -> Captured:
    """Capture `model` with torch.export. The model and all global state are left as they were.

    Args:
        args, kwargs: example inputs. Not needed for Hugging Face causal LMs and encoders.
        dynamic_shapes: as torch.export takes it. None: batch is dynamic (batch, seq and past for language models).
        strict: trace with Dynamo instead of running the Python of forward.

    Raises:
        InputError: the model or an example cannot be used as it is.
        CaptureError: torch.export refuses the model; the message shows the line of the model at fault.
        UnsupportedError: the model works in a way that the compiled form cannot keep, e.g. writes to a buffer.
    """
    check_model(model)
    check_attention(model)
    args, kwargs = _examples(args), dict(kwargs or {})
    check_examples(model, args, kwargs)
    given = bool(args or kwargs)
    with session():
        if is_causal_lm(model):
            if dynamic_shapes is not None:
                fix = "leave dynamic_shapes out"
                raise InputError("batch, seq and past of a causal language model are always dynamic", fix=fix)
            notes = ("example inputs were not used: a causal language model does not need them",) if given else ()
            exported, call, dims = capture_causal_lm(model, notes, strict=strict)
            return Captured(exported, call, PREFIX, dims)
        if given:
            _check_call(model, args, kwargs)
            return _captured(capture_module(model, args, kwargs, dynamic_shapes, (), strict=strict))
        if isinstance(model, PreTrainedModel):
            return _captured(capture_encoder(model, (), strict=strict))
    fix = "pass args=(x,) or kwargs={...} with tensors of typical shape and dtype"
    raise CaptureError("A plain module needs example inputs", where=type(model).__name__, fix=fix)


def _examples(args: Any) -> tuple[Any, ...]:
    if not isinstance(args, (list, tuple)):
        fix = "pass a tuple, e.g. args=(x,)"
        raise InputError(f"args is a {type(args).__name__}, not a tuple of example inputs", fix=fix)
    return tuple(args)


def _check_call(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    try:
        inspect.signature(model.forward).bind(*args, **kwargs)
    except TypeError as error:
        name = type(model).__name__
        fix = f"pass what {name}.forward takes"
        raise InputError(f"The example inputs do not fit forward: {error}", where=name, fix=fix) from error


def _captured(parts: tuple[ExportedProgram, CallConvention, dict[str, str]]) -> Captured:
    exported, call, dims = parts
    return Captured(exported, call, "", dims)
