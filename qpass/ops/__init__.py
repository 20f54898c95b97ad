"""The dialect: ops that say what a transformer means. Importing this registers all of them."""

from qpass.ops.activation import activation, gated
from qpass.ops.attention import attention, cache_update, eager_attention
from qpass.ops.dialect import REGISTRY, Op
from qpass.ops.norm import layer_norm, rms_norm
from qpass.ops.rope import rotary

__all__ = [
    "REGISTRY", "Op", "activation", "attention", "cache_update", "eager_attention", "gated", "layer_norm", "rms_norm",
    "rotary",
]  # fmt: skip
