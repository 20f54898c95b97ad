"""generate() of an integer-only model: tokens are drawn by integers, as a logits processor of transformers.

Greedy search needs nothing: the float32 logits of the shell hold the integers exactly. For sampling, this processor
takes the scores back to those integers, draws, and leaves one token that is possible.
"""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from qpass.errors import InputError, UnsupportedError
from qpass.numerics.integer.dyadic import fit_one
from qpass.numerics.integer.random import random_words
from qpass.numerics.integer.sampler import TABLE, draw, keep_top_k, keep_top_p, weights

_LOG2E = 1.4426950408889634
_MOST = 1 << 16  # prompts, and sequences of each, that have counters of their own
_PROMPT = ("inputs", "input_ids")
_TOP_K = 50  # transformers' own default
_OURS = {"temperature": 1.0, "top_k": _TOP_K, "top_p": 1.0}
"""Settings of the integer sampler, and what None means."""
_OTHERS = {"min_p": None, "typical_p": 1.0, "top_h": None, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0}
"""Settings of samplers in float that transformers has, and the value that, beside None, asks for nothing."""


class IntegerSampler(LogitsProcessor):
    """Draws a token with integers alone and makes it the only one possible, so that greedy search takes it.

    The draw depends on the seed, the number of tokens so far, the prompt's place in the batch and which of its
    sequences it is, so it is the same on any machine, for any batch that has the prompt at that place, and for any
    number of sequences. The first sequence of a prompt is the one that it has alone.

    Args:
        seed: 0 to 2^64 - 1.
        temperature: above 0.
        top_k: keep this many; 0 for all.
        top_p: keep the least set with this share; 1 for all.
        copies: rows that each prompt has, side by side: its sequences. 1 to 2^16.
    """

    def __init__(
        self, seed: int, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, copies: int = 1
    ) -> None:
        if not (_number(temperature) and math.isfinite(temperature) and temperature > 0):
            raise InputError(f"temperature is {temperature!r}", fix="pass a number above 0, or do_sample=False")
        whole = all(_number(value) and isinstance(value, int) for value in (top_k, seed))
        if not (whole and _number(top_p) and 0 < top_p <= 1 and top_k >= 0 and 0 <= seed < 1 << 64):
            raise InputError(f"top_p {top_p!r}, top_k {top_k!r}, seed {seed!r}",
                             fix="pass 0 < top_p <= 1, top_k >= 0 and 0 <= seed < 2^64")  # fmt: skip
        if not (_number(copies) and isinstance(copies, int) and 1 <= copies <= _MOST):
            raise InputError(f"{copies!r} sequences of a prompt", fix=f"pass 1 to {_MOST}")
        self.seed, self.scale, self.copies = seed, fit_one(_LOG2E / temperature), copies
        self.top_k, self.top_p_q16 = top_k, max(1, round(top_p * 65536))  # the likeliest always stays

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """scores float32 [B, V] -> 0 for the token drawn and -inf for all others."""
        logits, exponent, possible = as_integers(scores)
        token = self.sample(logits, exponent, possible, input_ids.shape[1])
        return torch.full_like(scores, -torch.inf).scatter(-1, token[:, None], 0.0)

    def sample(self, logits: Tensor, exponent: Tensor, possible: Tensor, step: int) -> Tensor:
        """int64 [B]. Integers in, integers between, integers out. Arguments as ``as_integers`` gives them.

        Raises:
            InputError: rows that are not ``copies`` of each prompt, or of too many prompts to tell them apart.
        """
        if self.copies > 1 and (len(logits) % self.copies or len(logits) > self.copies * _MOST):
            raise InputError(f"{len(logits)} rows for {self.copies} sequences of each prompt",
                             fix=f"pass that many rows of each prompt, and {_MOST} prompts at most")  # fmt: skip
        table = torch.tensor(TABLE, device=logits.device)
        p = torch.where(possible, weights(logits, exponent, *self.scale, table), 0)
        p = keep_top_k(p, self.top_k) if self.top_k else p
        p = keep_top_p(p, self.top_p_q16) if self.top_p_q16 < 65536 else p
        return draw(p, random_words(self.seed, step, len(p), p.device, self.copies))


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def as_integers(scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(x int32 [B, V], k int32 [B, 1], possible bool [B, V]) of scores = x · 2^-k, part of the shell.

    Exact for the scores of an integer-only model; what other processors changed is rounded to 24 bits of the largest.
    -inf is not possible, and takes the place of the least.
    """
    possible = scores > -torch.inf
    least = torch.where(possible, scores, torch.inf).amin(-1, keepdim=True)
    finite = torch.where(possible, scores, least).double()
    power = torch.frexp(finite.abs().amax(-1, keepdim=True))[1]
    k = 24 - power
    return torch.round(torch.ldexp(finite, k)).to(torch.int32), k.to(torch.int32), possible


def _check_length(context: int, kwargs: dict[str, Any], given: Any) -> None:
    """Refuse before the first step what would stop at a later one; the last token that is chosen is not read."""
    prompt = _prompt(kwargs)
    length = 1 if prompt is None else prompt.shape[-1]
    new, total = kwargs.get("max_new_tokens", getattr(given, "max_new_tokens", None)), kwargs.get("max_length")
    most = length + new - 1 if isinstance(new, int) else total - 1 if isinstance(total, int) else 0
    if most > context:
        what = f"{length} tokens and up to {most + 1 - length} new ones, where the program has tables for {context}"
        fix = f'generate fewer, or compile with {{"integer": {{"context": {most}}}}} in the recipe'
        raise InputError(what, fix=fix)


def _prompt(kwargs: dict[str, Any]) -> Tensor | None:
    prompt = next((kwargs[name] for name in _PROMPT if kwargs.get(name) is not None), None)
    return prompt if isinstance(prompt, Tensor) else None


def _said(name: str, kwargs: dict[str, Any], given: Any, own: Any) -> Any:
    """A setting, taken out of the arguments: theirs, else that of the config given, else of the model's own."""
    if name in kwargs:
        return kwargs.pop(name)
    value = getattr(given, name, None)
    return getattr(own, name, None) if value is None else value


def _repeated(kwargs: dict[str, Any], copies: int) -> dict[str, Any]:
    """The arguments with ``copies`` rows, side by side, for each prompt, its mask and its positions.

    Here and not by transformers, which repeats prompts for samplers of its own alone. As there, a cache has to come
    with as many rows.
    """
    if copies == 1:
        return kwargs
    prompt = _prompt(kwargs)
    if prompt is None:
        raise InputError(f"num_return_sequences {copies} without a prompt", fix="pass input_ids")
    rows = {name: kwargs[name] for name in (*_PROMPT, "attention_mask", "position_ids") if name in kwargs}
    return kwargs | {name: value.repeat_interleave(copies, 0) for name, value in rows.items()
                     if isinstance(value, Tensor) and len(value) == len(prompt)}  # fmt: skip


def generate(self: Any, *args: Any, seed: int | None = None, **kwargs: Any) -> Any:
    """As ``transformers.GenerationMixin.generate``; with ``do_sample`` tokens are drawn by ``IntegerSampler``.

    Args:
        seed: of the draws; taken from torch's generator if None, so that ``torch.manual_seed`` decides.

    Raises:
        InputError: a seed, temperature, top_k, top_p or number of sequences that is not legal; more tokens than the
            program's context; several sequences and no prompt.
        UnsupportedError: sampling with beams, or a setting that has no integer form.
        ValueError: by transformers, several sequences a prompt without sampling or beams.
    """
    kwargs |= inspect.signature(super(type(self), self).generate).bind_partial(*args).arguments
    given = kwargs.get("generation_config") or self.generation_config
    _check_length(self._qpass_call.context, kwargs, given)
    if not _said("do_sample", kwargs, given, self.generation_config):
        if seed is not None:
            raise InputError("a seed without do_sample=True", fix="pass do_sample=True, or leave seed out")
        return super(type(self), self).generate(do_sample=False, **kwargs)
    names = ("num_beams", "num_return_sequences", *_OURS, *_OTHERS)
    said = {name: _said(name, kwargs, given, self.generation_config) for name in names}
    if (said["num_beams"] or 1) > 1:
        raise UnsupportedError("sampling with num_beams above 1 in an integer-only model",
                               fix="leave num_beams out, or do_sample")  # fmt: skip
    for name, nothing in _OTHERS.items():
        if said[name] not in (None, nothing):
            raise UnsupportedError(f"sampling with {name} {said[name]!r} in an integer-only model",
                                   fix=f"leave it out; {', '.join(_OURS)} have an integer form")  # fmt: skip
    seed = int(torch.randint(0, 2**63 - 1, ())) if seed is None else seed
    drawn = {name: said[name] if said[name] is not None else _OURS[name] for name in _OURS}
    copies = said["num_return_sequences"]
    sampler = IntegerSampler(seed, **drawn, copies=1 if copies is None else copies)
    kwargs = _repeated(kwargs, sampler.copies) | {"do_sample": False, "num_beams": 1, "num_return_sequences": 1}
    kwargs["logits_processor"] = LogitsProcessorList([*(kwargs.get("logits_processor") or []), sampler])
    return super(type(self), self).generate(**kwargs)
