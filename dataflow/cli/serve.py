"""Commands that keep running: `up`, `worker` and `gateway`; and `deploy`, which tells them what to run."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager, closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from dataflow.cli.context import bootstrap_option, project_option
from dataflow.cli.doors import Door, door_options, free_port, grpc_port_of
from dataflow.cli.following import FOLLOW_INTERVAL_S, await_plans, follow_plans
from dataflow.cli.hosting import Reloader, cluster, console, deploy_plan, only_one, show_build, warn
from dataflow.cli.process import calm_collector, few_arenas

if TYPE_CHECKING:
    from dataflow.control.host import Host
    from dataflow.registry import Registry
    from dataflow.runtime.workshop import Workshop
    from dataflow.transport.kafka import KafkaFabric

# What slow starts (big tables, big models) may take before the door opens all the same and says 504.
START_TIMEOUT_S: Final = 30.0
hand_off_option = click.option(
    "--hand-off/--no-hand-off",
    default=True,
    help="Hand requests to stages of this process in memory; without, they read them from Kafka.",
)


@click.command()
@click.argument("pipelines", nargs=-1)
@project_option
@bootstrap_option
@door_options
@click.option("--broker-port", type=int, default=0, help="Port of the embedded broker; 0 takes a free one.")
@click.option("--ephemeral", is_flag=True, help="Throw the embedded broker's data away at the end.")
@click.option("--reload/--no-reload", default=True, help="Take changes of files over when they are saved.")
@click.option(
    "--alter-topics", is_flag=True, help="Change the settings of existing topics to those declared."
)
@hand_off_option
def up(
    pipelines: tuple[str, ...],
    project: Path,
    bootstrap: str,
    host: str | None,
    port: int | None,
    grpc_port: int | None,
    grpc: bool | None,
    broker_port: int,
    ephemeral: bool,
    reload: bool,
    alter_topics: bool,
    hand_off: bool,
) -> None:
    """Run everything declared here, or these PIPELINES: broker, workers and HTTP door. Ctrl-C drains."""
    from dataflow.control.assemble import assemble, deployed_plans
    from dataflow.control.host import Host

    few_arenas()
    _log_to_stderr()
    there = partial(deployed_plans, project, bootstrap, os.environ)
    assembled = assemble(project, pipelines, environ=os.environ, on_build=show_build(), deployed=there)
    for problem in assembled.warnings:
        warn(str(problem))
    with ExitStack() as stack:
        stack.enter_context(only_one(project))
        door = Door(
            assembled.project, host, port, project, grpc_port_of(assembled.project, grpc_port, wanted=grpc)
        )
        stack.enter_context(
            closing(door.reserve())
        )  # before the broker starts: no need to wait for a refusal
        stop = _stop_on_signals()
        fabric = stack.enter_context(cluster(project, bootstrap, broker_port, ephemeral=ephemeral))
        for plan in assembled.plans:
            deploy_plan(fabric, plan, alter_topics=alter_topics)
        shop = _workshop(project, assembled.registry, fabric, files=not ephemeral, hand_off=hand_off)
        running = Host(shop)
        stack.callback(running.stop)
        calm_collector()
        running.run(assembled.plans)
        # The door opens on stages that run: nobody's first request waits for a group to form.
        running.await_ready(START_TIMEOUT_S)
        reloader = Reloader(project, pipelines, fabric, running) if reload else None
        _serve(running, door, fabric.bootstrap, stop, reloader)
    console().print("stopped")


@click.command()
@project_option
@bootstrap_option
@click.option("--pipeline", "pipelines", multiple=True, help="Work on this one only; may be repeated.")
@click.option("--metrics", default="", metavar="[HOST:]PORT", help="Show /metrics, /livez and /readyz there.")
def worker(project: Path, bootstrap: str, pipelines: tuple[str, ...], metrics: str) -> None:
    """Run the stages of deployed pipelines; several workers share the load, here or on other machines."""
    from dataflow.control.connect import connect
    from dataflow.control.host import Host
    from dataflow.control.metrics_door import show_metrics
    from dataflow.registry import Registry

    few_arenas()
    _log_to_stderr()
    stop = _stop_on_signals()
    fabric = connect(project, bootstrap, os.environ)
    running = Host(_workshop(project, Registry.default(project), fabric))
    calm_collector()
    try:
        with show_metrics(metrics, running, os.environ) as url:
            if url:
                console().print(f"metrics  {url}")
            follow_plans(fabric, running, project, pipelines, stop)
    finally:
        running.stop()
        fabric.close()


@click.command()
@project_option
@bootstrap_option
@door_options
def gateway(
    project: Path,
    bootstrap: str,
    host: str | None,
    port: int | None,
    grpc_port: int | None,
    grpc: bool | None,
) -> None:
    """Serve deployed pipelines over HTTP and gRPC; the work is done by workers elsewhere."""
    from dataflow.registry import Registry
    from dataflow.spec import load_project

    few_arenas()
    _log_to_stderr()
    settings = load_project(project, environ=os.environ)
    door = Door(settings, host, port, None, grpc_port_of(settings, grpc_port, wanted=grpc))
    door.reserve().close()  # an address that cannot be had is told now; until there are plans nobody is served
    door.reserved = None
    shop_of = partial(_workshop, project, Registry())
    _serve_deployed(project, bootstrap, door, shop_of, (), _stop_on_signals(), work=False)


@click.command()
@project_option
@bootstrap_option
@click.option("--pipeline", "pipelines", multiple=True, help="Serve this one only; may be repeated.")
@door_options
@click.option(
    "--processes",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    help="So many processes on one port; SIGHUP replaces them one by one.",
)
@hand_off_option
def serve(
    project: Path,
    bootstrap: str,
    pipelines: tuple[str, ...],
    host: str | None,
    port: int | None,
    grpc_port: int | None,
    grpc: bool | None,
    processes: int,
    hand_off: bool,
) -> None:
    """Be gateway and worker of deployed pipelines at once: requests are handed to their stage in memory.

    They are written to Kafka all the same. Several processes share the load, here or on other machines.
    """
    from dataflow.cli.fleet import Fleet, Place
    from dataflow.registry import Registry
    from dataflow.spec import load_project

    few_arenas()
    _log_to_stderr()
    stop = _stop_on_signals()
    settings = load_project(project, environ=os.environ)
    place, arguments = Place.found(), sys.argv[1:]
    door = Door(settings, host, port, None, grpc_port_of(settings, grpc_port, wanted=grpc), place)
    if place is not None:
        place.watch(stop)
    elif processes > 1:
        if door.grpc is not None and not door.grpc.port:
            arguments += ["--grpc-port", str(free_port(door.host))]  # one for all of them
        renew = threading.Event()
        signal.signal(signal.SIGHUP, lambda *_: renew.set())
        with closing(door.reserve()) as listening:
            say = partial(console().print, highlight=False)
            say(f"gateway  {door.url(int(listening.getsockname()[1]))}")
            Fleet(processes, arguments, listening).run(stop, renew, say)
        return
    else:
        door.reserve().close()
        door.reserved = None
    shop_of = partial(_workshop, project, Registry.default(project), hand_off=hand_off)
    _serve_deployed(project, bootstrap, door, shop_of, pipelines, stop, work=True)


def _serve_deployed(
    project: Path,
    bootstrap: str,
    door: Door,
    shop_of: Callable[[KafkaFabric], Workshop],
    pipelines: tuple[str, ...],
    stop: threading.Event,
    *,
    work: bool,
) -> None:
    """Open the doors of what is deployed, and follow what is deployed later; `work` on it, too."""
    from dataflow.control.connect import connect
    from dataflow.control.host import Host

    fabric = connect(project, bootstrap, os.environ)
    running = Host(shop_of(fabric), work=work)
    failed: list[BaseException] = []
    folder = project if work else None

    def follow() -> None:
        try:
            follow_plans(fabric, running, folder, pipelines, stop)
        except BaseException as error:  # noqa: BLE001 - raised below, by the thread that people see
            failed.append(error)
            stop.set()

    follower = threading.Thread(target=follow, name="follow", daemon=True)
    follower.start()
    calm_collector()
    try:
        await_plans(running, stop)
        if work:
            running.await_ready(START_TIMEOUT_S)
        if not stop.is_set():
            _serve(running, door, fabric.bootstrap, stop, None)
    finally:
        stop.set()
        follower.join(FOLLOW_INTERVAL_S * 2)
        running.stop()
        fabric.close()
    if failed:
        raise failed[0]


@click.command()
@project_option
@bootstrap_option
@click.argument("pipelines", nargs=-1)
@click.option(
    "--alter-topics", is_flag=True, help="Change the settings of existing topics to those declared."
)
def deploy(project: Path, bootstrap: str, pipelines: tuple[str, ...], alter_topics: bool) -> None:
    """Put plans, schemas and topics onto the cluster; workers and gateways there take them up."""
    from dataflow.control.assemble import assemble, deployed_plans
    from dataflow.control.connect import connect

    there = partial(deployed_plans, project, bootstrap, os.environ)
    assembled = assemble(project, pipelines, environ=os.environ, on_build=show_build(), deployed=there)
    for problem in assembled.warnings:
        warn(str(problem))
    fabric = connect(project, bootstrap, os.environ)
    try:
        for plan in assembled.plans:
            deploy_plan(fabric, plan, alter_topics=alter_topics)
            console().print(f"deployed [bold]{plan.pipeline}[/] {plan.version}")
    finally:
        fabric.close()


# ---------------------------------------------------------------- broker and plans


def _workshop(
    project: Path, registry: Registry, fabric: KafkaFabric, *, files: bool = True, hand_off: bool = False
) -> Workshop:
    """`files`: state is kept in local files as well, which the next start begins from."""
    from dataflow.core.inprocess import InProcess
    from dataflow.observe.traces import Tracing
    from dataflow.runtime.keeping import state_folder
    from dataflow.runtime.workshop import Workshop

    folder = state_folder(project, os.environ) if files else None
    return Workshop(
        project, registry, fabric, tracing=Tracing.from_environment(os.environ), state_folder=folder,
        inside=InProcess(handing=hand_off),
    )  # fmt: skip


# ---------------------------------------------------------------- the doors


def _serve(
    running: Host, door: Door, bootstrap: str, stop: threading.Event, reloader: Reloader | None
) -> None:
    from dataflow.gateway.server import new_event_loop, serve

    served = running.gateway(door.tokens, detail=reloader is not None)

    async def main() -> None:
        stopping = asyncio.Event()
        loop = asyncio.get_running_loop()
        waiter = loop.run_in_executor(None, lambda: (stop.wait(), loop.call_soon_threadsafe(stopping.set)))
        try:
            async with _reloading(reloader, stopping):
                started = partial(_announce, door, running, bootstrap)
                await serve(
                    served, door.host, door.port, stopping, started, door.reserved, door.grpc, door.limits
                )
        finally:
            stop.set()  # else its waiter would keep the process
            await waiter

    try:
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            runner.run(main())
    finally:
        door.closed()


def _announce(door: Door, running: Host, bootstrap: str, port: int) -> None:
    door.opened(port, bootstrap)
    if door.one_of_several:
        return
    for plan in running.plans.values():
        path = f"/v2/models/{plan.pipeline}/infer" if plan.answer else "no answer: produce to its inputs"
        console().print(f"pipeline [bold]{plan.pipeline}[/] {plan.version}  {path}", highlight=False)
    console().print("Ctrl-C drains and stops")


@asynccontextmanager
async def _reloading(reloader: Reloader | None, stopping: asyncio.Event) -> AsyncIterator[None]:
    if reloader is None:
        yield
        return
    task = asyncio.create_task(reloader.watch(stopping))
    try:
        yield
    finally:
        stopping.set()
        await task


# ---------------------------------------------------------------- process


def _stop_on_signals() -> threading.Event:
    """Set by the first SIGINT or SIGTERM; a second one ends the process at once."""
    stop = threading.Event()

    def handle(number: int, _frame: object) -> None:
        if stop.is_set():
            os._exit(128 + number)
        stop.set()

    signal.signal(signal.SIGINT, handle)
    signal.signal(signal.SIGTERM, handle)
    return stop


def _log_to_stderr() -> None:
    """Warnings and errors as lines; with DATAFLOW_LOG=json as JSON objects. Silent in normal work."""
    from dataflow.observe.logs import configure

    configure(os.environ.get("DATAFLOW_LOG", "text"))


serve_commands: Final[list[click.Command]] = [up, deploy, serve, worker, gateway]
