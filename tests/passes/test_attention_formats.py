"""Formats of attention: against a float64 oracle of their formulas, through every stage, and the same in every call."""

from __future__ import annotations

import pytest
import torch

from qpass import ops
from qpass.errors import RecipeError
from qpass.formats import AttentionScheme, Format
from qpass.graph.show import show
from qpass.graph.values import op_name
from qpass.lowering.reference import target
from qpass.passes.fuse import fuse
from qpass.passes.lower import lower
from qpass.passes.plan import plan_program, summarise
from qpass.passes.quantise import quantise
from qpass.recipe import Recipe
from qpass.stages import check
from tests import tiny

KEEP = {"linears": {"*": "keep"}}
B, HQ, HKV, D = 2, 4, 2, 8
WORDS = ["qkv8", "qkv4", "kv4", "qkv8p8", "kv4p4",
         {"q": "int8:token:sym", "k": "int4:g4:asym:f32", "v": "int6:token:full", "p": "int8:token:sym"}]  # fmt: skip


def oracle_rows(x, fmt):
    """x̂ in float64, a row or a group at a time, from the formulas of docs/formats.md."""
    parts = x.split(fmt.group, -1) if fmt.group else (x,)
    return torch.cat([_rows(part, fmt) for part in parts], -1)


def _rows(x, fmt):
    low, high = x.amin(-1, keepdim=True).clamp(max=0), x.amax(-1, keepdim=True).clamp(min=0)
    if not fmt.symmetric:
        scale = ((high - low) / (2**fmt.bits - 1)).clamp(min=1e-12)
        zero = (-low / scale).round()
        return (((x / scale).round() + zero).clamp(0, 2**fmt.bits - 1) - zero) * scale
    most = 2 ** (fmt.bits - 1) - 1
    scale = (torch.maximum(high, -low) / (most + fmt.full)).clamp(min=1e-12)
    return (x / scale).round().clamp(-most - fmt.full, most) * scale


