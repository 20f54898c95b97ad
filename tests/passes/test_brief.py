"""What a plan says of many places at once."""

from __future__ import annotations

from qpass.passes.brief import brief

LOSS = [f"gptq: layers.{n}.up.weight: loss {value} of round to nearest's, on 64 rows"
        for n, value in enumerate(["0.5", "1e-3", "0.75"])]  # fmt: skip


def test_lines_of_one_kind_are_one_line_with_their_ends():
    lines = ["gptq: 0 exact edits on 4 sites, 9 parameters set", LOSS[0], "gptq: head: skipped: it is odd", *LOSS[1:]]
    assert brief(lines, most=2) == [
        lines[0],
        "gptq: 3 places, layers.0.up.weight to layers.2.up.weight: loss 1e-3 to 0.75 of round to nearest's, on 64 rows",
        "gptq: head: skipped: it is odd",
    ]


def test_few_lines_and_other_words_stay():
    assert brief(LOSS, most=3) == LOSS
    other = [f"lorc: layers.{n}.up: skipped: {why}" for n, why in enumerate(("a", "b", "c"))]
    assert brief(other, most=1) == other
    assert brief([LOSS[0], LOSS[0].replace("gptq", "lwc")], most=1) == [LOSS[0], LOSS[0].replace("gptq", "lwc")]
    assert brief([], most=1) == []


def test_numbers_within_names_are_no_numbers():
    lines = [f"let: site {n}: skipped: %layers.{n}.x4 is a table" for n in range(3)]
    assert brief(lines, most=2) == lines  # what they say names different values
