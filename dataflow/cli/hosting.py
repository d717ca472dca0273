"""What a process that runs pipelines needs around them: a cluster, plans on it, changes taken over, words for a person."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from dataflow.core.errors import DataflowError

if TYPE_CHECKING:
    from rich.console import Console

    from dataflow.control.host import Host
    from dataflow.planner.plan import Plan
    from dataflow.transport.kafka import KafkaFabric

# Files saved within this time are taken over together.
MAX_SETTLING_MS: Final = 200
# watchfiles' own names for them are imported with it, where it watches.
_ADDED, _DELETED = 1, 3


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Hold the project for the one `up` that runs it. Raises DataflowError where another one does."""
    from dataflow.broker.locks import hold_lock
    from dataflow.cli.status import STATE_FILE

    ours = folder / ".dataflow"
    ours.mkdir(parents=True, exist_ok=True)
    with hold_lock(ours / "up.lock", wait=False) as taken:
        if not taken:
            try:
                state = json.loads((ours / STATE_FILE).read_text())
                running = f"process {state['pid']}, {state['gateway']}"
            except (OSError, ValueError, KeyError):
                running = "it is about to start"
            raise DataflowError(
                f"`dataflow up` runs in '{folder}' already: {running}",
                hint="it takes changes over when they are saved; Ctrl-C there ends it",
            )
        yield


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
    """Takes changes of the project's files over; a version with errors is shown and the last good one kept.

    `pipelines` are those to run; none: all that the files declare.
    """

    def __init__(self, folder: Path, pipelines: tuple[str, ...], fabric: KafkaFabric, running: Host) -> None:
        self._folder = folder
        self._pipelines = pipelines
        self._fabric = fabric
        self._running = running

    async def watch(self, stopping: asyncio.Event) -> None:
        from watchfiles import awatch

        # Kafka writes below the folder all the time: without the limit each change waits 1.6 s for a moment of silence.
        folder = self._folder.resolve()
        source = partial(is_source, folder)
        async for changes in awatch(
            folder, watch_filter=source, stop_event=stopping, step=50, debounce=MAX_SETTLING_MS
        ):
            if changes:
                await asyncio.to_thread(self._reload)

    def _reload(self) -> None:
        from dataflow.control.assemble import assemble
        from dataflow.control.deploy import read_plans
        from dataflow.observe.metrics import Metrics

        try:
            there = partial(read_plans, self._fabric)
            assembled = assemble(
                self._folder, self._pipelines, environ=os.environ, on_build=show_build(), deployed=there
            )
            # Before anything changes: what lints may still not start, e.g. for an import that fails.
            trial = replace(self._running.shop, registry=assembled.registry, metrics=Metrics())
            for plan in assembled.plans:
                served = self._running.plans.get(plan.pipeline)
                if served is None or served.version != plan.version:
                    trial.rehearse(plan)
            for plan in assembled.plans:
                deploy_plan(self._fabric, plan, alter_topics=False)
        except (DataflowError, OSError) as error:  # OSError: a file that its editor is moving
            warn(f"kept the last good version: {error}")
            return
        self._running.shop.registry = assembled.registry
        before = self._running.plans.keys()
        for name in self._running.run(assembled.plans):
            console().print(f"reloaded [bold]{name}[/] {self._running.plans[name].version}", highlight=False)
        for name in before - self._running.plans.keys():
            console().print(f"removed [bold]{name}[/]", highlight=False)


def is_source(folder: Path, change: int, path: str) -> bool:
    """Whether a change is of a file that a plan depends on, or of a folder of them; hidden ones and what we make are not.

    A folder counts by itself: files that were in it before it is watched, copied along or moved, are not told of.
    """
    changed = Path(path)
    inner = changed.relative_to(folder).parts if changed.is_relative_to(folder) else changed.parts
    if any(p.startswith(".") or p in {"__pycache__", "dist", "build"} for p in inner):
        return False
    is_folder = (change == _ADDED and changed.is_dir()) or (change == _DELETED and not changed.suffix)
    return is_folder or changed.suffix in {".py", ".yaml", ".yml", ".onnx", ".csv", ".parquet"}
