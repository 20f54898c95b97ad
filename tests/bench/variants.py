"""The models that are measured, and the ways to run them: eager, Inductor, torchao and qpass."""

from __future__ import annotations

import contextlib
import copy
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch._inductor.config as inductor_config
from transformers import AutoModelForCausalLM, LlamaConfig, StaticCache

from qpass import assets
from qpass.debug.evaluate import decode_sampler, prefill_sampler

PAST = 128


@dataclass(frozen=True)
class Workload:
    """One kind of call: ``batch`` rows of one token after about 128 (decode), or ``length`` tokens of prompt."""

    name: str
    batch: int
    length: int = 1


WORKLOADS = [
    Workload("decode-b1", 1),
    Workload("decode-b8", 8),
    Workload("prefill-512", 1, 512),
]


@dataclass(frozen=True)
class Size:
    """A model to measure.

    Attributes:
        config: the fields of a random Llama; None for the Llama that qpass ships.
        group: input channels that share a scale at 4 bits (704 is not a multiple of 128).
        steps: decode steps in one sample.
        in_turn: hold one variant at a time beside the baseline, for the sake of memory.
    """

    config: dict[str, Any] | None
    group: int
    steps: int
    in_turn: bool = False


_COMMON = dict(vocab_size=32000, max_position_embeddings=1024, tie_word_embeddings=False)
SIZES = {
    "small": Size(None, group=64, steps=16),
    "125m": Size(
        _COMMON | dict(hidden_size=768, intermediate_size=2048, num_hidden_layers=12, num_attention_heads=12),
        group=128,
        steps=8,
    ),
    "1b": Size(
        _COMMON
        | dict(
            hidden_size=2048,
            intermediate_size=5632,
            num_hidden_layers=22,
            num_attention_heads=32,
            num_key_value_heads=4,
        ),
        group=128,
        steps=4,
        in_turn=True,
    ),
}


@dataclass(frozen=True)
class Variant:
    """One way to run a model.

    Attributes:
        family: variants of a family do the same arithmetic; the fastest stands for it.
        quantize: "", or the number format of torchao or qpass.
        compiled: run through Inductor; qpass brings its own compilation.
        frozen: weights become constants of the compiled code, so that Inductor may repack them.
        autotune: Inductor tries its C++ GEMM templates.
    """

    family: str
    dtype: torch.dtype = torch.bfloat16
    quantize: str = ""
    compiled: bool = True
    frozen: bool = False
    autotune: bool = False

    @property
    def name(self) -> str:
        eager = bool(self.quantize) and not self.compiled
        return self.family + "+eager" * eager + "+frozen" * self.frozen + "+autotune" * self.autotune

    @property
    def is_qpass(self) -> bool:
        return self.family.startswith("qpass")


def _peers() -> list[Variant]:
    found = [Variant("eager-fp32", torch.float32, compiled=False), Variant("eager-bf16", compiled=False)]
    # Compiled, it is wrong for one row (see docs/benchmarks/cpu.md), so that this is what is left of it there.
    found.append(Variant("torchao-w8a8", quantize="w8a8", compiled=False))
    for frozen in (False, True):
        found.append(Variant("inductor-fp32", torch.float32, frozen=frozen))
        found.append(Variant("inductor-bf16", frozen=frozen))
        found += [Variant(f"torchao-{q}", quantize=q, frozen=frozen) for q in ("w8a8", "w8a16", "w4a16")]
    found.append(Variant("torchao-w8a8", quantize="w8a8", frozen=True, autotune=True))
    return found


BASELINE = "eager-bf16"
VARIANTS = {
    v.name: v for v in [*_peers(), *(Variant(f"qpass-{q}", quantize=q) for q in ("w8a8", "w8a16", "w4a16"))]
}


def build(variant: Variant, size: Size) -> torch.nn.Module:
    """The model in its number format, not yet compiled for a workload (qpass excepted: it compiles once for all)."""
    model = _float_model(size, variant.dtype)
    if variant.is_qpass:
        import qpass

        recipe = {"w8a8": "w8a8-int8", "w8a16": "w8a16", "w4a16": f"w4a16-g{size.group}"}[variant.quantize]
        return qpass.compile(model, recipe)
    if variant.quantize:
        _torchao(model, variant.quantize, size.group)
    return model


