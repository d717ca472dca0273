"""`dataflow replay`: a recorded stretch of a pipeline again, and what came out otherwise than it did."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from dataflow.cli.context import bootstrap_option, project_option, tell_build
from dataflow.cli.outside import cluster, tell
from dataflow.core.errors import DataflowError

if TYPE_CHECKING:
    from dataflow.control.replay import OnProgress, Replay
    from dataflow.control.replay_report import EdgeComparison, ReplayReport
    from dataflow.planner.plan import Plan
    from dataflow.registry import Registry

DIFFERS: Final = 1
ERROR: Final = 2
_SHOWN: Final = 10
_COUNTS: Final = ("recorded", "replayed", "equal", "within", "differing", "missing", "extra")


@click.command()
@click.argument("pipeline")
@click.option(
    "--edge", default="", metavar="EDGE", help="Feed the records of this edge. Default: the inputs."
)
@click.option(
    "--from", "begin", default="earliest", show_default=True, metavar="TIME|OFFSET",
    help="First record: a time (2024-05-01T12:00:00Z), how long ago (-1h), offset:N, id:ID, earliest.",
)  # fmt: skip
@click.option(
    "--to", "end", default="latest", show_default=True, metavar="TIME|OFFSET",
    help="End, not included: as --from.",
)  # fmt: skip
@click.option(
    "--with", "changed", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="FILE",
    help="Run the records through the pipeline as this file declares it. Default: as it is deployed.",
)  # fmt: skip
@click.option(
    "--tolerance", type=click.FloatRange(0), default=1e-6, show_default=True,
    help="Numbers may differ by this, relative or absolute, whichever is larger.",
)  # fmt: skip
@click.option(
    "--html", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Write a page too."
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option("--keep", is_flag=True, help="Leave the topics of the replay, to be tapped.")
@click.option("--show-private", is_flag=True, help="Show fields labelled private.")
@project_option
@bootstrap_option
@click.pass_context
def replay(
    context: click.Context,
    pipeline: str,
    edge: str,
    begin: str,
    end: str,
    changed: Path | None,
    tolerance: float,
    html: Path | None,
    as_json: bool,
    keep: bool,
    show_private: bool,
    project: Path,
    bootstrap: str,
) -> None:
    """Run a recorded stretch of PIPELINE again and compare, by id, with what was recorded.

    Nothing of the pipeline is touched: it runs on topics of its own, nodes with effects outside are off. Exits 0 if all
    is equal within the tolerance, 1 if something differs, 2 if it could not be done.
    """
    with _errors(debug=bool(context.find_root().params.get("debug"))):
        from dataflow.control.replay import replay as run
        from dataflow.control.replay_sources import recorded_plan

        with cluster(project, bootstrap) as outside:
            recorded = recorded_plan(outside.plans, pipeline, outside.project)
            wanted, registry = _wanted(
                project,
                outside.plans,
                recorded,
                edge,
                begin,
                end,
                changed,
                tolerance,
                keep=keep,
                show_private=show_private,
            )
            with _progress() as on_progress:
                report = run(project, registry, outside.fabric, wanted, on_progress)
        if html is not None:
            from dataflow.cli.replay_page import page

            html.write_text(page(report), encoding="utf-8")
        _tell(report, as_json=as_json)
        if html is not None:
            tell(f"written to {html}")
    if not report.same:
        raise click.exceptions.Exit(DIFFERS)


def _wanted(
    project: Path,
    plans: dict[str, Plan],
    recorded: Plan,
    edge: str,
    begin: str,
    end: str,
    changed: Path | None,
    tolerance: float,
    *,
    keep: bool,
    show_private: bool,
) -> tuple[Replay, Registry]:
    from dataflow.control.replay import Replay
    from dataflow.control.replay_sources import changed_plan, same_plan
    from dataflow.control.starts import parse_start
    from dataflow.registry import Registry

    now_ms = int(time.time() * 1_000)
    starts = parse_start(begin, now_ms), parse_start(end, now_ms)
    if changed is None:
        runs, registry = same_plan(project, recorded), Registry.default(project)
    else:
        runs, registry = changed_plan(project, recorded.pipeline, changed, os.environ, tell_build, plans)
    name = str(changed) if changed is not None else ""
    return Replay(
        recorded, runs, edge, *starts, tolerance=tolerance, changed=name, keep=keep, show_private=show_private
    ), registry


@contextmanager
def _errors(*, debug: bool) -> Iterator[None]:
    """What could not be done ends with 2: 1 is for what differs."""
    try:
        yield
    except DataflowError as error:
        if debug:
            raise
        problems = getattr(error, "problems", ())
        click.echo(str(error) if problems else f"Error: {error}", err=True)
        raise click.exceptions.Exit(ERROR) from error


@contextmanager
def _progress() -> Iterator[OnProgress]:
    """A bar on standard error, where that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns: Any = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(
        *columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()
    ) as bars:
        task = bars.add_task("starting", total=None)

        def report(what: str, done: int, total: int) -> None:
            bars.update(task, description=what, completed=done, total=total or None)

        yield report


