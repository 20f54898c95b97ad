"""qpass: a PyTorch 2 compiler pass for transformer quantization."""

import qpass._torchao  # noqa: F401  before anything that imports torchao
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
from qpass.graph.show import as_python, show
from qpass.numerics import affine as _affine  # noqa: F401  before transformers, which imports torchao too
from qpass.pipeline import capture, compile, plan, sites, trace  # `sites` shadows the package: see below
from qpass.recipe import Recipe

# ``qpass.sites(model)`` is a function; from the package of that name, import: ``from qpass.sites import analyse``.
__version__ = "0.1.0"
__all__ = [
    "CaptureError",
    "InputError",
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
    "plan",
    "show",
    "sites",
    "trace",
]
