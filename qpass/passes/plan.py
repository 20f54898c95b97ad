"""RAISED -> PLANNED: every linear gets a scheme and a kernel, or a reason to stay in float."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import torch
from torch import fx

from qpass import ops
from qpass.errors import RecipeError
from qpass.formats import Scheme, nearest
from qpass.graph.program import Program, copy_graph
from qpass.graph.table import spans, table
from qpass.graph.values import op_name, scopes
from qpass.lowering import Case, Kernel, Target
from qpass.methods import Amends, as_data
from qpass.numerics.low_rank import INT8, check_rank
from qpass.passes.brief import brief
from qpass.passes.cache_codes import plan_caches
from qpass.passes.merge import merge_lines
from qpass.passes.plan_attention import TITLES, AttentionChoice, attention_rows, choices, idle_lines, plan_attention
from qpass.passes.plan_experts import unfit
from qpass.passes.providers import provided
from qpass.recipe import AttentionLine, Line, Recipe
from qpass.sites.roles import roles

aten = torch.ops.aten
INTEGER = "integer_linear: exact int32 sums of int8 products"


@dataclass(frozen=True)
class Choice:
    """What the plan decided for one linear. ``scheme`` None: it stays in float, for ``reason``.

    ``experts``: how many weights of ``shape`` a linear of experts has; 0 for any other linear.
    """

    weight: str
    shape: tuple[int, int]
    scheme: Scheme | None
    kernel: Kernel | None = None
    reason: str = ""
    notes: tuple[str, ...] = ()
    bytes_before: int = 0
    branch: tuple[Choice, ...] = ()
    """What the two linears of a low-rank branch compute in: V [r, K], then U [N, r]."""
    experts: int = 0

    @property
    def sizes(self) -> tuple[int, ...]:
        """``shape``, behind the number of experts if it has some."""
        return (self.experts, *self.shape) if self.experts else self.shape

    @property
    def bytes_after(self) -> int:
        """Bytes of the weight, its scales, zero points and branch, without padding."""
        if self.scheme is None:
            return self.bytes_before
        (rows, width), branch = self.shape, sum(part.bytes_after for part in self.branch)
        return self.scheme.weight.plain.weight_bytes(max(self.experts, 1) * rows, width) + branch

    def __str__(self) -> str:
        if self.scheme is None:
            return f"keep: {self.reason}"
        return f"{self.scheme} -> {self.kernel.name if self.kernel else self.reason}"


def plan_program(program: Program, recipe: Recipe, target: Target) -> Program:
    """The program with a ``Choice`` on every linear, experts' too, and an ``AttentionChoice`` on every attention.

    Raises:
        RecipeError: a line that matches nothing; groups wider than a weight (all offenders are listed).
    """
    graph, _ = copy_graph(program.graph)
    linears = _marked(replace(program, graph=graph), recipe)
    _check_lines(recipe, linears)
    _check_groups(recipe, linears)
    for node in linears:
        node.meta[_KEY[node.target]] = _choose(node, recipe, target)
    _check_shared(recipe, [node for node in linears if "plan" in node.meta])
    plan_attention(graph, recipe)
    plan_caches(graph, program.call)
    return program.with_graph(graph, stage="PLANNED")


_KEY = {aten.linear.default: "plan", ops.grouped_linear: "experts"}
"""Where a node's ``meta`` has its choice. Methods look at ``plan`` alone: they know weights of two dimensions."""


def choice_of(node: fx.Node) -> Choice | None:
    """What was decided for a linear or a linear of experts; None for any other node."""
    found: Choice | None = node.meta.get("plan") or node.meta.get("experts")
    return found


def names(node: fx.Node) -> list[str]:
    """The names a recipe may call a linear by: its parameter, and the module that uses it (they differ when tied)."""
    weight = node.args[1]
    found = [str(weight.target)] if isinstance(weight, fx.Node) and weight.op == "get_attr" else []
    if node.target is aten.linear.default and scopes(node):
        found.append(f"{re.sub('@[0-9]+', '', scopes(node)[-1])}.weight")
    return list(dict.fromkeys(found)) or [str(node.meta["name"])]


def _marked(program: Program, recipe: Recipe) -> list[fx.Node]:
    """The linears, with their roles where a line asks for one. The graph's own ``meta`` is written."""
    linears = list(program.nodes(*_KEY))
    if any(line.glob.startswith("@") for line in recipe.lines):
        found = roles(program)
        for node in linears:
            node.meta["role"] = found.get(node.meta["name"], "")
    return linears


