"""Turn an exception of torch.export into one that shows the user's own source line."""

from __future__ import annotations

import linecache
import os
import sysconfig
import traceback
from typing import Any

import sympy
import torch
from torch import nn

from qpass.errors import CaptureError, InputError, QPassError

FALLBACK = 'torch.compile(model, backend="qpass")'

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_NOT_USER = (
    os.path.dirname(os.path.abspath(torch.__file__)),
    os.path.dirname(os.path.abspath(sympy.__file__)),
    _PACKAGE,
)
# Decorators of transformers that every forward passes through; the line inside the model is what helps.
_WRAPPERS = ("transformers/utils/", "transformers/masking_utils.py")


def capture_error(error: BaseException, model: nn.Module) -> QPassError:
    """The error that names the user's line, what torch.export said, and the way out."""
    said = reason(error)
    if _is_shape_complaint(error):
        fix = suggestion(error) or "make that dim static, or give an example with another size"
        return InputError(f"dynamic_shapes do not hold for {type(model).__name__}: {said}", fix=fix)
    change = "change that line to something torch.export can trace"
    if _depends_on_data(error):
        change = "replace the Python control flow on tensor values in that line by torch.where or torch.cond"
    fix = f"{change}, or use the fallback {FALLBACK}, which splits the graph there"
    what = f"torch.export could not capture {type(model).__name__}: {type(error).__name__}: {said}"
    return CaptureError(what, where=user_line(error), fix=fix)


def reason(error: BaseException) -> str:
    """The first line of a message and, where it only announces a list, the first entry of that list."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    text = text.split(" For more information, run with TORCH_LOGS")[0]
    detail = next((line[2:].split(". ")[0] for line in lines[1:] if line.startswith("- ")), "")
    return ": ".join(part.rstrip(".:! ")[:300] for part in (text, detail) if part)


def _depends_on_data(error: BaseException) -> bool:
    return "data-dependent" in str(error).lower() or "DataDependent" in type(error).__name__


def _is_shape_complaint(error: BaseException) -> bool:
    kind = getattr(getattr(error, "error_type", None), "name", "")
    return kind == "CONSTRAINT_VIOLATION" or type(error).__name__ == "ConstraintViolationError" or (
        "dynamic_shapes" in str(error) or "Constraints violated" in str(error)
    )


def suggestion(error: BaseException) -> str | None:
    """The lines that torch.export suggests for dynamic_shapes, on one line; None if it suggests none."""
    text = str(error)
    if "Suggested fixes:" not in text:
        return None
    lines = [line.strip() for line in text.split("Suggested fixes:", 1)[1].splitlines()]
    return "use " + "; ".join(line for line in lines if "=" in line)


def user_line(error: BaseException) -> str | None:
    """`file:line: code` of the innermost frame that is the user's or the model author's; None if there is none."""
    seen: set[int] = set()
    pending: list[BaseException | None] = [error]
    fallback: str | None = None
    while pending:
        current = pending.pop(0)
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        for file, line in _frames(current):
            if not _is_user(file):
                continue
            place = f"{file}:{line}: `{linecache.getline(file, line).strip()}`"
            if not any(part in file.replace(os.sep, "/") for part in _WRAPPERS):
                return place
            fallback = fallback or place
        pending += [current.__cause__, current.__context__]
    return fallback


def _frames(error: BaseException) -> list[tuple[str, int]]:
    """(file, line), innermost first: Dynamo's own record of the user's stack where it keeps one, then the traceback."""
    recorded: Any = getattr(error, "real_stack", None) or ()
    walked = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    return [(frame.filename, frame.lineno) for frame in reversed(recorded)] + walked[::-1]


def _is_user(file: str) -> bool:
    if file.startswith("<") or not os.path.exists(file):
        return False
    file = os.path.abspath(file)
    if file.startswith(tuple(folder + os.sep for folder in _NOT_USER)):
        return False
    site = "site-packages" in file or "dist-packages" in file
    return site or not file.startswith(sysconfig.get_paths()["stdlib"] + os.sep)
