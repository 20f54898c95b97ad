"""The layout rules of the design: who may import whom, and what may be written where."""

from __future__ import annotations

import ast
import io
import re
import tokenize
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted(path for folder in ("qpass", "lowering") for path in (ROOT / folder).rglob("*.py"))

# Each row may import the rows above it and its own. What is in no row is on top, and may import all.
ROWS = (
    ("errors", "files", "formats", "numerics"),
    ("ops",),
    ("graph",),
    ("capture",),
    ("patterns", "fusions", "sites", "observe", "ranges"),
    ("learn",),
    ("methods",),
    ("recipe", "presets", "stages"),
    ("passes",),
    ("pipeline",),
)
RANK = {name: rank for rank, row in enumerate(ROWS) for name in row}
LOWERING_MAY = {"errors", "formats", "numerics", "ops", "graph", "lowering"}
PRIVATE_ALLOWED = ("qpass/capture/", "lowering/inductor/")
FAMILIES = re.compile(
    r"(?<![a-z])(llama|qwen|gemma|opt|bert|roberta|mistral|mixtral|phi|gpt|neox|falcon|bloom|olmo|cohere|deepseek)"
    r"(?![a-z])",
    re.IGNORECASE,
)
PRIVATE = re.compile(r"\b(?:torch\.(?!ops\.)(?:\w+\.)*_(?!_)\w+|fx\._\w+|from ?torch(?:\.\w+)*\._\w+)")
# ATen ops that have no public name, and the ABI flag that an extension must be built with.
PRIVATE_OPS = {"torch._int_mm", "torch._weight_int8pack_mm", "torch._C._GLIBCXX_USE_CXX11_ABI"}


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def part(path: Path) -> str:
    """``graph`` for qpass/graph/show.py, ``errors`` for qpass/errors.py, ``lowering`` for lowering/...."""
    parts = path.relative_to(ROOT).parts
    return "lowering" if parts[0] == "lowering" else parts[1].removesuffix(".py")


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, part of qpass) for every import of qpass, anywhere in the file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and (node.module or "").split(".")[0] == "qpass":
            parts = (node.module or "").split(".")
            yield from ((node.lineno, found) for found in (parts[1:2] or [alias.name for alias in node.names]))
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("qpass."):
                    yield node.lineno, alias.name.split(".")[1]


def code_of(path: Path, *, strings: bool = True) -> list[tuple[int, str]]:
    """(line, text) of the tokens that are neither comments nor docstrings, nor any string without ``strings``."""
    source = path.read_text()
    docs = {node.body[0].lineno: node.body[0].end_lineno for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None}
    lines: dict[int, list[str]] = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        doc = token.type == tokenize.STRING and token.start[0] in docs and token.end[0] == docs[token.start[0]]
        if token.type != tokenize.COMMENT and not doc and (strings or token.type != tokenize.STRING):
            lines.setdefault(token.start[0], []).append(token.string)
    return [(line, "".join(text)) for line, text in lines.items()]


@pytest.mark.parametrize("path", FILES, ids=name)
def test_imports_point_down(path: Path) -> None:
    here = part(path)
    for line, there in imports(ast.parse(path.read_text())):
        where = f"{name(path)}:{line} imports qpass.{there}"
        if here == "lowering":
            assert there in LOWERING_MAY, where
        elif here in RANK:
            kernels = there == "lowering" and here in ("passes", "pipeline")
            assert kernels or RANK.get(there, len(ROWS)) <= RANK[here], where
            assert not (here == "graph" and there in ("ops", "numerics", "formats")), where


@pytest.mark.parametrize("path", FILES, ids=name)
def test_private_torch_names_are_in_one_place(path: Path) -> None:
    if not name(path).startswith(PRIVATE_ALLOWED):
        found = [f"{name(path)}:{line} {match}" for line, text in code_of(path, strings=False)
                 for match in PRIVATE.findall(text) if match not in PRIVATE_OPS]
        assert not found


@pytest.mark.parametrize("path", FILES, ids=name)
def test_no_model_family_is_named_in_code(path: Path) -> None:
    if not name(path).startswith("qpass/assets/"):
        found = [f"{name(path)}:{line} {text}" for line, text in code_of(path) if FAMILIES.search(text)]
        assert not found


@pytest.mark.parametrize("path", FILES, ids=name)
def test_files_and_functions_are_short(path: Path) -> None:
    source = path.read_text()
    assert source.count("\n") <= 400, f"{name(path)} has {source.count(chr(10))} lines; split it at 400"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= 60, f"{name(path)}:{node.lineno} {node.name} has {length} lines; split it at 60"


def test_the_checks_see_what_they_look_for() -> None:
    source = "from qpass import ops\nimport qpass.graph.show\ndef f():\n from qpass.a import b"
    assert list(imports(ast.parse(source))) == [(1, "ops"), (2, "graph"), (4, "a")]
    for text in ("torch._ops.X", "fx._symbolic", "from torch._inductor import x", "torch.utils._pytree"):
        assert PRIVATE.search(text)
    assert not PRIVATE.search("torch.ops.aten._softmax.default") and not PRIVATE.search("torch.nn.functional")
    assert not PRIVATE.search("torch.__file__")
    assert FAMILIES.search("is_llama(model)") and FAMILIES.search("'gpt_neox'") and not FAMILIES.search("options")


NAMES = re.compile(r"llama|qwen|gemma|mi[xs]tral|\bbert\b|\bgpt(?!a?q)|falcon|deepseek|olmo|\bphi[34]?\b|\bopt\b|bloom",
                   re.I)  # fmt: skip


@pytest.mark.parametrize("path", [path for path in FILES if "qpass" in path.parts], ids=name)
def test_no_architecture_is_named(path: Path) -> None:
    """What a model is follows from its dataflow; what qpass ships is named in its assets."""
    if path.parent.name == "assets":
        return
    found = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if NAMES.search(line)]
    assert not found


def test_every_folder_of_code_is_installed() -> None:
    """setuptools takes what is listed, and an editable install would not show what is missing."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {path.parent.relative_to(ROOT).parts for path in FILES if path.name == "__init__.py"}
    names = {".".join(parts if parts[0] == "qpass" else ("qpass", *parts)) for parts in folders}
    assert sorted(listed) == sorted(names)
