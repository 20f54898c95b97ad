"""Formats are data: how a tensor of numbers is stored in few bits. Printed and parsed, never a class each.

    element grid × granularity × zero point × scale kind × static or dynamic × low-rank branch

``int4:g128:asym``, ``e2m1:g32:sym:e8m0`` (MXFP4), ``e4m3:b128x128:sym:f32``, ``int8:tensor:asym:static``.
"""

from qpass.formats.attention import AttentionScheme
from qpass.formats.format import NAMED, Format
from qpass.formats.grid import GRIDS, Grid
from qpass.formats.scale import SCALES, Scale
from qpass.formats.scheme import SCHEMES, Scheme
from qpass.formats.words import nearest, suggest

__all__ = [
    "GRIDS",
    "NAMED",
    "SCALES",
    "SCHEMES",
    "AttentionScheme",
    "Format",
    "Grid",
    "Scale",
    "Scheme",
    "nearest",
    "suggest",
]
