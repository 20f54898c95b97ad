"""A GPU that is not here: device queries answered, kernels compiled for it, nothing loaded and nothing launched.

Inductor and Triton ask a device for what it is, and for nothing else, until the first kernel is loaded. Inside
``device`` they get the data sheet's answers for one compute capability, also where another GPU is there.
"""

from __future__ import annotations

import contextlib
import types
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
import torch._dynamo.device_interface as device_interface
import torch._inductor.codecache as codecache
import torch._inductor.runtime.hints as hints
import torch._inductor.runtime.triton_helpers as triton_helpers
import torch._inductor.utils as inductor_utils
import torch.utils._triton as has_triton

PROCESSORS = {(8, 0): 108, (8, 6): 84, (8, 9): 142, (9, 0): 132}
"""Multiprocessors of an A100, RTX A6000, L40 and H100: how Inductor cuts a reduction depends on them."""
SHARED = {(8, 0): 166912, (8, 6): 101376, (8, 9): 101376, (9, 0): 232448}
"""Bytes of shared memory that a program may have."""
_THREADS = {(8, 6): 1536, (8, 9): 1536}


class _Nothing:
    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __enter__(self) -> _Nothing:
        return self

    def __exit__(self, *args: Any) -> bool:
        return False


@contextlib.contextmanager
def device(capability: tuple[int, int]) -> Iterator[None]:
    """Inside, torch and Triton believe in one GPU of that capability, a key of ``PROCESSORS``."""
    import triton
    from triton.compiler.compiler import CompiledKernel

    cuda = device_interface.CudaInterface
    patches = [
        (torch.cuda, "current_stream", lambda *a, **k: types.SimpleNamespace(cuda_stream=0)),
        (torch.cuda, "is_bf16_supported", lambda *a, **k: True), (torch.cuda, "synchronize", lambda *a, **k: None),
        (cuda, "device", _Nothing), (cuda, "synchronize", staticmethod(lambda *a: None)),
        (cuda, "is_available", staticmethod(lambda: True)), (cuda, "exchange_device", staticmethod(lambda index: 0)),
        (cuda, "maybe_exchange_device", staticmethod(lambda index: 0)),
        (cuda, "is_bf16_supported", staticmethod(lambda *a, **k: True)),
        (has_triton, "has_triton_tma_device", lambda: capability >= (9, 0)),
        (triton_helpers, "set_driver_to_gpu", lambda: None), (CompiledKernel, "_init_handles", _unloaded(capability)),
        *_questions(capability),
    ]  # fmt: skip
    if not device_interface._device_initialized:
        device_interface.init_device_reg()
    known = dict(device_interface.device_interfaces)
    with contextlib.ExitStack() as stack:
        for place, name, answer in patches:
            stack.enter_context(mock.patch.object(place, name, answer))
        device_interface.register_interface_for_device("cuda:0", cuda)
        before = triton.runtime.driver._active
        triton.runtime.driver.set_active(_driver(capability))
        _forget()
        try:
            yield
        finally:
            triton.runtime.driver._active = before
            device_interface.device_interfaces.clear()
            device_interface.device_interfaces.update(known)
            _forget()


def _questions(capability: tuple[int, int]) -> list[tuple[Any, str, Any]]:
    properties = types.SimpleNamespace(
        name=f"sm_{capability[0]}{capability[1]}", major=capability[0], minor=capability[1], warp_size=32,
        multi_processor_count=PROCESSORS[capability], regs_per_multiprocessor=65536,
        max_threads_per_multi_processor=_THREADS.get(capability, 2048), max_threads_per_block=1024,
        total_memory=80 << 30, shared_memory_per_block_optin=SHARED[capability], shared_memory_per_block=49152,
        shared_memory_per_multiprocessor=SHARED[capability] + 1024, L2_cache_size=50 << 20, gcnArchName="",
    )  # fmt: skip
    cuda = device_interface.CudaInterface
    answers = {"get_device_properties": properties, "get_device_capability": capability, "current_device": 0,
               "device_count": 1}  # fmt: skip
    places = [(torch.cuda, tuple(answers)), (cuda, ("get_device_properties", "current_device", "device_count")),
              (cuda.Worker, ("get_device_properties", "current_device"))]  # fmt: skip
    found: list[tuple[Any, str, Any]] = []
    for place, names in places:
        for name in names:
            answer = _constant(answers[name])
            found.append((place, name, answer if place is torch.cuda else staticmethod(answer)))
    return found


def _constant(value: Any) -> Any:
    return lambda *args, **kwargs: value


def _unloaded(capability: tuple[int, int]) -> Any:
    """What loading a compiled kernel does here: it is not loaded, but has to fit."""
    from triton.runtime.errors import OutOfResources

    def check(kernel: Any) -> None:
        if kernel.metadata.shared > SHARED[capability]:
            raise OutOfResources(kernel.metadata.shared, SHARED[capability], "shared memory")
        kernel.module = kernel.function = kernel._run = kernel.n_regs = kernel.n_spills = None

    return check


def _driver(capability: tuple[int, int]) -> Any:
    from triton.backends.compiler import GPUTarget

    limits = {"max_shared_mem": SHARED[capability], "multiprocessor_count": PROCESSORS[capability], "warpSize": 32}
    return types.SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", capability[0] * 10 + capability[1], 32),
        get_current_device=lambda: 0, get_active_torch_device=lambda: torch.device("cuda", 0),
        get_current_stream=lambda device=None: 0, is_active=lambda: True,
        utils=types.SimpleNamespace(get_device_properties=lambda device: limits),
    )  # fmt: skip


def _forget() -> None:
    """Answers about the device that were kept: those of another one, and afterwards ours."""
    for module in (has_triton, inductor_utils):
        for value in list(vars(module).values()):
            if hasattr(value, "cache_clear") and getattr(value, "__module__", "") == module.__name__:
                value.cache_clear()
    hints.DeviceProperties.create.cache_clear()
    codecache.CacheBase.get_system.cache_clear()
