"""What the figures show: numbers against hooks and brute force, files that are there, and errors that help."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import qpass
from qpass.capture.normalise import normalise
from qpass.debug import plots
from qpass.debug.figure import check_matplotlib, draw
from qpass.debug.layers import readings, shared, some_blocks
from qpass.debug.plot_grids import FORMATS, OUTLIER, rounded, save_grids, vector
from qpass.debug.plots import activations, save_activations
from qpass.errors import InputError, NumericsError, OutputError, UnsupportedError
from qpass.formats import GRIDS


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a_proj, self.b_proj, self.out = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.out(torch.relu(self.a_proj(x)) * self.b_proj(x))


class Net(nn.Module):
    def __init__(self, depth: int) -> None:
        super().__init__()
        self.stack, self.head = nn.ModuleList(Block() for _ in range(depth)), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.stack:
            x = block(x)
        return self.head(x)


@pytest.fixture(scope="module")
def net() -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    model = Net(5).eval()
    return model, qpass.capture(model, (torch.randn(4, 8),))


def is_png(path: Path) -> bool:
    data = path.read_bytes()
    return data[:8] == b"\x89PNG\r\n\x1a\n" and len(data) > 5000


# ------------------------------------------------------------------------------------------------- what is read where


def test_readings_and_blocks(net: tuple[nn.Module, Any]) -> None:
    found = readings(normalise(net[1]))
    assert [one.label for one in found] == ["{a,b}_proj", "out"] * 5 + ["head"]
    assert [one.block for one in found[::2]] == [*(f"stack.{number}" for number in range(5)), ""]
    assert some_blocks(found) == ["stack.0", "stack.2", "stack.4"]
    assert some_blocks(found[:2]) == ["stack.0"] and some_blocks(found[-1:]) == [""]


@pytest.mark.parametrize(
    ("names", "label"),
    [
        (["attn.q_proj", "attn.k_proj", "attn.v_proj"], "attn.{q,k,v}_proj"),
        (["attention.query", "attention.key"], "attention.{query,key}"),
        (["fc1"], "fc1"),
        (["q", "mlp.up"], "{q,mlp.up}"),
        (["a.proj", "b.proj"], "{a.proj,b.proj}"),
        (["x_proj", "_proj"], "{x_proj,_proj}"),
    ],
)
def test_names_in_few_words(names: list[str], label: str) -> None:
    assert shared(names) == label


def test_the_numbers_are_those_that_linears_read(net: tuple[nn.Module, Any]) -> None:
    model, captured = net
    data = [torch.randn(4, 8), torch.randn(3, 8)]
    inputs: dict[str, list[Tensor]] = {}
    hooks = [module.register_forward_pre_hook(lambda _, args, name=name: inputs.setdefault(name, []).append(args[0]))
             for name, module in model.named_modules() if isinstance(module, nn.Linear)]  # fmt: skip
    for x in data:
        model(x)
    for hook in hooks:
        hook.remove()
    seen = activations(captured, data, "net")
    assert seen.tokens == 7 and {reading.block for reading, _ in seen.panels} == {"stack.0", "stack.2", "stack.4"}
    shown = seen.as_dict()["inputs"]
    assert len(shown) == 6
    for one in shown:
        for linear in one["linears"]:
            x = torch.cat(inputs[linear]).double()
            assert one["numbers"] == x.numel() == sum(one["histogram"]["counts"])
            torch.testing.assert_close(torch.tensor(one["channel_absmax"]).double(), x.abs().amax(0), rtol=1e-6, atol=0)
            assert one["std"] == pytest.approx(float(x.std(correction=0)), rel=1e-5)
            assert one["min"] == pytest.approx(float(x.min()), rel=1e-6)


def test_files_of_activations(net: tuple[nn.Module, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "MOST", 1)
    seen = activations(net[1], [torch.randn(6, 8)], "net")
    assert seen.left_out == {"stack.0": 1, "stack.2": 1, "stack.4": 1} and len(seen.panels) == 3
    save_activations(seen, tmp_path)
    assert is_png(tmp_path / "activations.png")
    data = json.loads((tmp_path / "activations.json").read_text())
    assert data["model"] == "net" and len(data["inputs"]) == 3 and data["left_out"]["stack.0"] == 1


def test_a_value_of_zeros_is_drawn(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(8, 4)).eval()
    save_activations(activations(qpass.capture(model, (torch.zeros(2, 8),)), [torch.zeros(2, 8)], "zeros"), tmp_path)
    (one,) = json.loads((tmp_path / "activations.json").read_text())["inputs"]
    assert one["kurtosis"] is None and one["outlier_ratio"] is None and one["max"] == 0


def test_bad_activations(net: tuple[nn.Module, Any]) -> None:
    with pytest.raises(NumericsError, match="calibration batch 0"):
        activations(net[1], [torch.full((2, 8), float("inf"))], "net")
    with pytest.raises(InputError, match="there is no calibration batch"):
        activations(net[1], [], "net")
    with pytest.raises(UnsupportedError, match="the model has no linear"):
        activations(qpass.capture(nn.ReLU().eval(), (torch.zeros(2, 8),)), [torch.zeros(2, 8)], "relu")


# --------------------------------------------------------------------------------------------------------------- grids


def test_rounded_is_the_nearest_point() -> None:
    x = vector()
    for label, text in FORMATS.items():
        one = rounded(x, label, text)
        distance = (x.double()[:, None] - one.points.double()).abs().amin(1)
        torch.testing.assert_close(one.errors, distance, rtol=1e-5, atol=1e-7)
        # The largest value of a symmetric grid is the outlier itself.
        assert one.zero or float(one.points.max()) == pytest.approx(OUTLIER, rel=1e-6)


def test_points_are_all_codes() -> None:
    one, two, three = (rounded(vector(), label, text) for label, text in FORMATS.items())
    assert len(one.points) == 256 and (len(two.points), len(three.points)) == (253, 247)  # 0 and -0 are one point
    steps = one.points.diff()
    torch.testing.assert_close(steps, torch.full_like(steps, one.scale), rtol=1e-4, atol=0)
    assert float(two.points.max() / two.scale) == pytest.approx(GRIDS["e4m3"].max)


def test_files_of_grids(tmp_path: Path) -> None:
    found = save_grids(tmp_path)
    assert is_png(tmp_path / "grids.png") and [one.label for one in found] == list(FORMATS)
    # What the figure is there to show: an outlier costs the other values of INT8 more than those of FP8.
    assert found[1].body > found[2].body > found[0].body
    data = json.loads((tmp_path / "grids.json").read_text())
    assert data["vector"] == vector().tolist() and len(data["formats"]) == 3


def test_equal_figures_are_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        draw(tmp_path / name, (2.0, 2.0), lambda figure: figure.subplots().plot([1, 2]))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(InputError, match=r'plots need matplotlib.*Fix: pip install "qpass\[plots\]"'):
        check_matplotlib()


def test_a_folder_that_cannot_be_written() -> None:
    with pytest.raises(OutputError, match="cannot write"):
        save_grids(Path(__file__) / "below")
