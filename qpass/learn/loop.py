"""The walk over the blocks: run the float block, learn the quantized one, fold it, run it, drop what is behind.

    stream float      t_b+1 = B_b(t_b)
    stream quantized  x_b+1 = B̂_b(x_b)        B̂_b as it will be deployed
    learn             B̂_b(x_b) ≈ t_b+1       or from t_b, with ``inputs: teacher``

In memory at a time: one block in float32, what it learns, and activations up to the cache's budget.
"""

from __future__ import annotations

import contextlib
import resource
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from qpass.errors import InputError, NumericsError
from qpass.graph.program import Program
from qpass.learn.block import BlockModel
from qpass.learn.checkpoint import Checkpoints, Record
from qpass.learn.fit import Example, Loss, fit
from qpass.learn.fold import Folded, FoldedBlock, fold
from qpass.learn.learner import Learner
from qpass.learn.settings import Learning
from qpass.learn.view import View
from qpass.observe.segment import SegmentRunner
from qpass.observe.statistics import Stats
from qpass.observe.store import Store
from qpass.sites.blocks import Blocks
from qpass.sites.edits import apply
from qpass.sites.verify import read_in

SHARED, FLOAT, QUANTIZED, TARGET, SAME, NEXT = "shared", "float", "quantized", "target", "same", "next"


@dataclass(frozen=True)
class Outcome:
    """The record of each block, and what it folds to."""

    records: tuple[Record, ...]
    folded: tuple[Folded, ...]


