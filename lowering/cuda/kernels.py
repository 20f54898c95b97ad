"""The linears of the CUDA target: which cases each takes, how its weights are packed, and its call."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from qpass.formats import Format
from qpass.graph.program import Derived, Program
from qpass.lowering import WIDEST_INT8, Case, Kernel
from qpass.lowering.cuda import tiles, weights
from qpass.lowering.cuda.branch import MAX_RANK
from qpass.lowering.cuda.capability import Capability
from qpass.lowering.cuda.weights import ONE_GROUP, Grouped, kept_apart
from qpass.lowering.triton.layout import ORDERS, Layout, padded_rows
from qpass.numerics.scales import Scales

OTHER_KIND = ""
_FP8_SCHEMES = ("e2m1", "e3m0", "int4")


@functools.cache
def load() -> None:
    """Register the operators, which needs Triton."""
    importlib.import_module("qpass.lowering.cuda.ops")


def missing() -> str | None:
    """Why Triton's kernels cannot be made here; None if they can."""
    return None if importlib.util.find_spec("triton") else "it needs Triton, which is not installed"


CHECKED_TRITON = ("3.6.", "3.7.")


def _unpacks(capability: Capability) -> str | None:
    """Why packed words cannot be unpacked here; a version of Triton that is not known is tried, once."""
    if reason := capability.refusal or missing():
        return reason
    if capability.amd or version("triton").startswith(CHECKED_TRITON):
        return None
    order = importlib.import_module("qpass.lowering.triton.register_order")
    found: str | None = order.differs(str(capability))
    return found


def _token(case: Case, element: str) -> bool:
    found = case.scheme.input
    return found is not None and (found.element, found.granularity) == (element, "token")


def _plain_channel(fmt: Format, element: str) -> bool:
    return (fmt.element, fmt.granularity, fmt.scale) == (element, "channel", "f32") and fmt.symmetric and not fmt.full


def grouped(fmt: Format, order: str) -> Grouped | None:
    """How the groups of a 4-bit weight lie in K blocks; None for a size that does not fit one.

    Long blocks for int8 dots, which halves what a step costs besides decoding; for bfloat16 dots they take too many
    registers. Groups of 32 and 64 are a part of a block each.
    """
    if fmt.granularity not in ("channel", "group"):
        return None
    long = 256 if order in ("plain", "signed") else 128
    if fmt.group % 128 == 0:
        whole = fmt.group in (0, 128) or fmt.group % long == 0
        return Grouped(fmt.group, Layout(long if whole else 128, order))
    return Grouped(fmt.group, Layout(ORDERS[order][0] * fmt.group, order)) if fmt.group in (32, 64) else None


def integers(fmt: Format) -> str:
    """The order of integer codes for int8 dots: without zero points codes stay as they are, which costs less."""
    return "signed" if fmt.symmetric else "plain"


def _refuses_int8(case: Case, capability: Capability) -> str | None:
    if not _token(case, "int8") or case.scheme.weight.element != "int8":
        return OTHER_KIND
    if not _plain_channel(case.scheme.weight, "int8"):
        return "it takes int8:channel:sym weights"
    if case.in_features > WIDEST_INT8:
        return f"{case.in_features} inputs could overflow int32"
    return capability.refusal or missing()


def _refuses_fp8(case: Case, capability: Capability) -> str | None:
    if not _token(case, "e4m3") or case.scheme.weight.element != "e4m3":
        return OTHER_KIND
    if not _plain_channel(case.scheme.weight, "e4m3"):
        return "it takes e4m3:channel:sym weights"
    return capability.without_fp8 or capability.refusal or missing()


def _refuses_block(case: Case, capability: Capability) -> str | None:
    if (case.scheme.weight, case.scheme.input) != (Format.parse("fp8-block"), Format.parse("fp8-group")):
        return OTHER_KIND
    return capability.without_fp8 or capability.refusal or missing()


def _odd_groups(fmt: Format) -> str | None:
    if grouped(fmt, "plain") is not None:
        return None
    return f"it takes channels, groups of 32, 64 and multiples of 128, not {fmt.granularity} {fmt.group or ''}".rstrip()


def _four_bit(case: Case, capability: Capability) -> str | None:
    fmt = case.scheme.weight
    if reason := _odd_groups(fmt):
        return reason
    if not fmt.scale_kind.is_real:
        return f"it takes real scales, not {fmt.scale}"
    return _unpacks(capability)


