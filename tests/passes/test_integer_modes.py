"""Integer-only models in the modes after the paper: legal, guarded, the same bits however they are run; refusals."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

import qpass
from qpass import ops, pipeline
from qpass.errors import InputError, RecipeError, UnsupportedError, VerifyError
from qpass.formats.integer import Integer
from qpass.graph.program import Program, copy_graph
from qpass.graph.values import op_name
from qpass.passes.integerise import integerise
from qpass.pipeline import Trace
from qpass.recipe import Recipe
from tests.bench.integer_study import in_float
from tests.numerics.integer.helpers import real
from tests.passes.test_integerise import chunks, digest, model

MODES = ("paper", "literal")


def recipe(mode: str, methods: tuple[Any, ...] = (), **options: Any) -> dict[str, Any]:
    return {"preset": "int-only-w8a8", "methods": list(methods), "learning": {"steps": 1, "progress": False},
            "integer": {"mode": mode, "context": 48, **options}}  # fmt: skip


@pytest.fixture(scope="module")
def given() -> tuple[Any, Any, Trace]:
    """(float model, program, trace up to SOLVED), smoothed, so that the gated activation has its vector."""
    torch.manual_seed(0)
    float_model = model()
    batches = [torch.randint(2, 96, (4, 24)) for _ in range(3)]
    captured, parsed = pipeline.capture(float_model), Recipe.parse(recipe("paper", ({"fsbr": {"rate": 0.05}},)))
    target = pipeline.load_target("reference")
    return float_model, captured, pipeline.run(captured, parsed, target, calibration=batches, until="SOLVED")


def typed(meaning: Any, value: Any) -> Any:
    """An op's meaning that checks the dtypes of its results against those that the pass gave them."""

    def call(*args: Any) -> Any:
        result = meaning(*args)
        pairs = zip(result, value, strict=True) if isinstance(value, tuple) else [(result, value)]
        assert all(one.dtype == two.dtype for one, two in pairs), meaning.__name__
        return result

    return call


def built(float_model: Any, trace: Trace, program: Program) -> Any:
    """The program as a model, each integer op spelled in what it is made of."""
    graph, _ = copy_graph(program.graph)
    for node in graph.nodes:
        if op_name(node.target).startswith("qpass.integer_"):
            node.target = typed(ops.REGISTRY[op_name(node.target).removeprefix("qpass.")].meaning, node.meta["val"])
    lowered = program.with_graph(graph)
    return pipeline.build(float_model, replace(trace, stages={**trace.stages, "LOWERED": lowered}), target="reference")


@pytest.fixture(scope="module", params=MODES)
def made(request: Any, given: Any) -> tuple[str, Program, Any]:
    """(mode, program, model)."""
    float_model, _, trace = given
    program = integerise(trace["SOLVED"], Integer(mode=request.param, context=48))
    return request.param, program, built(float_model, trace, program)


def error(compiled: Any, ids: torch.Tensor, want: torch.Tensor) -> float:
    return float((compiled(ids).logits - want).square().mean().sqrt() / want.square().mean().sqrt())


def test_integer_only(made: Any) -> None:
    _, program, compiled = made
    assert qpass.verify_integer_only(program) is program
    assert {buffer.dtype for buffer in compiled.buffers()} <= {torch.int8, torch.int16, torch.int32}
    with qpass.integer_guard(compiled):
        compiled(torch.randint(2, 96, (2, 6)))


def test_the_same_bits_in_chunks_and_in_any_batch(made: Any) -> None:
    compiled, ids = made[2], torch.randint(2, 96, (3, 12))
    whole = chunks(compiled, ids, [12])
    for sizes in ([5, 7], [1] * 12):
        assert digest(*chunks(compiled, ids, sizes)) == digest(*whole), sizes
    assert digest(*chunks(compiled, ids[1:2], [12])) == digest(*(part[1:2] for part in whole))


def test_error_grows_from_precise_to_paper_to_literal(given: Any, made: Any) -> None:
    float_model, _, trace = given
    mode, _, compiled = made
    ids = torch.randint(2, 96, (8, 24))
    want = float_model(ids).logits.detach()
    exact = error(built(float_model, trace, integerise(trace["SOLVED"], Integer(context=48))), ids, want)
    assert exact < 0.03
    # eight bits into each operator add errors like those of the linears; what is printed adds errors of another size
    low, high = (1.0, 5.0) if mode == "paper" else (5.0, 60.0)
    assert low * exact < error(compiled, ids, want) < high * exact


