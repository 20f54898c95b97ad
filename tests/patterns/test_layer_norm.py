from __future__ import annotations

import torch
import torch.nn.functional as F

from qpass import ops

from .helpers import change, equal, reason
from .test_rms_norm import W, X

BOTH = lambda x, w, b: F.layer_norm(x, (8,), w, b, 1e-5)  # noqa: E731
WEIGHT = lambda x, w: F.layer_norm(x, (8,), w, None, 1e-6)  # noqa: E731
PLAIN = lambda x: F.layer_norm(x, (8,), None, None, 1e-6)  # noqa: E731


def test_change() -> None:
    assert change(BOTH, X, w=W, b=W) == """\
-%layer_norm = layer_norm(%x, [8], w, b, 1e-05) : f32[2, 3, 8]
+%layer_norm = qpass.layer_norm(%x, w, b, 1e-05) : f32[2, 3, 8]   # raise/layer_norm
"""
    assert change(WEIGHT, X, w=W) == """\
-%layer_norm = layer_norm(%x, [8], w, None, 1e-06) : f32[2, 3, 8]
+%layer_norm = qpass.layer_norm(%x, w, None, 1e-06) : f32[2, 3, 8]   # raise/layer_norm_no_bias
"""
    assert change(PLAIN, X) == """\
-%layer_norm = layer_norm(%x, [8], None, None, 1e-06) : f32[2, 3, 8]
+%layer_norm = qpass.layer_norm(%x, None, None, 1e-06) : f32[2, 3, 8]   # raise/layer_norm_plain
"""


def test_equal_numbers() -> None:
    equal(ops.layer_norm, BOTH, (2, 3, 8), w=(8,), b=(8,))
    equal(ops.layer_norm, WEIGHT, (2, 3, 8), w=(8,))
    equal(ops.layer_norm, PLAIN, (3, 8))


def test_every_spelling_of_the_last_arguments() -> None:
    norm = torch.ops.aten.layer_norm.default
    for args in ((), (1e-5,), (1e-5, True), (1e-5, False)):
        equal(ops.layer_norm, lambda x, w, b, args=args: norm(x, [8], w, b, *args), (2, 3, 8), w=(8,), b=(8,))


def test_near_miss() -> None:
    two = lambda x, w, b: F.layer_norm(x, (3, 8), w, b)  # noqa: E731
    wide = torch.ones(3, 8)
    assert reason("layer_norm", two, X, w=wide, b=wide) == "layer_norm: expected a list of 1, found a list of 2"
    assert reason("layer_norm_no_bias", BOTH, X, w=W, b=W) == "layer_norm: expected the literal None, found b"
    assert reason("layer_norm_plain", WEIGHT, X, w=W) == "layer_norm: expected the literal None, found w"
