"""`dataflow schema`: what an editor needs to complete and check declarations."""

from __future__ import annotations

import json
from pathlib import Path

import click

from dataflow.cli.context import project_option


@click.command()
@project_option
def schema(project: Path) -> None:
    """Print the JSON Schema of declarations, the project's own node kinds included, for editors.

    In VS Code (YAML extension): "yaml.schemas": {"dataflow.schema.json": ["topics/**", "pipelines/**/*.yaml"]}.
    """
    from dataflow.registry import Registry
    from dataflow.spec.schema import declarations_schema

    click.echo(json.dumps(declarations_schema(Registry.default(project).kinds()), indent=2))
