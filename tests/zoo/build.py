"""Tiny random models with example inputs, and their NORMAL programs."""

from __future__ import annotations

import contextlib
import inspect
from typing import Any

import torch
from torch import Tensor, nn

from qpass.capture.module import capture_module
from qpass.capture.normalise import normalise
from qpass.capture.program import from_export
from qpass.capture.trace import session
from qpass.graph.program import Program
from tests.zoo.names import model_class
from tests.zoo.odd import ODD
from tests.zoo.shrink import VOCAB, tiny_config

Built = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]
BATCH, TOKENS, FIRST = 2, 6, 5  # ids under FIRST are the special ones
# gathers the weights of each token's experts: plain ATen, one graph whatever the routers choose
EXPERTS = "batched_mm"


def build(name: str, experts: str = EXPERTS) -> Built:
    """A random float32 model in eval mode, and the arguments of an example call."""
    torch.manual_seed(0)
    config = tiny_config(name)
    model = _construct(model_class(name), config, experts).float().eval()
    randomise(model, ODD.get(name, {}).get("_seed", 1))
    return model, (), {**inputs(model), **ODD.get(name, {}).get("_inputs", {})}


def _construct(kind: Any, config: Any, experts: str) -> Any:
    for attention in ("sdpa", "eager"):
        with contextlib.suppress(ValueError):
            model = kind._from_config(config, attn_implementation=attention)
            break
    else:
        model = kind(config)
    with contextlib.suppress(ValueError, AttributeError):
        model.set_experts_implementation(experts)
    return model


@torch.no_grad()
def randomise(model: nn.Module, seed: int = 1) -> None:
    """Weights that keep activations of order one; what starts at one value (norms, biases, gates) around it."""
    generator = torch.Generator().manual_seed(seed)

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator).to(like.dtype)

    for tensor in model.parameters():
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        constant = bool((tensor == tensor.flatten()[0]).all()) and tensor.numel() > 1
        if tensor.dim() < 2 or (constant and float(tensor.flatten()[0]) != 0.0):
            tensor.mul_(1 + 0.2 * noise(tensor).clamp(-2, 2)).add_(0.1 * noise(tensor))
        elif constant or float(tensor.std()) < 0.2:
            tensor.copy_(0.2 * noise(tensor))
    for name, tensor in model.named_buffers():
        if "bias" in name and tensor.is_floating_point():  # what routers add to choose experts
            tensor.add_(0.1 * noise(tensor))
        if name.endswith("tid2eid"):  # the experts of each token id, all the first one as made
            tensor.copy_((torch.arange(tensor.numel()) % 4).reshape(tensor.shape))


def inputs(model: Any) -> dict[str, Any]:
    """Distinct token ids, a mask of ones, no cache, and ids for the decoder where there is one."""
    takes = inspect.signature(model.forward).parameters
    ids = (torch.arange(BATCH * TOKENS) * 5 % (VOCAB - FIRST) + FIRST).reshape(BATCH, TOKENS)
    call: dict[str, Any] = {"input_ids": ids}
    if "attention_mask" in takes:
        call["attention_mask"] = torch.ones_like(ids)
    if "decoder_input_ids" in takes:
        call["decoder_input_ids"] = ids.flip(0) + 1
    if "bbox" in takes:
        call["bbox"] = torch.arange(4).repeat(BATCH, TOKENS, 1) + 1
    if "use_cache" in takes:
        call["use_cache"] = False
    if "return_dict" in takes:
        call["return_dict"] = True
    return call


def flat_inputs(program: Program, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """The graph's inputs for a call of the model."""
    return list(program.call.flatten(args, kwargs))


def capture(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *, dynamic: bool = True) -> Program:
    """The NORMAL program of a call without cache. A causal LM goes the way of any module: no cache in the graph.

    The batch is dynamic where the model allows it, unless ``dynamic`` is False: then all sizes are static.
    """
    shapes = None if dynamic else {}
    with session():
        exported, call, dims = capture_module(model, args, kwargs, shapes, (), strict=False)
    return normalise(from_export(exported, prefix="", dims=dims, call=call))
