"""Why is this value as it is? Which rule made it, or how far each rule came and what stopped it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

from torch import fx

from qpass.errors import InputError
from qpass.graph.match import Match
from qpass.graph.program import Program
from qpass.graph.rewrite import find
from qpass.graph.rule import Rule
from qpass.graph.show import is_symbolic
from qpass.graph.values import op_name, scopes
from qpass.patterns import rules as raise_rules


def explain(program: Program, name_glob: str, *, rules: Sequence[Rule] | None = None) -> str:
    """What the rules did at each value that ``name_glob`` names, or that a module it names made.

    Args:
        program: at any stage; before RAISED it says what would match.
        name_glob: a value name, module path or pattern such as ``model.layers.0.*``.
        rules: the rules to try; those that raise ATen to the dialect when None.
    """
    tried = raise_rules() if rules is None else rules
    lines = [line for node in _named(program, name_glob) for line in _explain(node, tried)]
    if not lines:
        raise InputError(f"no value matches {name_glob!r}", fix="print the program to see its value names")
    return "\n".join(lines) + "\n"


def _named(program: Program, name_glob: str) -> Iterator[fx.Node]:
    for node in program.nodes():
        if not is_symbolic(node) and any(fnmatchcase(name, name_glob) for name in (node.meta["name"], *scopes(node))):
            yield node


def _explain(node: fx.Node, rules: Sequence[Rule]) -> Iterator[str]:
    yield f"%{node.meta['name']} = {op_name(node.target)}(...)"
    for key in ("rule", "plan", "attention", "kernel"):
        if text := str(node.meta.get(key) or ""):
            yield f"    {key}: {text}"
    if node.meta.get("rule"):
        return
    found = [(rule, find(rule, node)) for rule in rules if _may_start(rule, node)]
    for rule, match in sorted(found, key=lambda item: (-getattr(item[1], "depth", 1 << 30), item[0].name)):
        if isinstance(match, Match):
            yield f"    {rule.name}: matches {len(match.nodes)} ops"
        else:
            yield f"    {rule.name}: stopped after {match.depth} of {_size(rule)}: {match.reason}"
    if not found:
        yield f"    no rule ends in {op_name(node.target)}"


def _may_start(rule: Rule, node: fx.Node) -> bool:
    return any(pattern.root.target is node.target for pattern in rule.patterns())


def _size(rule: Rule) -> int:
    """Nodes of the largest spelling, holes counted."""
    return max(sum(node.op != "output" for node in pattern.graph.nodes) for pattern in rule.patterns())
