"""A quantized model as one file that runs without qpass: an AOTInductor package, and what it calls beside it.

    qpass.package(model, "w8a8-int8", "model.pt2", args=(x,))   writes model.pt2, model.json, model.ops.so
    run = qpass.load_package("model.pt2"); (y,) = run(x)

A package takes and gives flat tensors, in the order that ``model.json`` names: those of the module's call, and for a
causal language model its cache too. Sizes that were dynamic stay so. Without qpass, in Python or C++, load the library
of operators first: ``torch.ops.load_library("model.ops.so")``, then ``torch._inductor.aoti_load_package("model.pt2")``.
Packages for ``cuda`` are made without a GPU too; they need no library, and their weights are in ``model.safetensors``.
"""

from __future__ import annotations

import inspect
import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qpass import pipeline
from qpass.capture.convention import CallConvention, TensorSpec
from qpass.errors import InputError, UnsupportedError
from qpass.lowering import Packager, Target
from qpass.pipeline import RecipeLike


def package(
    model: nn.Module, recipe: RecipeLike, path: str | Path, args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None, *, target: str = "cpu", dynamic_shapes: Any = None,
    calibration: Iterable[Any] | None = None, progress: Any = None,
) -> Path:  # fmt: skip
    """Write ``model``, quantized and compiled for this machine's kind, into ``path``.

    Args:
        path: ends in ``.pt2``. ``.json`` beside it names inputs, outputs and the target; ``.ops.so`` beside it has the
            operators that the package calls, where it calls any; for ``cuda``, ``.safetensors`` has the weights.
        model, recipe, args, kwargs, target, dynamic_shapes, calibration, progress: as in ``qpass.compile``.

    Returns:
        ``path``.

    Raises:
        InputError: another ending, or a folder that is not there.
        UnsupportedError: the target has no packages, or not of such a program, or none can be made here; others as
            ``qpass.compile``.
    """
    path = Path(path)
    if path.suffix != ".pt2":
        raise InputError(f"a package is a file that ends in .pt2, not {path.name!r}", fix=f"use {path.stem}.pt2")
    if not path.parent.is_dir():
        raise InputError(f"there is no folder {path.parent}", fix="make it first")
    packager = _packager(pipeline.load_target(target))
    packager.check()
    result = pipeline.trace(model, recipe, args, kwargs, target=target, dynamic_shapes=dynamic_shapes,
                            calibration=calibration, progress=progress)  # fmt: skip
    lowered = result["LOWERED"]
    packed = packager.save(lowered, path)
    if packed.library is not None:
        shutil.copyfile(packed.library, path.with_suffix(".ops.so"))
    inputs = [{"name": one.name, "type": str(one), "shape": one.shape} for one in lowered.call.inputs]
    about = {
        "target": target, "recipe": str(recipe), "torch": torch.__version__, "inputs": inputs,
        "sizes": dict(lowered.call.ranges), "outputs": list(lowered.call.outputs),
        "operators": None if packed.library is None else f"{path.stem}.ops.so", **packed.facts,
    }  # fmt: skip
    path.with_suffix(".json").write_text(json.dumps(about, indent=1) + "\n")
    return path


def load_package(path: str | Path) -> Callable[..., tuple[Any, ...]]:
    """The function in a package that ``package`` wrote: flat tensors in, a flat tuple out.

    It raises InputError for inputs that are not what ``model.json`` says, which the package by itself does not look at,
    and makes them contiguous.

    Raises:
        InputError: a file that is not there, or is of another version of torch.
        UnsupportedError: made for a GPU that is not here.
    """
    path = Path(path)
    about = path.with_suffix(".json")
    for file in (path, about):
        if not file.is_file():
            raise InputError(f"there is no file {file}", fix="write it with qpass.package")
    facts = json.loads(about.read_text())
    if facts["torch"] != torch.__version__:
        raise InputError(f"the package was made by torch {facts['torch']}, this is {torch.__version__}",
                         where=str(path), fix="make it again with qpass.package")  # fmt: skip
    function, call = _packager(pipeline.load_target(facts["target"])).load(path, facts), _call_of(facts)

    def run(*inputs: Tensor) -> tuple[Any, ...]:
        if len(inputs) != len(call.inputs):
            wanted = ", ".join(one.name for one in call.inputs)
            raise InputError(f"{len(inputs)} inputs, the package takes {len(call.inputs)}", fix=f"pass {wanted}")
        return function(*(one.contiguous() for one in call.check(inputs)))

    return run


def _call_of(facts: Mapping[str, Any]) -> CallConvention:
    """What a package takes: its flat inputs, which are its signature."""
    inputs = tuple(TensorSpec(one["name"], getattr(torch, one["type"].partition("[")[0]), tuple(one["shape"]))
                   for one in facts["inputs"])  # fmt: skip
    kind = facts["target"].partition(":")[0]
    device = torch.device("cpu") if kind == "cpu" else torch.device("cuda", torch.cuda.current_device())
    sizes = {name: (low, high) for name, (low, high) in facts["sizes"].items()}
    return CallConvention("module", inspect.Signature(), inputs, tuple(facts["outputs"]), device, sizes)


def _packager(target: Target) -> Packager:
    if target.packager is None:
        raise UnsupportedError(f"the target {target.name} makes no packages", fix='use target="cpu" or "cuda"')
    return target.packager
