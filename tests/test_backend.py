"""torch.compile(backend="qpass"): the same pipeline and the same graph as the export entrance, from one graph."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
import torch._dynamo
from torch import Tensor, nn
from torch._dynamo.exc import BackendCompilerFailed
from torch.export import Dim
from transformers import CompileConfig, LlamaConfig, LlamaForCausalLM

import qpass
from qpass import backend
from qpass.capture.cache_name import usual_name
from tests.tiny import Decoder, RMSNorm, ids

W8A8 = {"recipe": "w8a8-int8", "target": "reference"}


@pytest.fixture(autouse=True)
def _fresh() -> Any:
    torch._dynamo.reset()
    torch.manual_seed(0)
    with torch.no_grad():
        yield
    torch._dynamo.reset()


def compiled(model: nn.Module, **options: Any) -> Any:
    return torch.compile(model.eval(), backend="qpass", fullgraph=True, options={**W8A8, **options})


def raised(name: str, pattern: str) -> Any:
    """The qpass error that Dynamo wraps."""
    return pytest.raises(BackendCompilerFailed, match=f"(?s){name}: {pattern}")


class Small(nn.Module):
    """Two linears; what each test needs happens in between."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.drop = nn.Dropout(0.5)
        self.register_buffer("count", torch.zeros(8))
        self.does = "nothing"

    def forward(self, x: Tensor) -> Any:
        x = self.first(x)
        if self.does == "drop":
            x = self.drop(x)
        if self.does == "break":
            torch._dynamo.graph_break()
        if self.does == "count":
            self.count.add_(1)
            x = x + self.count
        if self.does == "sizes":
            return self.second(x), x.shape[0], None
        return self.second(x)


