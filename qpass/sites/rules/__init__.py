"""The rules of scale flow, one file an op family. Importing this registers them."""

from qpass.sites.rules import (
    activation,
    attention,
    closed,
    contraction,
    convolution,
    elementwise,
    embedding,
    experts,
    movement,
    normalisation,
    reduction,
    scatter,
)

__all__ = [
    "activation",
    "attention",
    "closed",
    "contraction",
    "convolution",
    "elementwise",
    "embedding",
    "experts",
    "movement",
    "normalisation",
    "reduction",
    "scatter",
]
