"""qpass: a PyTorch 2 compiler pass for transformer quantization."""

import sys
from types import ModuleType

import qpass._torchao  # noqa: F401  before anything that imports torchao
from qpass import pipeline
from qpass.capture.guard import integer_guard, integer_logits
from qpass.capture.integer_generate import IntegerSampler
from qpass.errors import (
    CaptureError,
    InputError,
    NumericsError,
    OutputError,
    QPassError,
    RecipeError,
    UnsupportedError,
    VerifyError,
)
from qpass.graph.diff import diff
from qpass.graph.integer_only import verify_integer_only
from qpass.graph.show import as_python, show
from qpass.numerics import affine as _affine  # noqa: F401  before transformers, which imports torchao too
from qpass.packaging import load_package, package
from qpass.pipeline import capture, compile, plan, trace
from qpass.ranges import integer_ranges
from qpass.recipe import Recipe


class _CallablePackage(ModuleType):
    """``qpass.sites`` is a package and a verb: ``qpass.sites(model)`` is ``pipeline.sites``."""

    __call__ = staticmethod(pipeline.sites)


sys.modules["qpass.sites"].__class__ = _CallablePackage

__version__ = "0.1.0"
__all__ = [
    "CaptureError",
    "InputError",
    "IntegerSampler",
    "NumericsError",
    "OutputError",
    "QPassError",
    "Recipe",
    "RecipeError",
    "UnsupportedError",
    "VerifyError",
    "as_python",
    "capture",
    "compile",
    "diff",
    "integer_guard",
    "integer_logits",
    "integer_ranges",
    "load_package",
    "package",
    "plan",
    "show",
    "sites",
    "trace",
    "verify_integer_only",
]
