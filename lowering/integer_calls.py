"""What devices have alike for ops of integer-only programs: their operators' arguments, and which steps are one.

``qpass_cpu::integer_*`` and ``qpass_cuda::integer_*`` take the same arguments but for linears and requantization.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from qpass.lowering import Join
from qpass.numerics.integer.attention import score_room
from qpass.numerics.integer.norm import width_root


class Calls:
    """Operators of a device, called with an op's arguments.

    Args:
        ops: loads the operators and gives their namespace.
        kinds: activations that they have, by number.
    """

    def __init__(self, ops: Callable[[], Any], kinds: Mapping[str, int]) -> None:
        self.ops, self.kinds = ops, kinds

    def plain(self, name: str) -> Callable[..., Any]:
        """The operator of that name, which takes the op's arguments as they are."""
        return lambda *args: getattr(self.ops(), name)(*args)

    def attention(
        self, q: Tensor, m: Tensor, k: Tensor, keys: Tensor, values: Tensor, keep: Tensor | None, causal: bool,
        table: Tensor, scale_mantissa: int, scale_exponent: int, bits: int, clip: int, mode: str = "precise",
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """``integer_attention``: of the codes' bits, the operator wants what they leave free."""
        up = score_room(q.shape[-1], bits)
        result: tuple[Tensor, Tensor] = self.ops().integer_attention(
            q, m, k, keys, values, keep, causal, table, scale_mantissa, scale_exponent, up, clip
        )
        return result

    def rms_norm(self, x: Tensor, k: Tensor, mantissa: Any, shift: Any, exponent: Any, *eps: Any) -> Any:
        """``integer_rms_norm``, by ``integer_norm``."""
        norm = _norm_constants(x, eps[0], eps[1], False)
        return self.ops().integer_norm(x, k, mantissa, shift, exponent, None, None, norm)

    def layer_norm(
        self, x: Tensor, k: Tensor, m: Any, shift: Any, e: Any, bias: Any, bias_exponent: Any, *eps: Any
    ) -> Any:
        """``integer_layer_norm``, by ``integer_norm``."""
        norm = _norm_constants(x, eps[0], eps[1], True)
        return self.ops().integer_norm(x, k, m, shift, e, bias, bias_exponent, norm)

    def activation(self, x: Tensor, k: Tensor, kind: str, *rest: Any) -> Any:
        """``integer_activation``: ``rest`` is a dyadic vector, the table of 2^-z, and the mode."""
        return self.ops().integer_activation(x, k, self.kinds[kind], *rest[:4])

    def gated(self, x: Tensor, k: Tensor, up: Tensor, k_up: Tensor, kind: str, *rest: Any) -> Any:
        """``integer_gated``: as ``activation``."""
        return self.ops().integer_gated(x, k, up, k_up, self.kinds[kind], *rest[:4])

    def rotary(self, x: Tensor, k: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False) -> Any:
        """``integer_rotary``, of halves."""
        return self.ops().integer_rotary(x, k, cos, sin)


def _norm_constants(x: Tensor, eps_mantissa: int, eps_exponent: int, center: bool) -> list[int]:
    root, places = width_root(int(x.shape[-1]))
    return [eps_mantissa, eps_exponent, root, places, int(center)]


def mode_of(rest: tuple[Any, ...]) -> str:
    """The mode among an op's last arguments, which may be left out."""
    return next((arg for arg in reversed(rest) if isinstance(arg, str)), "precise")


def steps(device: str) -> tuple[Join, ...]:
    """Operators of the namespace ``device`` that are one with what stands behind them."""
    found = [Join(f"{device}.{first}", f"{device}.integer_quantize", f"{device}.{first}_quantize")
             for first in ("integer_norm", "integer_activation", "integer_gated", "integer_merge_heads",
                           "integer_rotary")]  # fmt: skip
    return (*found, Join(f"{device}.integer_rotary", f"{device}.integer_pack", f"{device}.integer_rotary_pack"),
            Join(f"{device}.integer_add", f"{device}.integer_norm_quantize", f"{device}.integer_add_norm_quantize",
                 keeps=True))  # fmt: skip
