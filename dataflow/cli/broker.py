"""`dataflow broker start | stop | status | logs`: the embedded broker of a project, on its own."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dataflow.core.errors import BrokerError

if TYPE_CHECKING:
    from dataflow.broker import BrokerStatus, Progress
    from dataflow.broker.jars import OnProgress

DEFAULT_DATA = Path(".dataflow") / "broker"
_FOLLOW_S = 0.2

_data = click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    default=DEFAULT_DATA,
    show_default=True,
    help="Folder of the broker's data.",
)


@click.group()
def broker() -> None:
    """Run Apache Kafka on this machine, with nothing but Python installed."""


@broker.command()
@click.option(
    "--port", type=click.IntRange(0, 65535), default=0, help="Port to listen on; a free one if left out."
)
@_data
@click.option("--ephemeral", is_flag=True, help="Throw the topics away when it stops.")
@click.option(
    "--nodes",
    type=click.Choice(["1", "3"]),
    default="1",
    show_default=True,
    help="Three keep every record twice at least and go on without one of them.",
)
def start(port: int, data: Path, ephemeral: bool, nodes: str) -> None:
    """Start the broker in the background and print its address, or that of each node."""
    from dataflow.broker import Broker, BrokerSettings

    if port and nodes != "1":
        raise click.UsageError("--port is for one node: each of three takes a free one")
    with _plain_errors(), broker_progress() as report:
        settings = BrokerSettings(data, port=port, ephemeral=ephemeral, nodes=int(nodes))
        started = Broker(settings, on_progress=report, detached=True)
        started.start()
    click.echo(started.bootstrap)


@broker.command()
@_data
def stop(data: Path) -> None:
    """Stop the broker, whoever started it."""
    from dataflow.broker import stop as stop_broker

    with _plain_errors():
        stopped = stop_broker(data)
    click.echo("stopped" if stopped else f"no broker runs in {data}")


@broker.command()
@_data
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True)
def status(data: Path, form: str) -> None:
    """Say whether the broker runs, and where. Exits 1 if it does not."""
    from dataflow.broker import status as broker_status

    with _plain_errors():
        found = broker_status(data)
    click.echo(_as_json(found) if form == "json" else _as_text(found, data))
    if found is None:
        raise SystemExit(1)


@broker.command()
@_data
@click.option("-n", "--lines", type=click.IntRange(0), default=50, show_default=True, help="Lines to show.")
@click.option("-f", "--follow", is_flag=True, help="Go on as the broker writes, until Ctrl-C.")
def logs(data: Path, lines: int, follow: bool) -> None:
    """Show the broker's log: warnings, errors, starts."""
    from dataflow.broker import log_files
    from dataflow.broker import logs as broker_logs

    files = log_files(data)
    if not files:
        raise click.ClickException(f"no broker has run in {data}")
    sizes = {path: path.stat().st_size for path in files}
    for line in broker_logs(data, lines):
        click.echo(line)
    if follow:
        try:
            _follow(sizes)
        except KeyboardInterrupt:
            return


@contextmanager
def broker_progress() -> Iterator[OnProgress]:
    """A callback for `Broker(on_progress=...)` that draws on standard error, and nothing where that is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, SpinnerColumn, TextColumn
    from rich.progress import Progress as Bars

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    console = Console(stderr=True)
    with Bars(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        task = bars.add_task("", total=None, visible=False)

        def report(progress: Progress) -> None:
            bars.update(
                task,
                description=progress.step,
                completed=progress.done,
                total=progress.total or None,
                visible=True,
            )

        yield report


@contextmanager
def _plain_errors() -> Iterator[None]:
    try:
        yield
    except BrokerError as error:
        raise click.ClickException(str(error)) from error


def _as_json(found: BrokerStatus | None) -> str:
    if found is None:
        return json.dumps({"running": False})
    return json.dumps(
        {
            "running": True,
            "answering": found.answering,
            "bootstrap": found.bootstrap,
            "pids": found.pids,
            "cluster_id": found.cluster_id,
            "started_at_ms": found.started_at_ms,
            "ephemeral": found.ephemeral,
            "data": str(found.data),
        }
    )


def _as_text(found: BrokerStatus | None, data: Path) -> str:
    if found is None:
        return f"no broker runs in {data}"
    minutes = (time.time() * 1000 - found.started_at_ms) / 60_000
    health = "answering" if found.answering else "not answering"
    pids = ", ".join(str(pid) for pid in found.pids)
    kept = "ephemeral" if found.ephemeral else str(found.data)
    return f"{found.bootstrap} ({health}, process {pids}, up {minutes:.0f} min, cluster {found.cluster_id}, {kept})"


def _follow(sizes: dict[Path, int]) -> None:
    """Print what is appended to the files, starting again with a file that was replaced by a shorter one."""
    while any(path.exists() for path in sizes):
        for path, seen in sizes.items():
            size = path.stat().st_size if path.exists() else seen
            if size != seen:
                with path.open("rb") as file:
                    file.seek(seen if size > seen else 0)
                    click.echo(file.read(), nl=False)
                    sizes[path] = file.tell()
        time.sleep(_FOLLOW_S)
