"""What a user sees: the table, the public function, the command."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import qpass
from qpass.sites import analyse
from tests.sites.models import program


def test_table_of_a_llama() -> None:
    text = str(analyse(program("llama")))
    assert text.splitlines()[:2] == [
        "scale flow: 11 sites, 152 degrees of freedom",
        "kind                    freedom  in                          divide -> multiply"
        "                                                       channels tied       shift",
    ]
    assert "model.layers.0-1.self_attn  q_proj -> k_proj" in text and "q_proj 4, k_proj 2" in text


def test_parts_of_fused_weights_are_named() -> None:
    text = str(analyse(program("phi3"), smooth=True))
    assert "qkv_proj[0:16] -> qkv_proj[16:24]" in text and "gate_up_proj[24:48] -> down_proj" in text
    assert "query_key_value[16 of 48]" in str(analyse(program("gpt_neox")))


def test_repeated_reasons_print_once() -> None:
    text = str(analyse(program("albert")))
    assert text.count("no site at") > 3 and "normalises it" in text


def test_the_public_function_takes_any_module() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    found = qpass.sites(model, (torch.randn(2, 4),))
    assert [(site.name, site.size) for site in found.sites] == [("0 -> 2", 8)]
    assert found.pick(lambda site: site.size > 8) == ()


def test_the_public_function_refuses_what_compile_refuses() -> None:
    with pytest.raises(qpass.InputError, match="training mode"):
        qpass.sites(nn.Linear(2, 2).train(), (torch.randn(1, 2),))


def test_nothing_to_find() -> None:
    assert str(qpass.sites(nn.ReLU().eval(), (torch.randn(2, 3),))) == "scale flow: 0 sites, 0 degrees of freedom"
