"""Keeping a process at the plans on the cluster, as `worker`, `gateway` and `serve` do."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final

from dataflow.cli.hosting import console, warn
from dataflow.core.errors import DataflowError, TransportError

if TYPE_CHECKING:
    from dataflow.control.host import Host
    from dataflow.planner.plan import Plan
    from dataflow.transport.kafka import KafkaFabric

# How often they look for newer ones.
FOLLOW_INTERVAL_S: Final = 2.0


def await_plans(running: Host, stop: threading.Event) -> None:
    """Wait until there is something to serve."""
    while not running.plans and not stop.wait(0.1):
        pass


def _workable(plan: Plan, running: Host, folder: Path, refused: dict[str, str]) -> bool:
    """Whether this machine has what a plan was made of; a refusal is told once. What runs already goes on running."""
    from dataflow.control.assemble import code_matches

    served = running.plans.get(plan.pipeline)
    if (served is not None and served.version == plan.version) or code_matches(folder, plan):
        return True
    if refused.get(plan.pipeline) != plan.version:
        refused[plan.pipeline] = plan.version
        warn(
            f"pipeline '{plan.pipeline}' {plan.version}: the code or a model in '{folder}' is not what was planned; "
            "this worker leaves it to others (bring the project's files up to date)"
        )
    return False


def follow_plans(
    fabric: KafkaFabric, running: Host, folder: Path | None, pipelines: tuple[str, ...], stop: threading.Event
) -> None:
    """Keep `running` at the plans on the cluster. With a folder, only plans whose code is the one found there."""
    from dataflow.control.deploy import read_plans

    refused: dict[str, str] = {}
    told = False
    while True:
        try:
            plans = [p for n, p in read_plans(fabric).items() if not pipelines or n in pipelines]
        except TransportError as error:
            warn(f"reading plans: {error}")
            if stop.wait(FOLLOW_INTERVAL_S):
                return
            continue
        if folder is not None:
            plans = [plan for plan in plans if _workable(plan, running, folder, refused)]
        if not plans and not refused and not told:
            told = True
            console().print(f"waiting for {' and '.join(pipelines) or 'pipelines'}: not deployed yet")
        for name in running.run(plans):
            console().print(f"pipeline [bold]{name}[/] {running.plans[name].version}")
        if running.failed:
            raise DataflowError("stopped: " + "; ".join(running.failed))
        if stop.wait(FOLLOW_INTERVAL_S):
            return
