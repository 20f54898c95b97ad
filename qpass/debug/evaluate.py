"""What a model is worth: perplexity, distance between two models, tokens per second, bytes.

Every function takes any object that is called like a Hugging Face causal language model: ``model(input_ids=...,
past_key_values=..., use_cache=..., logits_to_keep=...)`` gives something with ``logits`` and ``past_key_values``, or
``cache`` in place of it, as from transformers 5.24 on.
So a float model, a compiled one, a torchao one and one from ``qpass.compile`` are measured by the same code.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import math
import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F

from qpass.capture.cache_name import cache_argument, returned_cache, usual_name
from qpass.errors import InputError, NumericsError

Progress = Callable[[int, int], None]
"""Called as ``progress(windows_done, windows_in_all)``."""

_SEED = 0


@dataclass(frozen=True)
class Speed:
    """Throughput of one kind of call.

    Attributes:
        tokens_per_s: median of ``samples``, in tokens per second, all rows of the batch counted.
        samples: one throughput per repeat, in tokens per second, in the order they were taken.
    """

    tokens_per_s: float
    samples: list[float]


@dataclass
class PeakRss:
    """Highest resident memory of a ``with peak_rss()`` block; ``bytes`` is set when the block ends.

    Attributes:
        bytes: the peak, in bytes.
        exact: False where the system cannot reset its mark, so that the peak is that of the whole process.
    """

    bytes: int = 0
    exact: bool = field(default=True)


# ------------------------------------------------------------------------------------------------------- accuracy


@torch.no_grad()
def perplexity(
    model: Any,
    tokenizer: Any,
    text: str,
    *,
    window: int = 256,
    max_tokens: int | None = None,
    batch: int = 4,
    progress: Progress | None = None,
) -> float:
    """Perplexity per token of ``text``: exp of the mean negative log-likelihood, in nats.

    The text is tokenized once and cut into windows that do not overlap. Each window is scored by itself, so its
    first token is context only: a window of n tokens scores n - 1. A last short window counts with what it has.

    Args:
        model: a causal language model; logits are [B, T, vocabulary].
        tokenizer: a Hugging Face tokenizer: ``tokenizer(text).input_ids``.
        text: the text to score.
        window: tokens per window, at least 2.
        max_tokens: use only this many tokens from the start; None uses all.
        batch: windows per forward call.
        progress: called after each batch with windows done and windows in all.

    Raises:
        InputError: fewer than two tokens, or a window or batch that is too small.
        NumericsError: the likelihood of a token is NaN. (Infinite perplexity is a result, not an error.)
    """
    ids = torch.tensor(tokenizer(text).input_ids[:max_tokens], dtype=torch.long)
    return ids_perplexity(model, ids, window=window, batch=batch, progress=progress)


@torch.no_grad()
def ids_perplexity(
    model: Any, ids: torch.Tensor, *, window: int = 256, batch: int = 4, progress: Progress | None = None
) -> float:
    """As ``perplexity``, of token ids, int64 [N]."""
    _at_least(window=(window, 2), batch=(batch, 1))
    if len(ids) < 2:
        raise InputError("perplexity needs at least two tokens", where="text", fix="pass a longer text or max_tokens")
    batches = _windows(ids, window, batch)
    total, scored, done = 0.0, 0, 0
    count = sum(len(rows) for rows in batches)
    for rows in batches:
        total += _negative_log_likelihood(model, rows, done)
        scored += rows.shape[0] * (rows.shape[1] - 1)
        done += rows.shape[0]
        if progress is not None:
            progress(done, count)
    return _exp(total / scored)


@torch.no_grad()
def token_divergence(reference: Any, candidate: Any, ids: torch.Tensor, *, batch: int = 4) -> dict[str, float]:
    """How far the next-token distributions of two models are apart on the same tokens.

    Args:
        reference: the model whose distribution is taken as the truth, P.
        candidate: the model that is judged, Q, with the same vocabulary.
        ids: token ids [B, T]; each position of each row counts once.
        batch: rows per forward call.

    Returns:
        ``mean_kl``: mean of KL(P || Q) over the positions, in nats; ``top1_agreement``: the share of positions,
        0 to 1, where both models have the same most likely token.

    Raises:
        InputError: ``ids`` is not a non-empty [B, T], or the vocabularies differ.
        NumericsError: a divergence that is NaN or infinite.
    """
    if ids.dim() != 2 or ids.numel() == 0:
        what = f"ids must be [batch, tokens] and not empty, and it is {list(ids.shape)}"
        raise InputError(what, where="ids", fix="use ids[None] for one row")
    kl, agree = 0.0, 0
    for start in range(0, len(ids), batch):
        rows = ids[start : start + batch]
        p, q = (_logits(m, rows).cpu().double().log_softmax(-1) for m in (reference, candidate))
        if p.shape != q.shape:
            what = f"the two models give logits {list(p.shape)} and {list(q.shape)}"
            raise InputError(what, where="logits", fix="compare models with one vocabulary")
        kl += F.kl_div(q, p, reduction="sum", log_target=True).item()
        agree += int((p.argmax(-1) == q.argmax(-1)).sum())
    if not math.isfinite(kl):
        fix = "compare the two models layer by layer, to find the first one with NaN"
        raise NumericsError("the divergence is not finite", where="logits", fix=fix)
    return {"mean_kl": kl / ids.numel(), "top1_agreement": agree / ids.numel()}


# ---------------------------------------------------------------------------------------------------------- speed


def decode_speed(
    model: Any, *, batch: int = 1, prompt: int = 32, new: int = 64, repeats: int = 5, cache: Any = None
) -> Speed:
    """Tokens per second of the decode loop, one token per row and step, through ``forward`` with a KV cache.

    Each repeat starts from the same cache of ``prompt`` tokens and runs ``new`` steps. Reading the prompt, copying
    the cache and choosing the next token are not timed.

    Args:
        model: a causal language model.
        batch: rows per step.
        prompt: tokens in the cache before the first timed step.
        new: timed steps per repeat.
        repeats: timed loops; one more loop goes before them as warm-up.
        cache: an empty cache to fill (for a model compiled for a static cache); None lets the model make one.
    """
    return _speed(decode_sampler(model, batch=batch, prompt=prompt, new=new, cache=cache), repeats)


def prefill_speed(model: Any, *, length: int = 512, batch: int = 1, repeats: int = 5, cache: Any = None) -> Speed:
    """Tokens per second of reading a prompt of [batch, length] tokens into an empty KV cache, with one logit row kept.

    Args:
        model: a causal language model.
        length: tokens per row.
        batch: rows.
        repeats: timed calls; one more call goes before them as warm-up.
        cache: an empty cache to fill; each call gets a copy of its own. None lets the model make one.
    """
    return _speed(prefill_sampler(model, length=length, batch=batch, cache=cache), repeats)


def decode_sampler(
    model: Any, *, batch: int = 1, prompt: int = 32, new: int = 64, cache: Any = None, prefill: Any = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Callable[[], float]:  # fmt: skip
    """The timed part of :func:`decode_speed` as a function: each call runs one loop and returns tokens per second.

    Two samplers called in turn give a fair ratio on a machine whose speed drifts.

    Args:
        prefill: the model that reads the prompt, where ``model`` itself is compiled for single tokens only.
        clock: seconds; ``time.thread_time`` for one thread on a machine that others use too.
    """
    _at_least(batch=(batch, 1), prompt=(prompt, 1), new=(new, 1))
    ids = _random_ids(model, batch, prompt + new)
    step = _caller(model)
    with torch.no_grad():
        reader = _caller(prefill if prefill is not None else model)
        start = returned_cache(reader(ids[:, :prompt], cache=cache, use_cache=True, logits_to_keep=1))
    steps = ids[:, prompt:].split(1, dim=1)

    @torch.no_grad()
    def sample() -> float:
        past = copy.deepcopy(start)
        began = clock()
        for token in steps:
            past = returned_cache(step(token, cache=past, use_cache=True, logits_to_keep=1))
        return batch * new / (clock() - began)

    return sample


def prefill_sampler(
    model: Any, *, length: int = 512, batch: int = 1, cache: Any = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Callable[[], float]:  # fmt: skip
    """The timed part of :func:`prefill_speed` as a function: each call reads a prompt and returns tokens per second.

    ``clock`` as in :func:`decode_sampler`.
    """
    _at_least(batch=(batch, 1), length=(length, 1))
    ids = _random_ids(model, batch, length)
    read = _caller(model)

    @torch.no_grad()
    def sample() -> float:
        past = copy.deepcopy(cache)
        began = clock()
        read(ids, cache=past, use_cache=True, logits_to_keep=1)
        return batch * length / (clock() - began)

    return sample


# --------------------------------------------------------------------------------------------------------- memory


def weight_bytes(model: torch.nn.Module) -> int:
    """Bytes of the storages behind the model's parameters and buffers; a shared storage counts once.

    A tensor subclass (a quantized weight) counts as the plain tensors it is made of.
    """
    sizes: dict[Any, int] = {}
    for tensor in [*model.parameters(), *model.buffers()]:
        for plain in _plain_tensors(tensor):
            key, size = _storage(plain)
            sizes[key] = size
    return sum(sizes.values())


def rss_bytes() -> int:
    """Resident memory of this process now, in bytes; Linux only."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def peak_rss_bytes() -> int:
    """Highest resident memory of this process since it started, or since :func:`reset_peak_rss`, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    # ru_maxrss is in KiB on Linux and in bytes on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def reset_peak_rss() -> bool:
    """Set the peak back to the present resident memory; False where the system does not allow it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