def oracle(q, k, v, allowed, scale, scheme):
    """[B, HQ, T, D]: a query head, a query at a time; which keys it may see is a bool."""
    q, k, v = (x if fmt is None else oracle_rows(x, fmt) for x, fmt in zip((q, k, v), (scheme.q, scheme.k, scheme.v)))
    result = torch.zeros_like(q)
    for b in range(q.shape[0]):
        for head in range(HQ):
            keys, values = k[b, head // (HQ // HKV)], v[b, head // (HQ // HKV)]
            for t in range(q.shape[2]):
                seen = allowed[b, t]
                p = torch.zeros(k.shape[2], dtype=torch.float64)
                p[seen] = (keys[seen] @ q[b, head, t] * scale).softmax(0)
                result[b, head, t] = (p if scheme.p is None else oracle_rows(p, scheme.p)) @ values
    return result


def operands(queries=5, keys=9, seed=0):
    draw = torch.Generator().manual_seed(seed)
    sizes = ((B, HQ, queries, D), (B, HKV, keys, D), (B, HKV, keys, D))
    return [torch.randn(size, generator=draw, dtype=torch.float64) for size in sizes]


def allowed_keys(queries=5, keys=9):
    """Causal, and in the second row of the batch the first two keys are padding."""
    seen = (torch.arange(keys) <= torch.arange(queries)[:, None] + keys - queries).expand(B, -1, -1).clone()
    seen[1, :, :2] = False
    return seen


@pytest.mark.parametrize("word", WORDS, ids=str)
@pytest.mark.parametrize("kind", ["bool", "additive", "eager"])
def test_attend_is_the_oracle(word, kind):
    """Scales are float32 in the program: a code may differ at a tie, by one step, so few and small differences stay."""
    scheme, (q, k, v), seen = AttentionScheme.parse(word), operands(), allowed_keys()
    mask = seen[:, None] if kind == "bool" else torch.zeros(seen.shape).masked_fill(~seen, float("-inf"))[:, None]
    given = (q.float(), k.float(), v.float(), mask)
    op, rest = (ops.eager_attention, (0.3,)) if kind == "eager" else (ops.attention, (False, 0.3))
    got = ops.attend(op, (*given, *rest), scheme).double()
    want = oracle(*(x.float().double() for x in (q, k, v)), seen, 0.3, scheme)
    error = (got - want).abs()
    assert float(error.median()) < 1e-5 and float((error > 1e-4).double().mean()) < 0.05
    assert float(error.max()) < 2 * float(v.abs().max()) / (2 ** min(fmt.bits for fmt in scheme.formats.values()) - 1)


@pytest.mark.parametrize("word", ["qkv4", "qkv8p8", "kv4p4"])
def test_prefill_is_decode(word):
    """All queries at once over all keys, and each alone over the keys so far, as with a cache."""
    scheme, (q, k, v) = AttentionScheme.parse(word), [x.float() for x in operands(7, 7)]
    causal = torch.ones(7, 7, dtype=torch.bool).tril()[None, None]
    whole = ops.attend(ops.attention, (q, k, v, causal), scheme)
    for t in range(7):
        one = ops.attend(ops.attention, (q[:, :, t : t + 1], k[:, :, : t + 1], v[:, :, : t + 1], None), scheme)
        torch.testing.assert_close(one[:, :, 0], whole[:, :, t], rtol=1e-5, atol=1e-5)


def test_a_query_that_sees_nothing_gives_zero():
    q, k, v = (x.float() for x in operands())
    seen = torch.zeros(B, 1, 5, 9, dtype=torch.bool)
    assert not ops.attention_weights(q, k, seen).any()
    assert torch.equal(ops.attend(ops.attention, (q, k, v, seen), AttentionScheme.parse("kv8p8")), torch.zeros_like(q))


def test_weights_without_a_format_are_attention():
    q, k, v = (x.float() for x in operands(6, 6))
    for causal, mask in ((True, None), (False, torch.randn(B, 1, 6, 6)), (False, allowed_keys(6, 6)[:, None])):
        mask = mask if mask is None or mask.dtype is not torch.bool else mask | torch.eye(6, dtype=torch.bool)
        parts = ops.attention_output(ops.attention_weights(q, k, mask, causal, 0.2), v)
        torch.testing.assert_close(parts, ops.attention(q, k, v, mask, causal, 0.2), rtol=1e-5, atol=1e-5)


def stages(style, attention, linears="keep", dtype=torch.float32):
    recipe = Recipe.parse({"linears": {"*": linears}, "attention": attention})
    planned = check(plan_program(tiny.raised(style, dtype=dtype), recipe, target))
    quantised = check(quantise(planned))
    fused = check(fuse(quantised))
    return planned, quantised, fused, check(lower(fused))


@pytest.mark.parametrize(("style", "word", "dtype"), [
    ("rms", "qkv8p8", torch.float32), ("offset", "qkv4p4", torch.bfloat16), ("layer", "kv4", torch.float32),
    ("rms", {"k": "e4m3:token:sym", "v": "mxfp4", "p": "e4m3:token:sym"}, torch.float32),
])  # fmt: skip
def test_stages_agree_bit_for_bit(style, word, dtype):
    if isinstance(word, dict):
        word = {**word, "v": "e2m1:g2:sym:e8m0"}
    planned, *rest = stages(style, {"*": word}, "w8a8-int8", dtype)
    for shape in ((2, 5), (1, 2)):
        one, two, three = (program.run(tiny.ids(*shape))[0] for program in rest)
        assert torch.equal(one, two) and torch.equal(one, three)
        assert not torch.equal(one, planned.run(tiny.ids(*shape))[0])


@pytest.mark.parametrize("style", ["rms", "offset", "layer"])
def test_the_program_is_the_model_on_rounded_operands(style, monkeypatch):
    """The float module, whose attention is replaced by ``attend``: rotary before, grouped heads, masks and all."""
    scheme = AttentionScheme.parse("qkv4p8")
    _, quantised, _, _ = stages(style, {"*": "qkv4p8"})
    model = tiny.Decoder(style).eval()

    def forward(self, x, cos, sin, mask):
        b, t, _ = x.shape
        q = self.q_proj(x).view(b, t, tiny.HEADS, tiny.D).transpose(1, 2)
        k, v = (proj(x).view(b, t, self.kv, tiny.D).transpose(1, 2) for proj in (self.k_proj, self.v_proj))
        if self.rotary:
            q, k = (y * cos + tiny.rotate_half(y) * sin for y in (q, k))
        cap = 50.0 if self.eager else 0.0
        y = ops.attend(ops.eager_attention, (q, k, v, mask, 0.5, cap), scheme)
        return self.o_proj(y.transpose(1, 2).reshape(b, t, tiny.H))

    monkeypatch.setattr(tiny.Attention, "forward", forward)
    with torch.no_grad():
        want = model(tiny.ids(2, 7))
    torch.testing.assert_close(quantised.run(tiny.ids(2, 7))[0], want, rtol=2e-5, atol=2e-5)


def test_what_stages_look_like():
    planned, quantised, fused, lowered = stages("rms", {"layers.1.attn": "keep", "*": "qkv4p8"})
    assert show(planned).count("int4:token:asym, p int8:token:asym -> reference") == 1
    assert show(planned).count("keep: the recipe says so (layers.1.attn)") == 1
    kinds = [op_name(node.target) for node in quantised.nodes()]
    assert kinds.count("torchao.dequantize_affine") == 4 and kinds.count("qpass.attention") == 1
    kinds = [op_name(node.target) for node in fused.nodes()]
    assert kinds.count("qpass.fake_quantize") == 4 and kinds.count("qpass.attention_weights") == 1
    (line,) = [change for change in fused.log if change.by == "fuse/attention"]
    assert line.what == "computes in float on rounded q, k, v, p: no fused op carries its formats"
    assert "qpass." not in show(lowered)


def test_the_plan():
    recipe = Recipe.parse({"linears": {"*": "w8a8-int8"}, "attention": {"layers.0.*": "kv8"}})
    text = str(summarise(plan_program(tiny.raised(), recipe, target), recipe, target))
    rows = [line.split() for line in text.splitlines() if line.startswith(("layers.0.attn ", "layers.1.attn "))]
    assert rows[0][1:5] == ["keep", "int8:token:asym", "int8:token:asym", "keep"] and "reference:" in rows[0]
    assert " ".join(rows[1][5:]) == "no line of the recipe matches it"
    plain = Recipe.parse("w8a8-int8")
    assert "attention" not in str(summarise(plan_program(tiny.raised(), plain, target), plain, target))


@pytest.mark.parametrize(("attention", "message"), [
    ({"layers.0.atn": "kv8"}, "the attention line 'layers.0.atn' does nothing: it matches no attention (at recipe "
                              "custom). Fix: use 'layers.0.attn'"),
    ({"*": "kv8", "layers.0.*": "kv4"}, "lines above it match all it matches (at recipe custom). Fix: move it up"),
    ({"*": {"k": "int4:g32:asym:f32"}}, "a group of 32 is wider than a head of 4 (at recipe custom, attention line"),
])  # fmt: skip
def test_plan_mistakes(attention, message):
    with pytest.raises(RecipeError) as error:
        stages("rms", attention)
    assert message in str(error.value)


def test_a_model_without_attention():
    program = tiny.raise_ops(tiny.normalise(tiny.export(torch.nn.Linear(16, 8), torch.randn(2, 16))))
    with pytest.raises(RecipeError, match="the graph has no attention"):
        plan_program(program, Recipe.parse("w8a8-int8+kv8"), target)


@pytest.mark.parametrize(("data", "message"), [
    ("kv9", "unknown attention 'kv9' (at attention line '*'). Fix: use 'kv"),
    ({"x": "int8:token:asym"}, "unknown operand 'x'"),
    ({}, "an attention with no format"),
    ({"q": 8}, "8 is no format"),
    ({"q": "int8:tensor:asym:static"}, "they would differ between prefill and decode"),
    ({"p": "mxfp8"}, "groups of keys"),
    ({"k": "int8:channel:sym"}, "inputs are quantized per token, group or tensor (at attention line '*', k:"),
    (7, "7 is no attention"),
])  # fmt: skip
def test_recipe_mistakes(data, message):
    with pytest.raises(RecipeError) as error:
        Recipe.parse({**KEEP, "attention": {"*": data}})
    assert message in str(error.value)


def test_recipes_round_trip():
    words, spelled = Recipe.parse("w4a4+kv4"), Recipe.parse({"linears": {"*": "w4a4"}, "attention": "kv4"})
    assert words.attention == spelled.attention and Recipe.parse(words.as_dict()) == words
    row = Format.parse("int4:token:asym")
    assert words.attention[0].scheme == AttentionScheme(k=row, v=row)
    made = Recipe.parse({"preset": "omniquant-w4a4", "attention": {"*.0.*": "keep", "*": {"q": "keep", "k": "mxfp4"}}})
    assert Recipe.parse(made.as_dict()) == made and made.attention[0].scheme is None
    assert str(Recipe.parse("omniquant-w6a6").attention[0].scheme.q) == "int6:token:asym"
    assert Recipe.parse({"preset": "fsbr-w8a8", "attention": None}).attention == ()
    with pytest.raises(RecipeError, match="for attention only"):
        Recipe.parse("kv8")