def prepare(
    variant: Variant, model: torch.nn.Module, workload: Workload, size: Size, clock: Callable[[], float]
) -> tuple[Callable[[], float], Callable[[], torch.Tensor]]:
    """Two functions that run the workload, on the same compiled code; the first call of either compiles.

    Returns:
        One that returns tokens per second, and one that returns the logits [batch, vocabulary] of the last position.
    """
    runner = _Compiled(variant, model) if variant.compiled and not variant.is_qpass else model
    if workload.length > 1:
        sample = prefill_sampler(runner, length=workload.length, batch=workload.batch, clock=clock)
        return sample, lambda: _last_logits(runner, _ids(model, workload.batch, workload.length), None)
    prompt = PAST - size.steps // 2
    # A growing cache has a new shape at each step; the static one compiles once and was faster for each peer tried.
    cache = _static_cache(model, workload.batch, prompt + size.steps) if runner is not model else None
    sample = decode_sampler(
        runner, batch=workload.batch, prompt=prompt, new=size.steps, cache=cache, prefill=model if cache else None,
        clock=clock,
    )  # fmt: skip
    empty = _static_cache(model, workload.batch, prompt + size.steps) if cache else None

    def logits() -> torch.Tensor:
        ids = _ids(model, workload.batch, prompt + 1)
        past = model(input_ids=ids[:, :-1], past_key_values=empty, use_cache=True, logits_to_keep=1).past_key_values
        return _last_logits(runner, ids[:, -1:], copy.deepcopy(past))

    return sample, logits


def _last_logits(runner: torch.nn.Module, ids: torch.Tensor, past: Any) -> torch.Tensor:
    return runner(input_ids=ids, past_key_values=past, use_cache=True, logits_to_keep=1).logits[:, -1].float()


def _ids(model: torch.nn.Module, batch: int, length: int) -> torch.Tensor:
    return torch.randint(0, model.config.vocab_size, (batch, length), generator=torch.Generator().manual_seed(1))


class _Compiled(torch.nn.Module):
    """A model whose forward goes through Inductor with static shapes; options hold while it compiles."""

    def __init__(self, variant: Variant, model: torch.nn.Module) -> None:
        super().__init__()
        self.model, self.config, self.frozen, self.calls = model, model.config, variant.frozen, 0
        options = {"max_autotune": True, "max_autotune_gemm_backends": "CPP"} if variant.autotune else None
        self.run = torch.compile(_own_code(model), dynamic=False, fullgraph=True, options=options)

    def forward(self, input_ids, past_key_values=None, use_cache=True, logits_to_keep=1):
        self.calls += 1
        # torch.compile(options={"freezing": True}) has no effect on parameters: Dynamo asks the global setting.
        patch = inductor_config.patch(freezing=self.frozen) if self.calls < 4 else contextlib.nullcontext()
        with patch:
            return self.run(input_ids, past_key_values, use_cache, logits_to_keep)


def _own_code(model: torch.nn.Module) -> Callable[..., Any]:
    """A call of the model with a code object of its own.

    Dynamo keeps what it compiled per code object, and tries one entry after the other: variants that shared
    ``LlamaForCausalLM.forward`` would slow each other down.
    """

    def call(input_ids, past_key_values, use_cache, logits_to_keep):
        return model(
            input_ids=input_ids, past_key_values=past_key_values, use_cache=use_cache, logits_to_keep=logits_to_keep
        )

    return types.FunctionType(call.__code__.replace(), call.__globals__, "call", None, call.__closure__)


class _PlainStaticCache(StaticCache):
    """A static cache that copies to plain tensors.

    transformers marks the tensors of a static cache as never moving, and freezing then takes even its length for a
    constant, which writes past its end.
    """

    def __deepcopy__(self, memo: dict) -> _PlainStaticCache:
        twin = object.__new__(type(self))
        twin.__dict__ = dict(self.__dict__)
        twin.layers = [_plain_layer(layer) for layer in self.layers]
        return twin


def _plain_layer(layer: Any) -> Any:
    twin = object.__new__(type(layer))
    twin.__dict__ = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in layer.__dict__.items()}
    return twin


def _static_cache(model: torch.nn.Module, batch: int, length: int) -> StaticCache:
    return _PlainStaticCache(config=model.config, max_cache_len=length)


def _float_model(size: Size, dtype: torch.dtype) -> torch.nn.Module:
    if size.config is None:
        return AutoModelForCausalLM.from_pretrained(assets.model_path(), dtype=dtype).eval()
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(LlamaConfig(**size.config), dtype=dtype).eval()


def _torchao(model: torch.nn.Module, kind: str, group: int) -> None:
    """Quantize each linear layer, but a head that shares its weight with the embedding: qpass leaves that alone too."""
    from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig, quantize_

    # Importing it registers the patterns that turn frozen int8 matrix products into oneDNN's.
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer  # noqa: F401

    config = {
        "w8a8": Int8DynamicActivationInt8WeightConfig,
        "w8a16": Int8WeightOnlyConfig,
        "w4a16": lambda: PrototypeInt4WeightOnlyConfig(group_size=group),
    }[kind]()
    embedding = model.get_input_embeddings().weight
    quantize_(model, config, lambda m, _: isinstance(m, torch.nn.Linear) and m.weight is not embedding)
