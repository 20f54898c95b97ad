"""What is refused before a capture starts."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from qpass.errors import InputError, UnsupportedError

ATTENTION = ("sdpa", "eager")


def check_model(model: nn.Module) -> None:
    """Raise InputError or UnsupportedError if `model` is in a state that cannot be captured."""
    if not isinstance(model, nn.Module):
        raise InputError(f"The model is a {type(model).__name__}, not a torch.nn.Module", fix="pass the module itself")
    if getattr(model, "_qpass_compiled", False):
        raise InputError("The model is already compiled by qpass", fix="compile the original float model")
    if hasattr(model, "_orig_mod"):
        raise InputError("The model is wrapped by torch.compile", fix="pass the module it wraps, model._orig_mod")
    training = next((name for name, module in model.named_modules() if module.training), None)
    if training is not None:
        where = f"module `{training}`" if training else type(model).__name__
        raise InputError("The model is in training mode", where=where, fix="call model.eval() first")
    for kind, tensors in (("parameter", model.named_parameters()), ("buffer", model.named_buffers())):
        for name, tensor in tensors:
            if tensor.device.type == "meta":
                fix = "load the weights onto a real device before compiling"
                raise InputError(f"The model has a {kind} without data on the meta device", where=name, fix=fix)


def check_attention(model: nn.Module) -> None:
    """Raise UnsupportedError if a Hugging Face model computes attention by a kernel that hides it from the graph."""
    config = getattr(model, "config", None)
    kind = getattr(config, "_attn_implementation", None)
    if kind is not None and kind not in ATTENTION:
        fix = 'load the model with attn_implementation="sdpa" or "eager"'
        raise UnsupportedError(f"Attention implementation `{kind}` cannot be captured", where="config", fix=fix)


def check_examples(model: nn.Module, args: Any, kwargs: Any) -> None:
    """Raise InputError for an example input without elements, whose sizes say nothing, or on another device."""
    devices = {parameter.device for parameter in model.parameters()}
    for path, leaf in pytree.tree_flatten_with_path((args, kwargs))[0]:
        if not isinstance(leaf, Tensor):
            continue
        where = f"{('args', 'kwargs')[path[0].idx]}{pytree.keystr(path[1:])}"
        if len(devices) == 1 and leaf.device not in devices:
            (device,) = devices
            what = f"An example input is on {leaf.device}, the model is on {device}"
            raise InputError(what, where=where, fix=f"move it with .to('{device}')")
        if leaf.numel() == 0:
            fix = "pass examples with at least one element, e.g. a batch of 2"
            raise InputError(f"An example input is empty, shape {list(leaf.shape)}", where=where, fix=fix)
