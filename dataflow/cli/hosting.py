"""What a process that runs pipelines needs around them: a cluster, plans on it, changes taken over, words for a person."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dataflow.core.errors import DataflowError

if TYPE_CHECKING:
    from rich.console import Console

    from dataflow.control.host import Host
    from dataflow.planner.plan import Plan
    from dataflow.transport.kafka import KafkaFabric


@contextmanager
def cluster(folder: Path, bootstrap: str, port: int, *, ephemeral: bool) -> Iterator[KafkaFabric]:
    """The cluster that the settings name, else the project's embedded broker, started here unless it runs already."""
    from dataflow.broker import Broker, BrokerSettings
    from dataflow.cli.broker import broker_progress
    from dataflow.control.connect import BROKER_FOLDER, connect, find_address
    from dataflow.transport.kafka import KafkaFabric

    if find_address(folder, bootstrap, os.environ) is not None:
        fabric = connect(folder, bootstrap, os.environ)
        try:
            yield fabric
        finally:
            fabric.close()
        return
    settings = BrokerSettings(data=folder / BROKER_FOLDER, port=port, ephemeral=ephemeral)
    with broker_progress() as progress:
        broker = Broker(settings, on_progress=progress)
        broker.start()
    try:
        fabric = KafkaFabric(broker.bootstrap)
        yield fabric
        fabric.close()
    finally:
        broker.stop()


def deploy_plan(fabric: KafkaFabric, plan: Plan, *, alter_topics: bool) -> None:
    from dataflow.control.deploy import deploy

    for difference in deploy(fabric, plan, alter_topics=alter_topics):
        warn(f"{difference} (--alter-topics changes it)")


def console() -> Console:
    """Where a running process tells what it does."""
    from rich.console import Console

    return Console(highlight=False)


def warn(message: str) -> None:
    """Something a person should look at; on standard error."""
    click.echo(f"warning: {message}", err=True)


def show_build() -> Callable[[str, str], None]:
    seen: set[str] = set()

    def show(name: str, line: str) -> None:
        if name not in seen:
            seen.add(name)
            console().print(f"building model [bold]{name}[/] ...")
        console().print(f"  {line}", style="dim", markup=False, highlight=False)

    return show


class Reloader:
    """Takes changes of the project's files over; a version with errors is shown and the last good one kept."""

    def __init__(self, folder: Path, fabric: KafkaFabric, running: Host) -> None:
        self._folder = folder
        self._fabric = fabric
        self._running = running

    async def watch(self, stopping: asyncio.Event) -> None:
        from watchfiles import awatch

        async for changes in awatch(self._folder, watch_filter=is_source, stop_event=stopping, step=100):
            if changes:
                await asyncio.to_thread(self._reload)

    def _reload(self) -> None:
        from dataflow.control.assemble import assemble

        try:
            assembled = assemble(self._folder, environ=os.environ, on_build=show_build())
            for plan in assembled.plans:
                deploy_plan(self._fabric, plan, alter_topics=False)
        except DataflowError as error:
            warn(f"kept the last good version: {error}")
            return
        self._running.shop.registry = assembled.registry
        for name in self._running.run(assembled.plans):
            console().print(f"reloaded [bold]{name}[/] {self._running.plans[name].version}", highlight=False)


def is_source(_change: object, path: str) -> bool:
    """Files a plan depends on; what is hidden or made by us is none of them."""
    parts = Path(path).parts
    hidden = any(p.startswith(".") or p in {"__pycache__", "dist", "build"} for p in parts)
    return not hidden and Path(path).suffix in {".py", ".yaml", ".yml", ".onnx", ".csv"}
