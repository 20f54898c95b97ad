"""The captured call, and the user's interface on top of a compiled program."""

from __future__ import annotations

from qpass.capture.causal_call import CausalLMCall, KVSpec
from qpass.capture.convention import CallConvention, TensorSpec
from qpass.capture.module_call import Constant, ModuleCall
from qpass.capture.rebuilt import rebuild

__all__ = ["CallConvention", "CausalLMCall", "Constant", "KVSpec", "ModuleCall", "TensorSpec", "rebuild"]