class Walk:
    """One run.

    Args:
        program: PLANNED, with room for what the methods add.
        inputs: flat inputs of each batch.
    """

    def __init__(
        self, program: Program, blocks: Blocks, views: Sequence[View], methods: Sequence[Learner], settings: Learning,
        inputs: Sequence[Sequence[Any]], checkpoints: Checkpoints, *, add_bias: bool,
    ) -> None:  # fmt: skip
        self.program, self.blocks, self.views = program, blocks, views
        self.methods, self.settings, self.inputs = methods, settings, inputs
        self.checkpoints, self.add_bias = checkpoints, add_bias
        self.batches = range(len(inputs))
        self.device = torch.device(settings.device) if settings.device else None
        self.by = "+".join(method.name for method in methods)
        self.teacher_only = settings.inputs == "teacher"

    def run(self) -> Outcome:
        """Learn all blocks. Raises NumericsError for a value that is not finite, OutputError for a full disk."""
        folder = self.settings.folder or None
        budget = int(self.settings.cache_mib * 2**20)
        with torch.inference_mode(False), torch.enable_grad(), Store(budget, folder) as self.store:
            self._prologue()
            with self._bar() as self.bar:
                found = [self._block(number, view) for number, view in enumerate(self.views)]
        return Outcome(tuple(record for record, _ in found), tuple(folded for _, folded in found))

    def _bar(self) -> Any:
        total = len(self.views) * self.settings.total(len(self.inputs))
        quiet = None if self.settings.progress else True  # None: only where stderr is a terminal
        return tqdm(total=total, desc=self.by, unit="step", disable=quiet, leave=False, file=sys.stderr)

    # ------------------------------------------------------------------------------------------------ the segments

    @torch.no_grad()
    def _prologue(self) -> None:
        runner = SegmentRunner(self.program, self.blocks.prologue)
        params: dict[str, Tensor] = {}

        def read(name: str) -> Tensor:
            if name not in params:
                params[name] = read_in(self.program, name, torch.float32)
            return params[name]

        names = [node.meta["name"] for node in self.program.placeholders()]
        for batch, flat in enumerate(self.inputs):
            given = {name: value.to(torch.float32) if isinstance(value, Tensor) and value.is_floating_point() else value
                     for name, value in zip(names, flat)}  # fmt: skip
            with _fits(batch):
                values = runner.run(given, read)
            self._keep(SHARED, batch, values, "the prologue")

    def _keep(self, stream: str, batch: int, values: Mapping[str, Any], where: str) -> None:
        for name, value in values.items():
            if isinstance(value, Tensor) and value.is_floating_point() and bool(torch.isnan(value).any()):
                raise NumericsError(f"NaN in %{name} of {where}", where=f"calibration batch {batch}",
                                    fix="repair the checkpoint or the batch")  # fmt: skip
            self.store.put(stream, name, batch, value)

    def _block(self, number: int, view: View) -> tuple[Record, Folded]:
        model = BlockModel(view, device=self.device, precision=self.settings.precision)
        stats, sizes = self._teach(number, model)
        record = self.checkpoints.load(number)
        self._attach(model, stats)
        if record is None:
            record = self._learn(number, model, sizes)
            self.checkpoints.save(number, record)
        else:
            self.bar.update(self.settings.total(len(self.inputs)))
        folded = Folded()
        if record.kept:
            folded = fold(self.program, model, dict(record.tensors), add_bias=self.add_bias, by=self.by)
        del model
        if not self.teacher_only and number + 1 < len(self.views):
            self._advance(number, view, folded)
        self._forget(number)
        return record, folded

    def _attach(self, model: BlockModel, stats: Mapping[str, Stats]) -> None:
        for method in self.methods:
            method.attach(model, stats)
        model.ready()

    # ------------------------------------------------------------------------------------------------- the streams

    def _live(self, number: int) -> tuple[str, ...]:
        """Values made up to this block that later blocks read."""
        later = self.blocks.blocks[number + 1 :]
        return tuple(dict.fromkeys(name for part in later for name in part.inputs))

    def _inputs(self, number: int, stream: str, batch: int) -> dict[str, Any]:
        found = {}
        for name in self.blocks.blocks[number].inputs:
            place = SHARED if self.blocks.level[name] == -1 else stream
            found[name] = self.store.get(place, name, batch)
        return found

    def _teach(self, number: int, model: BlockModel) -> tuple[dict[str, Stats], dict[str, float]]:
        """Targets of a block from the float stream; statistics of what its sites' columns meet; the targets' sizes."""
        segment = self.blocks.blocks[number]
        reads = {read for site in model.view.sites for axis in site.columns for read in axis.reads}
        stats = {name: Stats() for name in reads & set(segment.nodes)}

        def tap(name: str, value: Any) -> None:
            if name in stats:
                stats[name].update(value)

        sizes = dict.fromkeys(segment.results, 0.0)
        for batch in self.batches:
            with _fits(batch):
                outputs = model.teacher(self._inputs(number, FLOAT, batch), tap=tap)
            for name in segment.results:
                sizes[name] += float(outputs[name].double().square().sum()) / len(self.batches)
            self._keep(TARGET, batch, {name: value for name, value in outputs.items()
                                       if name in segment.results or name in self._live(number)}, segment.name)
            if self.settings.same_input:
                given = self._inputs(number, self._source(), batch)
                self._keep(SAME, batch, model.teacher(given, only=frozenset(segment.results)), segment.name)
        self._check(segment.name, sizes)
        return stats, sizes

    def _check(self, block: str, sizes: Mapping[str, float]) -> None:
        for name, size in sizes.items():
            if not 0 < size < float("inf"):
                raise NumericsError(f"the float output %{name} is {'0' if size == 0 else 'not finite'}", where=block,
                                    fix="repair the checkpoint or the calibration batches")  # fmt: skip

    def _source(self) -> str:
        return FLOAT if self.teacher_only else QUANTIZED

    def _learn(self, number: int, model: BlockModel, sizes: Mapping[str, float]) -> Record:
        segment, steps = self.blocks.blocks[number], self.settings.total(len(self.inputs))
        if not model.leaves:
            self.bar.update(steps)
            return Record(segment.name, False, {}, why="no method has anything to learn here")

        def load(batch: int) -> Example:
            targets, same = (
                {name: self.store.get(stream, name, batch) for name in segment.results} if wanted else None
                for stream, wanted in ((TARGET, True), (SAME, self.settings.same_input))
            )
            assert targets is not None
            return Example(self._inputs(number, self._source(), batch), targets, same)

        def step_done(loss: float) -> None:
            self.bar.set_postfix_str(f"{segment.name} loss {loss:.3g}, {_peak_mib():.0f} MiB", refresh=False)
            self.bar.update()

        loss = Loss(self.settings.loss, sizes)
        found = fit(model, self.batches, load, loss, self.settings, number, step_done)
        return Record(segment.name, found.leaves is not None, found.losses, found.halved, found.why, found.leaves or {})

    def _advance(self, number: int, view: View, folded: Folded) -> None:
        """The quantized stream behind a block, on the program as it will be deployed."""
        edited = apply(self.program, folded.edits, add_bias=self.add_bias, by=self.by, read=False)
        program = replace(edited, params={**edited.params, **folded.params})
        block = FoldedBlock(program, view.segment, view.linears, attentions=view.attentions, device=self.device)
        live = self._live(number)
        for batch in self.batches:
            outputs = block.run(self._inputs(number, QUANTIZED, batch))
            self._keep(NEXT, batch, {name: outputs[name] for name in live if name in outputs}, view.segment.name)

    def _forget(self, number: int) -> None:
        """Targets become the float stream; values that nothing reads any more go."""
        live = set(self._live(number))
        self.store.drop(SAME)
        self.store.rename(TARGET, FLOAT)
        self.store.rename(NEXT, QUANTIZED)
        for stream in (FLOAT, QUANTIZED, SHARED):
            self.store.keep_only(stream, live)


@contextlib.contextmanager
def _fits(batch: int) -> Iterator[None]:
    """Say which batch it was that the float model does not take."""
    try:
        yield
    except (RuntimeError, IndexError, ValueError, TypeError) as error:
        raise InputError(f"the model does not take the batch: {error}", where=f"calibration batch {batch}",
                         fix="call the float model with it, and look at its shape and values") from error


def _peak_mib() -> float:
    """The most memory this process has held."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10

