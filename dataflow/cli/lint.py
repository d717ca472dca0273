"""`dataflow lint`: every problem of the declarations, with its place."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from dataflow.cli.context import count, project_option, tell_build
from dataflow.core.errors import DataflowError

if TYPE_CHECKING:
    from dataflow.spec import Problem, Project

_PLACED: Final = re.compile(r"(?P<file>.+?):(?P<line>\d+): (?P<message>.+)")


@click.command()
@project_option
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True)
@click.option("--build", is_flag=True, help="Build models first, so that their signatures are checked too.")
def lint(project: Path, form: str, build: bool) -> None:
    """Find all that is wrong with the declarations: `file:line:column: message (hint)`. Exits 1 on errors.

    User code is never run; models that are built already are checked against what is fed to them.
    """
    loaded, problems = lint_project(project, os.environ, build=build)
    errors = sum(p.severity == "error" for p in problems)
    if form == "json":
        warnings = len(problems) - errors
        found = {"project": str(project), "errors": errors, "warnings": warnings}
        click.echo(json.dumps({**found, "problems": [p.as_dict() for p in problems]}, indent=2))
    else:
        for problem in problems:
            colour = "yellow" if problem.severity == "warning" else "red"
            place, _, rest = _shown(problem, project).partition(": ")
            click.echo(f"{click.style(place, bold=True)}: {click.style(rest, fg=colour)}")
        click.echo(summary(loaded, problems))
    if errors:
        raise SystemExit(1)


def lint_project(
    folder: Path, environ: Mapping[str, str], *, build: bool = False
) -> tuple[Project, list[Problem]]:
    """The declarations in `folder` and all that is wrong with them. With `build` its models are built first."""
    from dataflow.control.assemble import Models, build_models, deployed_plans
    from dataflow.planner.lint import lint as lint_declared
    from dataflow.planner.upstream import Pipelines
    from dataflow.registry import Registry
    from dataflow.spec import Problem, load_project

    project = load_project(folder, environ=environ)
    if not (project.topics or project.models or project.pipelines or project.problems):
        hint = "dataflow new NAME makes a project, --project DIR names one"
        return project, [Problem("dataflow.yaml", 1, 1, f"nothing is declared in {folder}", hint=hint)]
    try:
        registry = Registry.default(folder)
    except DataflowError as error:
        return project, sorted([*project.problems, *_placed(error, folder)])
    problems: list[Problem] = []
    built = {}
    if build:
        for name, declared in project.models.items():
            try:
                built.update(build_models(project, [name], tell_build))
            except DataflowError as error:
                problems.append(
                    Problem(declared.file, *declared.place(("build",)), error.message, hint=error.hint)
                )
    pipelines = Pipelines(
        project, registry, Models(project, built), partial(deployed_plans, folder, None, environ)
    )
    problems += lint_declared(project, registry, pipelines=pipelines)
    return project, sorted(set(problems))


def _placed(error: DataflowError, folder: Path) -> list[Problem]:
    """The lines of an error that say ``file:line: message`` as problems; others stand at the settings file."""
    from dataflow.spec import Problem

    found = []
    for line in str(error).splitlines():
        match = _PLACED.fullmatch(line)
        if match is None:
            found.append(Problem("dataflow.yaml", 1, 1, line))
            continue
        path = Path(match["file"])
        inside = path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)
        found.append(Problem(inside, int(match["line"]), 1, match["message"]))
    return found


def _shown(problem: Problem, project: Path) -> str:
    """The problem with a path that works from where the user is."""
    here = Path.cwd().resolve()
    path = project / problem.file
    shown = path.relative_to(here).as_posix() if path.is_relative_to(here) else str(path)
    return shown + str(problem)[len(problem.file) :]


def summary(project: Project, problems: Sequence[Problem]) -> str:
    """``2 pipelines, 3 topics, 1 model: no problems``."""
    kinds = {"pipeline": project.pipelines, "topic": project.topics, "model": project.models}
    declared = (
        ", ".join(count(len(found), kind) for kind, found in kinds.items() if found) or "nothing declared"
    )
    errors = sum(p.severity == "error" for p in problems)
    warnings = len(problems) - errors
    said = [count(n, noun) for n, noun in ((errors, "error"), (warnings, "warning")) if n]
    return f"{declared}: {', '.join(said) or 'no problems'}"
