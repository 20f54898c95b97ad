"""``python -m qpass list``: what there is, and what of it this machine can run."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import torch

from qpass import ops, pipeline
from qpass.errors import QPassError
from qpass.formats import SCHEMES
from qpass.formats.attention import WORDS
from qpass.formats.scheme import FAMILIES
from qpass.graph.rule import Rule
from qpass.lowering import Case, Kernel
from qpass.lowering.cpu import kernels
from qpass.methods import METHODS
from qpass.patterns import rules
from qpass.presets import PRESET_FAMILIES, PRESETS, meaning
from qpass.stages import STAGES


def listing() -> str:
    """The text."""
    return "\n".join([*_stages(), *_patterns(), *_ops(), *_schemes(), *_methods(), *_targets()])


def _stages() -> Iterator[str]:
    yield "stages, in order"
    yield f"  {' -> '.join(STAGES)}"


def _patterns() -> Iterator[str]:
    yield "\npatterns: what is recognized (NORMAL -> RAISED)"
    groups: dict[str, list[str]] = {}
    for rule in rules():
        groups.setdefault(_first_line(rule), []).append(rule.name)
    for doc, names in groups.items():
        yield f"  {_short(names):<32} {doc}"


def _first_line(rule: Rule) -> str:
    return _plain(rule.doc)


def _plain(doc: str) -> str:
    """The first line of a docstring, without its markup."""
    return doc.strip().partition("\n")[0].replace("``", "")


def _short(names: list[str]) -> str:
    """The names; the first and a count where they are many."""
    return ", ".join(names) if len(names) < 3 else f"{min(names, key=len)} and {len(names) - 1} more"


def _ops() -> Iterator[str]:
    yield "\nops: the dialect"
    for name, op in sorted(ops.REGISTRY.items()):
        yield f"  {name:<26} {_plain(op.doc)}"


def _schemes() -> Iterator[str]:
    yield "\nschemes: names a recipe may use; their formats are weight x input"
    for name, scheme in SCHEMES.items():
        yield f"  {name:<18} {scheme}"
    yield f"  with any number: {', '.join(FAMILIES)}"
    yield f"  of attention: {', '.join(WORDS)}"


def _methods() -> Iterator[str]:
    yield "\nmethods: written before a scheme, as in smoothquant+w8a8-int8; * looks at calibration data"
    for name, method in METHODS.items():
        looks = method().needs_data  # with its defaults
        doc = _plain(inspect.getdoc(inspect.getmodule(method)) or "")
        yield f"  {name + ('*' if looks else ''):<20} {doc}"
    yield "\nrecipes by name; every field of one can be overridden, see docs/recipes.md"
    for name in PRESETS:
        yield f"  {name:<20} {meaning(name)}"
    yield f"  with any number: {', '.join(PRESET_FAMILIES)}"


def _targets() -> Iterator[str]:
    reason = kernels.available()
    yield "\ntargets and their kernels, most preferred first; which schemes each takes on this machine"
    yield f"  qpass's own CPU kernels: {f'not available: {reason}' if reason else 'available'}"
    for name in pipeline.TARGETS:
        yield f"  {name}"
        try:
            target = pipeline.load_target(name)
        except (ImportError, QPassError) as error:
            yield f"    not available: {error}"
            continue
        for kernel in (*target.kernels, *target.grouped):
            yield f"    {kernel.name:<36} {_takes(kernel)}"


def _takes(kernel: Kernel) -> str:
    """Schemes that a kernel takes for a common shape, or why it takes none."""
    refusals = {name: kernel.refuses(Case(256, 256, scheme, torch.bfloat16)) for name, scheme in SCHEMES.items()}
    taken = [name for name, reason in refusals.items() if reason is None]
    if len(taken) == len(SCHEMES):
        return "every scheme"
    return ", ".join(taken) or "none: " + "; ".join(dict.fromkeys(str(reason) for reason in refusals.values()))
