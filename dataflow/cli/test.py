"""`dataflow test`: the inline tests of pipelines, run in this process without a broker."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dataflow.cli.context import project_option, tell_build
from dataflow.core.errors import DataflowError

if TYPE_CHECKING:
    from dataflow.control.assemble import Assembled
    from dataflow.planner.plan import Plan
    from dataflow.spec import TestSpec
    from dataflow.testing import RunResult

_COLOURS = {"-": "green", "+": "red"}


@dataclass(frozen=True)
class Outcome:
    """One test that was run. `faults` is empty when it passed; `notes` are what else went on."""

    pipeline: str
    name: str
    seconds: float
    faults: tuple[str, ...]
    notes: tuple[str, ...]


@click.command(name="test")
@click.argument("pipelines", nargs=-1)
@project_option
@click.option("-k", "part", default="", metavar="TEXT", help="Only tests with TEXT in their name.")
def test(pipelines: tuple[str, ...], project: Path, part: str) -> None:
    """Run the inline tests of PIPELINES (all if none is named), without a broker. Exits 1 if one fails.

    The engine is the real one, on a log in memory. Expected records name the fields that matter.
    """
    from dataflow.control.assemble import assemble

    started = time.perf_counter()
    made = assemble(project, pipelines, environ=os.environ, on_build=tell_build)
    failed = passed = 0
    for plan in made.plans:
        click.echo(plan.pipeline)
        for outcome in run_tests(made, plan, part):
            failed += bool(outcome.faults)
            passed += not outcome.faults
            _print(outcome)
    if not failed + passed:
        click.echo("no tests (declare some under `tests:` in the pipeline)")
        return
    said = f"{passed} passed" + (f", {failed} failed" if failed else "")
    click.echo(f"{said} in {time.perf_counter() - started:.1f} s")
    if failed:
        raise SystemExit(1)


def run_tests(made: Assembled, plan: Plan, part: str = "") -> Iterator[Outcome]:
    """Run the tests of one pipeline whose names hold `part`, one by one."""
    for declared in made.project.pipelines[plan.pipeline].spec.tests:
        if part in declared.name:
            yield _run(made, plan, declared)


def _run(made: Assembled, plan: Plan, declared: TestSpec) -> Outcome:
    from dataflow.testing import run_pipeline
    from dataflow.testing.compare import compare_edges, explain

    started = time.perf_counter()
    try:
        result = run_pipeline(made.project.folder, plan, made.registry, declared.given)
    except DataflowError as error:
        return Outcome(plan.pipeline, declared.name, time.perf_counter() - started, (str(error),), ())
    seconds = time.perf_counter() - started
    schemas = {name: edge.schema for name, edge in plan.edges.items()}
    faults = [
        line
        for difference in compare_edges(declared.expect, result.edges, schemas, declared.tolerance)
        for line in explain(difference)
    ]
    return Outcome(plan.pipeline, declared.name, seconds, tuple(faults), tuple(_notes(result)))


def _notes(result: RunResult) -> Iterator[str]:
    """Records that ended without an output: where, and why."""
    for letter in result.dead_letters:
        yield f"failed at {letter.node}: {letter.error}: {letter.message}"
    for node, reasons in result.dropped.items():
        for reason, count in reasons.items():
            yield f"dropped at {node}: {reason}" + (f" ({count} records)" if count > 1 else "")


def _print(outcome: Outcome) -> None:
    word = (
        click.style("FAIL", fg="red", bold=True) if outcome.faults else click.style("ok", fg="green") + "  "
    )
    click.echo(f"  {word}  {outcome.name}  " + click.style(f"{outcome.seconds * 1000:.0f} ms", dim=True))
    for line in outcome.faults:
        click.echo("          " + click.style(line, fg=_COLOURS.get(line.lstrip()[:1])))
    if outcome.faults:
        for note in outcome.notes:
            click.echo("          " + click.style(note, dim=True))
