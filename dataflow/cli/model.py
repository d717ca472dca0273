"""`dataflow model`: build models, and look into their files."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dataflow.cli.context import project_option, tell_build
from dataflow.core.errors import ModelError, SpecError, nearest
from dataflow.serving.signature import Port, Signature, read_signature


@click.group()
def model() -> None:
    """Build and look into models."""


@model.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
def inspect(file: Path, form: str) -> None:
    """Show the inputs and outputs of an ONNX FILE, as it states them and as fields of a contract."""
    try:
        signature = read_signature(file)
    except ModelError as error:
        raise click.ClickException(str(error)) from error
    if form == "json":
        click.echo(json.dumps(as_json(file, signature), indent=2))
        return
    _print(file, signature)


@model.command()
@click.argument("names", nargs=-1)
@project_option
def build(names: tuple[str, ...], project: Path) -> None:
    """Build the models NAMES (all if none is named) that are missing, or whose inputs have changed."""
    from dataflow.control.assemble import build_models
    from dataflow.spec import load_project

    declared = load_project(project, environ=os.environ)
    for name in names:
        if name not in declared.models:
            raise SpecError(f"no model '{name}'", hint=nearest(name, declared.models))
    for name in names or declared.models:
        made = build_models(declared, [name], tell_build)[name]
        click.echo(f"{name}: {made.file}, sha256 {made.digest[:12]}")


@model.command(name="list")
@project_option
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
def list_models(project: Path, form: str) -> None:
    """List the declared models: the file, whether it is there, and how it is made."""
    from dataflow.spec import load_project

    declared = load_project(project, environ=os.environ).models
    rows = [
        {
            "name": name,
            "file": str(found.folder.relative_to(project) / found.spec.file),
            "exists": (found.folder / found.spec.file).is_file(),
            "build": found.spec.build,
            "doc": found.spec.doc,
        }
        for name, found in declared.items()
    ]
    if form == "json":
        click.echo(json.dumps({"models": rows}, indent=2))
        return
    if not rows:
        click.echo("no models are declared")
        return
    table = Table("model", "file", "", "build", box=None, pad_edge=False)
    for row in rows:
        state = "there" if row["exists"] else "[yellow]not built[/]"
        lines = str(row["build"]).strip().splitlines()
        command = lines[0] + (" ..." if len(lines) > 1 else "") if lines else ""
        table.add_row(escape(str(row["name"])), escape(str(row["file"])), state, escape(command))
    Console().print(table)


def as_json(file: Path, signature: Signature) -> dict[str, Any]:
    """The signature as plain data; `field` is null for what a contract cannot carry, `problem` then says why."""
    return {
        "file": str(file),
        "size_bytes": signature.size_bytes,
        "opset": signature.opset,
        "producer": signature.producer,
        "batch": signature.batch if signature.batch > 0 else None,
        "metadata": dict(signature.metadata),
        "inputs": [_port(p) for p in signature.ports_in],
        "outputs": [_port(p) for p in signature.ports_out],
    }


def _port(port: Port) -> dict[str, Any]:
    return {
        "name": port.name,
        "type": port.onnx_type,
        "shape": list(port.shape),
        "field": port.type.describe() if port.type is not None else None,
        **({"problem": port.problem} if port.problem else {}),
    }


def _print(file: Path, signature: Signature) -> None:
    console = Console(soft_wrap=True)
    table = Table("", "name", "type", "shape", "field", title=escape(str(file)), title_justify="left")
    for side, ports in (("input", signature.ports_in), ("output", signature.ports_out)):
        for port in ports:
            shape = "[" + ", ".join("?" if size in {None, ""} else str(size) for size in port.shape) + "]"
            shown = escape(port.type.describe()) if port.type is not None else "[red]cannot be carried[/]"
            table.add_row(side, escape(port.name), escape(port.onnx_type), escape(shape), shown)
    console.print(table)
    batch = "any number of rows" if signature.batch < 0 else f"{signature.batch} rows, fixed"
    facts = [f"one run takes {batch}", f"opset {signature.opset}", f"{signature.size_bytes:,} bytes"]
    if signature.producer:
        facts.append(f"by {signature.producer}")
    console.print(escape("; ".join(facts)))
    for key, value in signature.metadata.items():
        console.print(escape(f"{key}: {value}"), style="dim")
    for port in (*signature.ports_in, *signature.ports_out):
        if port.problem:
            console.print(f"[red]{escape(port.name)}[/]: {escape(port.problem)}")
