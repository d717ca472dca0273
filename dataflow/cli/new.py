"""`dataflow new`: a project that lints, tests and runs; from an ONNX file, one that serves it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Final

import click

from dataflow.core.errors import SpecError

_SUFFIX: Final = ".template"


@click.command()
@click.argument("name", type=click.Path(path_type=Path))
@click.option(
    "--model",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="An ONNX file: the project serves it.",
)
def new(name: Path, model: Path | None) -> None:
    """Make the folder NAME with a project that lints, tests and runs.

    With --model its one pipeline runs that ONNX file: the contract is read from the model, and request.json is a
    request that it answers.
    """
    if model is None:
        make_project(name)
    else:
        from dataflow.cli.new_app import make_app

        for line in make_app(name, model):
            click.echo(line, err=True)
    click.echo(f"made {name}; go on with:")
    click.echo(f"  cd {name}")
    click.echo("  dataflow test")
    click.echo("  dataflow up")


def make_project(folder: Path) -> None:
    """Write the example project into the new folder `folder`. Raises SpecError if it is there and not empty."""
    name = project_name(folder)
    write_folder(folder, lambda part: copy_template("project", part, {"name": name}))


def project_name(folder: Path) -> str:
    """A name for topics and pipelines from that of the folder."""
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", folder.resolve().name).strip("-")
    if not re.match(r"[A-Za-z]", name):
        raise SpecError(f"'{folder.name}' is no name for a project", hint="start it with a letter")
    return name[:60]


def write_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Have `write` fill a folder that appears at `folder` complete or not at all."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SpecError(f"'{folder}' is there already and not empty", hint="choose another name")
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = folder.parent / f".{folder.resolve().name}.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        write(part)
        if folder.exists():
            folder.rmdir()
        part.rename(folder.resolve())
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def copy_template(template: str, folder: Path, values: Mapping[str, str]) -> None:
    """Copy a template's files into `folder`, each ``@word@`` in names and texts replaced."""
    _copy(files("dataflow.cli") / "templates" / template, folder, values)


def _copy(source: Traversable, folder: Path, values: Mapping[str, str]) -> None:
    folder.mkdir(exist_ok=True)
    for entry in source.iterdir():
        name = _filled(entry.name.removesuffix(_SUFFIX), values)
        if entry.is_dir():
            _copy(entry, folder / name, values)
        elif entry.name.endswith(_SUFFIX):
            name = ".gitignore" if name == "gitignore" else name
            (folder / name).write_text(_filled(entry.read_text(encoding="utf-8"), values), encoding="utf-8")


def _filled(text: str, values: Mapping[str, str]) -> str:
    for word, value in values.items():
        text = text.replace(f"@{word}@", value)
    return text
