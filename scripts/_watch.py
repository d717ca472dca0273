"""The demo's live table: how many records each node has seen, and how fast, while flights are replayed."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from scripts._stage import COMMAND, DemoError, Output, Stage, check, child

REPLAY_TIMEOUT_S = 120.0
REFRESH_S = 0.25


def replay(stage: Stage, file: Path, records: int) -> tuple[float, float]:
    """Produce a file of flights and watch until every stage has done all its work: (most flights a second, seconds).

    Raises DemoError when a record failed, was lost or does not arrive in time.
    """
    before = stage_records(stage.graph())["weather"]
    arguments = ["produce", "flights.departures", str(file)]
    stage.command(*arguments)
    began = time.monotonic()
    peak: dict[str, float] = {}
    live = Live(console=stage.console, auto_refresh=False, transient=True)
    with live, child([str(COMMAND), *arguments], stage.environment()) as producing:
        said = Output(producing)
        while True:
            graph = stage.graph()
            for node in graph["nodes"]:
                peak[node["name"]] = max(peak.get(node["name"], 0.0), node["rate"])
            done = stage_records(graph)["weather"] - before
            live.update(_shown(graph, done, records), refresh=True)
            check(
                producing.poll() in {None, 0},
                "producing failed:\n" + "\n".join(said.lines),
            )
            if producing.poll() == 0 and done >= records and at_rest(graph):
                break
            if time.monotonic() - began > REPLAY_TIMEOUT_S:
                raise DemoError(f"{done} of {records} flights after {REPLAY_TIMEOUT_S:.0f} s")
            time.sleep(REFRESH_S)
    seconds = time.monotonic() - began
    stage.console.print(rates(graph, peak))
    check(done == records, f"{done} flights arrived, {records} were sent")
    failed = sum(s["dead_letters"] for s in graph["stages"])
    check(failed == 0, f"{failed} records failed: dataflow dead-letters list")
    check(all(rate > 0 for name, rate in peak.items() if name != "crew"), f"a node stood still: {peak}")
    return peak["weather"], seconds


def stage_records(graph: Mapping[str, Any]) -> dict[str, int]:
    return {s["name"]: s["records"] for s in graph["stages"]}


def at_rest(graph: Mapping[str, Any]) -> bool:
    """Whether every stage has worked off what the stage before it wrote (lag is measured only now and then)."""
    done = stage_records(graph)
    late = next(e["records"] for e in graph["edges"] if e["name"] == "triage.late")
    return (
        done["drift"] == done["weather"]
        and done["crew"] == late
        and all(s["lag"] == 0 for s in graph["stages"])
    )


def _shown(graph: Mapping[str, Any], done: int, records: int) -> RenderableType:
    head = Table.grid(padding=(0, 1))
    head.add_row(
        "  ", ProgressBar(total=records, completed=done, width=40), f"{done:,} of {records:,} flights"
    )
    return Group(head, rates(graph))


def rates(graph: Mapping[str, Any], peak: Mapping[str, float] | None = None) -> Table:
    """Nodes by stage with records, rates (now, or the highest seen) and time per batch."""
    table = Table(box=None, padding=(0, 2), show_edge=False)
    for name in ("stage", "node"):
        table.add_column(name)
    for name in ("records", "records/s" if peak is None else "most/s", "batch", "ms/batch", "lag"):
        table.add_column(name, justify="right")
    nodes = {node["name"]: node for node in graph["nodes"]}
    for found in graph["stages"]:
        for place, name in enumerate(found["nodes"]):
            node = nodes[name]
            rate = node["rate"] if peak is None else peak[name]
            table.add_row(
                Text(found["name"] if not place else "", style="bold"),
                name,
                f"{node['records']:,}",
                f"{rate:,.0f}",
                f"{node['batch_mean']:.0f}",
                f"{node['seconds_mean'] * 1_000:.2f}",
                str(found["lag"]) if not place else "",
            )
    return table
