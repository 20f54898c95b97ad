"""Which schemes a linear of experts can have, whose weights [E, N, K] are codes [E · N, K]."""

from __future__ import annotations

from qpass.formats import Scheme
from qpass.recipe import Recipe


def unfit(scheme: Scheme, rows: int, recipe: Recipe) -> str | None:
    """Why experts of ``rows`` output channels cannot have a scheme; None if they can."""
    fmt = scheme.weight
    if recipe.integer is not None:
        return "no integer op has many experts"
    if fmt.rank:
        return f"{fmt} has a low-rank branch, which experts cannot have"
    if fmt.granularity == "tensor" or fmt.scale_kind.outer == "tensor":
        return f"{fmt} has one scale for all experts"
    if fmt.rows and rows % fmt.rows:
        return f"a block of {fmt.rows} rows would be of two experts, which have {rows} rows each"
    if scheme.input is not None and scheme.input.static:
        return "calibration does not see the inputs of experts: a static scale is not known"
    return None
