"""Other libraries' linears for the GPU benchmark, where they can be imported; each that cannot says why.

Weights are the case's own, quantized by the peer's own rule: times are compared, not values. torchao's linears run
through ``torch.compile``, as its documentation has them; gemlite's are called as they are.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .gpu_cases import Linear

PEERS: dict[str, dict[str, str]] = {
    "w8a8-int8": {"torchao int8": "torchao", "gemlite int8": "gemlite"},
    "w8a8-fp8": {"torchao fp8": "torchao", "gemlite fp8": "gemlite"},
    "w4a16-g128": {"torchao int4": "torchao", "gemlite int4": "gemlite"},
}
"""By format of ours: names of peers, and the package that each needs."""
GROUP = 128


def missing(package: str) -> str | None:
    """Why a package cannot be used; None if it can."""
    return None if importlib.util.find_spec(package) else f"{package} is not installed"


def peers(form: str, linear: Linear, copies: int) -> tuple[dict[str, Callable[[int], Any]], dict[str, str]]:
    """(calls by name, reasons by name of those that cannot be made): each is called with the number of a copy."""
    calls: dict[str, Callable[[int], Any]] = {}
    skipped: dict[str, str] = {}
    for name, package in PEERS.get(form, {}).items():
        try:
            reason = missing(package)
            if reason is None:
                calls[name] = _MAKERS[name](linear, copies)
            else:
                skipped[name] = reason
        except Exception as error:
            skipped[name] = f"{type(error).__name__} {str(error).splitlines()[0][:120] if str(error) else ''}"
    return calls, skipped


def _module(weight: Tensor) -> nn.Linear:
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    made.weight = nn.Parameter(weight.clone(), requires_grad=False)
    return made


def _torchao(config: Callable[[], Any]) -> Callable[[Linear, int], Callable[[int], Any]]:
    def made(linear: Linear, copies: int) -> Callable[[int], Any]:
        from torchao.quantization import quantize_

        modules = [_module(linear.weight) for _ in range(copies)]
        for module in modules:
            quantize_(module, config())
        run = torch.compile(nn.functional.linear, fullgraph=True, dynamic=False, mode="max-autotune-no-cudagraphs")
        return lambda copy: run(linear.x, modules[copy].weight)

    return made


def _int8() -> Any:
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig

    return Int8DynamicActivationInt8WeightConfig()


def _fp8() -> Any:
    from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, PerRow

    return Float8DynamicActivationFloat8WeightConfig(granularity=PerRow())


def _int4() -> Any:
    from torchao.quantization import Int4WeightOnlyConfig

    return Int4WeightOnlyConfig(group_size=GROUP, int4_packing_format="tile_packed_to_4d")


def _gemlite(maker: str) -> Callable[[Linear, int], Callable[[int], Any]]:
    def made(linear: Linear, copies: int) -> Callable[[int], Any]:
        from gemlite import helper

        device, dtype = str(linear.x.device), linear.x.dtype
        layers = [getattr(helper, maker)(device=device, dtype=dtype).from_linear(_module(linear.weight))
                  for _ in range(copies)]  # fmt: skip
        return lambda copy: layers[copy](linear.x)

    return made


def _gemlite_int4(linear: Linear, copies: int) -> Callable[[int], Any]:
    from gemlite import helper

    device, dtype, scale = str(linear.x.device), linear.x.dtype, linear.parts["scale"].to(linear.x.dtype)
    maker = helper.A16Wn(device=device, dtype=dtype)
    zero = linear.parts["zero"].to(dtype)
    layers = [maker.from_weights(linear.parts["codes"].clone(), scale, zero, 4, GROUP) for _ in range(copies)]
    return lambda copy: layers[copy](linear.x)


TORCHAO: dict[str, Callable[[], Any]] = {"torchao int8": _int8, "torchao fp8": _fp8, "torchao int4": _int4}
"""Configurations of its ``quantize_``, for a whole model too."""
_MAKERS: dict[str, Callable[[Linear, int], Callable[[int], Any]]] = {
    **{name: _torchao(config) for name, config in TORCHAO.items()},
    "gemlite int8": _gemlite("A8W8_int8_dynamic"), "gemlite fp8": _gemlite("A8W8_fp8_dynamic"),
    "gemlite int4": _gemlite_int4,
}  # fmt: skip
