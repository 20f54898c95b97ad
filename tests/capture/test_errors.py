"""What cannot be captured says so, shows the line, and changes nothing."""

from __future__ import annotations

import random
import threading
import warnings
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

from qpass.capture.export import export_model
from qpass.errors import CaptureError, InputError, UnsupportedError

from .models import causal_lm


class Branch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:  # the line to be shown
            return x
        return -x


class Counter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x + self.calls


class InPlace(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.add_(1) * 2


class Size(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, int]:
        return x, x.shape[0]


X = torch.ones(3, 4)


def _of(kind: type[nn.Module]) -> Any:
    return lambda: kind().eval()


def _meta() -> nn.Module:
    return nn.Linear(4, 4, device="meta").eval()


def _partly_training() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout()).eval()
    model[1].train()
    return model


def _compiled() -> nn.Module:
    model = nn.Linear(4, 4).eval()
    model._qpass_compiled = True  # type: ignore[assignment]
    return model


def _flash() -> nn.Module:
    model = causal_lm("llama")
    model.config._attn_implementation = "flash_attention_2"
    return model


def _mamba() -> nn.Module:
    config = hf.MambaConfig(vocab_size=64, hidden_size=16, num_hidden_layers=1, state_size=4)
    return hf.MambaForCausalLM(config).eval()


_IN, _NO, _NOT = InputError, UnsupportedError, CaptureError
_REFUSED: dict[str, tuple[Any, Any, type[Exception], str]] = {
    "training": (lambda: nn.Linear(4, 4), (X,), _IN, "The model is in training mode (at Linear). Fix: call model.eval"),
    "partly": (_partly_training, (X,), _IN, "The model is in training mode (at module `1`). Fix: call model.eval()"),
    "meta": (_meta, (X,), _IN, "The model has a parameter without data on the meta device (at weight). Fix: "),
    "compiled": (_compiled, (X,), _IN, "The model is already compiled by qpass. Fix: compile the original"),
    "no module": (lambda: 3, (X,), _IN, "The model is a int, not a torch.nn.Module. Fix: pass the module itself."),
    "no example": (_of(Branch), (), _NOT, "A plain module needs example inputs (at Branch). Fix: pass args=(x,)"),
    "no tuple": (_of(Branch), X, _IN, "args is a Tensor, not a tuple of example inputs. Fix: pass a tuple"),
    "two": (_of(Branch), (X, X), _IN, "The example inputs do not fit forward: too many positional arguments (at"),
    "empty": (_of(Branch), (X[:0],), _IN, "An example input is empty, shape [0, 4] (at args[0]). Fix: pass examples"),
    "device": (lambda: nn.Linear(4, 4).eval(), (X.to("meta"),), _IN,
               "An example input is on meta, the model is on cpu (at args[0]). Fix:"),
    "buffer": (_of(Counter), (X,), _NO, "The model's forward writes to a buffer (at buffer `calls`). Fix: keep"),
    "input": (_of(InPlace), (X,), _NO, "The model's forward writes to its input (at input `x`). Fix: return"),
    "size": (_of(Size), (X,), _NO, "The model returns a size that depends on its input, output 1 (at Size)"),
    "flash": (_flash, (), _NO, "Attention implementation `flash_attention_2` cannot be captured (at config). Fix:"),
    "mamba": (_mamba, (), _NO, "The language model keeps no key/value cache (at MambaForCausalLM). Fix: use"),
}


@pytest.mark.parametrize("case", _REFUSED)
def test_refusals(case: str) -> None:
    make, args, kind, text = _REFUSED[case]
    model = make()
    with pytest.raises(kind) as error:
        export_model(model, args)
    assert text in str(error.value)


@pytest.mark.parametrize("strict", [False, True])
def test_data_dependent_control_flow_shows_the_users_line(strict: bool, capfd: Any) -> None:
    with pytest.raises(CaptureError) as error:
        export_model(Branch().eval(), (X,), strict=strict)
    text = str(error.value)
    assert "torch.export could not capture Branch: " in text
    assert f"{__file__}:23: `if x.sum() > 0:  # the line to be shown`" in text
    assert 'replace the Python control flow on tensor values in that line by torch.where' in text
    assert 'or use the fallback torch.compile(model, backend="qpass"), which splits the graph there.' in text
    assert capfd.readouterr() == ("", "")


def test_a_line_inside_a_library_model_is_shown() -> None:
    model = causal_lm("llama")
    model.model.rotary_emb.inv_freq = torch.ones(3)  # does not fit the heads
    with pytest.raises(CaptureError) as error:
        export_model(model)
    assert "modeling_llama.py:" in str(error.value)


def test_shapes_of_a_causal_lm_are_fixed() -> None:
    with pytest.raises(InputError, match="batch, seq and past of a causal language model are always dynamic"):
        export_model(causal_lm("opt"), dynamic_shapes={"input_ids": None})


@pytest.mark.parametrize("fails", [False, True])
def test_model_and_global_state_are_as_before(fails: bool) -> None:
    torch.set_grad_enabled(True)
    model: nn.Module = Branch().eval() if fails else causal_lm("opt")
    hooks, attributes = [], dict(model.__dict__)
    model.register_forward_hook(lambda *a: hooks.append(1))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state, python = torch.get_rng_state(), random.getstate()
    filters, config = list(warnings.filters), getattr(model, "config", None)
    config_dict = config.to_dict() if config is not None else None
    if fails:
        with pytest.raises(CaptureError):
            export_model(model, (X,))
    else:
        found = export_model(model, (torch.ones(1, 3, dtype=torch.int64),))
        assert found.call.notes == ("example inputs were not used: a causal language model does not need them",)
    assert torch.equal(torch.get_rng_state(), state) and random.getstate() == python
    assert torch.is_grad_enabled() and torch.get_default_dtype() == torch.float32 and warnings.filters == filters
    assert len(model._forward_hooks) == 1 and not model.training and model.__dict__.keys() == attributes.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    if config is not None:
        assert model.config is config and config.to_dict() == config_dict


def test_capture_from_two_threads() -> None:
    results: list[Any] = []

    def work() -> None:
        results.append(export_model(nn.Linear(4, 4).eval(), (X,)))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 2
