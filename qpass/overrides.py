"""Fields of a recipe set from the command line: ``learning.steps=64``, ``lwc.rate=0.05``, ``linears.lm_head=keep``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from qpass.errors import RecipeError
from qpass.formats import nearest
from qpass.recipe import Recipe


def overridden(recipe: Recipe, assignments: Sequence[str]) -> Recipe:
    """The recipe with other values of some fields, in order; the name stays.

    Args:
        assignments: ``learning.FIELD=VALUE``, ``METHOD.OPTION=VALUE``, ``linears.GLOB=SCHEME`` or, of an integer-only
            recipe, ``integer.OPTION=VALUE``. A value is read as YAML: a number, a word, true, [a, b]. A line that is
            new goes before all others, so that it wins.

    Raises:
        RecipeError: no such field, method, option or value, with the nearest legal word.
    """
    if not assignments:
        return recipe
    data = recipe.as_dict()
    methods, with_data = ([_entry(entry) for entry in data.get(field, [])] for field in ("methods", "with_data"))
    owners: dict[str, list[dict[str, Any]]] = {"learning": [dict(data.get("learning", {}))]}
    if recipe.integer is not None:
        owners["integer"] = [recipe.integer.as_dict()]
    for name, options in (*methods, *with_data):
        owners.setdefault(name, []).append(options)
    linears = dict(data["linears"])
    for text in assignments:
        owner, field, value = _parts(text)
        if owner == "linears":
            linears = {**linears, field: value} if field in linears else {field: value, **linears}
        elif owner not in owners:
            legal = ["linears", *owners]
            raise RecipeError(f"the recipe {recipe} has no {owner!r}", where=f"--set {text}",
                              fix=nearest(owner, legal) or f"begin with one of {', '.join(legal)}")  # fmt: skip
        for options in owners.get(owner, []):
            options[field] = value
    data |= {"learning": owners["learning"][0], "linears": linears}
    data |= {"methods": [{name: options} for name, options in methods]} if methods else {}
    data |= {"with_data": [{name: options} for name, options in with_data]} if with_data else {}
    data |= {"integer": owners["integer"][0] or True} if recipe.integer is not None else {}
    try:
        return Recipe.parse(data)
    except TypeError as error:
        raise RecipeError(str(error), where="--set", fix="use a value of the right kind") from error


def _entry(data: Any) -> tuple[str, dict[str, Any]]:
    if isinstance(data, str):
        return data, {}
    ((name, options),) = data.items()
    return name, dict(options or {})


def _parts(text: str) -> tuple[str, str, Any]:
    place, equals, word = text.partition("=")
    owner, dot, field = place.strip().partition(".")
    if not (equals and dot and owner and field):
        raise RecipeError(f"{text!r} sets nothing", where="--set", fix="write it as in --set learning.steps=64")
    try:
        return owner, field, yaml.safe_load(_exponent(word))
    except yaml.YAMLError as error:
        raise RecipeError(f"{word!r} is no value", where=f"--set {text}", fix="use a number or a word") from error


def _exponent(word: str) -> str:
    """YAML takes 5e-6 for a word, as it has no dot."""
    mantissa, mark, power = word.strip().lower().partition("e")
    number = mark and mantissa.lstrip("+-").isdigit() and power.lstrip("+-").isdigit()
    return f"{mantissa}.0e{power if power[0] in '+-' else '+' + power}" if number else word
