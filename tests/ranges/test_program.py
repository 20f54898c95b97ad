"""A whole model: its runs are within what was proven; what cannot be proven is refused, with node and line."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import fx
from transformers import LlamaConfig, LlamaForCausalLM

import qpass
from qpass import ops, pipeline
from qpass.errors import InputError, UnsupportedError, VerifyError
from qpass.graph.program import Program, copy_graph
from qpass.numerics.integer.marks import case, helper
from qpass.ranges import Ranges, greatest_context, integer_ranges
from qpass.ranges.engine import Engine
from qpass.ranges.site import Wraps
from qpass.ranges.value import of
from tests.ranges.watch import Recorder, contained

CONTEXT = 40
RECIPE = {"preset": "int-only-w8a8", "integer": {"context": CONTEXT}}


def model() -> LlamaForCausalLM:
    """Weights of every size: rows of one sign, equal rows, rows of zeros, channels a thousand times the others."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=48, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, pad_token_id=0,
    )  # fmt: skip
    made = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for weight in (part.weight for part in made.modules() if isinstance(part, torch.nn.Linear)):
            weight[0], weight[1], weight[2] = 0.5, -0.5, 0.0
            weight[3] *= 1e3
        made.model.embed_tokens.weight[3] = 1e6
        made.model.embed_tokens.weight[4] = 0.0
        made.model.embed_tokens.weight[5] *= 1e-12
    return made


@pytest.fixture(scope="module")
def made() -> Iterator[tuple[Program, Ranges, Any]]:
    with torch.no_grad():
        float_model = model()
        trace = qpass.trace(float_model, RECIPE, target="reference")
        yield trace["INTEGER"], integer_ranges(trace["INTEGER"]), pipeline.build(float_model, trace, target="reference")


def changed(program: Program, op: Any, position: int, value: Any) -> tuple[Program, str]:
    """The program with another argument in the first call of ``op``; and that call's name."""
    graph, _ = copy_graph(program.graph)
    node = next(node for node in graph.nodes if node.target is op)
    node.args = (*node.args[:position], value(node.args[position]), *node.args[position + 1 :])
    return replace(program, graph=graph), node.meta["name"]


class _Run(fx.Interpreter):
    """Runs a program on numbers, each node under a recorder of its own."""

    def __init__(self, program: Program) -> None:
        super().__init__(torch.nn.Module(), graph=program.graph)
        self.program, self.seen, self.shadow = program, {}, Recorder(shadow=True)

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> torch.Tensor:
        return self.program.tensor(target)

    def run_node(self, node: fx.Node) -> Any:
        if node.op != "call_function":
            return super().run_node(node)
        self.shadow.seen = {}
        result = self.shadow.run(super().run_node, node)
        self.seen[node.meta["name"]] = self.shadow.seen
        return result


def test_every_number_of_a_run_is_within_its_bounds_and_the_same_in_64_bits(made: Any) -> None:
    program, ranges, compiled = made
    proven: dict[str, Any] = {}
    for line in ranges:
        proven.setdefault(line.value, {})[line.site] = line.seen
    ids = torch.tensor([[3, 4, 5, 6, 3, 9, 9], [0, 0, 4, 4, 47, 3, 1]])
    mask = torch.tensor([[1] * 7, [0, 0, 1, 1, 1, 1, 1]])
    flat = compiled._qpass_call.flatten((), {"input_ids": ids, "attention_mask": mask})
    compared, cache = 0, None
    for step in range(2):
        run = _Run(program)
        results = run.run(*flat)
        compared += sum(contained(seen, proven.get(name, {})) for name, seen in run.seen.items())
        cache = list(results[2:])
        if not step:  # one token more, over the cache
            more = torch.cat((mask, torch.ones(2, 1, dtype=torch.int64)), 1)
            flat = [ids[:, :1], more, torch.full((2, 1), 7), torch.zeros(1, dtype=torch.int64), *cache]
    assert compared > 1000


def test_the_table_says_what_comes_nearest_to_int32(made: Any) -> None:
    ranges = made[1]
    text = str(ranges)
    assert text.startswith(f"bounds for 1 to {CONTEXT} tokens")
    assert all(line.bits <= 32 for line in ranges.tightest())
    assert all(line.bits <= line.seen.width or line.seen.width == 1 for line in ranges)
    assert "qpass.integer_linear" in text and ".py:" in text and "int64:" in text


