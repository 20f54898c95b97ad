"""Rows that a program looks up are there: learned positions bound the context, token ids and rows are checked."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import qpass
from qpass import pipeline
from qpass.errors import InputError, UnsupportedError
from qpass.formats.integer import Integer
from qpass.graph.program import copy_graph
from qpass.passes.integerise import integerise
from qpass.pipeline import Trace
from qpass.ranges import greatest_context, integer_ranges, table_context
from qpass.ranges.engine import Engine
from qpass.ranges.site import Beyond
from qpass.ranges.value import of, of_tensor
from tests.passes.test_integer_families import FAMILIES, model

POSITIONS = 64
WHAT = "learned positions, relu, scaled queries"


@pytest.fixture(scope="module")
def opt() -> tuple[Any, Trace]:
    """A model whose table of positions begins with two rows for padding, and what a recipe without a context makes."""
    float_model = model("OPT", FAMILIES[WHAT][1])
    with torch.no_grad():
        return float_model, qpass.trace(float_model, "int-only-w8a8", target="reference", until="INTEGER")


@pytest.fixture(scope="module")
def compiled(opt: Any) -> Any:
    float_model, trace = opt
    stages = {**trace.stages, "LOWERED": trace["INTEGER"]}  # its ops as they are, which is what they are lowered to
    return pipeline.build(float_model, replace(trace, stages=stages), target="reference")


def test_the_default_context_is_the_tables(opt: Any) -> None:
    program = opt[1]["INTEGER"]
    assert program.call.context == POSITIONS == greatest_context(program) == table_context(program, 1 << 30)
    line = f"context: 1 to {POSITIONS} tokens, past and new (as many positions as the model's table has; the default is"
    assert line in str(opt[1].plan)
    assert str(integer_ranges(program)).startswith(f"bounds for 1 to {POSITIONS} tokens")


def test_a_context_beyond_a_table_of_positions_is_refused_when_compiling(opt: Any) -> None:
    solved, recipe = opt[1]["SOLVED"], {"preset": "int-only-w8a8", "integer": {"context": POSITIONS + 1}}
    with pytest.raises(UnsupportedError) as error:
        pipeline._integer(Integer(context=POSITIONS + 1), solved)
    text = str(error.value)
    assert "positions reach rows 1 to 66 of model.decoder.embed_positions.weight.table, which has 66" in text
    assert "2 of them before position 0, so it has 64 positions), and the context is 65" in text
    assert "%model.decoder.embed_positions" in text and "File " in text and '{"context": 64}' in text
    integer_ranges(integerise(solved, Integer(context=POSITIONS)))
    assert qpass.recipe.Recipe.parse(recipe).integer == Integer(context=POSITIONS + 1)


def test_a_table_without_an_offset() -> None:
    made = GPT2LMHeadModel(GPT2Config(vocab_size=48, n_positions=16, n_embd=16, n_layer=1, n_head=2)).eval()
    with pytest.raises(UnsupportedError, match=r"rows 0 to 19 of .*wpe.*, which has 16 \(no more\), .* context is 20"):
        qpass.trace(made, {"preset": "int-only-w8a8", "integer": {"context": 20}}, target="reference", until="INTEGER")


def test_an_index_that_is_moved_is_seen(opt: Any) -> None:
    program = opt[1]["INTEGER"]
    graph, _ = copy_graph(program.graph)
    add = next(node for node in graph.nodes if node.target is torch.ops.aten.add.Tensor and node.args[1] == 2)
    for offset, message in ((3, "rows 2 to 66 of"), (-70, "rows -71 to -7 of .*not integer-only for this model")):
        add.args = (add.args[0], offset)
        with pytest.raises(UnsupportedError, match=message):
            integer_ranges(replace(program, graph=graph))


def test_as_many_tokens_as_the_table_has_run_and_one_more_does_not(compiled: Any) -> None:
    ids = torch.randint(2, 96, (2, POSITIONS))
    mask = torch.ones_like(ids)
    mask[1, :5] = 0  # padding in front, whose position is -1
    with torch.no_grad(), qpass.integer_guard(compiled):
        logits = compiled(ids, attention_mask=mask).logits
        alone = compiled(ids[1:, 5:]).logits
    assert torch.equal(logits[1:, 5:], alone)
    with pytest.raises(InputError, match=f"{POSITIONS + 1} tokens, past and new"):
        compiled(torch.full((1, POSITIONS + 1), 3))
    with pytest.raises(InputError, match=f"`position_ids` up to {POSITIONS}"):
        compiled(ids[:1, :2], position_ids=torch.tensor([[0, POSITIONS]]))
    with pytest.raises(InputError, match="`position_ids` below -1"):
        compiled(ids[:1, :2], position_ids=torch.tensor([[-2, 0]]))


@pytest.mark.parametrize("wrong", [96, -1, 1 << 40])
def test_token_ids_outside_of_the_vocabulary_are_refused_before_anything_runs(compiled: Any, wrong: int) -> None:
    assert compiled._qpass_call.vocabulary == 96
    with pytest.raises(InputError, match=r"`input_ids` from .* to .*, where the model has tokens 0 to 95.*tokenizer"):
        compiled(torch.tensor([[3, wrong]]))


@pytest.mark.parametrize("rows", [[4], [-5], [0, 9]])
def test_rows_that_are_not_there_are_refused(compiled: Any, rows: list[int]) -> None:
    with pytest.raises(InputError, match=r"`logits_to_keep` has rows .* of 4 new tokens"):
        compiled(torch.full((1, 4), 3), logits_to_keep=torch.tensor(rows))


@pytest.mark.parametrize(("lo", "hi", "fits"), [(0, 6, True), (-7, -1, True), (0, 7, False), (-8, 0, False)])
def test_near_misses_of_a_table(lo: int, hi: int, fits: bool) -> None:
    engine = Engine()
    table = engine.hold(torch.empty(7, 3, dtype=torch.int32, device="meta"), of_tensor(torch.arange(21).reshape(7, 3)))
    index = engine.hold(torch.empty(2, 5, dtype=torch.int64, device="meta"), of(lo, hi))
    if fits:
        assert engine.look(engine.run(lambda: table[index])).hi == 20
        return
    with pytest.raises(Beyond, match=f"rows {lo} to {hi} of a table of 7"):
        engine.run(lambda: table[index])
