"""Methods by the name that a recipe calls them. One file a method; a new one is a file and a line here."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from qpass.errors import RecipeError
from qpass.formats import nearest
from qpass.methods.fsbr import FSBR
from qpass.methods.gptq import Gptq
from qpass.methods.let import LET
from qpass.methods.lkd import LKD
from qpass.methods.lorc import Lorc
from qpass.methods.lwc import LWC
from qpass.methods.method import Amends, Method, Solution
from qpass.methods.power_of_two_scales import PowerOfTwoScales
from qpass.methods.scale_search import ScaleSearch
from qpass.methods.smoothquant import SmoothQuant
from qpass.methods.smoothquant_free import SmoothQuantFree

__all__ = ["METHODS", "Amends", "Method", "Solution", "as_data", "make", "options"]

METHODS: dict[str, type[Any]] = {
    method.name: method
    for method in (
        SmoothQuant,
        SmoothQuantFree,
        Gptq,
        Lorc,
        PowerOfTwoScales,
        ScaleSearch,
        LWC,
        LET,
        FSBR,
        LKD,
    )
}


def make(name: str, options: Mapping[str, Any] | None = None) -> Method:
    """A method with its options. RecipeError for an unknown name, option or value, with the nearest legal word."""
    if name not in METHODS:
        raise RecipeError(f"unknown method {name!r}", fix=nearest(name, METHODS) or f"use one of {', '.join(METHODS)}")
    legal = [field.name for field in dataclasses.fields(METHODS[name])]
    for option in options or {}:
        if option not in legal:
            raise RecipeError(f"unknown option {option!r}", where=f"method {name}",
                              fix=nearest(str(option), legal) or f"use one of {', '.join(legal)}")
    try:
        made: Method = METHODS[name](**(options or {}))
    except TypeError as error:
        raise RecipeError(f"an option has the wrong type: {error}", where=f"method {name}", fix="see docs") from error
    return made


def options(method: Method) -> dict[str, Any]:
    """The options that differ from their defaults, as plain data."""
    fields = dataclasses.fields(method)  # type: ignore[arg-type]
    values = {field.name: (getattr(method, field.name), field.default) for field in fields}
    changed = {name: value for name, (value, default) in values.items() if value != default}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in changed.items()}


def as_data(method: Method) -> str | dict[str, Any]:
    """The entry of a recipe that gives this method."""
    found = options(method)
    return {method.name: found} if found else method.name
