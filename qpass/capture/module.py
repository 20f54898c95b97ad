"""Capture of plain modules from example inputs, and of encoders from their config."""

from __future__ import annotations

import inspect
import re
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import ConstantArgument, OutputKind, TensorArgument
from torch.utils import _pytree as pytree
from transformers import PreTrainedModel

from qpass.capture.blame import reason
from qpass.capture.convention import TensorSpec
from qpass.capture.dims import align_shapes, batch_shapes, batched_examples, flat_dim_names
from qpass.capture.module_call import Constant, ModuleCall, canonical, leaf_names
from qpass.capture.trace import dim_names, dim_ranges, readable_shape, trace, user_inputs
from qpass.errors import CaptureError, InputError, UnsupportedError

# Encoder inputs that may be left out by the caller, and what a missing one means.
_FILL = {"attention_mask": 1, "token_type_ids": 0}


def forward_signature(model: nn.Module) -> inspect.Signature:
    """Signature of the module's forward without `self`."""
    return inspect.signature(model.forward)


def capture_module(
    model: nn.Module, args: tuple, kwargs: dict[str, Any], shapes: Any, notes: tuple[str, ...], *, strict: bool
) -> tuple[ExportedProgram, ModuleCall, dict[str, str]]:
    """Graph, call convention and dim names of `model(*args, **kwargs)`.

    `shapes` None: the first dim is dynamic, named batch, wherever it equals that of the first tensor; if the model does
    not export that way all sizes are static, and a note says why.
    """
    signature = forward_signature(model)
    given = signature.bind(*args, **kwargs).arguments
    args, kwargs = canonical(signature, args, kwargs, len(args))
    if shapes is not None:
        shapes = align_shapes(signature, given, args, kwargs, shapes)
        exported = trace(model, args, kwargs, shapes, strict=strict, owner=model)
    else:
        args, kwargs, flags = batched_examples(args, kwargs)
        exported, shapes, notes = _trace_batched(model, args, kwargs, flags, notes, strict=strict)
    names = dim_names(exported, flat_dim_names(signature, args, kwargs, shapes))
    return exported, module_call(model, exported, args, kwargs, names, notes), names


def _trace_batched(
    model: nn.Module, args: tuple, kwargs: dict, flags: list[bool], notes: tuple[str, ...], *, strict: bool
) -> tuple[ExportedProgram, dict[str, Any] | None, tuple[str, ...]]:
    """Trace with a dynamic batch in all flagged leaves; else in those where the model allows it; else static."""
    if not any(flags):
        return trace(model, args, kwargs, None, strict=strict, owner=model), None, notes
    signature = forward_signature(model)
    batch = Dim("batch", min=1)
    try:
        shapes = batch_shapes(signature, args, kwargs, flags, batch)
        return trace(model, args, kwargs, shapes, strict=strict, owner=model), shapes, notes
    except InputError as error:
        cause = error.__cause__ or error
        loose = batch_shapes(signature, args, kwargs, flags, Dim.AUTO)
        exported = trace(model, args, kwargs, loose, strict=strict, owner=model)
    except CaptureError as error:
        cause = error.__cause__ or error
        exported = trace(model, args, kwargs, None, strict=strict, owner=model)
    # AUTO found out which sizes are free, but with a lower bound of 2; the named Dim says 1.
    inputs = [value for _, value in user_inputs(exported)]
    free = [flag and isinstance(readable_shape(value.shape, {})[0], str) for flag, value in zip(flags, inputs)]
    if any(free):
        shapes = batch_shapes(signature, args, kwargs, free, batch)
        return trace(model, args, kwargs, shapes, strict=strict, owner=model), shapes, notes
    return exported, None, (*notes, f"all sizes are static, as a dynamic batch fails: {reason(cause)}")


