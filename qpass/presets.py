"""Recipes by the names that papers are known by: methods, settings of the block loop, formats. All can be overridden.

OmniQuant (Shao et al. 2024): clipping alone for weights, with scales and shifts where activations are quantized; 20
epochs, 40 at two bits; learning rates 1e-2 (clipping) and 5e-3. I-LLM (Hu et al. 2024): smoothing and clipping, the
same rates. Both round queries, keys and values per token to the bits of the activations, and leave what the softmax
gives. ZeroQuant (Yao et al. 2022): 100 steps a block at 5e-6 on the teacher's inputs; integers of four bits in the
feed-forward part and of eight in attention. Its groups of rows are finer here: one scale a row.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_CLIP = ["lwc"]
_OMNI = ["lwc", "let"]
_FSBR = ["lwc", "fsbr"]
_LKD = {"steps": 100, "inputs": "teacher", "schedule": "constant"}


def _whole(scheme: str) -> dict[str, str]:
    return {"*": scheme}


def _words(method: str, scheme: str) -> dict[str, Any]:
    return {"methods": [method], "linears": _whole(scheme)}


def _integer(weight: int, inputs: int) -> dict[str, Any]:
    """No float value from token ids to logits. Weights have no zero point: their sums of products stay plain."""
    linears = _whole(f"int{weight}:channel:sym x int{inputs}:token:asym")
    return {"integer": True, "with_data": _FSBR, "linears": linears}


PRESETS: dict[str, Mapping[str, Any]] = {
    "smoothquant-w8a8": _words("smoothquant", "w8a8-int8"),
    **{f"zeroquant-fp-w4a8{scale}": _words("gptq", f"w4a8-fp{scale}") for scale in ("", "-m1", "-m2")},
    "w4a16-g128-gptq": _words("gptq", "w4a16-g128"),
    "omniquant-w4a16-g128": {"methods": _CLIP, "linears": _whole("w4a16-g128")},
    "omniquant-w3a16-g128": {"methods": _CLIP, "linears": _whole("w3a16-g128")},
    "omniquant-w2a16-g64": {
        "methods": _CLIP, "learning": {"epochs": 40, "same_input": True}, "linears": _whole("w2a16-g64"),
    },
    "omniquant-w6a6": {"methods": _OMNI, "linears": _whole("w6a6"), "attention": _whole("qkv6")},
    "omniquant-w4a4": {
        "methods": _OMNI, "learning": {"same_input": True}, "linears": _whole("w4a4"), "attention": _whole("qkv4"),
    },
    **{f"fsbr-w{bits}a{bits}": {
        "methods": _FSBR, "linears": _whole(f"int{bits}:channel:asym x int{bits}:token:asym"),
        "attention": _whole(f"qkv{bits}"),
    } for bits in (8, 4)},
    **{f"int-only-w{weight}a{inputs}": _integer(weight, inputs) for weight, inputs in ((8, 8), (4, 8), (6, 6), (4, 4))},
    "zeroquant-w8a8": {"linears": _whole("w8a8-int8-sym")},
    "zeroquant-w4/8a8-lkd": {
        "methods": ["lkd"], "learning": _LKD,
        "linears": {"@attention": "w8a8-int8-sym", "@feed-forward": "int4:channel:sym x int8:token:sym"},
    },
}  # fmt: skip
"""By name. Methods may be added before or behind one: ``lorc`` in ``preset+lorc``."""
PRESET_FAMILIES = {
    "zeroquant-fp-w4a8[-gG][-m1|-m2|-m2plus]": (
        r"zeroquant-fp-w4a8((?:-g\d+)?(?:-(?:m1|m2plus|m2))?)",
        "gptq",
        r"w4a8-fp\1",
    ),
    "wNa16-gG-gptq": (r"(w[2-8]a16-g\d+)-gptq", "gptq", r"\1"),
}
"""Presets with numbers in them: how they are printed -> (pattern, method, scheme)."""


def preset(name: str) -> Mapping[str, Any] | None:
    """The preset of that name, or None."""
    for pattern, method, scheme in PRESET_FAMILIES.values():
        if found := re.fullmatch(pattern, name):
            return _words(method, found.expand(scheme))
    return PRESETS.get(name)


def meaning(name: str) -> str:
    """A preset in one line: its methods, then its lines."""
    data = PRESETS[name]
    lines = [scheme if glob == "*" else f"{glob} {scheme}" for glob, scheme in data["linears"].items()]
    attention = [scheme if glob == "*" else f"{glob} {scheme}" for glob, scheme in data.get("attention", {}).items()]
    only = ", integer-only" if data.get("integer") else ""
    data_only = f"; with calibration data {'+'.join(data['with_data'])}" if data.get("with_data") else ""
    return "+".join([*data.get("methods", []), ", ".join(lines), *attention]) + only + data_only
