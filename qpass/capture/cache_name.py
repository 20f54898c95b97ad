"""What transformers calls the key/value cache: `past_key_values` up to 5.23, `cache` from 5.24 on.

The argument of forward and the field of the output are looked up apart: a model whose code is not part of transformers
may have the old argument and the new output.
"""

from __future__ import annotations

import inspect
from collections.abc import Container
from dataclasses import fields, is_dataclass
from typing import Any

from transformers.modeling_outputs import CausalLMOutputWithPast

OLD, NEW = "past_key_values", "cache"


def cache_argument(signature: inspect.Signature) -> str | None:
    """The parameter of `forward` that takes the cache; None if there is none."""
    return _name(signature.parameters)


def cache_field(output_type: type) -> str | None:
    """The field of a model's output class that holds the cache; None if there is none."""
    # not by attribute: 5.24 gives the output a property of the old name too, which warns
    return _name([field.name for field in fields(output_type)]) if is_dataclass(output_type) else None


def usual_name() -> str:
    """The name that the installed transformers has for both."""
    return cache_field(CausalLMOutputWithPast) or OLD


def returned_cache(output: Any) -> Any:
    """The cache in what a model returned, whatever its class; None if there is none."""
    return getattr(output, cache_field(type(output)) or _name(dir(output)) or OLD, None)


def _name(names: Container[str]) -> str | None:
    return next((name for name in (OLD, NEW) if name in names), None)
