"""The integer dialect: the ops of an INTEGER program. Every tensor of theirs is an integer or a bool.

A value of the float program is several here: rows are (x, k), codes are (codes, zero, m, k); see ``numerics.integer``.
``mode`` names the set of operators that an op is computed with, one of ``MODES``.
"""

from qpass.ops.integer.activation import integer_activation, integer_gated
from qpass.ops.integer.attention import integer_attention, integer_pack
from qpass.ops.integer.linear import integer_linear, integer_quantize
from qpass.ops.integer.norm import integer_layer_norm, integer_rms_norm
from qpass.ops.integer.rows import (
    integer_add,
    integer_concat,
    integer_embedding,
    integer_logits,
    integer_merge_heads,
    integer_rotary,
    integer_scale,
)

__all__ = [
    "integer_activation",
    "integer_add",
    "integer_attention",
    "integer_concat",
    "integer_embedding",
    "integer_gated",
    "integer_layer_norm",
    "integer_linear",
    "integer_logits",
    "integer_merge_heads",
    "integer_pack",
    "integer_quantize",
    "integer_rms_norm",
    "integer_rotary",
    "integer_scale",
]