def _refuses_w4a16(case: Case, capability: Capability) -> str | None:
    if case.scheme.input is not None or case.scheme.weight.element != "int4":
        return OTHER_KIND
    if missing() is None and not compiles_bf16(capability):
        return f"Triton {version('triton')} does not compile its kernel for {capability}: that begins with 3.7"
    return _four_bit(case, capability)


def compiles_bf16(capability: Capability) -> bool:
    """Whether Triton compiles the unpacking to bfloat16: 3.6 fails for AMD."""
    return not (capability.amd and version("triton").startswith("3.6."))


def _refuses_w4a8_int8(case: Case, capability: Capability) -> str | None:
    if not _token(case, "int8") or case.scheme.weight.element != "int4":
        return OTHER_KIND
    if case.in_features > WIDEST_INT8:  # 16 · 8 · 128 · K, and 15 · 255 · K
        return f"{case.in_features} inputs could overflow int32"
    return _four_bit(case, capability)


def _refuses_w4a8_fp8(case: Case, capability: Capability) -> str | None:
    fmt = case.scheme.weight
    if not _token(case, "e4m3") or fmt.element not in _FP8_SCHEMES:
        return OTHER_KIND
    if not fmt.symmetric or fmt.full:
        return "it takes codes of a sign and three bits: sym, without zero points"
    if fmt.scale_kind.outer == "tensor":
        return f"it takes no scales of {fmt.scale}"
    return _odd_groups(fmt) or capability.without_fp8 or _unpacks(capability)


