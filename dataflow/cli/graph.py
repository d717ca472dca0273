"""`dataflow graph`: a pipeline as a picture."""

from __future__ import annotations

import json
import os
from pathlib import Path

import click

from dataflow.cli.context import project_option, tell_build


@click.command()
@click.argument("pipelines", nargs=-1)
@project_option
@click.option(
    "--format", "form", type=click.Choice(["text", "mermaid", "json"]), default="text", show_default=True
)
def graph(pipelines: tuple[str, ...], project: Path, form: str) -> None:
    """Draw PIPELINES (all if none is named) in the terminal, as Mermaid, or print them as JSON."""
    from dataflow.control.assemble import assemble
    from dataflow.planner.draw import graph_as_dict, graph_as_mermaid, graph_as_text

    made = assemble(project, pipelines, environ=os.environ, on_build=tell_build)
    if form == "json":
        click.echo(json.dumps({"pipelines": [graph_as_dict(p) for p in made.plans]}, indent=2))
        return
    draw = graph_as_mermaid if form == "mermaid" else graph_as_text
    click.echo("\n".join(draw(p) for p in made.plans), nl=False)
