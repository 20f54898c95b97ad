"""Program -> text. The text is an interface: stable between runs, so it can be compared, stored and read.

One op a line, named values, shapes in the user's dimension names, no addresses, no counters. Layers that repeat are
printed once. ``as_python`` prints a file that runs.
"""

from __future__ import annotations

import hashlib
import operator
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import fx
from torch.fx.graph import dtype_abbrs

from qpass.graph.program import Derived, Program
from qpass.graph.values import op_name

_END = 2**63 - 1
_INDEX = re.compile(r"(?<![\w.])((?:[A-Za-z_]\w*\.)+?)(\d+)(?=[./@\s,)\]]|$)")


def show(program: Program, *, fold: bool = True, params: bool = True, fingerprints: bool = True) -> str:
    """The program as text.

    Args:
        fold: print layers that repeat once.
        params: print the table of parameters above the graph.
        fingerprints: hash the content of each parameter into the table; reads every weight once.
    """
    table = [_param_line(program, name, fingerprints) for name in program.used_params()] if params else []
    body = list(_lines(program))
    if fold:
        table, body = fold_layers(table), fold_layers(body)
    inputs = ", ".join(f"%{node.meta['name']} : {_type(program, node)}" for node in program.placeholders())
    return "\n".join([f"program {program.stage}({inputs})", *table, *body]) + "\n"


def _lines(program: Program) -> Iterator[str]:
    for node in program.graph.nodes:
        if node.op == "output":
            yield f"return {_arg(program, node.args[0])}"
        elif node.op == "call_function" and not is_symbolic(node):
            yield _line(program, node)


def _line(program: Program, node: fx.Node) -> str:
    args = [_arg(program, arg) for arg in node.args]
    args += [f"{key}={_arg(program, value)}" for key, value in node.kwargs.items() if key not in _NOISE]
    call = f"{args[0]}[{args[1]}]" if node.target is operator.getitem else f"{op_name(node.target)}({', '.join(args)})"
    text = f"%{node.meta['name']} = {call} : {_type(program, node)}"
    notes = [str(node.meta[key]) for key in ("rule", "plan", "kernel") if node.meta.get(key)]
    return text + (f"   # {'; '.join(notes)}" if notes else "")


_NOISE = frozenset({"pin_memory", "device", "layout"})


def is_symbolic(node: fx.Node) -> bool:
    """Whether a node computes a size, which prints as an expression in the dimensions instead of a line."""
    return isinstance(node.meta.get("val"), torch.SymInt | torch.SymBool | torch.SymFloat | int | bool | float)


def _type(program: Program, node: fx.Node) -> str:
    return type_text(node.meta.get("val"), program.dims)


def type_text(value: Any, dims: Mapping[str, str]) -> str:
    """``f32[batch, seq, 64]``: dtype and shape, symbols by the user's names."""
    if isinstance(value, tuple | list):
        return "(" + ", ".join(type_text(item, dims) for item in value) + ")"
    if not isinstance(value, torch.Tensor):
        return type(value).__name__
    return f"{dtype_abbrs.get(value.dtype, value.dtype)}[{', '.join(_size(size, dims) for size in value.shape)}]"


def _size(size: Any, dims: Mapping[str, str]) -> str:
    if isinstance(size, int):
        return str(size)
    return re.sub(r"[A-Za-z]\w*", lambda match: dims.get(match[0], match[0]), str(size.node.expr))


def _arg(program: Program, arg: Any) -> str:
    if isinstance(arg, fx.Node):
        if is_symbolic(arg):
            value = arg.meta["val"]
            return _size(value, program.dims) if isinstance(value, torch.SymInt | int) else str(value)
        return arg.meta["name"] if arg.op == "get_attr" else f"%{arg.meta['name']}"
    if isinstance(arg, list | tuple):
        return "[" + ", ".join(_arg(program, item) for item in arg) + "]"
    if isinstance(arg, torch.dtype):
        return dtype_abbrs.get(arg, str(arg))
    if arg == _END and isinstance(arg, int):
        return "end"
    return repr(arg) if isinstance(arg, str) else str(arg)


def _param_line(program: Program, name: str, fingerprints: bool) -> str:
    mark = f" #{fingerprint(program.tensor(name))}" if fingerprints else ""
    param = program.params[name]
    history = program.history.get(name, ())
    source = f" <- {', '.join(param.sources)}" if isinstance(param, Derived) and not history else ""
    edits = f" <- {'; '.join(history)}" if history else source
    return f"param {name} : {type_text(program.like(name), {})}{mark}{edits}"


