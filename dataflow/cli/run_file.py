"""`dataflow run`: a pipeline over files, bounded, on the same engine."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from dataflow.cli.context import bootstrap_option, count, project_option, tell_build
from dataflow.cli.outside import quiet_client, tell

if TYPE_CHECKING:
    from dataflow.control.bounded import OnProgress, RunReport, Source
    from dataflow.control.records import Stream
    from dataflow.planner.plan import Plan
    from dataflow.spec import Project
    from dataflow.transport.kafka import KafkaFabric

_SHOWN: Final = 20
_FORMATS: Final = click.Choice(["csv", "parquet", "jsonl"])


@click.command()
@click.argument("pipeline")
@click.option(
    "--in", "inputs", multiple=True, required=True, metavar="[NAME=]FILE",
    help="Records of an input, or of a table's topic; - is standard input. NAME may be left out where there is one input.",
)  # fmt: skip
@click.option(
    "--out",
    default="-",
    metavar="FILE",
    help="Where answers go, in the order of the input. Default: JSON lines.",
)
@click.option("--edge", "edges", multiple=True, help="Give this edge's records instead of the answer's.")
@click.option("--in-format", type=_FORMATS, help="Default: what the name says.")
@click.option("--out-format", type=_FORMATS, help="Default: what the name says.")
@click.option("--rows", is_flag=True, help="Add field `row`: the number of the input row, from 1.")
@project_option
@bootstrap_option
def run(
    pipeline: str,
    inputs: tuple[str, ...],
    out: str,
    edges: tuple[str, ...],
    in_format: str | None,
    out_format: str | None,
    rows: bool,
    project: Path,
    bootstrap: str,
) -> None:
    """Run PIPELINE over files until every row is accounted for. Exits 1 if a row failed.

    It runs on a broker of its own that is thrown away; with --bootstrap on that cluster, where its topics stay.
    """
    from dataflow.control.assemble import assemble
    from dataflow.control.bounded import run_files
    from dataflow.runtime.workshop import Workshop

    assembled = assemble(project, [pipeline], environ=os.environ, on_build=tell_build)
    (plan,) = assembled.plans
    sources, tables = _sources(plan, assembled.project, inputs, in_format)
    with quiet_client(), _cluster(project, bootstrap) as fabric, _progress() as on_progress:
        report = run_files(
            Workshop(project, assembled.registry, fabric),
            plan,
            sources,
            tables,
            out,
            form=out_format,
            edges=edges,
            row_numbers=rows,
            on_progress=on_progress,
        )
    _tell(report)
    if not report.good:
        raise SystemExit(1)


def _sources(
    plan: Plan, project: Project, inputs: Sequence[str], form: str | None
) -> tuple[dict[str, Source], dict[str, tuple[Stream, Source]]]:
    """Which file feeds what: by input, and by topic for tables."""
    from dataflow.control.bounded import Source
    from dataflow.control.records import Stream
    from dataflow.core.errors import SpecError, nearest

    topics = {t.topic: t for t in plan.tables.values() if t.topic}
    by_topic = {topic: name for name, topic in plan.inputs.items()}
    sources: dict[str, Source] = {}
    tables: dict[str, tuple[Stream, Source]] = {}
    for given in inputs:
        name, equals, path = given.partition("=")
        if not equals:
            name, path = plan.answer.input if plan.answer is not None else next(iter(plan.inputs)), given
        if name in plan.inputs or name in by_topic:
            sources[by_topic.get(name, name) if name not in plan.inputs else name] = Source(path, form)
        elif name in topics:
            tables[name] = (Stream.of_topic(project.topics[name].spec), Source(path, form))
        else:
            known = [*plan.inputs, *topics]
            raise SpecError(f"pipeline '{plan.pipeline}' has no input '{name}'", hint=nearest(name, known))
    missing = [n for n in plan.inputs if n not in sources]
    if missing and not sources:
        raise SpecError(f"no file for an input of '{plan.pipeline}'", hint=f"--in {missing[0]}=FILE")
    for topic in topics:
        if topic not in tables and topic not in plan.inputs.values():
            tell(f"warning: table '{topic}' is empty unless it is fed: --in {topic}=FILE")
    return sources, tables


@contextmanager
def _cluster(project: Path, bootstrap: str) -> Iterator[KafkaFabric]:
    """The cluster named, else a broker for this run alone."""
    from dataflow.control.connect import connect
    from dataflow.transport.kafka import KafkaFabric

    if bootstrap:
        fabric = connect(project, bootstrap, os.environ)
        try:
            yield fabric
        finally:
            fabric.close()
        return
    from dataflow.broker import Broker, BrokerSettings
    from dataflow.cli.broker import broker_progress

    with tempfile.TemporaryDirectory(prefix="dataflow-run-") as folder:
        with broker_progress() as report:
            broker = Broker(BrokerSettings(Path(folder) / "broker", ephemeral=True), on_progress=report)
            broker.start()
        try:
            fabric = KafkaFabric(broker.bootstrap)
            yield fabric
            fabric.close()
        finally:
            broker.stop()


@contextmanager
def _progress() -> Iterator[OnProgress]:
    """A bar on standard error, and nothing where that is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns: Any = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(
        *columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()
    ) as bars:
        task = bars.add_task("starting", total=None)

        def report(what: str, done: int, total: int) -> None:
            bars.update(task, description=what, completed=done, total=total or None)

        yield report


def _tell(report: RunReport) -> None:
    for bad in report.bad[:_SHOWN]:
        tell(str(bad))
    for letter in report.letters[:_SHOWN]:
        tell(f"{letter.pipeline}/{letter.node}: {letter.error}: {letter.reason} (id {letter.id})")
    for text in report.unread[:_SHOWN]:
        tell(text)
    left = max(len(report.bad) + len(report.letters) + len(report.unread) - 3 * _SHOWN, 0)
    if left:
        tell(f"... and {left} more")
    tell(
        f"in {report.rows}, out {report.out}, dropped {sum(report.dropped.values())}, dead-lettered {len(report.letters)}"
    )
    for reason, number in sorted(report.dropped.items()):
        tell(f"  dropped by {reason}: {number}")
    if report.bad:
        tell(f"  {count(len(report.bad), 'row')} of the input did not fit the contract")
