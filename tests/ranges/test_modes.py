"""Operators of the modes after the paper on bounds, against the same on numbers, extreme ones first; and in 64 bits."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import qpass
from qpass import ops
from qpass.errors import UnsupportedError
from qpass.formats.integer import Integer
from qpass.numerics.integer.dyadic import fit_one, vector
from qpass.numerics.integer.literal import activation as literal_activation
from qpass.numerics.integer.literal import attention as literal_attention
from qpass.numerics.integer.literal import norm as literal_norm
from qpass.numerics.integer.paper import activation, attention, norm
from qpass.ops.integer.linear import integer_quantize
from qpass.passes.integer.norm_inputs import fit_channels
from qpass.passes.integerise import integerise
from qpass.ranges import integer_ranges
from tests.passes.test_integer_families import FAMILIES, model
from tests.ranges.test_operators import BOUND, KEEP, KEYS, KQ, KY, LOG2E, SPAN, TABLE, VECTOR, C, K, M, Q, X, Y, proven

ENDS = torch.randn(2, C).abs() * torch.tensor([1e-3, 1.0, 30.0, 1e4]).repeat(C // 4)
CLIP = round(15 * 1.4427 * 2**15)
POSITIVE = vector(torch.rand(C, dtype=torch.float64) * 4 + 0.1)


def channels(literal: bool) -> torch.Tensor:
    return fit_channels(-ENDS[0], ENDS[1], literal=literal)[0]


def norms(form: Any, literal: bool, layer: bool) -> tuple[Any, list[Any]]:
    bias = ((torch.randint(-(2**28), 2**28, (C,)).int(), None), (torch.tensor([20], dtype=torch.int32), None))
    fn = form.layer_norm if layer else form.rms_norm
    return fn, [(X, BOUND), (K, SPAN), *((part, None) for part in VECTOR), *(bias if layer else ()), 17180, 29,
                (channels(literal), None)]  # fmt: skip


def gated(form: Any, kind: str, argument: Any) -> tuple[Any, list[Any]]:
    given = [(part, None) for part in argument]
    return form.gated, [(X, BOUND), (K, SPAN), (Y, BOUND), (KY, SPAN), kind, *given, (TABLE, None)]


def attended(form: Any, clip: int) -> tuple[Any, list[Any]]:
    scale = fit_one(0.36)

    def run(q: Any, m: Any, k: Any, codes: Any, km: Any, kk: Any, keep: Any, table: Any) -> Any:
        cache = torch.cat((codes, km, kk), -1)
        return form.attention(q, m, k, cache, cache, keep, table, *scale, 8, clip)

    return run, [(Q, (-127, 127)), (M, (1 << 14, 32767)), (KQ, SPAN), (KEYS[..., :-2], (-127, 127)),
                 (KEYS[..., -2:-1], (-64, 63)), (KEYS[..., -1:], (-128, 127)), (KEEP, (0, 1)),
                 (TABLE, None)]  # fmt: skip


DIVISORS = (torch.randint(1, 40, (C,)).int(), torch.zeros(C).int(), torch.zeros(1).int())
CASES: dict[str, tuple[Any, list[Any]]] = {
    "paper rms_norm": norms(norm, False, False), "paper layer_norm": norms(norm, False, True),
    "literal rms_norm": norms(literal_norm, True, False), "literal layer_norm": norms(literal_norm, True, True),
    **{f"paper {kind}": gated(activation, kind, LOG2E) for kind in ("silu", "quick_gelu", "gelu", "gelu_tanh", "relu")},
    **{f"paper {kind}": gated(activation, kind, POSITIVE) for kind in ("smoothed_gelu", "smoothed_gelu_tanh")},
    "paper silu smoothed": gated(activation, "silu", POSITIVE),
    **{f"literal {kind}": gated(literal_activation, kind, DIVISORS) for kind in ("silu", "relu")},
    **{f"paper attention {clip}": attended(attention, clip) for clip in (0, CLIP)},
    **{f"literal attention {clip}": attended(literal_attention, clip) for clip in (0, CLIP)},
    **{f"quantize literal {bits}": (integer_quantize, [(X, BOUND), (K, SPAN), bits, False, 15, "literal"])
       for bits in (2, 8)},
    "quantize paper": (integer_quantize, [(X, BOUND), (K, SPAN), 8, False, 8, "paper"]),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_what_happens_is_within_what_is_proven_and_is_the_same_in_64_bits(name: str) -> None:
    assert proven(*CASES[name]) > 3


@pytest.mark.parametrize("what", ["offset norms, scaled embedding", "learned positions, relu, scaled queries"])
def test_whole_models_in_every_mode(what: str) -> None:
    """Compiled, which is a proof; GELU-gated ones with FSBR's vector too. What has no literal form is named."""
    name, changes, _ = FAMILIES[what]
    gelu = name == "Gemma"
    recipe = {"preset": "int-only-w8a8", "methods": [{"fsbr": {"rate": 0.05}}] if gelu else [],
              "learning": {"steps": 4, "progress": False}, "integer": {"mode": "paper", "context": 32}}  # fmt: skip
    batches = [torch.randint(2, 96, (2, 12)) for _ in range(2)]
    trace = qpass.trace(model(name, changes), recipe, target="reference", calibration=batches, until="INTEGER")
    kinds = {node.args[4] for node in trace["INTEGER"].nodes(ops.integer_gated)}
    assert kinds == ({"smoothed_gelu_tanh"} if gelu else set())
    if gelu:
        with pytest.raises(UnsupportedError, match=r"'gelu_tanh' in mode 'literal' .*\(at %.*mlp/mul, File .*use mode"):
            integerise(trace["SOLVED"], Integer(mode="literal", context=32))
        return
    assert len(integer_ranges(integerise(trace["SOLVED"], Integer(mode="literal", context=32))).lines) > 1000
