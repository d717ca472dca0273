from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from pydantic import Field

from dataflow.cli.describe import Setting, kind_as_markdown, kinds_reference, settings_of
from dataflow.core.outcomes import Out
from dataflow.registry import Registry
from dataflow.sdk import Batch, Settings, node
from tests.cli.project import call, make


class Inner(Settings):
    """Part of it."""

    deep: int = 1


class All(Settings):
    """What it takes."""

    name: str = Field(description="The name | of it.")
    mode: Literal["a", "b"] = Field(default="a", description="How.")
    low: float | None = Field(default=None, ge=0, lt=1)
    many: tuple[str, ...] = ("x", "y")
    by_name: dict[str, int] = Field(default_factory=dict)
    inner: Inner = Inner()
    on: bool = Field(default=False, alias="switch")


@node(
    "logic.sample",
    settings=All,
    inputs=("left", "right"),
    outputs=("out", "rest"),
    example="kind: Topic",
    pure=False,
)
def sample(batch: Batch, out: Out, settings: All) -> None:
    """Do it
    at once.

    More of it.
    """


def test_settings_are_described_by_their_model() -> None:
    assert settings_of(All) == [
        Setting("name", "text", "", True, "The name | of it."),
        Setting("mode", "one of a, b", "a", False, "How."),
        Setting("low", "number, at least 0, below 1 or null", "null", False, ""),
        Setting("many", "list of text", '["x", "y"]', False, ""),
        Setting("by_name", "mapping of text to whole number", "{}", False, ""),
        Setting("inner", "mapping", "its own defaults", False, ""),
        Setting("switch", "true or false", "false", False, ""),
    ]


def test_a_kind_as_markdown() -> None:
    kind = Registry.of(sample).get("logic.sample")
    assert kind_as_markdown(kind).startswith(
        "## `logic.sample`\n\nDo it\nat once.\n\nMore of it.\n\n"
        "Ports: left, right → out, rest. Has effects: off in replays.\n\nWhat it takes.\n\n"
        "| setting | type | default | meaning |\n| --- | --- | --- | --- |\n"
        "| `name` | text | required | The name \\| of it. |\n| `mode` | one of a, b | `a` | How. |\n"
    )
    assert kind_as_markdown(kind).endswith("```yaml\nkind: Topic\n```\n")


def test_the_page_lists_all_kinds() -> None:
    page = kinds_reference(Registry.of(sample))
    assert "| [`logic.sample`](#logicsample) | left, right → out, rest | no | Do it at once. |" in page


def test_list(tmp_path: Path) -> None:
    output = call(make(tmp_path), "nodes").output
    for kind in Registry.default().kinds():
        assert kind.name in output


def test_the_projects_own_kinds_are_listed(tmp_path: Path) -> None:
    code = "from dataflow.sdk import node\n\n@node('transform.own')\ndef own(batch, out, settings):\n    '''Mine.'''\n"
    make(tmp_path, nodes__own_py=code)
    assert "transform.own" in call(tmp_path, "nodes").output
    found = json.loads(call(tmp_path, "nodes", "show", "transform.own", "--format", "json").output)
    assert found["settings"] == []
    assert found["doc"] == "Mine."
    assert found["file"].endswith("nodes/own.py")
    assert "It has no settings." in call(tmp_path, "nodes", "show", "transform.own").output


def test_every_kind_can_be_shown(tmp_path: Path) -> None:
    for kind in Registry.default().kinds():
        output = call(tmp_path, "nodes", "show", kind.name).output
        assert output.startswith(kind.name)
        assert kind.example.splitlines()[0] in output


def test_formats(tmp_path: Path) -> None:
    kinds = json.loads(call(tmp_path, "nodes", "--format", "json").output)["kinds"]
    assert {k["name"]: k["outputs"] for k in kinds}["route.when"] is None
    assert call(tmp_path, "nodes", "--format", "markdown").output == kinds_reference(Registry.default())
    shown = call(tmp_path, "nodes", "show", "route.when", "--format", "markdown").output
    assert shown.startswith("# `route.when`\n")


def test_unknown_kind(tmp_path: Path) -> None:
    result = call(tmp_path, "nodes", "show", "route.wen")
    assert result.exit_code == 1
    assert result.stderr == "Error: unknown node kind 'route.wen' (did you mean 'route.when'?)\n"