def test_without_data_there_are_no_static_scales(given: Any) -> None:
    float_model, captured, _ = given
    with pytest.raises(InputError, match="the integer mode paper looks at data, and there is none"):
        pipeline.trace(float_model, recipe("paper"), target="reference")
    solved = pipeline.run(captured, Recipe.parse(recipe("precise")), pipeline.load_target("reference"), until="SOLVED")
    with pytest.raises(UnsupportedError, match="the mode 'literal' reads a norm's input by static scales"):
        integerise(solved["SOLVED"], Integer(mode="literal", context=48))


def other(activation: str) -> tuple[Any, Trace]:
    """(float model, trace up to SOLVED in mode paper): LayerNorm with a bias, biases, another activation."""
    torch.manual_seed(0)
    made = model(hidden_act=activation, attention_bias=True, mlp_bias=True)
    for layer in made.model.layers:
        layer.input_layernorm, layer.post_attention_layernorm = torch.nn.LayerNorm(64), torch.nn.LayerNorm(64)
        torch.nn.init.normal_(layer.input_layernorm.bias)
    made = made.eval()
    parsed, target = Recipe.parse(recipe("paper")), pipeline.load_target("reference")
    batches = [torch.randint(2, 96, (4, 24))]
    return made, pipeline.run(pipeline.capture(made), parsed, target, calibration=batches, until="SOLVED")


def test_layer_norm_biases_and_other_activations() -> None:
    float_model, trace = other("relu")
    ids = torch.randint(2, 96, (4, 24))
    want = float_model(ids).logits.detach()
    for mode, most in (("precise", 0.03), ("paper", 0.06), ("literal", 0.6)):
        program = qpass.verify_integer_only(integerise(trace["SOLVED"], Integer(mode=mode, context=48)))
        compiled = built(float_model, trace, program)
        with qpass.integer_guard(compiled):
            assert error(compiled, ids, want) < most, mode


def test_an_activation_that_is_not_printed_has_no_literal_form() -> None:
    _, trace = other("gelu")
    assert integerise(trace["SOLVED"], Integer(mode="paper", context=48)).stage == "INTEGER"
    with pytest.raises(UnsupportedError, match="the activation 'gelu' in mode 'literal' has no integer form"):
        integerise(trace["SOLVED"], Integer(mode="literal", context=48))


def test_mantissas_of_eight_bits(given: Any) -> None:
    """Where no method has chosen the codes, they are those of the scale that is stored."""
    float_model, captured, _ = given
    trace = pipeline.run(captured, Recipe.parse("int-only-w8a8"), pipeline.load_target("reference"), until="SOLVED")
    program = integerise(trace["SOLVED"], Integer(context=48, mantissa=8))
    found = [name for name in program.used_params() if name.endswith("proj.weight.mantissa")]
    assert len(found) == 7 and all(bool((program.tensor(name) % 128 == 0).all()) for name in found)
    name = found[0].removesuffix(".mantissa")
    scale = program.tensor(f"{name}.scale").flatten().double()
    mantissa, shift, exponent = (program.tensor(f"{name}.{part}") for part in ("mantissa", "shift", "exponent"))
    assert torch.equal(scale, real(mantissa, exponent + shift))
    ids = torch.randint(2, 96, (8, 24))
    assert error(built(float_model, trace, program), ids, float_model(ids).logits.detach()) < 0.03


@pytest.mark.parametrize("name", ["softmax", "SwiGLU", "norm"])
def test_operators_in_float_are_near_and_are_refused(given: Any, name: str) -> None:
    """For study only: what the benchmark puts in is seen by the check."""
    float_model, _, trace = given
    exact = integerise(trace["SOLVED"], Integer(context=48))
    program = in_float(exact, [name], 1e-6)
    with pytest.raises(VerifyError, match="the float op"):
        qpass.verify_integer_only(program)
    ids = torch.randint(2, 96, (2, 12))
    # the same codes go into both; a code that the operator's 1e-4 moves over an edge is one step of a linear's input
    want = built(float_model, trace, program)(ids).logits
    assert error(built(float_model, trace, exact), ids, want) < 0.01


@pytest.mark.parametrize(("options", "message"), [
    ({"mode": "exact"}, "mode is 'exact'"), ({"mantissa": 16}, "mantissa is 16"), ({"clip": -1}, "clip is -1"),
    ({"clip": True}, "clip is True"), ({"mantissa": 8.0}, "mantissa is 8.0"),
])  # fmt: skip
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Integer(**options)


def test_clip_is_the_modes_own_unless_it_is_given() -> None:
    assert [Integer(mode=mode).clipped for mode in ("precise", "paper", "literal")] == [0.0, 15.0, 15.0]
    assert Integer(mode="paper", clip=0).clipped == 0 and Integer(clip=8).clipped == 8
    assert Integer(mode="paper", clip=0).as_dict() == {"mode": "paper", "clip": 0}
    assert Integer.parse({"mode": "literal", "mantissa": 8}) == Integer(mode="literal", mantissa=8)
