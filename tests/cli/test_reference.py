from __future__ import annotations

import re
from pathlib import Path

from dataflow.cli.describe import settings_of
from dataflow.cli.main import SECTIONS
from dataflow.cli.meanings import MEANINGS
from dataflow.cli.reference import constants_of, declarations, pages
from dataflow.core import errors, headers, limits
from tests.cli.project import call


def test_pages_are_written_and_checked(tmp_path: Path) -> None:
    assert call(tmp_path, "reference", "--write", str(tmp_path / "docs")).exit_code == 0
    assert sorted(p.name for p in (tmp_path / "docs").iterdir()) == [
        "cli.md", "errors.md", "headers.md", "kinds.md", "metrics.md", "settings.md",
    ]  # fmt: skip
    assert call(tmp_path, "reference", "--check", str(tmp_path / "docs")).exit_code == 0
    (tmp_path / "docs/cli.md").write_text("old")
    (tmp_path / "docs/kinds.md").unlink()
    result = call(tmp_path, "reference", "--check", str(tmp_path / "docs"))
    assert result.exit_code == 1
    assert f"stale in {tmp_path / 'docs'}: cli.md, kinds.md" in result.stderr


def test_nothing_is_left_out() -> None:
    found = pages()
    for commands in SECTIONS.values():
        for name in commands:
            assert f"`dataflow {name}`" in found["cli.md"]
    for name, value in vars(headers).items():
        if isinstance(value, str) and value.startswith("df-"):
            assert f"| `{value}` |" in found["headers.md"], name
    for name in vars(limits):
        if name.isupper():
            assert f"| `{name}` |" in found["settings.md"]
    for name, value in vars(errors).items():
        if isinstance(value, type) and issubclass(value, Exception):
            assert f"| `{name}` |" in found["errors.md"]
    assert "| `dataflow_gateway_requests_total` | counter | pipeline, status |" in found["metrics.md"]
    assert "| `dataflow_node_failed_total` | counter | error, kind, node, pipeline |" in found["metrics.md"]


def test_every_constant_that_is_shown_says_why() -> None:
    for module in (headers, limits):
        for paragraph in constants_of(module):
            first = paragraph.constants[0]
            assert first.comment or paragraph.comment or first.name.startswith(("TRACE", "STATUS")), first


def test_pages_do_not_depend_on_the_machine() -> None:
    for name, text in pages().items():
        assert "/home/" not in text, name
        assert "/root/" not in text, name
        assert not re.search(r"0x[0-9a-f]{6,}", text), name


def test_every_setting_of_a_declaration_has_a_meaning() -> None:
    models = [model for parts in declarations().values() for _, model in parts]
    assert {m.__name__: [s.name for s in settings_of(m)] for m in models} == {
        name: list(meanings) for name, meanings in MEANINGS.items()
    }
