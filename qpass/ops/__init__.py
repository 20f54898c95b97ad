"""The dialect: ops that say what a transformer means. Importing this registers all of them."""

from qpass.ops.activation import activation, gated
from qpass.ops.attention import (
    ATTENTIONS,
    attend,
    attention,
    attention_output,
    attention_weights,
    cache_update,
    eager_attention,
)
from qpass.ops.dialect import REGISTRY, Op
from qpass.ops.norm import layer_norm, rms_norm
from qpass.ops.quant import (
    activation_quantize,
    dequantize_input,
    dequantize_weight,
    fake_quantize,
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
    "ATTENTIONS",
    "REGISTRY",
    "Op",
    "activation",
    "activation_quantize",
    "attend",
    "attention",
    "attention_output",
    "attention_weights",
    "cache_update",
    "dequantize_input",
    "dequantize_weight",
    "eager_attention",
    "fake_quantize",
    "gated",
    "gated_quantize",
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
