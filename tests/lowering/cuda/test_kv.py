"""Attention over a cache of codes, in Triton's interpreter, against float64 within the bound of its docstring."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from qpass.formats import Format
from qpass.lowering.cuda import kv, kv_tiles
from qpass.lowering.cuda.capability import Capability
from qpass.numerics import kv_rows

PROVIDER = kv.attention(Capability(9, 0))
UNIT = {torch.bfloat16: 2.0**-6, torch.float16: 2.0**-10, torch.float32: 0.0}
"""Rounding of a weight and of the result; the interpreter cuts a bfloat16 off, which is twice as much."""


def exact(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float, cap: float
) -> tuple[Tensor, Tensor]:
    """(y, Σ P |v̂|) in float64."""
    k, v = (part.repeat_interleave(q.shape[1] // part.shape[1], 1) for part in (k, v))
    score = q.double() @ k.mT * scale
    if cap:
        score = cap * torch.tanh(score / cap)
    if causal:
        score = score.masked_fill(~torch.ones(score.shape[-2:], dtype=torch.bool).tril(), -torch.inf)
    if mask is not None:
        score = score.masked_fill(~mask, -torch.inf) if mask.dtype is torch.bool else score + mask.double()
    weights = torch.softmax(score, -1)
    weights = torch.where((score == -torch.inf).all(-1, keepdim=True), 0.0, weights)
    return weights @ v, weights @ v.abs()


def rows(shape: tuple[int, ...], fmt: str, seed: int) -> tuple[Tensor, Tensor]:
    """(rows of codes, the values that they hold in float64) of values with an offset and outliers."""
    make = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=make) * torch.exp2(torch.randn(*shape[:-1], 1, generator=make)) + 0.3
    held = kv_rows.pack(x, Format.parse(fmt))
    return held, kv_rows.unpack(held, Format.parse(fmt), shape[-1], torch.float32).double()


def compare(
    sizes: tuple[int, ...], k_format: str, v_format: str, dtype: torch.dtype, mask: Tensor | None = None,
    causal: bool = False, cap: float = 0.0,
) -> None:  # fmt: skip
    batch, heads, shared, tokens, length, d, dv = sizes
    q = torch.randn(batch, heads, tokens, d, generator=torch.Generator().manual_seed(d)).to(dtype)
    (k, k_values), (v, v_values) = rows((batch, shared, length, d), k_format, 1), rows(
        (batch, shared, length, dv), v_format, 2)  # fmt: skip
    args = (q, k, v, mask, k_format, v_format, d, dv, causal, None, cap)
    assert PROVIDER.refuses(*args) is None
    got = PROVIDER.call(*args)
    want, size = exact(q, k_values, v_values, mask, causal, d**-0.5, cap)
    # in groups keys and values are rounded to the dtype too: a key's rounding moves a score by u |q| |k| scale
    grouped = any(Format.parse(fmt).groups(d) > 1 for fmt in (k_format, v_format))
    loose = 1 + (2 * float((q.double().abs() @ k_values.abs().mT.repeat_interleave(heads // shared, 1)).max())
                 * d**-0.5 if grouped else 0)  # fmt: skip
    assert got.dtype is dtype and got.shape == want.shape
    sums = 2e-5 * size.amax(-1, keepdim=True)  # rounded in float32: of codes before their zero points are taken off
    assert ((got.double() - want).abs() <= UNIT[dtype] * loose * size + sums + 1e-30).all()
    assert torch.equal(got, PROVIDER.call(*args))


FORMATS = ["int8:token:asym", "int8:token:sym", "e4m3:token:sym", "int4:token:asym", "int4:token:sym",
           "int6:token:asym", "e5m2:token:sym", "e2m1:token:sym", "int4:g32:asym:f32", "int8:g16:sym:f32"]  # fmt: skip


@pytest.mark.parametrize(("fmt", "dtype"), [
    *((fmt, torch.float32) for fmt in FORMATS), *((FORMATS[0], dtype) for dtype in UNIT if dtype.itemsize == 2),
    ("e4m3:token:sym", torch.bfloat16), ("int4:token:asym", torch.float16),
], ids=str)  # fmt: skip
def test_formats(fmt: str, dtype: torch.dtype) -> None:
    compare((1, 4, 2, 1, 70, 64, 64), fmt, fmt, dtype)


SIZES = [(1, 4, 1, 1, 1, 64, 64), (2, 2, 2, 7, 7, 32, 16), (1, 6, 2, 9, 40, 80, 96), (1, 2, 1, 70, 70, 128, 64),
         (1, 2, 1, 3, 33, 256, 256)]  # fmt: skip


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("kind", ["bool", "float", "causal", "window"])
def test_shapes_and_masks(sizes: tuple[int, ...], kind: str) -> None:
    batch, heads, _, tokens, length, *_ = sizes
    make = torch.Generator().manual_seed(length)
    keep = torch.rand(batch, 1, tokens, length, generator=make) < 0.6
    keep[:, :, 0] = False  # sees no key
    window = torch.ones(1, 1, tokens, length, dtype=torch.bool).tril(length - tokens).triu(length - tokens - 3)
    masks = {"bool": keep, "causal": None, "window": window,
             "float": torch.randn(1, heads, 1, length, generator=make)}  # fmt: skip
    compare(sizes, "int8:token:asym", "int4:token:asym", torch.float32, masks[kind], kind == "causal",
            20.0 if kind == "window" else 0.0)  # fmt: skip


def test_masks_as_models_write_them() -> None:
    """The least finite number: a row that is masked all over is the mean of its values, as in the meaning."""
    mask = torch.full((1, 1, 3, 40), torch.finfo(torch.float32).min)
    mask[:, :, 1, :5] = 0
    compare((1, 2, 1, 3, 40, 32, 32), "int8:token:asym", "int8:token:asym", torch.float32, mask)


def test_results_do_not_depend_on_the_number_of_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    q = torch.randn(1, 4, 1, 64)
    (k, _), (v, _) = (rows((1, 2, 300, 64), "int8:token:asym", seed) for seed in (1, 2))
    found = []
    for count in (1, 4, 32):
        monkeypatch.setattr(kv_tiles, "_PROGRAMS", 2 * count)
        found.append(PROVIDER.call(q, k, v, None, "int8:token:asym", "int8:token:asym", 64, 64))
    for one in found[1:]:
        torch.testing.assert_close(one, found[0], rtol=1e-5, atol=1e-6)


def test_what_it_does_not_take() -> None:
    q, k = torch.zeros(1, 1, 1, 64), torch.zeros(1, 1, 4, 80, dtype=torch.int8)
    refuses = lambda fmt, width: str(PROVIDER.refuses(q, k, k, None, fmt, fmt, width, width))  # noqa: E731
    assert "up to 256 channels" in refuses("int8:token:asym", 512)
    assert "no e4m3fnuz" in refuses("e4m3fnuz:token:sym", 64)
    assert "power of two" in refuses("int8:g24:sym:f32", 64)
