"""`dataflow nodes`: what a node can be."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dataflow.cli.context import project_option

if TYPE_CHECKING:
    from dataflow.sdk import NodeKind

_FORMATS = click.Choice(["text", "json", "markdown"])


@click.group(invoke_without_command=True)
@click.pass_context
@project_option
@click.option("--format", "form", type=_FORMATS, default="text", show_default=True)
def nodes(context: click.Context, project: Path, form: str) -> None:
    """List node kinds: ours, those of installed packages, and those in the project's nodes/ folder."""
    if context.invoked_subcommand is not None:
        return
    from dataflow.cli.describe import first_line, kind_as_dict, kinds_reference, ports_text
    from dataflow.registry import Registry

    registry = Registry.default(project)
    if form == "json":
        found = [kind_as_dict(k, registry.files.get(k.name, "")) for k in registry.kinds()]
        click.echo(json.dumps({"kinds": found}, indent=2))
    elif form == "markdown":
        click.echo(kinds_reference(registry), nl=False)
    else:
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table

        shown = Table("kind", "ports", "pure", "what it does", box=None, pad_edge=False)
        for kind in registry.kinds():
            shown.add_row(
                kind.name, escape(ports_text(kind)), "yes" if kind.pure else "no", escape(first_line(kind))
            )
        Console().print(shown)
        click.echo("\ndataflow nodes show KIND tells its settings, with an example that runs")


@nodes.command()
@click.argument("kind")
@project_option
@click.option("--format", "form", type=_FORMATS, default="text", show_default=True)
def show(kind: str, project: Path, form: str) -> None:
    """Show one KIND: what it does, its ports and settings, an example that runs."""
    from dataflow.cli.describe import kind_as_dict, kind_as_markdown
    from dataflow.registry import Registry

    registry = Registry.default(project)
    found = registry.get(kind)
    if form == "json":
        click.echo(json.dumps(kind_as_dict(found, registry.files.get(kind, "")), indent=2))
    elif form == "markdown":
        click.echo(kind_as_markdown(found, level=1), nl=False)
    else:
        _print(found)


def _print(kind: NodeKind) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from dataflow.cli.describe import paragraphs, ports_text, settings_of

    console = Console()
    effects = "pure" if kind.pure else "has effects"
    console.print(Text(f"{kind.name}   {ports_text(kind)}   {effects}", style="bold"))
    console.print(Text(f"\n{paragraphs(kind.doc)}\n"))
    settings = settings_of(kind.settings)
    if not settings:
        console.print("It has no settings.")
    else:
        console.print(Text(paragraphs(inspect.cleandoc(kind.settings.__doc__ or ""))))
        shown = Table("setting", "type", "default", "meaning", show_lines=False)
        for setting in settings:
            default = "required" if setting.required else setting.default
            shown.add_row(Text(setting.name), Text(setting.type), Text(default), Text(setting.doc))
        console.print(shown)
    if kind.example:
        console.print("\nexample")
        for line in kind.example.splitlines():
            click.echo(f"  {line}".rstrip())
