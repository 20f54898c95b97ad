"""Small learned runs, and what is made of them."""

from __future__ import annotations

from typing import Any

import torch

from qpass.graph.program import Program
from qpass.learn.block import BlockModel
from qpass.learn.view import View, views
from qpass.lowering.reference import target
from qpass.passes.calibrate import calibrate
from qpass.passes.plan import plan_program
from qpass.recipe import Recipe
from qpass.sites.analyse import analyse
from qpass.sites.blocks import partition
from tests import tiny

W3, W4A4 = "w3a16-g8", "w4a4"


def recipe(methods: Any, scheme: Any = W4A4, attention: Any = None, **learning: Any) -> Recipe:
    """A recipe with a few quick steps."""
    lines = scheme if isinstance(scheme, dict) else {"*": scheme}
    settings = {"epochs": 6, "progress": False, **learning}
    return Recipe.parse({"methods": methods, "linears": lines, "attention": attention, "learning": settings})


def batches(count: int = 3, length: int = 12) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    return [torch.randint(0, tiny.VOCAB, (2, length), generator=draw) for _ in range(count)]


def planned(program: Program, made: Recipe) -> Program:
    return plan_program(program, made, target)


def solved(program: Program, made: Recipe, data: Any = None) -> Program:
    """SOLVED, from RAISED."""
    return calibrate(planned(program, made), made, batches() if data is None else data)


def first_view(program: Program, made: Recipe, *, smooth: bool = False, number: int = 0) -> View:
    ready = planned(program, made)
    return views(ready, partition(ready), analyse(ready, smooth=smooth).sites)[number]


def block(program: Program, made: Recipe, *, smooth: bool = False) -> BlockModel:
    return BlockModel(first_view(program, made, smooth=smooth))


def notes(program: Program, word: str = "") -> list[str]:
    return [f"{change.where}: {change.what}" for change in program.log if word in change.what]