def _tell(report: ReplayReport, *, as_json: bool) -> None:
    if as_json:
        import orjson

        from dataflow.control.replay_report import document

        click.echo(orjson.dumps(document(report), option=orjson.OPT_INDENT_2))
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from dataflow.control.replay_stretch import time_text

    console = Console(highlight=False, soft_wrap=True)
    through = (
        f"through {report.changed} ({report.replayed_version})" if report.changed else "as it is deployed"
    )
    console.print(f"[bold]{escape(report.pipeline)}[/] {escape(report.recorded_version)}, {escape(through)}")
    for fed in report.fed:
        times = f"{time_text(fed.first_ms)} to {time_text(fed.last_ms)}" if fed.records else "none there"
        console.print(f"fed to {escape(fed.edge)}: {fed.records} records, {times}")
    table = Table("edge", box=None, pad_edge=False)
    for name in _COUNTS:
        table.add_column(name, justify="right")
    for edge in report.edges:
        style = "" if edge.same else "red"
        table.add_row(escape(edge.edge), *(str(getattr(edge, name)) for name in _COUNTS), style=style)
    console.print(table)
    for edge in report.edges:
        for line in _lines(edge):
            console.print(escape(line))
    for name, why in report.not_compared.items():
        console.print(escape(f"not compared: {name}: {why}"))
    for what, counts in (("failed", report.failed), ("dropped", report.dropped)):
        for name, count in sorted(counts.items()):
            console.print(escape(f"{what} in the replay: {name}: {count}"))
    for note in report.notes:
        console.print(escape(f"note: {note}"))
    for topic in report.kept:
        console.print(escape(f"kept: {topic}"))
    console.print("[green]equal[/]" if report.same else "[red]differs[/]")


def _lines(edge: EdgeComparison) -> Iterator[str]:
    """What differs on an edge, the first of each sort."""
    for name, found in sorted(edge.fields.items(), key=lambda item: -item[1].records):
        largest = f", by {found.largest:.6g} at most" if found.largest else ""
        yield f"{edge.edge}: {name} differs in {found.records} records{largest}"
    for one in edge.differences[:_SHOWN]:
        yield f"{edge.edge}: {one.id}: {one.path}: {one.recorded} -> {one.replayed}"
    for missing in edge.missing_records[:_SHOWN]:
        yield f"{edge.edge}: {missing.id}: missing" + (f": {missing.reason}" if missing.reason else "")
    for extra in edge.extra_records[:_SHOWN]:
        yield f"{edge.edge}: {extra}: extra"
    lists = (edge.differences, edge.missing_records, edge.extra_records)
    if any(len(found) > _SHOWN for found in lists):
        yield f"{edge.edge}: the first {_SHOWN} of each; --html and --json list up to 1000"
    if edge.repeated:
        yield f"{edge.edge}: {edge.repeated} records were there twice, byte for byte, and count once"
    if len(edge.versions) > 1:
        told = ", ".join(f"{version or '?'} ({count})" for version, count in edge.versions.items())
        yield f"{edge.edge}: recorded by several versions: {told}"
    for note in edge.notes:
        yield f"{edge.edge}: {note}"
