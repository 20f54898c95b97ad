"""Which of a target's providers computes a node, and why another does not."""

from __future__ import annotations

from torch import fx

from qpass.graph.program import Program
from qpass.graph.values import op_name
from qpass.lowering import Accumulator, Provider, Target
from qpass.passes.cache_codes import on_codes, planned_calls
from qpass.passes.plan_attention import scheme_of as attention_scheme


def provider_refuses(provider: Provider, node: fx.Node, context: int) -> str | None:
    """Why the target's provider does not compute ``node`` for up to ``context`` tokens; None if it does."""
    reason = provider.refuses(*fx.map_arg(node.args, lambda arg: arg.meta["val"]))
    if reason is not None:
        return reason
    over = next((part for part in accumulators(provider, node, context) if not part.fits), None)
    if over is None:
        return None
    return f"{over.name} can reach {over.most} in {context} tokens, beyond {over.bits} bits"


def accumulators(provider: Provider, node: fx.Node, context: int) -> tuple[Accumulator, ...]:
    """What has to fit inside the provider's kernel for ``node``."""
    if provider.accumulators is None:
        return ()
    return tuple(provider.accumulators(context, *fx.map_arg(node.args, lambda arg: arg.meta["val"])))


def context_of(program: Program) -> int:
    """The most tokens of an integer-only program; 0 for a float one, whose kernels have nothing to prove."""
    return int(getattr(program.call, "context", 0))


def provided(program: Program, target: Target) -> tuple[str, ...]:
    """For each op that the target may compute otherwise than by its meaning: what does, or why nothing does."""
    lines = []
    for name, provider in target.providers.items():
        if name == "kv_attention":
            reasons = [provider.refuses(*args) for args in planned_calls(program)]
        else:
            reasons = [provider_refuses(provider, node, context_of(program)) for node in _computed(program, name)]
        if None in reasons:
            lines.append(f"kernel {provider.name}, {reasons.count(None)} of {len(reasons)} {name}: {provider.about}")
        lines += [f"{name} compiled from its meaning: {reason}" for reason in dict.fromkeys(reasons) if reason]
    return tuple(lines)


def _computed(program: Program, name: str) -> list[fx.Node]:
    """The nodes of an op that stay that op: not attention over codes, nor experts with a scheme."""
    return [node for node in program.graph.nodes if op_name(node.target) == f"qpass.{name}"
            and not getattr(attention_scheme(node), "p", None) and not on_codes(node)
            and not getattr(node.meta.get("experts"), "scheme", None)]  # fmt: skip
