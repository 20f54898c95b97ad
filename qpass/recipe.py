"""Recipe: which linear gets which scheme, and which methods prepare the weights, as plain data.

    Recipe.parse("w8a8-int8")
    Recipe.parse("smoothquant+w8a8-int8")
    Recipe.parse({"linears": {"lm_head": "keep", "*down_proj*": "w8a16", "*": "w4a16-g128"}})
    Recipe.parse({"methods": [{"smoothquant": {"alpha": 0.75}}], "linears": {"*": "w8a8-int8"}})
    Recipe.parse({"preset": "omniquant-w4a4", "learning": {"epochs": 5}})
    Recipe.parse({"linears": {"*": "w4a4"}, "attention": {"*.layers.0.*": "keep", "*": "qkv4"}})
    Recipe.parse("w8a8-int8+kv4")
    Recipe.parse({"preset": "int-only-w8a8", "integer": {"context": 4096}})

Lines are globs over parameter names; the first that matches wins; a line that matches nothing is an error. Methods run
in order, each on what the one before it left; those that learn from blocks and stand side by side learn together, with
the settings of ``learning``. The lines ``@attention`` and ``@feed-forward`` match linears by their role in the graph.
``attention`` has lines of its own, globs over the modules that attend (see ``formats.attention``).
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from qpass.errors import RecipeError
from qpass.formats import SCHEMES, AttentionScheme, Scheme, nearest
from qpass.formats.attention import is_word
from qpass.formats.integer import Integer
from qpass.learn.settings import DEFAULTS, Learning
from qpass.methods import METHODS, Method, as_data, make, options
from qpass.presets import PRESETS, preset

KEEP = "keep"
_FIELDS = ("name", "preset", "methods", "with_data", "learning", "integer", "linears", "attention")
_MAX_BYTES = 1 << 20


@dataclass(frozen=True)
class Line:
    """One line of a recipe: linears whose weight matches ``glob`` get ``scheme``; None keeps them in float."""

    glob: str
    scheme: Scheme | None

    @property
    def wide(self) -> bool:
        """Whether it names no linear in particular: ``*``, or a role."""
        return self.glob == "*" or self.glob.startswith("@")

    def matches(self, names: Iterable[str]) -> bool:
        """Whether any of a linear's names, with or without ``.weight``, matches."""
        return any(
            fnmatch.fnmatchcase(name, self.glob) or fnmatch.fnmatchcase(name.removesuffix(".weight"), self.glob)
            for name in names
        )


@dataclass(frozen=True)
class AttentionLine:
    """One line of ``attention``: those whose module or value matches ``glob`` get ``scheme``; None keeps them."""

    glob: str
    scheme: AttentionScheme | None

    def matches(self, names: Iterable[str]) -> bool:
        """Whether any of an attention's names matches."""
        return any(fnmatch.fnmatchcase(name, self.glob) for name in names)


