"""One block that is being learned: its float parameters, what is learned on them, and its quantized forward pass."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from qpass import ops
from qpass.formats import Format, Scheme
from qpass.learn.fake import clippable, ends, fake_input, fake_weight
from qpass.learn.transform import Placed
from qpass.learn.view import View
from qpass.numerics import codec
from qpass.numerics.scales import Scales
from qpass.observe.segment import SegmentRunner
from qpass.sites.verify import read_in

Leaves = dict[str, Tensor]


class BlockModel:
    """See the module docstring. Everything is float32 on ``device``.

    Attributes:
        leaves: what is learned, by key; made by ``learn``.
        rates: its learning rates.
        clips: weight -> keys of β and γ.
        places: (site with its graph facts, key of t = log s, key of δ or None), in the order they are applied.
        trained: parameter -> key, for parameters that are learned themselves.
    """

    def __init__(self, view: View, *, device: torch.device | None = None, precision: str = "float32") -> None:
        self.view, self.device, self.precision = view, device, precision
        self.runner = SegmentRunner(view.program, view.segment, device=device)
        self.base = {name: self._read(name) for name in view.segment.params}
        self.leaves: Leaves = {}
        self.rates: dict[str, float] = {}
        self.clips: dict[str, tuple[str, str]] = {}
        self.places: list[tuple[Placed, str, str | None]] = []
        self.trained: dict[str, str] = {}
        self.fixed = {weight: self._chosen(weight, scheme) for weight, scheme in view.linears.values()
                      if f"{weight}.scale" in view.program.params}  # fmt: skip
        self.ends: dict[str, tuple[Tensor, Tensor]] = {}

    def _read(self, name: str) -> Tensor:
        return read_in(self.view.program, name, torch.float32).detach().to(self.device)

    def _chosen(self, weight: str, scheme: Scheme) -> Tensor:
        """A weight whose scales, and perhaps codes, an earlier method has set."""
        program, fmt = self.view.program, scheme.weight.plain
        parts = (f"{weight}.{part}" for part in ("scale", "zero", "outer"))
        found = Scales(*(program.tensor(part) if part in program.params else None for part in parts))  # type: ignore[arg-type]
        codes = (program.tensor(f"{weight}.codes") if f"{weight}.codes" in program.params
                 else codec.quantize(program.tensor(weight), found, fmt))  # fmt: skip
        return codec.dequantize(codes, found, fmt, torch.float32).to(self.device)

    # ------------------------------------------------------------------------------------------- what methods call

    def learn(self, key: str, start: Tensor, rate: float) -> str:
        """A tensor to learn, from ``start``. Returns its key, which must be new."""
        assert key not in self.leaves, key
        self.leaves[key] = start.detach().to(self.device, torch.float32).clone().requires_grad_()
        self.rates[key] = rate
        return key

    def clip(self, weight: str, beta: str, gamma: str) -> None:
        """Clip a weight's range by the leaves of these keys, both [N, G]."""
        self.clips[weight] = beta, gamma

    def place(self, placed: Placed, t: str, delta: str | None) -> None:
        """Re-scale a site by exp of one leaf, and before that shift it by another; both [site.size]."""
        self.places.append((placed, t, delta))

    def train(self, param: str, key: str) -> None:
        """Learn a parameter itself."""
        self.trained[param] = key

    def ready(self) -> None:
        """Called once all methods have said what they learn: what will not change is computed here."""
        moving = set(self.trained) | {name for placed, _, _ in self.places for name in placed.params}
        for weight, scheme in self.view.weights.items():
            if weight not in moving and clippable(scheme.weight):
                self.ends[weight] = ends(self.base[weight], scheme.weight)

    # ------------------------------------------------------------------------------------------------------ forward

    def effective(self, leaves: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The float parameters after what ``leaves`` say, and r of the activations with a gate."""
        values = dict(self.base)
        smooth: dict[str, Tensor] = {}
        values |= {param: leaves[key] for param, key in self.trained.items()}
        for placed, t, delta in self.places:
            if delta is not None:
                placed.shift(values, leaves[delta])
            for node, factor in placed.fold(values, leaves[t]).items():
                smooth[node] = smooth[node] * factor if node in smooth else factor
        return values, smooth

    def teacher(self, inputs: Mapping[str, Any], **options: Any) -> dict[str, Any]:
        """The outputs of the float block. Options as in ``SegmentRunner.run``."""
        with torch.no_grad(), self._cast():
            return self._float32(self.runner.run(self._here(inputs), self.base.__getitem__, **options))

    def student(self, inputs: Mapping[str, Any], leaves: Mapping[str, Tensor] | None) -> dict[str, Any]:
        """The outputs of the quantized block; of round to nearest where there are no leaves."""
        values, smooth = (self.base, {}) if leaves is None else self.effective(leaves)
        weights: dict[str, Tensor] = {}
        seen: dict[tuple[int, Format], tuple[Tensor, Tensor]] = {}

        def linear(name: str, x: Tensor, weight: str, bias: Tensor | None) -> Tensor:
            if name not in self.view.linears:
                return F.linear(x, values[weight], bias)
            scheme = self.view.linears[name][1]
            if weight not in weights:
                weights[weight] = self._weight(weight, scheme.weight, values[weight], leaves)
            if scheme.input is not None:
                place = id(x), scheme.input
                if place not in seen:
                    seen[place] = x, fake_input(x.to(torch.float32), scheme.input)  # x is held: its id stays its own
                x = seen[place][1]
            return F.linear(x, weights[weight], bias)

        def attend(name: str, op: Any, args: Sequence[Any]) -> Tensor:
            return ops.attend(op, args, self.view.attentions.get(name), _fake_operand)

        hooks: dict[str, Any] = {"linear": linear, "attend": attend, "smooth": smooth}
        only = frozenset(self.view.segment.results)
        with self._cast():
            return self._float32(self.runner.run(self._here(inputs), values.__getitem__, only=only, **hooks))

    def _weight(self, name: str, fmt: Format, value: Tensor, leaves: Mapping[str, Tensor] | None) -> Tensor:
        if name in self.fixed:
            return self.fixed[name]
        if leaves is None:
            return codec.fake_quantize(value.detach(), fmt.plain)
        beta, gamma = (leaves[key] for key in self.clips[name]) if name in self.clips else (None, None)
        return fake_weight(value, fmt.plain, beta, gamma, self.ends.get(name))

    def _here(self, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        if self.device is None:
            return inputs
        return {name: value.to(self.device) if isinstance(value, Tensor) else value for name, value in inputs.items()}

    def _cast(self) -> Any:
        if self.precision == "float32":
            return contextlib.nullcontext()
        kind = self.device.type if self.device is not None else next(iter(self.base.values())).device.type
        return torch.autocast(kind, torch.bfloat16)

    @staticmethod
    def _float32(outputs: dict[str, Any]) -> dict[str, Any]:
        return {name: value.to(torch.float32) if isinstance(value, Tensor) and value.is_floating_point() else value
                for name, value in outputs.items()}  # fmt: skip


def _fake_operand(x: Tensor, fmt: Format) -> Tensor:
    return fake_input(x.to(torch.float32), fmt)
