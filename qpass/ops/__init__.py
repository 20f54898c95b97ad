"""The dialect: ops that say what a transformer means. Importing this registers all of them."""

from qpass.ops.activation import activation, gated
from qpass.ops.attention import attention, cache_update, eager_attention
from qpass.ops.dialect import REGISTRY, Op
from qpass.ops.integer import (
    integer_activation,
    integer_add,
    integer_attention,
    integer_concat,
    integer_embedding,
    integer_gated,
    integer_layer_norm,
    integer_linear,
    integer_logits,
    integer_merge_heads,
    integer_pack,
    integer_quantize,
    integer_rms_norm,
    integer_rotary,
    integer_scale,
)
from qpass.ops.norm import layer_norm, rms_norm
from qpass.ops.quant import (
    activation_quantize,
    dequantize_input,
    dequantize_weight,
    gated_quantize,
    layer_norm_quantize,
    linear,
    quantize,
    quantize_static,
    rms_norm_quantize,
    weight_only_linear,
)
from qpass.ops.rope import rotary

__all__ = [
    "REGISTRY",
    "Op",
    "activation",
    "activation_quantize",
    "attention",
    "cache_update",
    "dequantize_input",
    "dequantize_weight",
    "eager_attention",
    "gated",
    "gated_quantize",
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
    "layer_norm",
    "layer_norm_quantize",
    "linear",
    "quantize",
    "quantize_static",
    "rms_norm",
    "rms_norm_quantize",
    "rotary",
    "weight_only_linear",
]
