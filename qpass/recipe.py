"""Recipe: which linear gets which scheme, as plain data.

    Recipe.parse("w8a8-int8")
    Recipe.parse({"linears": {"lm_head": "keep", "*down_proj*": "w8a16", "*": "w4a16-g128"}})

Lines are globs over parameter names; the first that matches wins; a line that matches nothing is an error.
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from qpass.errors import RecipeError
from qpass.formats import SCHEMES, Scheme, nearest

KEEP = "keep"
_FIELDS = ("name", "linears")
_MAX_BYTES = 1 << 20


@dataclass(frozen=True)
class Line:
    """One line of a recipe: linears whose weight matches ``glob`` get ``scheme``; None keeps them in float."""

    glob: str
    scheme: Scheme | None

    def matches(self, names: Iterable[str]) -> bool:
        """Whether any of a linear's names, with or without ``.weight``, matches."""
        return any(
            fnmatch.fnmatchcase(name, self.glob) or fnmatch.fnmatchcase(name.removesuffix(".weight"), self.glob)
            for name in names
        )


@dataclass(frozen=True)
class Recipe:
    """An ordered list of lines. ``str()`` gives its name."""

    name: str
    lines: tuple[Line, ...]

    def __str__(self) -> str:
        return self.name

    @staticmethod
    def parse(recipe: Recipe | str | Path | Mapping[str, Any]) -> Recipe:
        """A recipe from itself, a scheme's name, a YAML or JSON file, or a dict.

        Raises:
            RecipeError: unknown scheme, field or format, with the nearest legal word; an unreadable file.
        """
        if isinstance(recipe, Recipe):
            return recipe
        if isinstance(recipe, Mapping):
            return _from_dict(recipe, str(recipe.get("name", "custom")))
        text = str(recipe)
        if text.endswith((".yaml", ".yml", ".json")):
            return _from_dict(_read(Path(text)), Path(text).stem)
        return Recipe(text, (Line("*", Scheme.parse(text)),))

    def as_dict(self) -> dict[str, Any]:
        """Plain data that ``parse`` reads back."""
        return {"name": self.name, "linears": {line.glob: _scheme_text(line.scheme) for line in self.lines}}


def _scheme_text(scheme: Scheme | None) -> str:
    return KEEP if scheme is None else str(scheme)


def _from_dict(data: Mapping[str, Any], name: str) -> Recipe:
    for field in data:
        if field not in _FIELDS:
            raise RecipeError(f"unknown field {field!r} in a recipe", fix=nearest(str(field), _FIELDS) or "remove it")
    linears = data.get("linears")
    if not isinstance(linears, Mapping) or not linears:
        raise RecipeError("a recipe without a mapping 'linears'", fix='write {"linears": {"*": "w8a8-int8"}}')
    return Recipe(name, tuple(Line(str(glob), _scheme(glob, scheme)) for glob, scheme in linears.items()))


def _scheme(glob: object, scheme: object) -> Scheme | None:
    if isinstance(scheme, Scheme):
        return scheme
    if scheme == KEEP or scheme is None:
        return None
    try:
        return Scheme.parse(str(scheme))
    except RecipeError as error:
        raise RecipeError(error.what, where=f"line {glob!r}", fix=error.fix) from error


def _read(path: Path) -> Mapping[str, Any]:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise RecipeError("a recipe file over 1 MiB", where=str(path), fix="check that this is a recipe")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise RecipeError(f"cannot read the recipe: {error.strerror}", where=str(path), fix="check the path") from error
    try:
        data = json.loads(text) if path.suffix == ".json" else yaml.load(text, Loader=_PlainLoader)
    except (ValueError, yaml.YAMLError) as error:
        raise RecipeError(f"not valid {path.suffix[1:].upper()}: {error}", where=str(path), fix="correct it") from error
    if not isinstance(data, Mapping):
        raise RecipeError("a recipe file holds a mapping", where=str(path), fix='write "linears:" at its top')
    return data


class _PlainLoader(yaml.SafeLoader):
    """Safe YAML without aliases, which a short file can use to expand without bound."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.YAMLError("aliases are not allowed in a recipe")
        return super().compose_node(parent, index)


def names() -> list[str]:
    """Names that ``Recipe.parse`` accepts."""
    return list(SCHEMES)