def _called(node: fx.Node) -> list[str]:
    """What a line may match: names, and the role."""
    return [*names(node), node.meta["role"]] if node.meta.get("role") else names(node)


def _line(node: fx.Node, recipe: Recipe) -> Line | None:
    return next((line for line in recipe.lines if line.matches(_called(node))), None)


def _choose(node: fx.Node, recipe: Recipe, target: Target) -> Choice:
    weight, line = node.args[1], _line(node, recipe)
    assert isinstance(weight, fx.Node)
    value = weight.meta["val"]
    width = value.numel() * value.element_size() if isinstance(value.numel(), int) else 0
    choice = Choice(str(weight.meta["name"]), tuple(value.shape[-2:]), None, bytes_before=width,
                    experts=value.shape[0] if value.dim() == 3 else 0)  # fmt: skip
    if line is None:
        return replace(choice, reason="no line of the recipe matches it")
    if line.scheme is None:
        return replace(choice, reason=f"the recipe says so ({line.glob})")
    if weight.op != "get_attr":
        return replace(choice, reason=f"its weight is computed by {op_name(weight.target)}, not a parameter")
    if value.dtype is torch.float64:
        return replace(choice, reason="it computes in float64: cast the model to float32 or bfloat16 first")
    others = sorted({op_name(user.target) for user in weight.users if user.target not in _KEY})
    if others and line.wide and recipe.integer is None:
        reason = f"shares its weight with {', '.join(others)}: a quantized copy would add memory, not save it"
        return replace(choice, reason=reason)
    if line.wide and _chooses(node):
        return replace(choice, reason="it chooses experts: a rounding could send a token elsewhere")
    scheme = line.scheme
    if choice.experts and (reason := unfit(scheme, choice.shape[0], recipe)):
        return replace(choice, reason=reason)
    for method in recipe.methods:
        amends = isinstance(method, Amends) and not choice.experts
        scheme = method.amend(scheme, choice.shape) if amends else scheme  # type: ignore[attr-defined]
    choice = replace(choice, scheme=scheme)
    if recipe.integer is not None:
        return replace(choice, reason=INTEGER)
    kernel, refusals = target.pick(case_of(choice, node.meta["val"].dtype))
    branch, others = _branch(choice, target, node.meta["val"].dtype)
    return replace(choice, kernel=kernel, notes=(*_notes(choice, recipe), *refusals, *others), branch=branch)


def _branch(choice: Choice, target: Target, dtype: torch.dtype) -> tuple[tuple[Choice, ...], list[str]]:
    """The linears of a low-rank branch, and why kernels did not take them.

    An int8 V reads what the linear reads, in the same format; U reads V's few results as they are.
    """
    assert choice.scheme is not None
    fmt, (rows, width) = choice.scheme.weight, choice.shape
    if not fmt.rank:
        return (), []
    check_rank(fmt.rank, choice.shape, choice.weight)
    found, notes = [], []
    for factor, shape, inputs in (("V", (fmt.rank, width), choice.scheme.input), ("U", (rows, fmt.rank), None)):
        size = shape[0] * shape[1] * dtype.itemsize
        part = Choice(choice.weight, shape, None, reason="a factor of a low-rank branch", bytes_before=size)
        if fmt.factor == "int8":
            part = replace(part, scheme=Scheme(INT8, inputs))
            kernel, refusals = target.pick(replace(case_of(part, dtype), factor=factor))
            part, notes = replace(part, kernel=kernel), [*notes, *(f"{factor}: {reason}" for reason in refusals)]
        found.append(part)
    return tuple(found), notes


def _chooses(node: fx.Node) -> bool:
    """Whether a linear's result is ranked (``topk``), as a router's is, within a few elementwise steps."""
    front = [node]
    for _ in range(6):
        front = [user for value in front for user in value.users if user.op == "call_function"]
        if any(op_name(user.target) in ("topk", "argmax", "sort") for user in front):
            return True
        front = [user for user in front if op_name(user.target) in _RANKED]
    return False


_RANKED = frozenset({"softmax", "_softmax", "sigmoid", "_to_copy", "add", "mul", "reshape"})


def case_of(choice: Choice, dtype: torch.dtype) -> Case:
    """The kernel request of a linear with a scheme, without its branch."""
    assert choice.scheme is not None
    return Case(*choice.shape, Scheme(choice.scheme.weight.plain, choice.scheme.input), dtype, choice.experts)


