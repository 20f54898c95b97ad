"""The graph cut into its repeated blocks, with what is before and behind them, and what passes between.

A block is a member of a numbered container (``layers.0``, ``layers.1``, ...), as the modules say that made the nodes;
where no module says anything, it is a stretch between two places that only one value crosses, repeated. Values that
every block reads (masks, rotary tables, sizes) and that no weight makes belong to the prologue, whoever made them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, fx

from qpass.errors import UnsupportedError
from qpass.graph.program import Program
from qpass.sites.stacks import by_modules, by_structure

PROLOGUE, EPILOGUE = "prologue", "epilogue"


@dataclass(frozen=True)
class Segment:
    """A part of a program that can be run by itself.

    Args:
        name: ``prologue``, ``epilogue``, or the path of the module that is the block.
        nodes: value names of its inputs to the program and calls, in graph order. Parameters belong to nobody.
        inputs: values of earlier segments that it reads.
        outputs: its values that later segments read or the program returns.
        results: of these, what later segments compute with; if there is none, the tensors that the program returns.
        params: parameters that it reads.
    """

    name: str
    nodes: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    results: tuple[str, ...]
    params: tuple[str, ...]


@dataclass(frozen=True)
class Blocks:
    """A program in segments, in the order they run.

    Args:
        prologue, epilogue: what no block needs a block for, and what needs the last of them.
        blocks: in order; several stacks (an encoder, then a decoder) follow one another.
        source: ``modules`` or ``structure``: what the cut was found from.
        level: value name -> number of its segment: -1 the prologue, ``len(blocks)`` the epilogue.
    """

    prologue: Segment
    blocks: tuple[Segment, ...]
    epilogue: Segment
    source: str
    level: Mapping[str, int]

    def __str__(self) -> str:
        lines = [f"{len(self.blocks)} blocks, found from {self.source}"]
        lines += [f"{part.name}: {len(part.nodes)} values, reads {', '.join(part.inputs) or 'nothing'}; gives "
                  f"{', '.join(part.outputs) or 'nothing'}" for part in (self.prologue, *self.blocks, self.epilogue)]
        return "\n".join(lines)

    def shared(self) -> dict[str, list[str]]:
        """Parameters that several blocks read -> the names of these blocks."""
        readers: dict[str, list[str]] = {}
        for block in self.blocks:
            for name in block.params:
                readers.setdefault(name, []).append(block.name)
        return {name: found for name, found in readers.items() if len(found) > 1}


def partition(program: Program) -> Blocks:
    """The blocks of a program of stage NORMAL to SOLVED. The program is not changed.

    Raises:
        UnsupportedError: there is no repeated block, or blocks feed one another in a circle.
    """
    for source, find in (("modules", by_modules), ("structure", by_structure)):
        names, own = find(program)
        if names and (levels := _levels(program, own, len(names))) is not None:
            return _segments(program, names, levels, source)
    raise UnsupportedError("the model has no repeated block", where="its graph",
                           fix="use methods that need no blocks, such as smoothquant, or round to nearest")  # fmt: skip


def _levels(program: Program, own: Mapping[fx.Node, int], count: int) -> dict[fx.Node, int] | None:
    """The segment of every input and call, or None where a block would need a later one."""
    shared = _shared(program, own)
    ahead = _feeds(program, own)
    levels: dict[fx.Node, int] = {}
    for node in program.graph.nodes:
        if node.op in ("get_attr", "output"):
            continue
        least = max((levels[source] for source in node.all_input_nodes if source in levels), default=-1)
        if node.op == "placeholder" or node in shared:
            levels[node] = -1
        elif node in own:
            levels[node] = own[node]
            if least > own[node]:
                return None
        else:
            levels[node] = least if least in (-1, count) or ahead[node] > least else count
    return levels


def _shared(program: Program, own: Mapping[fx.Node, int]) -> set[fx.Node]:
    """Calls in one block that another one reads too and that follow from the program's inputs without a weight."""
    pure: set[fx.Node] = set()
    for node in program.graph.nodes:
        sources = node.all_input_nodes
        if node.op == "placeholder" or (
            node.op == "call_function"
            and all(source in pure or (source.op == "get_attr" and source.target not in program.weights)
                    for source in sources)
        ):  # fmt: skip
            pure.add(node)
    found: set[fx.Node] = set()
    for node in reversed(program.graph.nodes):
        if node in pure and node in own and any(user in found or own.get(user) != own[node] for user in node.users):
            found.add(node)
    return found


def _feeds(program: Program, own: Mapping[fx.Node, int]) -> dict[fx.Node, int]:
    """The last block that a node's value reaches through nodes of no block; -1 for none."""
    found: dict[fx.Node, int] = {}
    for node in reversed(program.graph.nodes):
        found[node] = max((own.get(user, found[user]) for user in node.users), default=-1)
    return found


def _segments(program: Program, names: list[str], levels: Mapping[fx.Node, int], source: str) -> Blocks:
    members: dict[int, list[fx.Node]] = {level: [] for level in range(-1, len(names) + 1)}
    for node, level in levels.items():
        members[level].append(node)
    parts = [_segment(name, members[level], levels) for level, name in enumerate([PROLOGUE, *names, EPILOGUE], -1)]
    by_name = {node.meta["name"]: number for node, number in levels.items()}
    return Blocks(parts[0], tuple(parts[1:-1]), parts[-1], source, by_name)


def _segment(name: str, nodes: list[fx.Node], levels: Mapping[fx.Node, int]) -> Segment:
    inside = set(nodes)
    inputs: dict[str, None] = {}
    params: dict[str, None] = {}
    outputs, results = [], []
    for node in nodes:
        for source in node.all_input_nodes:
            if source.op == "get_attr":
                params[str(source.target)] = None
            elif source not in inside:
                inputs[source.meta["name"]] = None
        later = [user for user in node.users if user not in inside]
        if later:
            outputs.append(node)
        if any(user in levels for user in later):
            results.append(node)
    floats = [node for node in (results or outputs) if _is_float(node)]
    return Segment(name, _named(nodes), tuple(inputs), _named(outputs), _named(floats), tuple(params))


def _named(nodes: list[fx.Node]) -> tuple[str, ...]:
    return tuple(node.meta["name"] for node in nodes)


def _is_float(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.is_floating_point()
