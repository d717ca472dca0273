"""House rules as tests, so that nobody has to remember them in a review."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("dataflow", "nodes", "benchmarks", "pipelines", "scripts")
MAX_MODULE_LINES = 400
MAX_FUNCTION_LINES = 70


@cache
def sources() -> tuple[Path, ...]:
    """Python files of ours that are not tests: what git tracks or would."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    return tuple(ROOT / f for f in listed if f.split("/")[0] in ROOMS and (ROOT / f).exists())


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for found in ast.walk(ast.parse(path.read_text())):
        if isinstance(found, ast.FunctionDef | ast.AsyncFunctionDef):
            yield found


def test_the_rules_see_the_code() -> None:
    assert len(sources()) > 50


def test_modules_fit_in_the_head() -> None:
    long = {
        str(p.relative_to(ROOT)): n for p in sources() if (n := p.read_text().count("\n")) > MAX_MODULE_LINES
    }
    assert not long


def test_functions_fit_on_a_page() -> None:
    long = {}
    for path in sources():
        for function in functions(path):
            lines = (function.end_lineno or function.lineno) - function.lineno + 1
            if lines > MAX_FUNCTION_LINES:
                long[f"{path.relative_to(ROOT)}:{function.lineno} {function.name}"] = lines
    assert not long


def test_nothing_is_left_unfinished() -> None:
    marks = re.compile(r"\b(TODO|FIXME|XXX)\b")
    found = [
        f"{p.relative_to(ROOT)}:{n}"
        for p in sources()
        for n, line in enumerate(p.read_text().splitlines(), 1)
        if marks.search(line)
    ]
    assert not found


def test_every_module_says_what_it_is() -> None:
    silent = [
        str(p.relative_to(ROOT))
        for p in sources()
        if p.name != "__init__.py" and not ast.get_docstring(ast.parse(p.read_text()))
    ]
    assert not silent


def test_every_limit_has_its_reason() -> None:
    lines = (ROOT / "dataflow/core/limits.py").read_text().splitlines()
    constants = [i for i, line in enumerate(lines) if re.match(r"[A-Z_]+: Final", line)]
    assert constants
    for index in constants:
        above = index - 1
        while re.match(r"[A-Z_]+: Final", lines[above]):
            above -= 1  # constants that belong together share a reason
        assert lines[above].startswith("#"), lines[index]


def node_files() -> list[str]:
    return sorted(p.stem for p in (ROOT / "nodes").glob("*.py") if not p.name.startswith("_"))


@pytest.mark.parametrize("name", node_files())
def test_every_kind_has_a_page_an_example_and_a_test(name: str) -> None:
    import importlib

    from dataflow.registry import Registry

    assert (ROOT / f"tests/nodes/test_{name}.py").is_file()
    kinds = Registry.scan([importlib.import_module(f"nodes.{name}")]).kinds()
    assert kinds
    for kind in kinds:
        assert kind.doc, kind.name
        assert "kind: Pipeline" in kind.example, kind.name
        assert kind.settings.__doc__, kind.name