def _notes(choice: Choice, recipe: Recipe) -> list[str]:
    assert choice.scheme is not None
    fmt, (rows, width) = choice.scheme.weight, choice.shape
    short = width % fmt.group if fmt.group else 0
    notes = [f"the last of {fmt.groups(width)} groups has {short} of {fmt.group} values"] if short else []
    if choice.experts and recipe.methods:
        notes.append("methods do not look at experts: rounded to nearest")
    if fmt.rows and rows % fmt.rows:
        notes.append(f"the last of {fmt.scale_rows(rows)} blocks has {rows % fmt.rows} of {fmt.rows} rows")
    return notes


def unreached(program: Program, recipe: Recipe) -> dict[Line | AttentionLine, str]:
    """The lines of a recipe that no linear or attention of a RAISED program takes, and why."""
    linears = _marked(replace(program, graph=copy_graph(program.graph)[0]), recipe)
    used = {line for node in linears if (line := _line(node, recipe))}
    idle = {line: _why_idle(line, linears) for line in recipe.lines if line not in used}
    return {**idle, **idle_lines(program.graph, recipe)}


def _why_idle(line: Line, linears: list[fx.Node]) -> str:
    if any(line.matches(_called(node)) for node in linears):
        return "lines above it match all it matches"
    return "it matches no linear" if linears else "the graph has no linear"


def _check_lines(recipe: Recipe, linears: list[fx.Node]) -> None:
    used = {line for node in linears if (line := _line(node, recipe))}
    every = list(dict.fromkeys(name for node in linears for name in names(node)))
    for line in recipe.lines:
        if line in used:
            continue
        if any(line.matches(_called(node)) for node in linears):
            raise RecipeError(f"the line {line.glob!r} is never reached: lines above it match all it matches",
                              where=f"recipe {recipe.name}", fix="move it up or remove it")
        if not linears:
            raise RecipeError("the model has no linear", where=f"recipe {recipe.name}", fix="check the model")
        close = nearest(line.glob.replace("*", ""), every) or f"name one of {', '.join(every[:3])}, ..."
        raise RecipeError(f"the line {line.glob!r} matches no linear", where=f"recipe {recipe.name}", fix=close)


def _check_shared(recipe: Recipe, linears: list[fx.Node]) -> None:
    first: dict[str, fx.Node] = {}
    for node in linears:
        one, two = first.setdefault(node.meta["plan"].weight, node), node
        schemes = [linear.meta["plan"].scheme for linear in (one, two)]
        if None not in schemes and schemes[0].weight != schemes[1].weight:
            raise RecipeError(f"one weight in two formats: {names(one)[-1]} asks for {schemes[0].weight}, "
                              f"{names(two)[-1]} for {schemes[1].weight}", where=f"recipe {recipe.name}",
                              fix="give linears that share a weight one scheme, or keep one of them in float")


def _check_groups(recipe: Recipe, linears: list[fx.Node]) -> None:
    wide = []
    for node in linears:
        line = _line(node, recipe)
        if line and line.scheme and line.scheme.weight.group > node.args[1].meta["val"].shape[-1]:
            wide.append(f"{names(node)[0]} ({node.args[1].meta['val'].shape[-1]} inputs)")
    wide = list(dict.fromkeys(wide))
    if wide:
        count = "a weight" if len(wide) == 1 else f"{len(wide)} weights"
        raise RecipeError(f"a group of {line_group(recipe)} is wider than {count}: {', '.join(wide[:4])}",
                          where=f"recipe {recipe.name}", fix="use a smaller group, or w8a16 for these linears")


def line_group(recipe: Recipe) -> int:
    """The widest group of a recipe."""
    return max(line.scheme.weight.group for line in recipe.lines if line.scheme)