def module_call(
    model: nn.Module,
    exported: ExportedProgram,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    names: dict[str, str],
    notes: tuple[str, ...],
    **encoder: Any,
) -> ModuleCall:
    """The ModuleCall of an exported program whose example call was `model(*args, **kwargs)`."""
    signature = forward_signature(model)
    values, in_spec = pytree.tree_flatten((args, kwargs))
    labels = leaf_names(signature, args, kwargs)
    graph_inputs = [value for _, value in user_inputs(exported)]
    leaves = tuple((n, None if isinstance(v, Tensor) else Constant(v)) for n, v in zip(labels, values, strict=True))
    inputs = tuple(
        TensorSpec(label, value.dtype, readable_shape(graph.shape, names))
        for label, value, graph in zip(labels, values, graph_inputs, strict=True)
        if isinstance(value, Tensor)
    )
    out_spec = exported.call_spec.out_spec
    if out_spec is None:
        raise CaptureError("The exported program has no output structure", where=type(model).__name__)
    constants, outputs = [], []
    for index, spec in enumerate(s for s in exported.graph_signature.output_specs if s.kind is OutputKind.USER_OUTPUT):
        if not isinstance(spec.arg, (TensorArgument, ConstantArgument)):
            what = f"The model returns a size that depends on its input, output {index}"
            raise UnsupportedError(what, where=type(model).__name__, fix="return tensors only")
        constants.append(Constant(spec.arg.value) if isinstance(spec.arg, ConstantArgument) else None)
        if isinstance(spec.arg, TensorArgument):
            outputs.append(spec.arg.name)
    device = next((value.device for value in values if isinstance(value, Tensor)), torch.device("cpu"))
    return ModuleCall(
        kind="encoder" if encoder else "module",
        signature=signature,
        inputs=inputs,
        outputs=tuple(outputs),
        device=device,
        ranges=dim_ranges(exported, names),
        notes=notes,
        in_spec=in_spec,
        leaves=leaves,
        out_spec=out_spec,
        constants=tuple(constants),
        **encoder,
    )


def capture_encoder(
    model: PreTrainedModel, notes: tuple[str, ...], *, strict: bool
) -> tuple[ExportedProgram, ModuleCall, dict[str, str]]:
    """Graph, call convention and dim names of an encoder on token ids, with dynamic batch and seq."""
    parameters = inspect.signature(type(model).forward).parameters
    name = type(model).__name__
    fix = f"pass example inputs: export_model(model, kwargs={{...}}) with what {name}.forward takes"
    if model.config.is_encoder_decoder:
        raise CaptureError("An encoder-decoder model needs example inputs", where=name, fix=fix)
    if "input_ids" not in parameters:
        raise CaptureError("Example inputs cannot be made from the config of this model", where=name, fix=fix)
    ids = torch.arange(2, 17, device=model.device).view(3, 5) % model.config.vocab_size
    # The mask is always an input: without one transformers traces a search for packed sequences.
    kwargs: dict[str, Any] = {"input_ids": ids}
    for key, value in _FILL.items():
        if key in parameters:
            kwargs[key] = torch.full_like(ids, value)
    exported = _trace_encoder(model, kwargs, strict=strict)
    names = dim_names(exported, [{0: "batch", 1: "seq"} for _ in kwargs])
    kwargs["return_dict"] = True
    fill = {key: value for key, value in _FILL.items() if key in kwargs}
    return_dict = bool(getattr(model.config, "return_dict", True))
    call = module_call(model, exported, (), kwargs, names, notes, fill=fill, return_dict=return_dict)
    return exported, call, names


def _trace_encoder(model: PreTrainedModel, kwargs: dict[str, Any], *, strict: bool) -> ExportedProgram:
    """Dynamic batch and seq; seq is bounded where learned positions end, which config or torch.export itself says."""
    longest = getattr(model.config, "max_position_embeddings", None)
    bound: dict[str, int] = {} if longest is None else {"max": longest}

    def attempt() -> ExportedProgram:
        dims = {0: Dim("batch", min=1), 1: Dim("seq", min=1, **bound)}
        wanted = {**{key: dims for key in kwargs}, "return_dict": None}
        return trace(model, (), {**kwargs, "return_dict": True}, wanted, strict=strict, owner=model)

    try:
        return attempt()
    except InputError as error:
        suggested = re.search(r"seq = Dim\('seq'.*?max=(\d+)", str(error))
        if suggested is None:
            raise
        bound["max"] = int(suggested[1])
        return attempt()