def fingerprint(tensor: torch.Tensor) -> str:
    """Four hex digits of a hash of the content; equal content on any machine gives equal digits."""
    if tensor.is_meta:
        return "meta"
    data = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
    return hashlib.blake2b(data.numpy(), digest_size=2).hexdigest()


def fold_layers(lines: list[str]) -> list[str]:
    """Print repeated layers once: ``... model.layers.2-31 as model.layers.1``, found in the text itself."""
    runs = _runs(lines)
    folded: list[str] = []
    position = 0
    while position < len(runs):
        prefix, index, block = runs[position]
        folded += block
        last = position
        if index is not None and position > 0 and not _is_first(runs, position):
            while last + 1 < len(runs) and _repeats(runs[last], runs[last + 1]):
                last += 1
        if last > position:
            first_index = (index or 0) + 1
            final = runs[last][1]
            span = str(first_index) if final == first_index else f"{first_index}-{final}"
            folded.append(f"... {prefix}{span} as {prefix}{index}")
        position = last + 1
    return folded


_Run = tuple[str, int | None, list[str]]


def _is_first(runs: list[_Run], position: int) -> bool:
    return runs[position][1] == 0


def _runs(lines: list[str]) -> list[_Run]:
    """Consecutive lines of one layer: (``model.layers.``, 3, lines)."""
    runs: list[_Run] = []
    for line in lines:
        match = _INDEX.search(line.split(" = ")[0].removeprefix("%").removeprefix("param "))
        prefix, index = (match[1], int(match[2])) if match else ("", None)
        if not runs or runs[-1][:2] != (prefix, index):
            runs.append((prefix, index, []))
        runs[-1][2].append(line)
    return runs


def _repeats(one: _Run, two: _Run) -> bool:
    if one[0] != two[0] or one[1] is None or two[1] != one[1] + 1:
        return False
    return _relative(one) == _relative(two)


def _relative(run: _Run) -> str:
    """A run's text with its own layer index as ``*``, the one before as ``*-1``, and no fingerprints."""
    prefix, index, block = run
    assert index is not None
    text = re.sub(r" #[0-9a-f]{4}\b", "", "\n".join(block))

    def relative(match: re.Match[str]) -> str:
        offset = int(match[2]) - index
        return f"{match[1]}*{offset or ''}" if match[1] == prefix and offset in (0, -1) else match[0]

    return _renumber(_INDEX.sub(relative, text))


def _renumber(text: str) -> str:
    """Number names outside of any module, such as ``%past_7``, by first appearance: they differ by a constant."""
    seen: dict[str, int] = {}
    return re.sub(
        r"%([A-Za-z_]+?)_?(\d+)\b(?![./@])",
        lambda match: f"%{match[1]}#{seen.setdefault(match[0], len(seen))}",
        text,
    )


def as_python(program: Program) -> str:
    """A Python file with ``forward(params, *inputs)`` that runs the program: needs torch, and qpass for its ops.

    ``params`` maps parameter name to tensor. The output is the flat tuple that ``Program.run`` gives.
    """
    inputs = ", ".join(_identifier(node) for node in program.placeholders())
    lines = ["import operator", "", "import torch", "import qpass.ops  # registers the dialect", ""]
    lines += [f'"""Stage {program.stage}. Run: forward(params, {inputs})"""', "", f"def forward(params, {inputs}):"]
    for node in program.graph.nodes:
        if node.op == "get_attr":
            lines.append(f"    {_identifier(node)} = params[{node.target!r}]")
        elif node.op == "call_function":
            lines.append(f"    {_identifier(node)} = {_python_call(node)}  # {node.meta.get('name')}")
        elif node.op == "output":
            lines.append(f"    return {_literal(node.args[0])}")
    return "\n".join(lines) + "\n"


def _identifier(node: fx.Node) -> str:
    return node.name


def _python_call(node: fx.Node) -> str:
    args = [_literal(arg) for arg in node.args] + [f"{key}={_literal(value)}" for key, value in node.kwargs.items()]
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        name = f"torch.ops.{target}"
    else:
        module = getattr(target, "__module__", "torch").removeprefix("_")
        name = f"{module}.{getattr(target, '__name__', target)}"
    return f"{name}({', '.join(args)})"


def _literal(arg: Any) -> str:
    if isinstance(arg, fx.Node):
        return _identifier(arg)
    if isinstance(arg, tuple):
        return "(" + "".join(_literal(item) + ", " for item in arg) + ")"
    if isinstance(arg, list):
        return "[" + ", ".join(_literal(item) for item in arg) + "]"
    if isinstance(arg, torch.device):
        return f"torch.device({str(arg)!r})"
    if isinstance(arg, float) and arg in (float("inf"), float("-inf")):
        return f"float({str(arg)!r})"
    return repr(arg)