class Store(nn.Module):
    """Writes into an input, as a static key-value cache is written."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(8, 8)

    def forward(self, x: Tensor, cache: Tensor, at: Tensor) -> Tensor:
        cache.index_copy_(0, at, self.proj(x))
        return cache.sum(0)


def fake_quantized(linear: nn.Linear, x: Tensor) -> Tensor:
    """8-bit symmetric weights by channel, 8-bit inputs with zero point by row, in float arithmetic."""
    step = linear.weight.abs().amax(1, keepdim=True) / 127
    weight = (linear.weight / step).round().clamp(-127, 127) * step
    low, high = x.amin(-1, keepdim=True).clamp(max=0), x.amax(-1, keepdim=True).clamp(min=0)
    scale = ((high - low) / 255).clamp(min=torch.finfo(torch.float32).eps)  # a row of zeros has one too
    zero = (-low / scale).round()
    return nn.functional.linear(((x / scale).round() + zero).clamp(0, 255).sub(zero) * scale, weight, linear.bias)


def test_registered_by_entry_point() -> None:
    assert "qpass" in torch._dynamo.list_backends()


def test_one_dynamic_graph_serves_every_later_batch() -> None:
    model, x = Small().eval(), torch.randn(5, 8)
    fast, exported = compiled(model), qpass.compile(model, "w8a8-int8", (x,), target="reference")
    for batch in (2, 3, 5):
        torch.testing.assert_close(fast(x[:batch]), exported(x[:batch]), rtol=0, atol=0)
    assert len(backend.traces()) == 2  # one static, one with a dynamic batch
    assert "2 of 2 linears quantized" in str(backend.traces()[0].plan)


@pytest.mark.parametrize("dynamic", [False, True])
def test_prints_as_the_export_entrance(dynamic: bool) -> None:
    model, example = Decoder(layers=1).eval(), ids()
    shapes = {"ids": {0: Dim("ids_dim0", min=2)} if dynamic else None}
    exported = qpass.trace(model, "w8a8-int8", (ids(),), target="reference", dynamic_shapes=shapes,
                           until="RAISED" if dynamic else "LOWERED")
    if dynamic:
        torch._dynamo.mark_dynamic(example, 0)
    y = compiled(model)(example)
    (trace,) = backend.traces()
    for stage, program in exported.stages.items():
        assert qpass.show(trace[stage]) == qpass.show(program), stage
    assert "raise/rms_norm" in qpass.show(trace["RAISED"]) and ("ids_dim0" in qpass.show(trace["RAISED"])) == dynamic
    if not dynamic:
        torch.testing.assert_close(y, exported["LOWERED"].run(ids())[0], rtol=0, atol=0)


def test_float_attributes_stay_literals_when_everything_is_dynamic() -> None:
    model = nn.Sequential(RMSNorm(8), nn.Linear(8, 8)).eval()
    torch.compile(model, backend="qpass", dynamic=True, fullgraph=True, options=W8A8)(torch.randn(2, 3, 8))
    text = qpass.show(backend.traces()[0]["RAISED"])
    assert "%0 = qpass.rms_norm(%args_0, 0.weight, 1e-06) : f32[args_0_dim0, args_0_dim1, 8]" in text


def test_hugging_face_model_and_its_static_cache() -> None:
    config = LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=1, pad_token_id=0,
                         num_attention_heads=2, bos_token_id=None, eos_token_id=None, initializer_range=0.2)
    model = LlamaForCausalLM(config).eval()
    tokens, mask = ids(), torch.ones(2, 5, dtype=torch.int64)
    logits = compiled(model)(input_ids=tokens, attention_mask=mask, use_cache=False).logits
    assert "8 of 8 linears quantized" in str(backend.traces()[0].plan)
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            layer.register_forward_hook(lambda layer, args, _: fake_quantized(layer, args[0]))
    torch.testing.assert_close(logits, model(tokens, attention_mask=mask).logits, rtol=1e-3, atol=1e-3)
    for layer in model.modules():
        layer._forward_hooks.clear()

    how = CompileConfig(backend="qpass", mode=None, options=W8A8, fullgraph=True)
    how._compile_all_devices = True  # else generate() compiles on accelerators only
    model.generate(tokens, attention_mask=mask, max_new_tokens=4, do_sample=False, cache_implementation="static",
                   compile_config=how)
    decode = backend.traces()[-1]["RAISED"]
    assert f"{usual_name()}_layers_0_keys" in [node.meta["name"] for node in decode.placeholders()]


def test_equals_fake_quantization_in_eager() -> None:
    model, x = Small(), torch.randn(4, 3, 8).transpose(0, 1)
    wanted = fake_quantized(model.second, fake_quantized(model.first, x))
    torch.testing.assert_close(compiled(model)(x), wanted, rtol=1e-4, atol=1e-4)


def test_cpu_target() -> None:
    model, x = Small(), torch.randn(3, 8)
    wanted = fake_quantized(model.second, fake_quantized(model.first, x))
    torch.testing.assert_close(compiled(model, target="cpu")(x), wanted, rtol=1e-4, atol=1e-4)


def test_sizes_and_none_among_the_outputs() -> None:
    model = Small()
    model.does = "sizes"
    fast = compiled(model)
    for rows in (3, 4, 6):
        y, count, nothing = fast(torch.randn(rows, 8))
        assert (y.shape, count, nothing) == ((rows, 8), rows, None)


def test_writes_to_inputs_and_buffers_are_kept() -> None:
    store, cache = Store().eval(), torch.zeros(4, 8)
    same, x, at = cache.clone(), torch.randn(2, 8), torch.tensor([3, 1])
    y = compiled(store)(x, cache, at)
    same.index_copy_(0, at, fake_quantized(store.proj, x))
    torch.testing.assert_close(cache, same, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(y, same.sum(0), rtol=1e-4, atol=1e-4)
    model = Small()
    model.does = "count"
    fast = compiled(model)
    fast(x), fast(x)
    assert model.count.tolist() == [2.0] * 8


def test_a_graph_break_makes_two_programs(caplog: pytest.LogCaptureFixture) -> None:
    model, x = Small().eval(), torch.randn(3, 8)
    model.does = "break"
    recipe = {"linears": {"first": "w8a8-int8", "second": "keep"}}
    with caplog.at_level(logging.WARNING, "qpass.backend"):
        y = torch.compile(model, backend="qpass", options={"recipe": recipe, "target": "reference"})(x)
    torch.testing.assert_close(y, model.second(fake_quantized(model.first, x)), rtol=1e-4, atol=1e-4)
    assert len(backend.traces()) == 2
    assert [record.getMessage().split(": ", 1)[1] for record in caplog.records] == [
        "the line 'second' does nothing in this graph: it matches no linear",
        "the line 'first' does nothing in this graph: it matches no linear",
    ]


def test_unmatched_lines(caplog: pytest.LogCaptureFixture) -> None:
    recipe = {"linears": {"second": "w8a8-int8", "thrid": "keep"}}
    with raised("RecipeError", "the line 'thrid' matches no linear"):
        compiled(Small(), recipe=recipe)(torch.randn(3, 8))
    with raised("RecipeError", "the model has no linear"):
        compiled(nn.ReLU())(torch.randn(3, 8))
    compiled(Small(), recipe=recipe, allow_unmatched=True)(torch.randn(3, 8))
    assert "'thrid' does nothing" in caplog.text


@pytest.mark.parametrize(("options", "message"), [
    (None, 'needs a recipe.*options={"recipe": "w8a8-int8"}'),
    ({"recipe": "w8a8-int9"}, "use 'w8a8-int8'"),
    ({**W8A8, "targett": "cpu"}, "unknown option 'targett'.*use 'target'"),
    ({**W8A8, "allow_unmached": True}, "use 'allow_unmatched'"),
])  # fmt: skip
def test_illegal_options(options: Any, message: str) -> None:
    with raised("RecipeError", f".*{message}"):
        torch.compile(Small().eval(), backend="qpass", options=options)(torch.randn(3, 8))


def test_illegal_mode() -> None:
    with raised("RecipeError", "the backend qpass takes the mode 'reduce-overhead' as an option"):
        torch.compile(Small().eval(), backend="qpass", mode="reduce-overhead")(torch.randn(3, 8))
    with raised("InputError", "target reference has no mode 'reduce-overhead'"):
        compiled(Small(), mode="reduce-overhead")(torch.randn(3, 8))


def test_gradients_and_training_are_refused() -> None:
    with torch.enable_grad(), raised("InputError", "a gradient is asked for.*first.weight.*no_grad"):
        compiled(Small())(torch.randn(3, 8))
    model = Small()
    model.does = "drop"
    fast = compiled(model)
    model.train()
    with raised("InputError", "the model drops values at random.*at drop.*eval"):
        fast(torch.randn(3, 8))


def test_a_weight_that_changes_later_is_an_error() -> None:
    model, x = Small(), torch.randn(3, 8)
    fast = compiled(model)
    before = fast(x)
    model.second.weight.mul_(2)
    with pytest.raises(qpass.InputError, match=r"a weight was changed .* \(at second.weight\)"):
        fast(x)
    torch._dynamo.reset()
    assert not torch.equal(fast(x), before)
