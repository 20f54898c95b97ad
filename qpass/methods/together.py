"""Methods that learn, in one loop: what stands side by side in a recipe is learned jointly (LWC + LET is OmniQuant)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from qpass.errors import RecipeError
from qpass.graph.program import Change, Param, Program
from qpass.learn.checkpoint import Checkpoints, Record, facts_of
from qpass.learn.learner import Learner
from qpass.learn.loop import Outcome, Walk
from qpass.learn.settings import Learning
from qpass.learn.view import View, views
from qpass.methods.method import Data, Solution
from qpass.observe.feed import feed
from qpass.sites.analyse import analyse
from qpass.sites.analysis import Analysis
from qpass.sites.blocks import Blocks, partition
from qpass.sites.edits import Edit, Fold, Shift, apply, reason_against
from qpass.sites.site import Site
from qpass.sites.verify import verified

_NO_MATTER = ("folder", "cache_mib", "progress", "device")
"""Settings that the result does not depend on."""


def solve_together(
    methods: Sequence[Learner], settings: Learning, program: Program, data: Data, analysis: Analysis | None = None
) -> Solution:  # fmt: skip
    """The edits, codes and parameters that ``methods`` learn on a PLANNED program.

    Raises:
        UnsupportedError: no repeated block.
        RecipeError: a method with nothing to act on.
        InputError: batches that cannot be used; a folder with another run.
        NumericsError: NaN in a value of the float model.
        OutputError: a checkpoint or an activation that cannot be written.
    """
    by = "+".join(method.name for method in methods)
    moving = [method for method in methods if method.moves]
    smooth = any(method.smooth for method in moving)
    before = analysis if analysis is not None and not smooth else _analysed(program, moving, smooth)
    room = [edit for method in moving for edit in method.prepare(method.wanted(before.sites)[0])]
    work = apply(program, room, add_bias=True, by=by) if room else program
    sites, notes = _sites(work, _analysed(work, moving, smooth) if room else before, moving)
    blocks = partition(work)
    found = views(work, blocks, sites)
    notes += _outside(by, sites, found)
    _check_reach(methods, found, blocks)
    inputs, more = feed(work, data(), settings.batches)
    notes += [Change(by, "calibration", f"the first {len(inputs)} batches were used")] if more else []
    facts = facts_of(work, inputs, [_facts(method) for method in methods], _dependent(settings))
    checkpoints = Checkpoints(settings.folder, facts)
    outcome = Walk(work, blocks, found, methods, settings, inputs, checkpoints, add_bias=bool(room)).run()
    return _solution(program, before.sites if room else (), outcome, notes, by)


def _analysed(program: Program, moving: Sequence[Learner], smooth: bool) -> Analysis:
    return analyse(program, smooth=smooth) if moving else Analysis(())


def _facts(method: Any) -> dict[str, Any]:
    return {"name": method.name, **{field.name: _plain(getattr(method, field.name)) for field in fields(method)}}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _dependent(settings: Learning) -> dict[str, Any]:
    return {field.name: getattr(settings, field.name) for field in fields(settings) if field.name not in _NO_MATTER}


def _sites(program: Program, analysis: Analysis, moving: Sequence[Learner]) -> tuple[list[Site], list[Change]]:
    """The sites that some method wants and that keep the function on a trial with random factors."""
    wanted: dict[str, Site] = {}
    notes: list[Change] = []
    for method in moving:
        sites, against = method.wanted(analysis.sites)
        wanted |= {site.name: site for site in sites}
        notes += against
    trial: list[Edit] = []
    draw = torch.Generator().manual_seed(0)
    for site in wanted.values():
        shift = Shift(site, 0.1 * torch.randn(site.size, generator=draw).double())
        trial += [shift] if site.columns and reason_against(program, shift) is None else []
        trial.append(Fold(site, (0.3 * torch.randn(site.size, generator=draw)).exp()))
    refused = {edit.site.name: why for edit, why, _ in verified(program, trial, by="trial").refused}
    notes += [Change(moving[0].name, name, f"skipped: {why}") for name, why in refused.items()]
    return [site for name, site in wanted.items() if name not in refused], notes


def _outside(by: str, sites: Sequence[Site], found: Sequence[View]) -> list[Change]:
    inside = {site.name for view in found for site in view.sites}
    return [Change(by, site.name, "skipped: it is not within one block") for site in sites if site.name not in inside]


def _check_reach(methods: Sequence[Learner], found: Sequence[View], blocks: Blocks) -> None:
    for method in methods:
        if not any(method.reaches(view) for view in found):
            what = f"the method {method.name} has nothing to learn in {len(blocks.blocks)} blocks"
            raise RecipeError(what, where=f"method {method.name}",
                              fix="give linears of the blocks a scheme, or remove the method")  # fmt: skip


def _solution(
    program: Program, sites: Sequence[Site], outcome: Outcome, notes: Sequence[Change], by: str
) -> Solution:  # fmt: skip
    """All blocks together. A block with an edit that is not exact after all is left as round to nearest.

    Args:
        sites: of ``program``, where the edits are of sites of a program that biases were added to; else empty.
    """
    found = [[_original(edit, sites) if sites else edit for edit in block.edits] for block in outcome.folded]
    every = [edit for block in found for edit in block]
    refused = verified(program, every, add_bias=bool(sites), by=by).refused if every else ()
    wrong = {id(edit): why for edit, why, _ in refused}
    edits: list[Edit] = []
    params: dict[str, Param] = {}
    lines: list[Change] = []
    for record, mine, block in zip(outcome.records, found, outcome.folded, strict=True):
        why = next((wrong[id(edit)] for edit in mine if id(edit) in wrong), None)
        lines.append(_line(by, record, why))
        if why is None:
            edits += mine
            params |= block.params
    return Solution(tuple(edits), params, bool(sites), notes=(*notes, *lines))


def _original(edit: Edit, sites: Sequence[Site]) -> Edit:
    """The same edit of the site as it was before biases were added, which gives biases their part by itself."""
    mine = {axis.param for axis in edit.site.axes}
    same = [site for site in sites if site.size == edit.site.size and {axis.param for axis in site.axes} <= mine]
    assert len(same) == 1, edit.site.name
    return replace(edit, site=same[0])


def _line(by: str, record: Record, refused: str | None) -> Change:
    if not record.kept or refused is not None:
        return Change(by, record.block, f"rolled back: {refused or record.why}")
    halved = f", {record.halved} steps were not finite" if record.halved else ""
    losses = record.losses
    return Change(by, record.block, f"loss {losses['rtn']:.4g} of round to nearest -> {losses['best']:.4g}{halved}")


@dataclass(frozen=True)
class Together:
    """Methods that learn jointly, as one method."""

    methods: tuple[Any, ...]
    learning: Learning
    needs_data = True

    @property
    def name(self) -> str:
        """Their names, joined."""
        return "+".join(method.name for method in self.methods)

    def solve(self, program: Program, analysis: Analysis, data: Data | None) -> Solution:
        """As ``solve_together``."""
        assert data is not None
        return solve_together(self.methods, self.learning, program, data, analysis)


class Learned:
    """The part of a learning method that every one has: it solves alone with the usual settings."""

    needs_data = True
    smooth = False
    moves = False

    def solve(self, program: Program, analysis: Analysis, data: Data | None) -> Solution:
        """Learn this method alone. Raises as ``solve_together``."""
        assert data is not None and isinstance(self, Learner)
        return solve_together([self], Learning(), program, data, None if self.smooth else analysis)

    def wanted(self, sites: Sequence[Site]) -> tuple[list[Site], list[Change]]:
        """No sites."""
        return [], []

    def prepare(self, sites: Sequence[Site]) -> list[Edit]:
        """Nothing."""
        return []


