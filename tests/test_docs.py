"""The documents agree with the code: tables are complete, links lead somewhere, the generated page is up to date."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from qpass import errors
from qpass.formats import SCHEMES, Scheme
from qpass.stages import STAGES

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def first_column(page: str, section: str) -> list[str]:
    """The words in backquotes that begin the rows of a section's table."""
    return re.findall(r"^\| `([^`]+)` \|", text(page).split(f"\n## {section}\n")[1].split("\n## ")[0], re.M)


def test_pipeline_page_is_up_to_date() -> None:
    done = subprocess.run([sys.executable, ROOT / "docs" / "generate_pipeline.py", "--check"], cwd=ROOT, timeout=600)
    assert done.returncode == 0, "run: python docs/generate_pipeline.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_paths_exist(page: Path) -> None:
    found = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#]+)\)", found):
        assert (page.parent / link).exists(), link
    for path in re.findall(r"`((?:qpass|lowering|tests|docs|examples)/[\w./-]+)`", found):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_snippets_are_python(page: Path) -> None:
    for block in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S):
        ast.parse(block)


def test_snippets_copied_from_the_code() -> None:
    for page, code in (("docs/add-a-pattern.md", "qpass/patterns/cache_update.py"),
                       ("docs/add-a-site-rule.md", "qpass/sites/rules/embedding.py")):  # fmt: skip
        (block,) = re.findall(r"```python\n(.*?)```", text(page), re.S)
        assert block == text(code)


def test_tables() -> None:
    assert first_column("README.md", "Schemes") == list(SCHEMES)
    assert first_column("README.md", "Stages") == list(STAGES)
    assert str(Scheme.parse("int8:channel:sym x int8:token:asym")) == str(SCHEMES["w8a8-int8"])
    rows = re.findall(r"^\| `(\w+Error)` \|.*\| (\d+) \|$", text("docs/errors.md"), re.M)
    classes = [value for value in vars(errors).values() if isinstance(value, type) and value is not errors.QPassError]
    assert dict(rows) == {cls.__name__: str(cls.exit_code) for cls in classes if issubclass(cls, errors.QPassError)}


def test_ci_runs_the_command_of_the_readme() -> None:
    after = text("README.md").split("<!-- ci: test command -->")[1]
    (command,) = re.findall(r"^```bash\n(.*?)```", after, re.S | re.M)
    assert command.endswith(".venv/bin/ruff check . && .venv/bin/mypy && .venv/bin/pytest\n")
    assert command.count("\n") == 1