@dataclass(frozen=True)
class Recipe:
    """An ordered list of lines, and methods in the order they run. ``str()`` gives its name.

    ``integer``: options of an integer-only program; None for one that computes in float between its linears.
    ``with_data``: the methods of a recipe that names none, where there is calibration data.
    """

    name: str
    lines: tuple[Line, ...]
    methods: tuple[Method, ...] = ()
    learning: Learning = DEFAULTS
    attention: tuple[AttentionLine, ...] = ()
    integer: Integer | None = None
    with_data: tuple[Method, ...] = ()

    def __post_init__(self) -> None:
        if self.integer is not None and self.attention:
            raise RecipeError("an integer-only recipe with lines of attention", where=self.name,
                              fix="give the bits of queries, keys and values as {integer: {attention: 8}}")  # fmt: skip

    def __str__(self) -> str:
        return self.name

    @staticmethod
    def parse(recipe: Recipe | str | Path | Mapping[str, Any]) -> Recipe:
        """A recipe from itself, a name, a YAML or JSON file, or a dict.

        A name is that of a scheme, or of one of ``PRESETS``, and any number of methods, joined by ``+``; the methods
        run in the order in which they stand. A word of ``formats.attention`` among them is for every attention.

        Raises:
            RecipeError: unknown scheme, method, field or format, with the nearest legal word; an unreadable file.
        """
        if isinstance(recipe, Recipe):
            return recipe
        if isinstance(recipe, Mapping):
            return _from_dict(recipe, str(recipe.get("name", "custom")))
        if not isinstance(recipe, str | Path):
            fix = "pass a name such as 'w8a8-int8', a file, a dict or a Recipe"
            raise RecipeError(f"a recipe cannot be a {type(recipe).__name__}", fix=fix)
        text = str(recipe)
        if text.endswith((".yaml", ".yml", ".json")):
            return _from_dict(_read(Path(text)), Path(text).stem)
        return _from_words(text)

    def given(self, data: bool) -> Recipe:
        """The recipe as it runs: the methods of ``with_data`` are its own if there is data, and none are if not."""
        return replace(self, methods=self.with_data if data and self.with_data else self.methods, with_data=())

    def as_dict(self) -> dict[str, Any]:
        """Plain data that ``parse`` reads back."""
        methods = {"methods": [as_data(method) for method in self.methods]} if self.methods else {}
        methods |= {"with_data": [as_data(method) for method in self.with_data]} if self.with_data else {}
        learning = {"learning": self.learning.as_dict()} if self.learning.as_dict() else {}
        lines = {line.glob: _scheme_text(line.scheme) for line in self.lines}
        attention = {line.glob: line.scheme.as_data() if line.scheme else KEEP for line in self.attention}
        attends = {"attention": attention} if attention else {}
        integer = {} if self.integer is None else {"integer": self.integer.as_dict() or True}
        return {"name": self.name, **methods, **learning, **integer, "linears": lines, **attends}


def _scheme_text(scheme: Scheme | None) -> str:
    return KEEP if scheme is None else str(scheme)


def _scheme_of(word: str, *, alone: bool) -> Scheme:
    """The scheme in a recipe's name; where only one word is given, it may also be a misspelled preset."""
    try:
        return Scheme.parse(word)
    except RecipeError as error:
        if alone and word in METHODS:
            fix = f"say what the linears compute in, as in {word}+w8a8-int8"
            raise RecipeError(f"{word!r} is a method, not a scheme", fix=fix) from error
        if alone and error.what.startswith("unknown scheme"):
            close = nearest(word, [*PRESETS, *SCHEMES]) or error.fix
            raise RecipeError(error.what, where=error.where, fix=close) from error
        raise


def _from_words(text: str) -> Recipe:
    """``method+scheme``, ``preset+method``, ...: methods run in the order in which they stand."""
    methods: list[Any] = []
    rest: list[str] = []
    base: Mapping[str, Any] = {}
    attention: Mapping[str, Any] = {}
    for word in text.split("+"):
        found = preset(word)
        if word in METHODS:
            methods.append(word)
        elif is_word(word):
            attention = {"*": word}
        elif found is not None and not rest:
            base = found
            methods += found.get("methods", [])
            rest.append(word)
        else:
            rest.append(word)
    if not rest and not methods:
        raise RecipeError(f"{text!r} is for attention only", fix=f"say what the linears compute in: w8a8-int8+{text}")
    *unknown, scheme = rest or [methods.pop()]
    made = _methods([*unknown, *methods])
    linears = base.get("linears") or {"*": _scheme_of(scheme, alone=not made)}
    learning, integer = Learning.parse(base.get("learning")), Integer.parse(base.get("integer"))
    attends, with_data = _attention(attention or base.get("attention")), () if made else _methods(base.get("with_data"))
    return Recipe(text, _lines(linears), made, learning, attends, integer, with_data)


def _on_preset(data: Mapping[str, Any]) -> dict[str, Any]:
    """A preset with what ``data`` says otherwise: ``learning``, options of its methods, more methods, other lines."""
    base = preset(str(data["preset"]))
    if base is None:
        close = nearest(str(data["preset"]), PRESETS) or f"use one of {', '.join(PRESETS)}"
        raise RecipeError(f"unknown preset {data['preset']!r}", fix=close)
    mine = {method.name: options(method) for method in _methods(data.get("methods"))}
    theirs = {method.name: options(method) for method in _methods(base.get("methods"))}
    methods = [{name: {**theirs.get(name, {}), **mine.get(name, {})}} for name in {**theirs, **mine}]
    given = data.get("learning") or {}
    learning = {**base.get("learning", {}), **(given.as_dict() if isinstance(given, Learning) else given)}
    integer = {**_options(base.get("integer")), **_options(data.get("integer"))}
    whole = integer or data.get("integer", base.get("integer"))
    attention = data.get("attention", base.get("attention"))
    linears = data.get("linears") or base["linears"]
    known = {"methods": methods, "learning": learning, "integer": whole, "linears": linears, "attention": attention}
    with_data = [] if "methods" in data else base.get("with_data", [])
    return {**known, "with_data": data.get("with_data", with_data)}