@dataclass(frozen=True)
class Plan:
    """What a recipe would do to a model. ``str()`` is the table that ``qpass.plan`` prints."""

    recipe: str
    target: str
    choices: tuple[tuple[str, Choice], ...]
    unseen: tuple[tuple[str, str], ...]
    bytes_before: int
    bytes_after: int
    methods: tuple[str, ...] = ()
    ops: tuple[str, ...] = ()
    attention: tuple[tuple[str, AttentionChoice], ...] = ()
    merges: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        return self.text()

    def text(self, *, full: bool = False) -> str:
        """The table and what the methods did: where one did the same in many places, in a line, unless ``full``."""
        lines = [f"plan: recipe {self.recipe} on target {self.target}"]
        rows = [(name, _shape(choice), str(choice.scheme or "keep"),
                 choice.kernel.name if choice.kernel else choice.reason) for name, choice in self.choices]
        lines += table(("linear", "shape", "format", "kernel, or why not"), fold_rows(rows))
        lines += self._branches()
        attention = attention_rows(self.attention)
        lines += table(TITLES, fold_rows(attention)) if attention else []
        lines += [f"method {text}" for text in (self.methods if full else brief(self.methods))]
        notes = fold_rows([(name, note) for name, choice in self.choices for note in choice.notes])
        lines += [f"note: {name}: {note}" for name, note in notes]
        every = [part for _, choice in self.choices for part in (choice, *choice.branch)]
        kernels = {choice.kernel.name: choice.kernel.rows for choice in every if choice.kernel}
        lines += [f"kernel {name}: {rows}" for name, rows in sorted(kernels.items())]
        lines += [f"merge {name}: {what}" for name, what in fold_rows(list(self.merges))]
        lines += self.ops
        lines += [f"keep {name}: {why}" for name, why in self.unseen]
        count = sum(choice.scheme is not None for _, choice in self.choices)
        lines.append(f"{count} of {len(self.choices)} linears quantized; weights {_mib(self.bytes_before)} -> "
                     f"{_mib(self.bytes_after)} ({self.bytes_before / max(self.bytes_after, 1):.2f}x smaller)")
        return "\n".join(lines)

    def _branches(self) -> list[str]:
        """A table of the low-rank branches; layers that agree share a row."""
        rows = []
        for name, choice in self.choices:
            if choice.branch and choice.scheme:
                fmt, size = choice.scheme.weight, sum(part.bytes_after for part in choice.branch)
                kernels = [part.kernel.name if part.kernel else "float linear" for part in choice.branch]
                bits = f"{size * 8 / (choice.shape[0] * choice.shape[1]):.3f}"
                rows.append((name, str(fmt.rank), fmt.factor, *map(_shape, choice.branch), *kernels, _kib(size), bits))
        head = ("low-rank branch", "rank", "factors", "V", "U", "V's kernel", "U's kernel", "size", "bits a weight")
        return table(head, fold_rows(rows)) if rows else []


def summarise(program: Program, recipe: Recipe, target: Target) -> Plan:
    """The plan of a PLANNED program."""
    linears = tuple((names(node)[-1].removesuffix(".weight"), node.meta[_KEY[node.target]])
                    for node in program.nodes(*_KEY))
    before = sum(_bytes(program.like(name)) for name in program.used_params())
    methods = tuple(str(as_data(method)) for method in recipe.methods)
    after = before + _saved(program)
    return Plan(str(recipe), target.name, linears, _unseen(program), before, after, methods, provided(program, target),
                choices(program), tuple(merge_lines(program.graph)))  # fmt: skip


def _saved(program: Program) -> int:
    """Change in bytes: a weight that something else still reads in float stays beside its quantized copy."""
    change, seen = 0, set()
    for node in program.graph.nodes:
        choice = choice_of(node)
        if choice is None or choice.scheme is None or (choice.weight, choice.scheme.weight) in seen:
            continue
        seen.add((choice.weight, choice.scheme.weight))
        change += choice.bytes_after
        if all(getattr(choice_of(user), "scheme", None) for user in node.args[1].users):
            change -= choice.bytes_before
    return change


def _unseen(program: Program) -> tuple[tuple[str, str], ...]:
    """Large parameters that no linear or embedding reads, and the op that does."""
    found = []
    for node in program.graph.nodes:
        if node.op != "get_attr" or node.meta["val"].dim() < 2 or not node.meta["val"].is_floating_point():
            continue
        readers = {op_name(user.target) for user in node.users} - {"linear", "embedding"}
        if readers and node.meta["val"].numel() >= 1024 and not any(choice_of(user) for user in node.users):
            found.append((node.target, f"read by {', '.join(sorted(readers))}, which has no quantized form yet"))
    return tuple(found)


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _mib(count: int) -> str:
    return f"{count / 2**20:.2f} MiB"


def _kib(count: int) -> str:
    return f"{count / 2**10:.2f} KiB"


def _shape(choice: Choice) -> str:
    return "x".join(str(size) for size in choice.sizes)


_LAYER = re.compile(r"\.(\d+)\.")


def fold_rows(rows: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Rows that differ only in the layer's number print once, as ``layers.0-5``."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for name, *rest in rows:
        match = _LAYER.search(name)
        groups.setdefault((_LAYER.sub(".*.", name, count=1), *rest), []).append(int(match[1]) if match else 0)
    return [(name.replace(".*.", f".{spans(numbers)}."), *rest) for (name, *rest), numbers in groups.items()]
