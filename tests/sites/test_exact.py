"""Brute force: the null space is the dense one, every direction in it is exact, and directions outside are not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from qpass.sites import Axis, Powers, Site, analyse
from tests.sites.models import CONFIGS, HEADS, D, cases, inputs, normal, program
from tests.sites.oracle import Dense, basis, check_exact, distance, outputs, params_of, scaled, undetected


@pytest.mark.parametrize("name", cases(CONFIGS))
def test_the_null_space_is_the_dense_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    dense = Dense(monkeypatch)
    freedom = analyse(program(name)).freedom
    system = dense.systems[0]
    matrix = dense.matrix(system.count)
    assert freedom == system.count - 1 - np.linalg.matrix_rank(matrix)
    assert np.abs(matrix @ basis(system.solve(), system.count)).max() < 1e-9


@pytest.mark.parametrize("name", cases(CONFIGS))
def test_every_site_is_exact(name: str) -> None:
    found = analyse(program(name))
    assert found.sites
    check_exact(normal(name), found, inputs(name))


@pytest.mark.parametrize("name", cases(CONFIGS))
def test_no_part_of_a_site_is_idle(name: str) -> None:
    idle = undetected(normal(name), analyse(program(name)), inputs(name))
    keys = ("k_proj.bias", "key.bias", "c_attn.bias", "query_key_value.bias")  # a softmax does not see them
    assert [line for line in idle if not any(key in line for key in keys)] == []


def _site(name: str, part: str) -> Site:
    return next(site for site in analyse(program(name)).sites if part in site.name)


def _error(name: str, site: Site, factors: torch.Tensor | None = None) -> float:
    params = params_of(normal(name))
    if factors is None:
        factors = torch.rand(site.size, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 + 0.2
    return distance(outputs(normal(name), inputs(name), params),
                    outputs(normal(name), inputs(name), scaled(params, [(site, factors)])))  # fmt: skip


def _untied(site: Site, index: torch.Tensor) -> Site:
    """The same site with other channels tied."""
    axes = tuple(replace(axis, powers=Powers(index[None], axis.powers.power)) for axis in site.axes)
    return replace(site, size=int(index.max()) + 1, axes=axes)


def test_rotary_pairs_must_be_tied_and_in_the_right_layout() -> None:
    """G4, on heads that are not grouped."""
    site = _site("opt", "q_proj -> ")
    assert _error("opt", site) < 1e-9  # no rotary: each channel is free
    rotary = _site("gpt_neox", "query_key_value[16 of 48] -> gpt_neox.layers.0.attention.query_key_value")
    assert _error("gpt_neox", rotary) < 1e-9
    q, k = (next(a for a in rotary.axes if a.role == "row" and a.powers.sign == sign) for sign in (-1, 1))
    free = torch.full((3 * HEADS * D,), -1)
    rows = [torch.nonzero(axis.powers.index[0] >= 0).flatten() for axis in (q, k)]
    for each in rows:
        free[each] = torch.arange(HEADS * D)
    loose = [replace(axis, powers=Powers(torch.where(axis.powers.index >= 0, free, -1), axis.powers.power))
             for axis in rotary.axes]  # fmt: skip
    assert _error("gpt_neox", replace(rotary, size=HEADS * D, axes=tuple(loose))) > 1e-3


def test_adjacent_pairs_under_rotate_half_fail() -> None:
    """G4: tied, but in GPT-J's layout."""
    site = _site("llama", "q_proj -> ")
    tables = {n: torch.arange(n) // (n // 2) * 2 + torch.arange(n) % 4 // 2 for n in (16, 8)}
    axes = tuple(replace(axis, powers=Powers(tables[axis.powers.index.shape[-1]][None], axis.powers.power))
                 for axis in site.axes)  # fmt: skip
    assert _error("llama", site) < 1e-9 < 1e-3 < _error("llama", replace(site, axes=axes))


def test_grouped_heads_share_a_factor() -> None:
    """G2: one column of o by another factor than the others of its group."""
    site = _site("llama", "v_proj -> ")
    o = site.columns[0]
    index, power = o.powers.index.clone(), o.powers.power.clone()
    power[0, 0] = 1.5
    broken = replace(site, axes=tuple(replace(a, powers=Powers(index, power)) if a is o else a for a in site.axes))
    assert _error("llama", site) < 1e-9 < 1e-3 < _error("llama", broken)


def test_a_gate_is_no_producer_of_down() -> None:
    """G3."""
    site = _site("llama", "up_proj -> ")
    gate = tuple(replace(a, param=a.param.replace("up_proj", "gate_proj")) for a in site.axes)
    assert _error("llama", site) < 1e-9 < 1e-3 < _error("llama", replace(site, axes=gate))


def test_rows_before_a_norm_of_q_and_k_fail() -> None:
    """G5: the factor belongs into the norms' weights."""
    site = _site("qwen3", "q_norm -> ")
    rows = [Axis(axis.param.replace("_norm", "_proj"), (0,), _tiled(axis), "row", axis.node) for axis in site.axes]
    assert _error("qwen3", site) < 1e-9 < 1e-3 < _error("qwen3", replace(site, axes=tuple(rows)))


def _tiled(axis: Axis) -> Powers:
    heads = 4 if "q_norm" in axis.param else 2
    return Powers(axis.powers.index.repeat(1, heads), axis.powers.power.repeat(1, heads))


def test_an_offset_norm_is_not_divided_as_it_is() -> None:
    """G5: (1 + w') = (1 + w) / s."""
    site = _site("gemma", "input_layernorm")
    naive = replace(site, axes=tuple(replace(axis, offset=0.0) for axis in site.axes))
    assert any(axis.offset == 1.0 for axis in site.axes)
    assert _error("gemma", site) < 1e-9 < 1e-3 < _error("gemma", naive)


def test_experts_without_their_router_fail() -> None:
    """G6."""
    site = _site("mixtral", "post_attention_layernorm")
    assert _error("mixtral", replace(site, axes=tuple(a for a in site.axes if "mlp.gate.weight" not in a.param))) > 1e-3
