"""The call convention of an integer-only causal LM: int8 caches in and out, int32 logits with an exponent.

What the caller sees as ``logits`` is made here, outside of the integer program: x · 2^-k in float32, which is exact and
orders as the integers do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from qpass.capture.causal_call import CausalLMCall, KVSpec
from qpass.capture.convention import CallConvention, TensorSpec
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
        if not bool(((flat[1] == 0) | (flat[1] == 1)).all()):  # the proof of the ranges rests on it
            what = "`attention_mask` holds other numbers than 0 and 1"
            raise InputError(what, fix="pass 1 for tokens and 0 for padding")
        self._check_ids(flat[0])
        self._check_kept(flat[3 if self.takes_positions else 2], flat[0].shape[1])
        if self.takes_positions and int(flat[2].min()) < self.least_position:
            raise InputError(f"`position_ids` below {self.least_position}", fix="pass positions from 0 on")
        if self.takes_positions and int(flat[2].max()) >= self.context:
            what = f"`position_ids` up to {int(flat[2].max())}, where there are tables for {self.context}"
            raise InputError(what, fix="pass positions below the recipe's context")
        return flat

    def _check_ids(self, ids: Tensor) -> None:
        low, high = (int(end) for end in ids.aminmax()) if ids.numel() else (0, 0)
        if low < 0 or high >= self.vocabulary:
            what = f"`input_ids` from {low} to {high}, where the model has tokens 0 to {self.vocabulary - 1}"
            raise InputError(what, fix="pass ids of this model's own tokenizer")

    def _check_kept(self, rows: Tensor, seq: int) -> None:
        low, high = (int(end) for end in rows.aminmax()) if rows.numel() else (0, 0)
        if low < -seq or high >= max(seq, 1):
            what = f"`logits_to_keep` has rows {low} to {high} of {seq} new tokens"
            raise InputError(what, fix=f"pass rows from 0 to {seq - 1}")

    def results(self, outputs: Sequence[Any]) -> tuple[Tensor, list[Tensor]]:
        """Logits in float32, and the cache."""
        return as_float(outputs[0], outputs[1]), list(outputs[2:])


def as_float(logits: Tensor, exponent: Tensor) -> Tensor:
    """x · 2^-k in float32: the interface's shell, not part of the integer program. Exact, as |x| <= 2^24."""
    return torch.ldexp(logits.to(torch.float32), -exponent)


def integer_call(call: CallConvention, context: int, vocabulary: int, extra: int) -> IntegerCall:
    """The convention of the integer program of a captured causal LM; ``extra``: channels that a cache has more.

    Raises:
        UnsupportedError: another kind of model.
    """
    if not isinstance(call, CausalLMCall):
        what = f"An integer-only program of a {call.kind.replace('_', ' ')}"
        raise UnsupportedError(what, fix="integer-only recipes are for causal language models")
    names = {spec.name for spec in call.kv}
    inputs = tuple(_cached(spec, extra) if spec.name in names else spec for spec in call.inputs)
    kv = tuple(KVSpec(spec.name, spec.heads, spec.head_dim + extra, torch.int8) for spec in call.kv)
    known = {field.name: getattr(call, field.name) for field in fields(CausalLMCall)}
    known.update(inputs=inputs, kv=kv, outputs=("logits", "logits_exponent", *call.outputs[1:]))
    return IntegerCall(**known, context=context, vocabulary=vocabulary)


def _cached(spec: TensorSpec, extra: int) -> TensorSpec:
    width = spec.shape[-1]
    assert isinstance(width, int)
    return replace(spec, dtype=torch.int8, shape=(*spec.shape[:-1], width + extra))