@contextlib.contextmanager
def peak_rss() -> Iterator[PeakRss]:
    """Measure the peak of a block: ``with peak_rss() as peak: ...``, then ``peak.bytes``."""
    peak = PeakRss(exact=reset_peak_rss())
    try:
        yield peak
    finally:
        peak.bytes = peak_rss_bytes()


# -------------------------------------------------------------------------------------------------------- helpers


def _windows(ids: torch.Tensor, window: int, batch: int) -> list[torch.Tensor]:
    """Batches of rows [up to ``batch``, ``window``]; the short last window, if it can be scored, is a batch of one."""
    whole = len(ids) // window * window
    batches = list(ids[:whole].view(-1, window).split(batch)) if whole else []
    rest = ids[whole:]
    return [*batches, rest[None]] if len(rest) > 1 else batches


def _negative_log_likelihood(model: Any, rows: torch.Tensor, first: int) -> float:
    """Sum over the scored tokens of ``rows`` [B, T], in nats; ``first`` numbers the windows in an error."""
    logits = _logits(model, rows)
    # One value per token in float32 is enough; it is the sum over a million of them that needs float64.
    loss = F.cross_entropy(logits[:, :-1].float().transpose(1, 2), rows[:, 1:].to(logits.device), reduction="none")
    bad = loss.isnan().any(1).nonzero()
    if len(bad):
        window = first + int(bad[0])
        fix = "compare this window layer by layer with the float model's, to find the first layer with NaN"
        raise NumericsError("the model's logits are NaN", where=f"window {window}", fix=fix)
    return loss.double().sum().item()


