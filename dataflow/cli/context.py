"""What commands share: where the project is, which cluster is asked for, how a model's build is told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import click

SETTINGS_FILE: Final = "dataflow.yaml"
BOOTSTRAP_VARIABLE: Final = "DATAFLOW_BOOTSTRAP"

Command = TypeVar("Command", bound=Callable[..., Any])


def find_project(start: Path) -> Path:
    """The nearest folder at or above `start` with a `dataflow.yaml`; `start` itself if there is none."""
    start = start.resolve()
    return next((f for f in (start, *start.parents) if (f / SETTINGS_FILE).is_file()), start)


def project_option(command: Command) -> Command:
    """Give a command the parameter `project`: its own `--project`, else that of `dataflow`, else the one found."""
    return click.option(
        "--project",
        type=click.Path(file_okay=False, path_type=Path),
        callback=_project,
        help="Folder of the project. Default: the nearest one upward with a dataflow.yaml, else this one.",
    )(command)


def _project(context: click.Context, _parameter: click.Parameter, value: Path | None) -> Path:
    chosen = value if value is not None else context.find_root().params.get("project")
    return chosen.resolve() if isinstance(chosen, Path) else find_project(Path.cwd())


def bootstrap_option(command: Command) -> Command:
    """Give a command the parameter `bootstrap`: "" where neither the option nor the variable is set."""
    return click.option(
        "--bootstrap",
        default="",
        envvar=BOOTSTRAP_VARIABLE,
        show_envvar=True,
        metavar="HOST:PORT",
        help="Cluster to use, in place of the one in dataflow.yaml.",
    )(command)


def tell_build(name: str, line: str) -> None:
    """A line that the build of a model printed, on standard error."""
    click.echo(click.style(f"model {name}: ", dim=True) + line, err=True)


def count(number: int, noun: str) -> str:
    """``1 topic``, ``2 topics``."""
    plural = noun[:-1] + "ies" if noun.endswith("y") else noun + "s"
    return f"{number} {noun if number == 1 else plural}"
