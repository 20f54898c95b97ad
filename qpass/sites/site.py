"""Site: one family of exact re-scalings of a program, as data.

A site has ``size`` positive factors s. Multiplying every parameter of ``axes`` by its powers of s, every state by its
own, and giving every activation of ``smooths`` its 1/s, leaves the function of the program as it was.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

Where = tuple[tuple[int, Tensor], ...]


@dataclass(frozen=True)
class Powers:
    """Element i of something is multiplied by the product over t of ``s[index[t, i]] ** power[t, i]``.

    Args:
        index: [terms, *shape], int64; -1 where nothing happens.
        power: [terms, *shape], float64; 1 multiplies, -1 divides, 2 multiplies by the square.
    """

    index: Tensor
    power: Tensor

    def factor(self, scale: Tensor) -> Tensor:
        """The factors for one choice of s. scale: [size] float64, positive; result [*shape] float64."""
        logs = torch.cat((scale.double().log(), torch.zeros(1, dtype=torch.float64, device=scale.device)))
        return (logs[self.index.to(scale.device)] * self.power.to(scale.device)).sum(0).exp()

    @property
    def sign(self) -> int:
        """1 if all it touches is multiplied, -1 if divided, 0 if both."""
        touched = self.power[self.index >= 0]
        return 1 if bool((touched > 0).all()) else -1 if bool((touched < 0).all()) else 0


@dataclass(frozen=True)
class Axis:
    """How one parameter follows a site.

    Args:
        param: its name.
        dims: the dimensions of the parameter that ``powers`` runs over, ascending; it is the same along the others.
        powers: over the sizes of ``dims``.
        where: only this part of the parameter: for a dimension, the indices. Empty: all of it.
        offset: ``param + offset`` is what is multiplied: 1 for a norm that computes (1 + w).
        role: ``row`` (makes the outputs of a linear), ``column`` (meets its inputs), ``affine`` (multiplies or adds
            elementwise: norm weights, biases), ``table`` (an embedding).
        node: value name of the op that reads the parameter.
        reads: ``column``: value names of the activations that the columns meet. Otherwise empty.
        bias: ``row``, and ``affine`` that multiplies: name of the parameter added to the same outputs, or None.
    """

    param: str
    dims: tuple[int, ...]
    powers: Powers
    role: str
    node: str
    where: Where = ()
    offset: float = 0.0
    reads: tuple[str, ...] = ()
    bias: str | None = None


@dataclass(frozen=True)
class Smooth:
    """An activation x·h(x) that becomes x·h(x·r), r = ``powers.factor(s)`` along its last dimension (FSBR)."""

    node: str
    powers: Powers


@dataclass(frozen=True)
class State:
    """A state (key/value cache) that holds re-scaled values from now on. ``powers`` over ``dims`` of the input."""

    node: str
    dims: tuple[int, ...]
    powers: Powers


@dataclass(frozen=True)
class Site:
    """See the module docstring.

    Args:
        name: for printing; unique in an analysis: what divides, then what multiplies.
        kind: ``linear-norm``, ``serial linear-linear``, ``parallel linear-linear``, ``gated activation``, or ``other``.
        size: degrees of freedom, the length of s.
        axes: the parameters that follow.
        smooths, states: see these classes; mostly empty.
        unshiftable: why no shift may be moved here; None if it may.
        missing_bias: value names of ops that a shift needs a bias on, and that have none.
    """

    name: str
    kind: str
    size: int
    axes: tuple[Axis, ...]
    smooths: tuple[Smooth, ...] = ()
    states: tuple[State, ...] = ()
    unshiftable: str | None = "not looked into"
    missing_bias: tuple[str, ...] = ()

    @property
    def producers(self) -> tuple[Axis, ...]:
        """What divides by s."""
        return tuple(axis for axis in self.axes if axis.powers.sign < 0)

    @property
    def consumers(self) -> tuple[Axis, ...]:
        """What multiplies by s."""
        return tuple(axis for axis in self.axes if axis.powers.sign > 0)

    @property
    def columns(self) -> tuple[Axis, ...]:
        """The weights whose input activation this site re-scales."""
        return tuple(axis for axis in self.axes if axis.role == "column")