def test_compile_refuses_a_shift_that_leaves_too_little_room(made: Any) -> None:
    program, name = changed(made[0], ops.integer_linear, 11, lambda up: up + 3)
    with pytest.raises(UnsupportedError, match=r"integer_linear could wrap: .* in int32 at linear\.py:\d+") as error:
        integer_ranges(program)
    assert f"%{name}" in str(error.value) and "File " in str(error.value) and "modeling_" in str(error.value)


def test_weights_outside_of_their_format_are_refused(made: Any) -> None:
    program = made[0]
    name = next(name for name in program.params if name.endswith("q_proj.weight.codes"))
    codes = program.tensor(name).clone()
    integer_ranges(replace(program, params={**program.params, name: codes}))
    codes[3, 3] = -128
    with pytest.raises(UnsupportedError, match=rf"codes -128 to 127 in {name}, which int8:channel:sym does not have"):
        integer_ranges(replace(program, params={**program.params, name: codes}))


def test_a_scale_that_is_no_mantissa_is_refused(made: Any) -> None:
    program = made[0]
    name = next(name for name in program.params if name.endswith("q_proj.weight.mantissa"))
    wide = program.tensor(name) << 3
    with pytest.raises(UnsupportedError, match="could wrap"):
        integer_ranges(replace(program, params={**program.params, name: wide}))


def test_the_greatest_context_is_sharp_and_one_token_more_is_refused(made: Any) -> None:
    program, _, compiled = made
    most = greatest_context(program)
    integer_ranges(program, most)
    with pytest.raises(UnsupportedError, match=rf"{most + 1} tokens, where nothing can wrap up to {most}: .* in int64"):
        integer_ranges(program, most + 1)
    compiled(torch.ones(1, CONTEXT, dtype=torch.int64))
    with pytest.raises(InputError, match=f"{CONTEXT + 1} tokens"):
        compiled(torch.ones(1, CONTEXT + 1, dtype=torch.int64))


def test_inputs_that_the_proof_does_not_cover_are_refused(made: Any) -> None:
    compiled, ids = made[2], torch.ones(1, 3, dtype=torch.int64)
    with pytest.raises(InputError, match="other numbers than 0 and 1"):
        compiled(ids, attention_mask=torch.tensor([[1, 1, 2]]))
    with pytest.raises(InputError, match="below 0"):
        compiled(ids, position_ids=torch.tensor([[-1, 0, 1]]))


def test_other_stages_are_refused() -> None:
    program = qpass.capture(torch.nn.Linear(4, 4).eval(), (torch.randn(2, 4),))
    with pytest.raises(VerifyError, match="bounds of a program at stage CAPTURED"):
        integer_ranges(program)


def on_rows(fn: Any, lo: int, hi: int) -> Any:
    engine = Engine()
    x = engine.hold(torch.empty(2, 3, 4, dtype=torch.int32, device="meta"), of(lo, hi))
    return engine, engine.run(fn, x)


def test_cases_are_not_mixed() -> None:
    @helper
    def mixing(x: torch.Tensor) -> torch.Tensor:
        return (x + case(x & 1)).amax(1)

    with pytest.raises(UnsupportedError, match="amax brings together rows of different cases"):
        on_rows(mixing, 0, 9)


def test_cases_are_not_mixed_by_a_change_of_shape() -> None:
    @helper
    def reshaping(x: torch.Tensor) -> torch.Tensor:
        return (x + case((x & 1).amax(-1, keepdim=True))).reshape(2, 12)

    with pytest.raises(UnsupportedError, match="brings together rows of different cases"):
        on_rows(reshaping, 0, 9)


def test_what_has_no_rule_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedError, match="no bounds are known of the op bitwise_not"):
        on_rows(lambda x: ~x, 0, 9)


@pytest.mark.parametrize(
    "fn, what",
    [
        (lambda x: x // (x - 3), "a divisor of -3 to 6"),
        (lambda x: x << (x - 1), "a shift by -1 to 8 of 32 bits"),
        (lambda x: x << (x + 23), "a shift by 23 to 32 of 32 bits"),
        (lambda x: (x * 15).to(torch.int8), "0 to 135 in int8"),
        (lambda x: x - (1 << 31), "-2147483648"),
        (lambda x: (x * 1000).sum(-1, dtype=torch.int32) * 60000, "in int32"),
    ],
)
def test_near_misses_of_ops(fn: Any, what: str) -> None:
    if what == "-2147483648":  # just fits
        engine, result = on_rows(fn, 0, 9)
        assert engine.look(result).lo == -(1 << 31)
        return
    with pytest.raises(Wraps, match=what):
        on_rows(fn, 0, 9)
