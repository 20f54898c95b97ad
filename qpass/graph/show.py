"""Program -> text. The text is an interface: stable between runs, so it can be compared, stored and read.

One op a line, named values, shapes in the user's dimension names, no addresses, no counters. Layers that repeat are
printed once. ``as_python`` prints a file that runs.
"""

from __future__ import annotations

import hashlib
import math
import operator
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import fx
from torch.fx.graph import dtype_abbrs  # type: ignore[attr-defined]

from qpass.graph.fold import fold_layers
from qpass.graph.program import Derived, Program
from qpass.graph.values import op_name

_END = 2**63 - 1


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
    notes = [note for key in ("rule", "plan", "attention", "kernel") if (note := str(node.meta.get(key) or ""))]
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
    return hashlib.blake2b(data.numpy().data, digest_size=2).hexdigest()


def as_python(program: Program) -> str:
    """A Python file with ``forward(params, *inputs)`` that runs the program: needs torch, and qpass for its ops.

    ``params`` maps parameter name to tensor. The output is the flat tuple that ``Program.run`` gives.
    """
    inputs = ", ".join(_identifier(node) for node in program.placeholders())
    lines = ["import math", "import operator", "", "import torch", "import qpass.ops  # registers the dialect", ""]
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
    return f"{node.name}_" if node.name in ("forward", "math", "operator", "params", "qpass", "torch") else node.name


def _python_call(node: fx.Node) -> str:
    args = [_literal(arg) for arg in node.args] + [f"{key}={_literal(value)}" for key, value in node.kwargs.items()]
    target = node.target
    if hasattr(target, "_schema"):
        name = f"torch.ops.{target}"
    else:
        module = {"_operator": "operator"}.get(target.__module__, target.__module__)
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
    if isinstance(arg, float) and not math.isfinite(arg):
        return f"float({str(arg)!r})"
    if isinstance(arg, slice):
        return f"slice({_literal(arg.start)}, {_literal(arg.stop)}, {_literal(arg.step)})"
    if isinstance(arg, dict):
        return "{" + ", ".join(f"{key!r}: {_literal(value)}" for key, value in arg.items()) + "}"
    return repr(arg)
