"""Short last groups through Inductor: every element is written."""

import pytest
import torch
from torch._inductor.codegen.cpp import CppScheduling

from qpass.formats import Format
from qpass.lowering.inductor.loop_split import guarded
from qpass.numerics import codec
from qpass.numerics.scales import Scales


def compiled(fn, *args):
    torch._dynamo.reset()
    with guarded():
        return torch.compile(fn)(*args)


@pytest.mark.parametrize("width", [704, 512, 300])
def test_a_group_that_does_not_divide_the_width(width):
    parts = torch.randint(120, 130, (8, -(-width // 256)), dtype=torch.uint8)
    spread = lambda s: s.to(torch.float32).repeat_interleave(256, 1)[:, :width] * 2  # noqa: E731
    torch.compile(spread)(parts)  # perhaps wrong, and in the cache
    assert torch.equal(compiled(spread, parts), spread(parts))


@pytest.mark.parametrize("text", ["e2m1:g256:sym:m2", "e2m1:g64:sym:m1", "int4:g256:asym", "e4m3:g256:sym:f32"])
def test_weights_with_a_short_last_group(text):
    fmt, w = Format.parse(text), torch.randn(8, 300)
    found = codec.choose(w, fmt)
    codes = codec.quantize(w, found, fmt)
    have = [part for part in found if part is not None]

    def meaning(codes, *parts):
        names = (name for name, part in zip(Scales._fields, found) if part is not None)
        return codec.dequantize(codes, Scales(**dict(zip(names, parts))), fmt, torch.float32)

    assert torch.equal(compiled(meaning, codes, *have), meaning(codes, *have))


def test_the_guard_is_taken_off_again():
    before = CppScheduling.try_loop_split
    with pytest.raises(KeyError), guarded():
        assert CppScheduling.try_loop_split is not before
        raise KeyError
    assert CppScheduling.try_loop_split is before