def _options(integer: Any) -> Mapping[str, Any]:
    return integer if isinstance(integer, Mapping) else {}


def _from_dict(data: Mapping[str, Any], name: str) -> Recipe:
    for field in data:
        if field not in _FIELDS:
            raise RecipeError(f"unknown field {field!r} in a recipe", fix=nearest(str(field), _FIELDS) or "remove it")
    if "preset" in data:
        data = _on_preset(data)
    linears = data.get("linears")
    if not isinstance(linears, Mapping) or not linears:
        raise RecipeError("a recipe without a mapping 'linears'", fix='write {"linears": {"*": "w8a8-int8"}}')
    learning, integer = Learning.parse(data.get("learning")), Integer.parse(data.get("integer"))
    methods, with_data = _methods(data.get("methods")), _methods(data.get("with_data"))
    if methods and with_data:
        raise RecipeError("a recipe with both 'methods' and 'with_data'", fix="keep one of the two")
    attention = _attention(data.get("attention"))
    return Recipe(name, _lines(linears), methods, learning, attention, integer, with_data)


def _lines(linears: Mapping[Any, Any]) -> tuple[Line, ...]:
    return tuple(Line(str(glob), _scheme(glob, scheme)) for glob, scheme in linears.items())


def _attention(lines: Any) -> tuple[AttentionLine, ...]:
    """``None``, or a mapping of globs to what ``AttentionScheme.parse`` takes, or keep; a word for every one."""
    if isinstance(lines, str | AttentionScheme):
        lines = {"*": lines}
    if lines is not None and not isinstance(lines, Mapping):
        raise RecipeError(f"'attention' is {lines!r}, no mapping", fix='write {"attention": {"*": "qkv8"}}')
    return tuple(AttentionLine(str(glob), _attention_scheme(glob, scheme)) for glob, scheme in (lines or {}).items())


def _attention_scheme(glob: object, scheme: Any) -> AttentionScheme | None:
    if scheme is None or scheme == KEEP or isinstance(scheme, AttentionScheme):
        return scheme if isinstance(scheme, AttentionScheme) else None
    try:
        return AttentionScheme.parse(scheme)
    except RecipeError as error:
        where = f"attention line {glob!r}" + (f", {error.where}" if error.where else "")
        raise RecipeError(error.what, where=where, fix=error.fix) from error


def _methods(given: Any) -> tuple[Method, ...]:
    """``None``, one entry, or a list of entries: a name, or a mapping of one name to its options."""
    if given is None:
        return ()
    entries = list(given) if isinstance(given, list | tuple) else [given]
    return tuple(_method(entry) for entry in entries)


def _method(entry: Any) -> Method:
    if isinstance(entry, Method):
        return entry
    if isinstance(entry, str):
        return make(entry)
    if isinstance(entry, Mapping) and len(entry) == 1:
        ((name, options),) = entry.items()
        if options is None or isinstance(options, Mapping):
            return make(str(name), options)
    raise RecipeError(f"{entry!r} is no method", where="methods", fix="write a name, or {name: {option: value}}")


def _scheme(glob: object, scheme: object) -> Scheme | None:
    if isinstance(scheme, Scheme):
        return scheme
    if scheme == KEEP or scheme is None:
        return None
    if not isinstance(scheme, str):
        fix = "write a scheme such as 'w8a8-int8', or 'int8:channel:sym x int8:token:asym', or keep"
        raise RecipeError(f"{scheme!r} is no scheme", where=f"line {glob!r}", fix=fix)
    try:
        return Scheme.parse(scheme)
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
    return [*SCHEMES, *PRESETS]