def _logits(model: Any, rows: torch.Tensor) -> torch.Tensor:
    return _caller(model)(rows.to(_device(model)), use_cache=False).logits


def _exp(mean: float) -> float:
    """exp, with infinity where it overflows: a ruined model has a perplexity too."""
    try:
        return math.exp(mean)
    except OverflowError:
        return math.inf


def _caller(model: Any) -> Callable[..., Any]:
    """``model`` as a function of ids and keywords, without ``logits_to_keep`` where its forward does not know it.

    The keyword ``cache`` gets the name that the model has for it.
    """
    signature = inspect.signature(getattr(model, "forward", model))
    known = "logits_to_keep" in signature.parameters or any(
        p.kind is p.VAR_KEYWORD for p in signature.parameters.values()
    )
    name = cache_argument(signature) or usual_name()

    def call(ids: torch.Tensor, *, cache: Any = None, logits_to_keep: int | None = None, **keywords: Any) -> Any:
        if keywords.get("use_cache"):
            keywords[name] = cache
        if logits_to_keep is not None and known:
            keywords["logits_to_keep"] = logits_to_keep
        return model(input_ids=ids, **keywords)

    return call


def _device(model: Any) -> torch.device:
    tensor = next(model.parameters(), None) if isinstance(model, torch.nn.Module) else None
    return torch.device("cpu") if tensor is None else tensor.device


def _random_ids(model: Any, batch: int, length: int) -> torch.Tensor:
    """Token ids [batch, length] on the model's device, the same for every model with the same vocabulary."""
    config = getattr(model, "config", None)
    vocabulary = getattr(config, "vocab_size", None)
    if vocabulary is None:
        raise InputError("the model does not say how many tokens it knows", where="config.vocab_size", fix="set it")
    generator = torch.Generator().manual_seed(_SEED)
    return torch.randint(0, vocabulary, (batch, length), generator=generator).to(_device(model))


def _speed(sample: Callable[[], float], repeats: int) -> Speed:
    _at_least(repeats=(repeats, 1))
    sample()  # warm-up: lazy packing, compilation, first touch of memory
    samples = [sample() for _ in range(repeats)]
    return Speed(median(samples), samples)


def _plain_tensors(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    flatten = getattr(tensor, "__tensor_flatten__", None)
    if flatten is not None:
        for name in flatten()[0]:
            yield from _plain_tensors(getattr(tensor, name))
    else:
        yield tensor


def _storage(tensor: torch.Tensor) -> tuple[Any, int]:
    """(identity, bytes) of the memory behind a tensor; layouts that hide their storage count as themselves."""
    if tensor.layout is not torch.strided:
        return id(tensor), tensor.numel() * tensor.element_size()
    storage = tensor.untyped_storage()
    return (tensor.device, storage.data_ptr() or id(tensor)), storage.nbytes()


def _at_least(**bounds: tuple[int, int]) -> None:
    for name, (value, least) in bounds.items():
        if value < least:
            raise InputError(f"{name} is {value}", where=name, fix=f"use {least} or more")
