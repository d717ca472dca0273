"""`dataflow plan`: what a pipeline becomes, and how that differs from another version or from the cluster."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dataflow.cli.context import project_option, tell_build
from dataflow.core.errors import PlanError

if TYPE_CHECKING:
    from dataflow.planner.plan import Plan
    from dataflow.transport.api import Fabric


@click.command()
@click.argument("pipelines", nargs=-1)
@project_option
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True)
@click.option(
    "--diff",
    "older",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Print what changed since this output of --format json.",
)
@click.option("--bootstrap", default="", metavar="HOST:PORT", help="Compare with this cluster.")
@click.option("--compare", is_flag=True, help="Compare with the cluster that other commands use.")
def plan(
    pipelines: tuple[str, ...], project: Path, form: str, older: Path | None, bootstrap: str, compare: bool
) -> None:
    """Show stages, topics, groups, rights and costs of PIPELINES (all if none is named), and why each cut is made.

    With --bootstrap or --compare the cluster is asked (never changed): which topics are missing or differ, how its
    running version differs, whether the change of a contract would break readers. Exits 1 if it cannot be deployed.
    """
    from dataflow.control.assemble import assemble, deployed_plans
    from dataflow.planner.report import diff_plans, plan_as_dict, plan_as_text

    there = partial(deployed_plans, project, bootstrap, os.environ)
    made = assemble(project, pipelines, environ=os.environ, on_build=tell_build, deployed=there)
    for warning in made.warnings:
        click.secho(str(warning), fg="yellow", err=True)
    if compare or bootstrap:
        from dataflow.control.connect import connect

        fabric = connect(project, bootstrap or None, os.environ)
        try:
            _compare(fabric, made.plans, form)
        finally:
            fabric.close()
        return
    if older is not None:
        before = read_plan_file(older)
        names = [p.pipeline for p in made.plans]
        gone = [] if pipelines else [n for n in before if n not in names]
        after = {p.pipeline: p for p in made.plans}
        lines = [line for n in [*names, *gone] for line in diff_plans(before.get(n), after.get(n))]
        click.echo(json.dumps(lines, indent=2) if form == "json" else "\n".join(lines) or "no change")
        return
    if form == "json":
        click.echo(json.dumps({"plans": [plan_as_dict(p) for p in made.plans]}, indent=2))
        return
    click.echo("\n".join(plan_as_text(p) for p in made.plans), nl=False)


def read_plan_file(path: Path) -> dict[str, Plan]:
    """The plans in an output of `plan --format json`, by pipeline. Raises PlanError for another file."""
    from dataflow.planner.serial import plan_from_json

    try:
        found = [
            plan_from_json(json.dumps(p["plan"]).encode()) for p in json.loads(path.read_text())["plans"]
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PlanError(
            f"{path} holds no plans: {error}", hint="make it by: dataflow plan --format json"
        ) from error
    return {p.pipeline: p for p in found}


def _compare(fabric: Fabric, plans: Sequence[Plan], form: str) -> None:
    found = [compare_with_cluster(fabric, plan) for plan in plans]
    if form == "json":
        click.echo(json.dumps({"pipelines": found}, indent=2))
    else:
        click.echo("\n\n".join("\n".join(_comparison(one)) for one in found))
    if any(one["blocked"] for one in found):
        raise SystemExit(1)


def compare_with_cluster(fabric: Fabric, plan: Plan) -> dict[str, object]:
    """How the cluster differs from `plan`, which changes nothing. `blocked` are the reasons not to deploy it."""
    from dataflow.control.deploy import check_contracts, compare_topics, read_plans
    from dataflow.planner.report import diff_plans

    missing, differences = compare_topics(fabric.admin(), plan.topics.values())
    running = read_plans(fabric).get(plan.pipeline)
    blocked = [f"{d}: partitions of a topic never change" for d in differences if d.setting == "partitions"]
    if running is not None:
        try:
            check_contracts(running, plan)
        except PlanError as error:
            blocked.append(str(error))
    return {
        "pipeline": plan.pipeline,
        "running": running.version if running is not None else None,
        "planned": plan.version,
        "missing_topics": [topic.name for topic in missing],
        "different_topics": [str(difference) for difference in differences],
        "changes": diff_plans(running, plan),
        "blocked": blocked,
    }


def _comparison(found: dict[str, object]) -> Iterator[str]:
    running = found["running"]
    state = (
        "not deployed"
        if running is None
        else "up to date"
        if running == found["planned"]
        else f"runs {running}"
    )
    yield f"pipeline {found['pipeline']}: {state}, planned {found['planned']}"
    for title, key in (
        ("topics to create", "missing_topics"),
        ("topics that differ", "different_topics"),
        ("changes", "changes"),
        ("cannot be deployed", "blocked"),
    ):
        lines = found[key]
        assert isinstance(lines, list)
        if lines:
            yield f"  {title}"
            yield from (f"    {line}" for line in lines)
