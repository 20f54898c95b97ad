"""The call convention of an integer-only causal LM: int8 caches in and out, int32 logits with an exponent.

What the caller sees as ``logits`` is made here, outside of the integer program: x · 2^-k in float32, which is exact and
orders as the integers do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from qpass.capture.causal_call import CausalLMCall, with_rows
from qpass.capture.convention import CallConvention
from qpass.errors import InputError, UnsupportedError


@dataclass(frozen=True)
class IntegerCall(CausalLMCall):
    """As ``CausalLMCall``.

    Attributes:
        context: the most positions that the program has tables for.
        vocabulary: token ids that it has rows for.
    """

    context: int = 0
    vocabulary: int = 0

    @property
    def least_position(self) -> int:
        """-1 where positions are counted over the mask, for padding in front; its table has a row for that."""
        return -1 if self.positions == "mask" else 0

    @property
    def states(self) -> tuple[tuple[int, int], ...]:
        """The cache: the last inputs, and the outputs after the logits and their exponent."""
        first = len(self.inputs) - len(self.kv)
        return tuple((first + number, 2 + number) for number in range(len(self.kv)))

    def flatten_bound(self, arguments: Mapping[str, Any], extra: frozenset[str] = frozenset()) -> list[Tensor]:
        """As there. Raises InputError beyond ``context``, before anything runs."""
        flat = super().flatten_bound(arguments, extra)
        length = flat[1].shape[1]
        if length > self.context:
            what = f"{length} tokens, past and new, where the integer-only program has tables for {self.context}"
            raise InputError(what, fix=f'compile with {{"integer": {{"context": {length}}}}} in the recipe')
        given = arguments.get("attention_mask") is not None  # what was made here needs no look at each step
        whole = not given or torch.equal(flat[1].to(arguments["attention_mask"].dtype), arguments["attention_mask"])
        if given and not (whole and _within(flat[1], 0, 1)):  # the proof of the ranges rests on it
            what = "`attention_mask` holds other numbers than 0 and 1"
            raise InputError(what, fix="pass 1 for tokens and 0 for padding")
        self._check_ids(flat[0])
        if isinstance(arguments.get("logits_to_keep"), Tensor):
            self._check_kept(flat[3 if self.takes_positions else 2], flat[0].shape[1])
        counted = arguments.get("position_ids") is None and (self.positions == "arange" or not given)
        if self.takes_positions and not counted:
            self._check_positions(flat[2])
        return flat

    def _check_ids(self, ids: Tensor) -> None:
        if not _within(ids, 0, self.vocabulary - 1):
            low, high, last = int(ids.min()), int(ids.max()), self.vocabulary - 1
            raise InputError(f"`input_ids` from {low} to {high}, where the model has tokens 0 to {last}",
                             fix="pass ids of this model's own tokenizer")  # fmt: skip

    def _check_kept(self, rows: Tensor, seq: int) -> None:
        if not _within(rows, -seq, max(seq, 1) - 1):
            what = f"`logits_to_keep` has rows {int(rows.min())} to {int(rows.max())} of {seq} new tokens"
            raise InputError(what, fix=f"pass rows from 0 to {seq - 1}")

    def _check_positions(self, positions: Tensor) -> None:
        if _within(positions, self.least_position, self.context - 1):
            return
        if int(positions.min()) < self.least_position:
            raise InputError(f"`position_ids` below {self.least_position}", fix="pass positions from 0 on")
        what = f"`position_ids` up to {int(positions.max())}, where there are tables for {self.context}"
        raise InputError(what, fix="pass positions below the recipe's context")

    def results(self, outputs: Sequence[Any]) -> tuple[Tensor, list[Tensor]]:
        """Logits in float32, and the cache."""
        return as_float(outputs[0], outputs[1]), list(outputs[2:])


def _within(values: Tensor, low: int, high: int) -> bool:
    if not values.numel():
        return True
    least, most = torch.aminmax(values)
    return int(least) >= low and int(most) <= high


def as_float(logits: Tensor, exponent: Tensor) -> Tensor:
    """x · 2^-k in float32: the interface's shell, not part of the integer program. Exact, as |x| <= 2^24."""
    return torch.ldexp(logits.to(torch.float32), -exponent)


def integer_call(call: CallConvention, context: int, extra: int) -> IntegerCall:
    """The convention of the integer program of a captured causal LM; ``extra``: channels that a cache has more.

    Raises:
        UnsupportedError: another kind of model.
    """
    if not isinstance(call, CausalLMCall):
        kind = str(getattr(call, "kind", "graph of torch.compile")).replace("_", " ")
        raise UnsupportedError(f"An integer-only program of a {kind}",
                               fix="integer-only recipes are for causal language models, by qpass.compile")  # fmt: skip
    held = with_rows(call, {spec.name: spec.head_dim + extra for spec in call.kv})
    known = {field.name: getattr(held, field.name) for field in fields(CausalLMCall)}
    known.update(outputs=("logits", "logits_exponent", *call.outputs[1:]))
    return IntegerCall(**known, context=context)
