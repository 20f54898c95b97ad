"""Dialect -> dialect: an op and the quantize behind it become one op."""

from __future__ import annotations

from typing import Any

from qpass import ops

PRODUCERS: dict[Any, Any] = {
    ops.rms_norm: ops.rms_norm_quantize,
    ops.layer_norm: ops.layer_norm_quantize,
    ops.gated: ops.gated_quantize,
    ops.activation: ops.activation_quantize,
}
"""What makes a value -> the op that makes it and quantizes it in one pass."""