def _meta(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _counters(names: Mapping[str, str], case: Case) -> dict[str, Derived]:
    size = tiles.counters(padded_rows(case.out_features))
    made = functools.partial(weights.zeros, size=size)
    return {"counters": Derived((names["codes"],), made, _meta((size,), torch.int32))}


def _plain(names: Mapping[str, str], case: Case) -> dict[str, Derived]:
    rows, fmt = case.out_features, case.scheme.weight
    codes = _meta((rows, case.in_features), fmt.code_dtype)
    return {
        "plain": Derived((names["codes"],), Tensor.contiguous, codes),
        "row_scale": Derived((names["scale"],), lambda s: s.flatten().contiguous(), _meta((rows,), fmt.scale_dtype)),
    }


def _prepare_int8(names: Mapping[str, str], program: Program, case: Case) -> dict[str, Derived]:
    sums = Derived((names["codes"],), weights.row_sums, _meta((case.out_features,), torch.int32))
    return {**_plain(names, case), "sum": sums, **_counters(names, case)}


def _call_int8(inputs: tuple[Tensor, ...], found: Mapping[str, Tensor], bias: Tensor | None, case: Case) -> Tensor:
    load()
    codes, scale, zero = signed(inputs)
    return torch.ops.qpass_cuda.int8_linear(
        codes, scale, zero, found["plain"], found["row_scale"], found["sum"], bias, found["counters"], case.dtype
    )


def signed(inputs: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor | None]:
    """Unsigned codes moved to where int8 lives; no zero point for symmetric ones."""
    codes, scale, zero = inputs
    if codes.dtype is torch.int8:
        return codes, scale, None
    return (codes.to(torch.int16) - 128).to(torch.int8), scale, zero - 128


def _prepare_fp8(names: Mapping[str, str], program: Program, case: Case) -> dict[str, Derived]:
    return {**_plain(names, case), **_counters(names, case)}


def _call_fp8(inputs: tuple[Tensor, ...], found: Mapping[str, Tensor], bias: Tensor | None, case: Case) -> Tensor:
    load()
    codes, scale, _ = inputs
    return torch.ops.qpass_cuda.fp8_linear(
        codes, scale, found["plain"], found["row_scale"], bias, found["counters"], case.dtype
    )


def _prepare_block(names: Mapping[str, str], program: Program, case: Case) -> dict[str, Derived]:
    return {"plain": _plain(names, case)["plain"], **_counters(names, case)}


def _call_block(inputs: tuple[Tensor, ...], found: Mapping[str, Tensor], bias: Tensor | None, case: Case) -> Tensor:
    load()
    codes, scale, _ = inputs
    return torch.ops.qpass_cuda.fp8_block_linear(
        codes, scale, found["plain"], found["scale"], bias, found["counters"], case.dtype
    )


def _prepare_integers(
    names: Mapping[str, str], program: Program, case: Case, *, order: Callable[[Format], str]
) -> dict[str, Derived]:
    fmt = case.scheme.weight
    found = grouped(fmt, order(fmt))
    assert found is not None
    rows, width, codes = case.out_features, case.in_features, names["codes"]
    sources = tuple(names[part] for part in ("scale", "zero") if part in names)
    shape = (found.scales(width), padded_rows(rows))
    size = {"grouped": found, "rows": rows, "width": width}
    parts = {
        "words": Derived((codes,), functools.partial(weights.pack_integers, layout=found.layout),
                         _meta(found.layout.shape(rows, width), torch.int32)),
        "group_meta": Derived(sources, functools.partial(_group_meta, **size), _meta(shape, torch.int32)),
        **_counters(names, case),
    }  # fmt: skip
    if kept_apart(fmt):
        spread = functools.partial(weights.spread_scale, **size)
        parts["group_scale"] = Derived((names["scale"],), spread, _meta(shape, fmt.scale_dtype))
    return parts


def _group_meta(scale: Tensor, zero: Tensor | None = None, **size: Any) -> Tensor:
    return weights.meta(scale, zero, **size)


def _bf16(fmt: Format) -> str:
    return "bf16"


def scale_place(fmt: Format) -> str:
    return "apart" if kept_apart(fmt) else fmt.scale


def _call_w4a16(inputs: tuple[Tensor, ...], found: Mapping[str, Tensor], bias: Tensor | None, case: Case) -> Tensor:
    load()
    fmt = case.scheme.weight
    lay = grouped(fmt, "bf16")
    assert lay is not None
    return torch.ops.qpass_cuda.w4a16_linear(
        inputs[0], found["words"], found["group_meta"], found.get("group_scale"), bias, found["counters"],
        case.out_features, lay.group, str(lay.layout), scale_place(fmt),
    )  # fmt: skip


def _prepare_w4a8_int8(names: Mapping[str, str], program: Program, case: Case) -> dict[str, Derived]:
    parts = _prepare_integers(names, program, case, order=integers)
    sources = tuple(names[part] for part in ("codes", "scale", "zero") if part in names)
    made = functools.partial(_scaled_sums, fmt=case.scheme.weight)
    return {**parts, "sum": Derived(sources, made, _meta((padded_rows(case.out_features),), torch.float32))}


def _scaled_sums(codes: Tensor, scale: Tensor, zero: Tensor | None = None, *, fmt: Format) -> Tensor:
    return weights.scaled_sums(codes, scale, zero, fmt)


def _call_w4a8_int8(inputs: tuple[Tensor, ...], found: Mapping[str, Tensor], bias: Tensor | None, case: Case) -> Tensor:
    load()
    codes, scale, zero = signed(inputs)
    fmt = case.scheme.weight
    lay = grouped(fmt, integers(fmt))
    assert lay is not None
    return torch.ops.qpass_cuda.w4a8_int8_linear(
        codes, scale, zero, found["words"], found["group_meta"], found.get("group_scale"), found["sum"], bias,
        found["counters"], case.out_features, lay.group, str(lay.layout), scale_place(fmt), case.dtype,
    )  # fmt: skip


def _prepare_w4a8_fp8(names: Mapping[str, str], program: Program, case: Case) -> dict[str, Derived]:
    fmt, rows, width = case.scheme.weight, case.out_features, case.in_features
    found = grouped(fmt, "lut")
    assert found is not None
    shape, real = (found.scales(width), padded_rows(rows)), fmt.scale_kind.is_real
    sources = tuple(names[part] for part in ("codes", "scale", "outer") if part in names)
    choose: Callable[..., Tensor] = functools.partial(_choices, fmt=fmt, grouped=found)
    return {
        "words": Derived((names["codes"],), functools.partial(weights.pack_signs, layout=found.layout),
                         _meta(found.layout.shape(rows, width), torch.int32)),
        "tables": Derived((names["scale"],), functools.partial(_tables, fmt=fmt), _meta((16, 2), torch.int32)),
        "choice": Derived(sources, choose, _meta(shape, fmt.scale_dtype if real else torch.uint8)),
        "factor": Derived(sources, functools.partial(_factors, fmt=fmt), _meta(shape[1:], torch.float32)),
        **_counters(names, case),
    }  # fmt: skip


def _tables(scale: Tensor, *, fmt: Format) -> Tensor:
    found = weights.real_table(fmt) if fmt.scale_kind.is_real else weights.tables(fmt)
    return found.to(scale.device)


def _choices(codes: Tensor, scale: Tensor, outer: Tensor | None = None, *, fmt: Format, grouped: Grouped) -> Tensor:
    if fmt.scale_kind.is_real:
        return grouped.spread(scale, *codes.shape)
    return weights.choices(codes, Scales(scale, None, outer), fmt, grouped)


def _factors(codes: Tensor, scale: Tensor, outer: Tensor | None = None, *, fmt: Format) -> Tensor:
    if fmt.scale_kind.is_real:
        return torch.ones(padded_rows(len(codes)), device=codes.device)
    return weights.factors(codes, Scales(scale, None, outer), fmt)


def _call_w4a8_fp8(inputs: tuple[Tensor, ...], found: Mapping[str, Tensor], bias: Tensor | None, case: Case) -> Tensor:
    load()
    lay = grouped(case.scheme.weight, "lut")
    assert lay is not None
    return torch.ops.qpass_cuda.w4a8_fp8_linear(
        inputs[0], inputs[1], found["words"], found["tables"], found["choice"], found["factor"], bias,
        found["counters"], case.out_features, lay.group or ONE_GROUP, str(lay.layout), case.dtype,
    )  # fmt: skip


def _refuses_up(case: Case, capability: Capability) -> str | None:
    if case.factor != "U" or case.scheme.weight.element != "int8":
        return OTHER_KIND
    if case.in_features > MAX_RANK:
        return f"it takes ranks up to {MAX_RANK}"
    return None if _plain_channel(case.scheme.weight, "int8") else "it takes int8:channel:sym weights"


def _prepare_up(names: Mapping[str, str], program: Program, case: Case) -> dict[str, Derived]:
    return _plain(names, case)


def _call_up(inputs: tuple[Tensor, ...], found: Mapping[str, Tensor], bias: Tensor | None, case: Case) -> Tensor:
    load()
    return torch.ops.qpass_cuda.low_rank_up(inputs[0], found["plain"], found["row_scale"], bias)


_FEW = f"up to {tiles.SOME} rows weights are the left operand, with split K"
_STOCK = f"{_FEW}; above, Inductor's dot with all that follows it in one kernel"
_DENSE = f"{_FEW}; from {tiles.DENSE + 1} rows weights are written out once for Inductor's dot"


def kernels(capability: Capability) -> tuple[Kernel, ...]:
    """In order of preference, for a GPU of this capability."""

    def made(name: str, rows: str, refuses: Any, prepare: Any, call: Any, parts: tuple[str, ...] = ()) -> Kernel:
        taken = functools.partial(refuses, capability=capability)
        return Kernel(f"cuda.{name}", rows, taken, prepare, call, parts, merges=True)

    words = functools.partial(_prepare_integers, order=_bf16)
    return (
        made("int8_linear", f"{_STOCK}; int32 sums are exact", _refuses_int8, _prepare_int8, _call_int8),
        made("fp8_linear", _STOCK, _refuses_fp8, _prepare_fp8, _call_fp8),
        made("fp8_block_linear", f"{_FEW}; scales multiply float32 sums of 128 products", _refuses_block,
             _prepare_block, _call_block, ("scale",)),
        made("w4a16_linear", f"{_DENSE}; float inputs are rounded to bfloat16", _refuses_w4a16, words,
             _call_w4a16),
        made("w4a8_int8_linear", f"{_FEW}; int32 sums of a group are exact", _refuses_w4a8_int8, _prepare_w4a8_int8,
             _call_w4a8_int8),
        made("w4a8_fp8_linear", f"{_DENSE}, exactly, where scales are powers of two", _refuses_w4a8_fp8,
             _prepare_w4a8_fp8, _call_w4a8_fp8),
        made("low_rank_up", "behind V: a second dot in the kernel of its linear, if that has 4-bit weights",
             _refuses_up, _prepare_up, _call_up),
    )  # fmt: skip
