from __future__ import annotations

import math
from dataclasses import replace

import torch

from qpass.debug.compare import compare
from qpass.graph.program import Program
from tests.tiny import ids, normal, raised, traced


def test_rows_are_the_shared_values_in_order() -> None:
    rows = compare(normal(), raised(), ids(2, 4))
    names = [row.name for row in rows]
    assert names == [node.meta["name"] for node in normal().nodes() if node.meta["name"] in names]
    assert set(names) <= {node.meta["name"] for node in raised().nodes()}
    assert {"layers.0.norm1", "layers.1.attn.o_proj", "head"} <= set(names)
    assert all(row.sqnr_db == math.inf and row.max_abs == 0 for row in rows)
    assert rows[-1].shape == (2, 4, 32)


def test_error_starts_where_the_weight_changed() -> None:
    name = "layers.1.attn.v_proj.weight"
    other = replace(raised(), params={**raised().params, name: raised().tensor(name) * 1.01})
    rows = compare(raised(), other, ids())
    worse = [row for row in rows if row.sqnr_db < math.inf]
    assert worse[0].name == "layers.1.attn.v_proj"
    assert abs(worse[0].sqnr_db - 40.0) < 0.1
    assert str(worse[0]).startswith("    40.0 dB") and "%layers.1.attn.v_proj [2, 5, 8]" in str(worse[0])


def chain(length: int, size: int) -> Program:
    def function(x: torch.Tensor) -> torch.Tensor:
        for _ in range(length):
            x = torch.sin(x)
        return x

    return traced(function, torch.ones(size))


def test_values_are_freed(monkeypatch: object) -> None:
    """At most a few of the chain's values are alive at a time in either program."""
    import gc
    import weakref

    from qpass.graph.lockstep import lockstep

    program, alive, peak = chain(30, 7), [], 0
    for _, one, two in lockstep(program, program, [torch.ones(7)]):
        alive += [weakref.ref(one), weakref.ref(two)]
        del one, two
        gc.collect(0)
        peak = max(peak, sum(ref() is not None for ref in alive))
    assert peak <= 6


def test_other_shapes() -> None:
    one = traced(lambda x: torch.sin(x), torch.ones(3))
    two = traced(lambda x: torch.sin(x[:2]), torch.ones(3))
    (row,) = compare(one, two, torch.ones(3))
    assert (row.sqnr_db, row.max_abs, row.shape) == (-math.inf, math.inf, (3,))
